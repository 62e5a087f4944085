"""Which models are loaded and which are refused. A refusal comes before any code of the model runs."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from consumer.config import DetectorConfig
from consumer.detectors.loader import load_detector
from consumer.errors import ModelError
from detector_models import ModelShop

ROOT = Path(__file__).resolve().parents[2]


def load(model: Path | str, **options: Any) -> Any:
    return load_detector(DetectorConfig(model=str(model), device=options.pop("device", "cpu"), **options))


class Bomb:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare pickle", "torch archive"])
@pytest.mark.parametrize("unsafe", [False, True], ids=["", "safe loading switched off in the environment"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, wrapped: bool, unsafe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: `torch.load` without `weights_only`, and a safe mode that depends on when Ultralytics was imported."""
    if unsafe:
        monkeypatch.setenv("ULTRALYTICS_SAFE_LOAD", "0")
    model, trace = tmp_path / "bomb.pt", tmp_path / "ran"
    if wrapped:
        import torch

        torch.save({"model": Bomb(trace)}, model)
    else:
        model.write_bytes(pickle.dumps({"model": Bomb(trace)}, protocol=2))
    with pytest.raises(ModelError, match="refused by safe loading"):
        load(model)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))  # proves that the bomb works
    assert trace.exists()


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_a_wrong_digest_is_found_before_the_file_is_opened(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a check after loading, when code of a replaced model has already run."""
    model = tmp_path / f"model{suffix}"
    model.write_bytes(b"not a model at all")
    for backend in ("torch", "onnx"):
        monkeypatch.setitem(sys.modules, f"consumer.detectors.{backend}", None)  # importing it would fail the test
    with pytest.raises(ModelError, match=r"has SHA-256 \w{64}, but detector.sha256 is 0{64}. It was not opened"):
        load(model, sha256="0" * 64)


def test_the_right_digest_loads_and_is_reported(models: ModelShop) -> None:
    """Catches: a digest of only a part of the file, so that results name a model that was not used."""
    digest = hashlib.sha256(models("v8").read_bytes()).hexdigest()
    detector = load(models("v8"), sha256=digest)
    assert detector.info.digest == f"sha256:{digest}"
    assert detector.info.name == "tiny.pt"


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 and then nothing"])
def test_a_damaged_file_is_a_model_error_that_names_it(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Catches: a traceback from deep inside a library, which does not name the file."""
    model = tmp_path / f"model{suffix}"
    model.write_bytes(content)
    with pytest.raises(ModelError, match=model.name):
        load(model)


def test_a_truncated_checkpoint_is_a_model_error_and_stays(models: ModelShop, tmp_path: Path) -> None:
    """Catches: the recovery of Ultralytics, which deletes a damaged file of a known name and downloads another one."""
    model = tmp_path / "yolo26n.pt"
    model.write_bytes(models("v8").read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"yolo26n\.pt"):
        load(model)
    assert model.exists()


@pytest.mark.parametrize("model", ["yolo26n.pt", "/nowhere/model.pt", "model.onnx"])
def test_a_missing_file_is_not_downloaded_and_the_error_has_a_remedy(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: the default of Ultralytics, which downloads every name that it knows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "consumer.detectors.torch", None)  # nothing can be downloaded without it
    with pytest.raises(ModelError, match="does not exist: mount or copy it there") as caught:
        load(model)
    assert ("SLUICE_DETECTOR__ALLOW_DOWNLOAD" in str(caught.value)) == (model == "yolo26n.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["/nowhere/yolo26n.pt", "model.onnx", "somebody-elses.pt"])
def test_a_permission_to_download_covers_only_models_of_ultralytics(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a mistyped path that is searched on the network."""
    monkeypatch.chdir(tmp_path)
    _no_network(monkeypatch)
    with pytest.raises(ModelError, match=r"does not exist|neither here nor one of Ultralytics' own"):
        load(model, allow_download=True)


def test_a_permitted_download_is_checked_like_any_file(
    models: ModelShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a downloaded model whose SHA-256 is not checked."""
    from ultralytics.utils import downloads

    def fetch(url: str, file: Path, **_: Any) -> None:
        assert url.startswith("https://github.com/ultralytics/assets/")
        Path(file).write_bytes(models("v8").read_bytes())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "safe_download", fetch)
    with pytest.raises(ModelError, match="It was not opened"):
        load("yolo26n.pt", allow_download=True, sha256="0" * 64)
    assert load("yolo26n.pt", allow_download=True).info.name == "yolo26n.pt"


def test_a_name_for_which_ultralytics_opens_another_file_is_refused(
    models: ModelShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: the digest of one file with the weights of another. Ultralytics removes quotes from a path."""
    _no_network(monkeypatch)
    model = tmp_path / "it's.pt"
    model.write_bytes(models("v8").read_bytes())
    with pytest.raises(ModelError, match="rename the file"):
        load(model)


def test_a_model_for_another_task_is_refused(models: ModelShop, tmp_path: Path) -> None:
    """Catches: a segmentation model whose masks are read as classes."""
    import torch

    checkpoint = torch.load(models("v8"), weights_only=False)
    checkpoint["model"].task = "segment"
    torch.save(checkpoint, tmp_path / "segment.pt")
    with pytest.raises(ModelError, match="is a segment model; Sluice needs one for detection"):
        load(tmp_path / "segment.pt")


def test_a_checkpoint_without_a_detector_is_refused(tmp_path: Path) -> None:
    """Catches: a state dict, or a checkpoint of another framework, that fails only at the first frame."""
    import torch

    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="not an Ultralytics YOLO detection model"):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "segment", "is a segment model"),
        ("head", "RTDETRDecoder", "RT-DETR"),
        ("names", "__import__('os').getcwd()", "class names"),
        ("names", "{0: 'car'}", r"expected an output \(batch, 4 \+ 1, anchors\)"),
        ("stride", "wide", "stride of 'wide'"),
    ],
)
def test_onnx_metadata_that_does_not_fit_is_refused(
    key: str, value: str, message: str, models: ModelShop, tmp_path: Path
) -> None:
    """Catches: a model of another kind that is detected only by its nonsense results."""
    import onnx

    model = onnx.load(str(models("v8-onnx-dynamic")))
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "model.onnx")


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_an_onnx_model_with_weights_in_another_file_is_refused(
    location: str, models: ModelShop, tmp_path: Path
) -> None:
    """Catches: weights that no SHA-256 covers, and a path in a model that leads to any file of the pod."""
    import onnx

    model = onnx.load(str(models("v8-onnx-dynamic")))
    largest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    (tmp_path / "weights.bin").write_bytes(largest.raw_data)
    onnx.external_data_helper.set_external_data(largest, location)
    largest.ClearField("raw_data")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="keeps weights in another file, which no SHA-256"):
        load(tmp_path / "model.onnx")


def test_an_onnx_model_of_another_size_names_both_sizes(models: ModelShop) -> None:
    """Catches: canvases of a size that the model refuses only at the first frame."""
    with pytest.raises(ModelError, match=r"takes canvases of 320x320 pixels, detector\.image_size is 640: set it to"):
        load(models("v8-onnx-1"))


def test_an_onnx_model_without_metadata_works_without_labels(models: ModelShop) -> None:
    """Catches: names of COCO that are invented for it."""
    detector = load(models("v8-onnx-bare"))
    assert detector.info.labels == {}
    assert detector.info.label(3) == "3"


def test_tensorrt_engines_are_refused_with_a_way_out(tmp_path: Path) -> None:
    """Catches: an engine file that is taken for a checkpoint."""
    (tmp_path / "model.engine").write_bytes(b"engine")
    with pytest.raises(ModelError, match=r"TensorRT engines are not in this version.*\.onnx"):
        load(tmp_path / "model.engine")


@pytest.mark.parametrize(
    ("model", "backend", "message"),
    [
        ("", "auto", "detector.model is not set"),
        ("model.weights", "auto", r"expected a \.pt or \.onnx file"),
        ("model.onnx", "torch", r"detector\.backend is torch, which takes \.pt, but"),
        ("model.pt", "simulated", "which takes simulated://"),
        ("simulated://1ms@1", "onnx", r"which takes \.onnx"),
    ],
)
def test_a_backend_that_does_not_fit_the_model_is_refused(model: str, backend: str, message: str) -> None:
    """Catches: an explicit option that the suffix silently overrides."""
    with pytest.raises(ModelError, match=message):
        load(model, backend=backend)


def test_a_digest_for_a_simulated_detector_is_refused() -> None:
    """Catches: a check that an operator requested and that silently does not happen."""
    with pytest.raises(ModelError, match="has no file to check"):
        load("simulated://1ms@1", sha256="0" * 64)


def test_a_folder_is_not_a_model(tmp_path: Path) -> None:
    """Catches: an IsADirectoryError from a volume that was mounted in place of the file."""
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(ModelError, match="is not a file"):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["v8", "v8-onnx-dynamic"])
@pytest.mark.parametrize(("device", "message"), [("cuda:99", "cuda:99"), ("gpu", "expected auto, cpu")])
def test_a_missing_device_is_refused(name: str, device: str, message: str, models: ModelShop) -> None:
    """Catches: a pod without its GPU that silently runs on the CPU, thirty times slower."""
    with pytest.raises(ModelError, match=message):
        load(models(name), device=device)


def test_an_onnx_model_needs_neither_torch_nor_ultralytics(models: ModelShop) -> None:
    """Catches: an import because of which every pod without a GPU needs torch, and every start waits for it."""
    code = (
        "import sys\n"
        "from consumer.config import DetectorConfig\n"
        "from consumer.detectors.loader import load_detector\n"
        f"detector = load_detector(DetectorConfig(model={str(models('v8-onnx-dynamic'))!r}, image_size=64))\n"
        "detector.warm_up(1)\n"
        "print(sorted({'torch', 'torchvision', 'ultralytics', 'cv2'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_bomb_test_covers_the_format_that_torch_writes(tmp_path: Path) -> None:
    """Catches: a change of torch's format after which the archive above is not valid."""
    import torch

    torch.save({"model": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    assert zipfile.is_zipfile(tmp_path / "bomb.pt")


def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import downloads

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("tried to reach the network")

    for function in ("safe_download", "get_github_assets"):
        monkeypatch.setattr(downloads, function, refuse)
