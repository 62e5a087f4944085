"""Runs Ultralytics `.pt` models with torch.

On a GPU, frames are transferred as uint8 from page-locked memory, on a stream of their own. The device converts
layout, scale and precision. One NMS processes a whole forward pass, and only final boxes are copied back, in one
transfer.

The CUDA paths (`pin`, `_upload`, `_arrived`, `half`, the translation of faults) have not been run on a GPU yet, because
the development machine has none. For the same reason there are no CUDA graphs yet.

A `.pt` file is a pickle. It is loaded with `torch.load(weights_only=True)` and only the classes that Ultralytics lists.
A file that needs any other class is refused before any of its code runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumer.errors import EngineError, ModelError

try:
    import torch
    import torchvision
    from torch import Tensor
except ModuleNotFoundError as error:
    raise ModelError(
        f"a .pt model needs {error.name}: install the extra `torch` (pip install '.[torch]' in Sluice's folder)"
    ) from error

from consumer.config import DetectorConfig
from consumer.detectors.canvas import CHANNELS, Group, canvases, group_by_shape, policy_for
from consumer.detectors.device import parse_device
from consumer.detectors.postprocess import check_finite, to_detections
from consumer.detectors.postprocess_torch import select
from consumer.types import Detections, DeviceMemory, Letterbox, LetterboxPolicy, ModelInfo

# In Ultralytics, an end-to-end head proposes at least this number of boxes, also if max_detections is lower.
_MIN_PROPOSALS = 300
_MIN_STRIDE = 32
_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every CUDA context of the process


class TorchDetector:
    """A `Detector` for Ultralytics `.pt` models.

    The result of each frame equals that of Ultralytics' `YOLO(path).predict(frame)` at the same settings. For a model
    with two heads (YOLO26, YOLOv10), it uses the head that `predict` would use. The option `half` has an effect only on
    CUDA, as in Ultralytics. The number of threads is the default of torch.

    `detect` raises `torch.OutOfMemoryError` if the device has too little memory.
    """

    def __init__(self, path: Path, digest: str, config: DetectorConfig) -> None:
        self._config = config
        self._device = _device(config.device)
        self._cuda = self._device.type == "cuda"
        self._dtype = torch.float16 if config.half and self._cuda else torch.float32
        if self._cuda:
            torch.cuda.set_device(self._device)  # applies to this thread, which owns the detector
        self._pinned: NDArray[np.uint8] | None = None
        self._copies = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]
        model = _load(path, config)
        self._model: Any = model.to(self._device, self._dtype, memory_format=torch.channels_last)
        stride = max(int(model.stride.max()), _MIN_STRIDE)
        self.info = ModelInfo(name=path.name, digest=digest, labels={int(k): str(v) for k, v in model.names.items()})
        self.device = str(self._device)
        self.policy: LetterboxPolicy = policy_for(config.image_size, stride, rect=True)
        self.max_batch_size: int | None = None

    def pin(self, memory: NDArray[np.uint8]) -> None:
        if self._cuda:
            _page_lock(memory)
            self._pinned = memory

    def warm_up(self, batch_size: int) -> None:
        side = self.policy.size
        letterbox = Letterbox.fit(side, side, self.policy)
        slots = np.zeros((batch_size, self.policy.slot_bytes), np.uint8)
        for n in (batch_size, 1):
            check_finite(self.info.name, self.detect(slots[:n], [letterbox] * n))
        # NMS does not run for an empty canvas. Without this call, the first real frame would wait for its kernel.
        boxes = torch.rand(16, 4, device=self._device)
        torchvision.ops.nms(boxes, boxes[:, 0], self._config.iou).cpu()

    def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        results = [Detections.none()] * len(letterboxes)
        groups = group_by_shape(slots, letterboxes)
        with _faults_explained(), torch.inference_mode():
            # All copies are queued first, so that those of later groups overlap with the forward pass of the first one.
            uploads = [self._upload(slots, group) for group in groups]
            for group, upload in zip(groups, uploads, strict=True):
                frames = self._arrived(upload).permute(0, 3, 1, 2)
                frames = frames.to(self._dtype, memory_format=torch.channels_last).div_(255)
                output = self._model(frames)
                prediction = output[0] if isinstance(output, (list, tuple)) else output
                for row, found in zip(group.rows, select(prediction, self._config), strict=True):
                    results[row] = to_detections(found, letterboxes[row])
        return results

    def device_memory(self) -> DeviceMemory | None:
        if not self._cuda:
            return None
        try:
            free, total = torch.cuda.mem_get_info(self._device)
        except RuntimeError:  # the device is lost; the next batch raises the error, with the remedy
            return None
        return DeviceMemory(total - free, total)

    def close(self) -> None:
        self._model = None
        if self._pinned is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pinned.ctypes.data)  # type: ignore[no-untyped-call]
            self._pinned = None
        if self._cuda:
            torch.cuda.empty_cache()

    def _upload(self, slots: NDArray[np.uint8], group: Group) -> _Upload:
        """Queue the copy of a group's canvases to the device. On a CPU nothing is copied."""
        if self._copies is None:
            return _Upload(torch.from_numpy(canvases(slots, group)), None)
        host = torch.from_numpy(slots)
        with torch.cuda.stream(self._copies):
            staged = torch.empty((len(group.rows), group.canvas_bytes), dtype=torch.uint8, device=self._device)
            # Row by row, because only each single canvas is contiguous. torch would first gather all rows into pageable
            # memory.
            for place, row in enumerate(group.rows):
                staged[place].copy_(host[row, : group.canvas_bytes], non_blocking=True)
            copied = self._copies.record_event()
        return _Upload(staged.view(-1, group.height, group.width, CHANNELS), copied)

    def _arrived(self, upload: _Upload) -> Tensor:
        """Return the uploaded canvases for the compute stream. The stream waits for the copy; this thread does not."""
        if upload.copied is not None:
            compute = torch.cuda.current_stream(self._device)
            compute.wait_event(upload.copied)
            upload.canvases.record_stream(compute)  # keeps the memory until the forward pass has read it
        return upload.canvases


