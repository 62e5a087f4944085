"""Real frames, the real COCO model, a real broker: what comes out is what Ultralytics itself says."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from brokers import Broker
from sluice_process import Topics, produce, reading, running

CONFIDENCE = 0.25
MIN_IOU, MAX_SCORE_DIFFERENCE = 0.99, 1e-2


def jpegs(video: Path) -> list[bytes]:
    capture = cv2.VideoCapture(str(video))
    encoded = []
    while (read := capture.read())[0]:
        encoded.append(cv2.imencode(".jpg", read[1], (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes())
    return encoded


def by_ultralytics(model: Path, encoded: list[bytes]) -> list[np.ndarray]:
    """Per frame (n, 6): x1 y1 x2 y2 score class, from `predict` with its defaults, one frame at a time."""
    from ultralytics import YOLO

    yolo = YOLO(str(model))
    found = []
    for data in encoded:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        result = yolo.predict(image, conf=CONFIDENCE, iou=0.7, imgsz=640, verbose=False, device="cpu")[0]
        found.append(result.boxes.data.cpu().numpy())
    return found


def ours(result: dict[str, Any]) -> np.ndarray:
    rows = [[*seen["box"], seen["score"], seen["class_id"]] for seen in result["detections"]]
    return np.array(rows, np.float32).reshape(-1, 6)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(both / (area - both))


def unmatched(mine: np.ndarray, theirs: np.ndarray) -> list[np.ndarray]:
    """Boxes on either side without a partner of the same class, place and score on the other.

    A box whose score lies at the threshold itself may fall on either side of it.
    """
    left = list(theirs)
    alone = []
    for box in mine:
        partner = next(
            (
                i
                for i, other in enumerate(left)
                if box[5] == other[5] and abs(box[4] - other[4]) <= MAX_SCORE_DIFFERENCE and iou(box, other) >= MIN_IOU
            ),
            None,
        )
        alone.append(box) if partner is None else left.pop(partner)
    return [box for box in alone + left if box[4] > CONFIDENCE + MAX_SCORE_DIFFERENCE]


@pytest.mark.kafka
@pytest.mark.shared
@pytest.mark.timeout(600)
def test_every_frame_of_a_real_video_gets_the_detections_that_ultralytics_gives(
    apache_broker: Broker, shared_model: Path, shared_videos: list[Path]
) -> None:
    """Catches: another letterbox, colour order, NMS or rounding than the model was trained for; swapped frames."""
    video = next(path for path in shared_videos if path.name == "car-detection.mp4")
    encoded = jpegs(video)
    assert len(encoded) == 377
    topics = Topics.on(apache_broker, partitions=1)
    options = {"detector__confidence": CONFIDENCE, "batching__max_batch_size": 8, "limits__drain_timeout_s": 60}
    with (
        running(apache_broker, topics, str(shared_model), **options) as sluice,
        reading(apache_broker, topics.detections) as reader,
    ):
        produce(apache_broker, topics.frames, [("road", data) for data in encoded])
        reader.read(len(encoded), 300, alive=lambda: sluice.running)
        assert sluice.terminate(60) == 0, sluice.log
        reader.drain()
    results = reader.results()
    assert [result["input"]["offset"] for result in results] == list(range(len(encoded)))
    expected = by_ultralytics(shared_model, encoded)
    boxes = 0
    for n, (result, theirs) in enumerate(zip(results, expected, strict=True)):
        assert (result["width"], result["height"]) == (768, 432)
        alone = unmatched(ours(result), theirs)
        assert not alone, f"frame {n}: {alone}"
        boxes += len(theirs)
    assert boxes > 100, "the video shows cars; a model that sees none proves nothing"
    labels = set(itertools.chain.from_iterable((d["label"] for d in r["detections"]) for r in results))
    assert "car" in labels
    print(f"{boxes} boxes compared")
