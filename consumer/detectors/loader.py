"""Builds the detector that the `detector` options describe.

The model file is not interpreted before its SHA-256 was compared. A backend is imported only if it is used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from consumer.config import DetectorConfig
from consumer.detectors.base import Detector
from consumer.detectors.simulated import SCHEME, SimulatedDetector
from consumer.errors import ModelError

Backend = Literal["torch", "onnx", "tensorrt", "simulated"]

_BY_SUFFIX: dict[str, Backend] = {".pt": "torch", ".onnx": "onnx", ".engine": "tensorrt"}


def load_detector(config: DetectorConfig) -> Detector:
    """Build the detector that `config` describes.

    Call it on the inference thread, which owns the detector from then on.

    Raises:
        ModelError: The model is missing, unsafe, of the wrong kind, or does not have the configured SHA-256. Or its
            backend or device is not available. The message contains the remedy.
    """
    backend = _backend(config)
    if backend == "simulated":
        if config.sha256:
            raise ModelError("detector.sha256 is set, but a simulated detector has no file to check: unset it")
        return SimulatedDetector(config)
    path = _present(config, backend)
    digest = _checked_digest(path, config.sha256)
    if backend == "torch":
        from consumer.detectors.torch import TorchDetector

        return TorchDetector(path, digest, config)
    from consumer.detectors.onnx import OnnxDetector

    return OnnxDetector(path, digest, config)


def _backend(config: DetectorConfig) -> Backend:
    """Return the backend for the suffix or scheme of the model, checked against `detector.backend`."""
    model = config.model
    if not model:
        raise ModelError("detector.model is not set: give the path of a .pt or .onnx file (SLUICE_DETECTOR__MODEL)")
    named: Backend | None = "simulated" if model.startswith(SCHEME) else _BY_SUFFIX.get(Path(model).suffix.lower())
    if named is None:
        raise ModelError(f"detector.model {model!r}: expected a .pt or .onnx file, or {SCHEME}6.667ms@1,40ms@32")
    if config.backend not in ("auto", named):
        wants = next((suffix for suffix, backend in _BY_SUFFIX.items() if backend == config.backend), SCHEME)
        raise ModelError(f"detector.backend is {config.backend}, which takes {wants}, but detector.model is {model!r}")
    if named == "tensorrt":
        raise ModelError(
            f"{model}: TensorRT engines are not in this version. Use the .pt file that it was built from, "
            "or export that to .onnx (yolo export format=onnx)"
        )
    return named


def _present(config: DetectorConfig, backend: Backend) -> Path:
    """Return the path of the model file; download the file first if that is allowed and necessary.

    The path is absolute, so that no loader searches for the file elsewhere.
    """
    path = Path(config.model).expanduser()
    if path.is_file():
        return path.resolve()
    if path.exists():
        raise ModelError(f"detector.model {config.model!r} is not a file")
    bare_name = backend == "torch" and path.name == config.model
    if bare_name and config.allow_download:
        from consumer.detectors.torch import download

        return download(config.model)
    advice = "mount or copy it there, or correct detector.model (SLUICE_DETECTOR__MODEL)"
    if bare_name:
        advice += (
            "; if it is one of Ultralytics' own models, detector.allow_download: true "
            "(SLUICE_DETECTOR__ALLOW_DOWNLOAD=true) lets it be fetched"
        )
    raise ModelError(f"model file {path.absolute()} does not exist: {advice}")


def _checked_digest(path: Path, expected: str | None) -> str:
    """Return `sha256:<hex>` of the file, which is read once in chunks.

    Raises:
        ModelError: The file cannot be read, or has another SHA-256 than `expected`.
    """
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read the model file {path}: {error.strerror}") from None
    if expected is not None and actual != expected:
        raise ModelError(
            f"{path} has SHA-256 {actual}, but detector.sha256 is {expected}. It was not opened: "
            "restore the model that was meant, or configure the new digest if the change was"
        )
    return f"sha256:{actual}"