class _Upload(NamedTuple):
    canvases: Tensor  # uint8 (n, height, width, 3)
    copied: torch.cuda.Event | None  # None if no copy was necessary


def _page_lock(memory: NDArray[np.uint8]) -> None:
    """Page-lock memory in place, as torch does for shared state (`distributed._state_dict_utils`)."""
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(cudart.cudaHostRegister(memory.ctypes.data, memory.nbytes, _PORTABLE))
    if status:  # not ignorable: CUDA would report the error again in the next call, whatever that is
        raise EngineError(
            f"{memory.nbytes} bytes for frames cannot be page-locked for the GPU: CUDA error {status}; "
            "lower batching.max_batch_size or detector.image_size"
        )


def download(name: str) -> Path:
    """Download one of Ultralytics' own models into the working directory.

    Args:
        name: The file name, such as `yolo26n.pt`.

    Returns:
        The absolute path of the file.

    Raises:
        ModelError: Ultralytics has no model of this name, or the download failed.
    """
    _quiet_ultralytics()
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

    if name not in GITHUB_ASSETS_NAMES:
        raise ModelError(f"{name} is neither here nor one of Ultralytics' own models")
    try:
        path = Path(attempt_download_asset(name))
    except (OSError, RuntimeError) as error:
        raise ModelError(f"could not download {name}: {error}") from error
    if not path.is_file():
        raise ModelError(f"could not download {name}: see the log, or fetch it elsewhere and mount it")
    return path.resolve()


def _quiet_ultralytics() -> None:
    """Keep Ultralytics from installing packages and from probing the network.

    Ultralytics reads these variables once, at its first import. The attribute covers a process that has imported it
    before. Safe loading needs no variable: `_checkpoint` requests it by argument, which an Ultralytics without safe
    loading would not accept.
    """
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ.setdefault("YOLO_OFFLINE", "true")
    from ultralytics.utils import checks

    checks.AUTOINSTALL = False  # type: ignore[attr-defined]


def _device(wanted: str) -> torch.device:
    kind, index = parse_device(wanted)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not there):
        return torch.device("cpu")
    if index >= there:
        raise ModelError(
            f"detector.device is {wanted}, but torch {torch.__version__} finds {there} CUDA devices here. "
            "Give the pod a GPU (nvidia.com/gpu), or set detector.device: auto or cpu"
        )
    return torch.device("cuda", index)


def _load(path: Path, config: DetectorConfig) -> Any:
    """Return the model in the checkpoint: safely loaded, checked, fused, in evaluation mode, on the CPU."""
    _quiet_ultralytics()
    from ultralytics.utils import DEFAULT_CFG_DICT

    checkpoint = _checkpoint(path)
    model: Any = checkpoint.get("ema") or checkpoint.get("model")
    _check_kind(path, model)
    head = model.model[-1]
    # A model may have two heads: one that needs NMS and one that does not. `predict` uses the second one only with
    # nms=False, or if a fused model has no other head.
    model.end2end = DEFAULT_CFG_DICT.get("nms") is False and hasattr(head, "one2one_cv2")
    head.max_det = max(config.max_detections, _MIN_PROPOSALS)
    return model.float().fuse(verbose=False).eval()


def _check_kind(path: Path, model: object) -> None:
    """Raise ModelError if the model is not a YOLO detector of RGB images."""
    from ultralytics.nn.modules.head import Detect
    from ultralytics.nn.tasks import DetectionModel, guess_model_task

    task = getattr(model, "task", None) or guess_model_task(model)  # type: ignore[no-untyped-call]
    if task != "detect":
        raise ModelError(f"{path} is a {task} model; Sluice needs one for detection (task detect)")
    layers: Any = getattr(model, "model", [None])
    if not isinstance(model, DetectionModel) or not isinstance(layers[-1], Detect):
        raise ModelError(f"{path} holds a {type(model).__name__}, not an Ultralytics YOLO detection model")
    settings: Any = model.yaml
    if (channels := settings.get("channels", CHANNELS)) != CHANNELS:
        raise ModelError(f"{path} takes images of {channels} channels; Sluice has {CHANNELS} (RGB)")


def _checkpoint(path: Path) -> dict[str, Any]:
    from ultralytics.nn.tasks import torch_safe_load
    from ultralytics.utils.checks import check_yolov5u_filename

    # If the name has a quote, or is that of an old YOLOv5 model, Ultralytics opens another file instead. It would also
    # search for that file on the network.
    opened = check_yolov5u_filename(str(path).strip().replace("'", ""), verbose=False)
    if opened != str(path):
        raise ModelError(f"{path}: Ultralytics would open {opened} instead; rename the file")
    try:
        checkpoint, _ = torch_safe_load(path, safe_only=True)  # type: ignore[no-untyped-call]
    except Exception as error:  # a broken or hostile file may raise anything; all of it means "refused"
        raise ModelError(
            f"{path} was refused by safe loading, and none of its code was run: it is damaged, not an Ultralytics "
            f"checkpoint, or needs classes that Ultralytics does not know ({type(error).__name__}: {error})"
        ) from error
    return checkpoint if isinstance(checkpoint, dict) else {}


@contextlib.contextmanager
def _faults_explained() -> Iterator[None]:
    """Translate the error of a lost device to EngineError. Pass on OutOfMemoryError: the caller halves the batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch.AcceleratorError is one
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
            raise EngineError(f"the GPU failed and is lost to this process: {error}") from error
        raise
