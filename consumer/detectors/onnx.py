"""Runs `.onnx` models with onnxruntime.

It does not import torch, so that a pod without a GPU does not need it.

The batch size and the canvas size of the model may be dynamic or fixed. For a fixed batch size N, frames are processed
in chunks of N, and the last chunk is padded with zeros. On CUDA, frames are transferred as floats and NMS runs on the
CPU, so the `.pt` file is the better choice for a GPU.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumer.config import DetectorConfig
from consumer.detectors.canvas import CHANNELS, canvases, group_by_shape, policy_for
from consumer.detectors.device import parse_device
from consumer.detectors.postprocess import check_finite, is_end_to_end, select, to_detections
from consumer.errors import EngineError, ModelError
from consumer.types import Detections, DeviceMemory, Letterbox, LetterboxPolicy, ModelInfo

_MIN_STRIDE = 32
_DTYPES: dict[str, type[np.floating]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_LOST = ("CUDA failure", "CUDNN failure", "CUBLAS failure", "CUDA error")
_NO_MEMORY = ("Failed to allocate memory", "out of memory")


class OnnxDetector:
    """A `Detector` for `.onnx` models.

    The result of each frame equals that of Ultralytics' `YOLO(path).predict(frame)` at the same settings. The number of
    threads is the default of onnxruntime.
    """

    def __init__(self, path: Path, digest: str, config: DetectorConfig) -> None:
        self._config = config
        self._session: Any = _session(path, config.device)
        metadata = _metadata(path, self._session.get_modelmeta().custom_metadata_map)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _DTYPES or len(inputs[0].shape) != 4:
            raise ModelError(f"{path}: expected one float input (batch, 3, height, width), got {_described(inputs)}")
        self._input: str = inputs[0].name
        self._dtype = _DTYPES[inputs[0].type]
        batch, channels, height, width = (side if isinstance(side, int) else None for side in inputs[0].shape)
        if channels not in (None, CHANNELS):
            raise ModelError(f"{path} takes images of {channels} channels; Sluice has {CHANNELS} (RGB)")
        size = config.image_size
        if height not in (None, size) or width not in (None, size):
            raise ModelError(_wrong_size(path, height, width, size))
        self._batch = batch
        self.info = ModelInfo(name=path.name, digest=digest, labels=_labels(path, metadata))
        provider = self._session.get_providers()[0]
        self.device = f"cuda:{parse_device(config.device).ordinal}" if provider.startswith("CUDA") else "cpu"
        stride = max(_stride(path, metadata), _MIN_STRIDE)
        self.policy: LetterboxPolicy = policy_for(size, stride, rect=height is None and width is None)
        self.max_batch_size: int | None = None
        self._check_output(path)

    def pin(self, memory: NDArray[np.uint8]) -> None:
        """No-op: onnxruntime gets new arrays, not this memory."""

    def warm_up(self, batch_size: int) -> None:
        side = self.policy.size
        letterbox = Letterbox.fit(side, side, self.policy)
        slots = np.zeros((batch_size, self.policy.slot_bytes), np.uint8)
        for n in (batch_size, 1):
            check_finite(self.info.name, self.detect(slots[:n], [letterbox] * n))

    def detect(self, slots: NDArray[np.uint8], letterboxes: Sequence[Letterbox]) -> list[Detections]:
        results = [Detections.none()] * len(letterboxes)
        for group in group_by_shape(slots, letterboxes):
            frames = canvases(slots, group)
            step = self._batch or len(frames)
            for first in range(0, len(frames), step):
                rows = group.rows[first : first + step]
                prediction = self._run(frames[first : first + step])[: len(rows)]
                for row, found in zip(rows, select(prediction, self._config), strict=True):
                    results[row] = to_detections(found, letterboxes[row])
        return results

    def device_memory(self) -> DeviceMemory | None:
        return None  # onnxruntime has no function for it

    def close(self) -> None:
        self._session = None

    def _run(self, frames: NDArray[np.uint8]) -> NDArray[np.floating]:
        """Run one forward pass: uint8 (n, height, width, 3) to the raw output. n is at most a fixed batch size."""
        n, height, width, _ = frames.shape
        tensor = np.zeros((self._batch or n, CHANNELS, height, width), self._dtype)
        # The division is in float32 also for a float16 model, because NumPy computes slowly in float16.
        np.divide(frames.transpose(0, 3, 1, 2), np.float32(255), out=tensor[:n], dtype=np.float32, casting="same_kind")
        with _faults_explained():
            output: NDArray[np.floating] = self._session.run(None, {self._input: tensor})[0]
        return output

    def _check_output(self, path: Path) -> None:
        """Run the model once on an empty canvas, to detect a model of another kind now and not by its results."""
        side = self.policy.size
        try:
            shape = self._run(np.zeros((1, side, side, CHANNELS), np.uint8)).shape
        except EngineError:
            raise
        except Exception as error:  # onnxruntime has its own types; for each of them the model does not run
            raise ModelError(f"{path} does not run on a {side}x{side} canvas: {error}") from error
        labels = len(self.info.labels)
        if len(shape) == 3 and is_end_to_end(shape):
            return
        # Without labels, an output with more classes than anchors must be transposed, as that of YOLOv5 is.
        if len(shape) != 3 or (labels and shape[1] != 4 + labels) or shape[1] > shape[2] > labels:
            raise ModelError(
                f"{path}: expected an output (batch, 4 + {labels or 'classes'}, anchors) or (batch, boxes, 6), got "
                f"{tuple(shape)}; export the model with Ultralytics (yolo export format=onnx)"
            )


def _session(path: Path, device: str) -> Any:
    """Open the model on the configured device, and on no other one.

    Raises:
        ModelError: The device is not available, or onnxruntime cannot open the model.
    """
    wanted = parse_device(device)
    try:
        import onnxruntime
    except ImportError:
        raise ModelError(
            f"{path} needs onnxruntime: install the extra `onnx` (pip install '.[onnx]' in Sluice's folder)"
        ) from None
    cuda_built = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if wanted.kind == "cuda" and not cuda_built:
        raise ModelError(
            f"detector.device is {device}, but this onnxruntime cannot use CUDA: install onnxruntime-gpu in its place, "
            "or set detector.device: auto or cpu"
        )
    providers: list[Any] = ["CPUExecutionProvider"]
    if wanted.kind != "cpu" and cuda_built:
        # By default cuDNN tries every algorithm for each new shape, and batches have every size. Not run on a GPU yet.
        cuda = {"device_id": wanted.ordinal, "cudnn_conv_algo_search": "HEURISTIC"}
        providers.insert(0, ("CUDAExecutionProvider", cuda))
    # In protobuf, the key of the entry that names an external file.
    if b"\n\x08location\x12" in path.read_bytes():
        raise ModelError(
            f"{path} keeps weights in another file, which no SHA-256 of it covers: export it as one file "
            "(onnx.save without save_as_external_data)"
        )
    try:
        session = onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # the types of onnxruntime have no common base class below Exception
        raise ModelError(f"onnxruntime {onnxruntime.__version__} cannot open {path}: {error}") from error
    if wanted.kind == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise ModelError(f"detector.device is {device}, but onnxruntime fell back to {session.get_providers()[0]}")
    return session


def _metadata(path: Path, raw: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata that Ultralytics wrote into the file; empty for a model that another tool exported.

    Raises:
        ModelError: The model is not one for YOLO detection.
    """
    task, head = raw.get("task", "detect"), raw.get("head", "Detect")
    if task != "detect":
        raise ModelError(f"{path} is a {task} model; Sluice needs one for detection (task detect)")
    if head.startswith("RTDETR"):
        raise ModelError(f"{path} is an RT-DETR model, which Sluice does not decode; use a YOLO model")
    return dict(raw)


