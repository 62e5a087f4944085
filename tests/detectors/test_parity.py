"""The result of a frame equals that of Ultralytics' `predict` for that image alone, at the same settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from consumer.config import DetectorConfig
from consumer.detectors.loader import load_detector
from consumer.types import Detections
from detector_frames import SIZES, Agreement, Image, agreement, detect, draw
from detector_models import STATIC_SIZE, ModelShop, export_onnx

# Name of the model -> image_size.
CASES = {
    "v8": 640,
    "26-both-heads": 640,
    "26-end-to-end": 640,
    "v8-onnx-dynamic": 640,
    "v8-onnx-1": STATIC_SIZE,
    "v8-onnx-4": STATIC_SIZE,
    "v8-onnx-bare": 640,
    "26-onnx-end-to-end": 640,
    "26-onnx-nms": STATIC_SIZE,
}
IMAGES = [draw(width, height, seed) for seed, (width, height) in enumerate(SIZES)]


def reference(path: Path, images: list[Image], **settings: Any) -> list[Detections]:
    """Return the results of Ultralytics for each image alone."""
    from ultralytics import YOLO

    model = YOLO(path, task="detect")
    results = []
    for image in images:
        (result,) = model.predict(image, device="cpu", verbose=False, **settings)
        boxes = result.boxes.cpu().numpy()
        columns = (boxes.xyxy.astype(np.float32), boxes.conf.astype(np.float32), boxes.cls.astype(np.int32))
        results.append(Detections(*columns))
    return results


def compare(path: Path, images: list[Image], *, size: int, confidence: float = 0.25, iou: float = 0.7) -> Agreement:
    """Compare one call of Sluice with all images and one call of Ultralytics per image."""
    config = DetectorConfig(model=str(path), device="cpu", image_size=size, confidence=confidence, iou=iou)
    detector = load_detector(config)
    theirs = reference(path, images, conf=confidence, iou=iou, imgsz=size)
    total = Agreement()
    for actual, expected in zip(detect(detector, images), theirs, strict=True):
        total.add(agreement(actual, expected, confidence))
    detector.close()
    return total


def assert_equal(found: Agreement, at_least: int) -> None:
    assert found.unmatched == 0, found
    assert found.pairs >= at_least, found
    assert found.least_iou >= 0.99, found
    assert found.worst_score <= 1e-2, found


@pytest.mark.parametrize("name", CASES)
def test_results_equal_predict(name: str, models: ModelShop) -> None:
    """Catches: a canvas, scale, head, NMS or rounding that differs from Ultralytics. The odd sizes reveal it."""
    assert_equal(compare(models(name), IMAGES, size=CASES[name]), at_least=60)


@pytest.mark.parametrize(("confidence", "iou"), [(0.05, 0.7), (0.25, 0.3), (0.15, 0.95)])
@pytest.mark.parametrize("name", ["v8", "v8-onnx-dynamic"])
def test_results_equal_predict_at_other_thresholds(name: str, models: ModelShop, confidence: float, iou: float) -> None:
    """Catches: a threshold that is ignored, compared with >= or applied before the best class is chosen."""
    assert_equal(compare(models(name), IMAGES[:3], size=320, confidence=confidence, iou=iou), at_least=5)


@pytest.mark.shared
@pytest.mark.parametrize("export", [None, {"dynamic": True}], ids=["pt", "onnx"])
def test_results_equal_predict_on_real_video(
    coco: Path, videos: list[Path], tmp_path: Path, export: dict[str, Any] | None
) -> None:
    """Catches: errors that only a trained model reveals, such as swapped colours, on frames as cameras send them."""
    path = coco
    if export is not None:
        path = export_onnx(Path(shutil.copy(coco, tmp_path / coco.name)), **export)
    images = [frame for video in videos for frame in _frames(video, 4)]
    assert_equal(compare(path, images, size=640, confidence=0.1), at_least=10)


def _frames(video: Path, count: int) -> list[Image]:
    """Return this number of frames, evenly distributed over the video."""
    capture = cv2.VideoCapture(str(video))
    length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    frames: list[Image] = []
    for index in np.linspace(0, length - 1, count + 2)[1:-1].astype(int):
        capture.set(cv2.CAP_PROP_POS_FRAMES, float(index))
        read, frame = capture.read()
        if read:
            frames.append(np.asarray(frame, np.uint8))
    return frames