def _labels(path: Path, metadata: Mapping[str, str]) -> dict[int, str]:
    """Return the class names. Ultralytics writes them as a Python literal, {0: 'person', ...}."""
    if "names" not in metadata:
        return {}
    try:
        names = ast.literal_eval(metadata["names"])
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(number): str(name) for number, name in pairs}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ModelError(f"{path}: its metadata has class names that are not a map of numbers to names") from None


def _stride(path: Path, metadata: Mapping[str, str]) -> int:
    stride = metadata.get("stride", str(_MIN_STRIDE))
    if not stride.isdecimal():
        raise ModelError(f"{path}: its metadata has a stride of {stride!r}, expected a number of pixels")
    return int(stride)


def _wrong_size(path: Path, height: int | None, width: int | None, size: int) -> str:
    found = f"{path} takes canvases of {width or 'any'}x{height or 'any'} pixels, detector.image_size is {size}"
    if height == width:
        return f"{found}: set it to {height}, or export the model again with imgsz={size}"
    return f"{found}, and canvases are square at most: export the model again with imgsz={size}"


def _described(values: Sequence[Any]) -> str:
    return ", ".join(f"{value.name}: {value.type} {value.shape}" for value in values) or "none"


@contextlib.contextmanager
def _faults_explained() -> Iterator[None]:
    """Translate the errors that the caller handles: out of memory to MemoryError, a lost device to EngineError."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if any(sign in text for sign in _NO_MEMORY):
            raise MemoryError(text) from error
        if any(sign in text for sign in _LOST):
            raise EngineError(f"the GPU failed and is lost to this process: {text}") from error
        raise
