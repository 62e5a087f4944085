"""Scores a model by its average precision at IoU 0.5."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenes import CLASS_NAMES, Label

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions of a model for one picture: boxes (n, 4) x1 y1 x2 y2 in pixels, scores (n,), class_ids (n,)."""

    boxes: F32
    scores: F32
    class_ids: NDArray[np.int64]


def predict(model: Path, pictures: Sequence[NDArray[np.uint8]], image_size: int) -> list[Predictions]:
    """Run an Ultralytics model on BGR pictures (h, w, 3), one at a time on the CPU. Keeps low scores."""
    from ultralytics import YOLO  # type: ignore[attr-defined]

    network: Any = YOLO(str(model), task="detect")
    predictions = []
    for picture in pictures:
        boxes = network.predict(picture, imgsz=image_size, conf=0.001, device="cpu", verbose=False)[0].boxes
        predictions.append(Predictions(boxes.xyxy.numpy(), boxes.conf.numpy(), boxes.cls.numpy().astype(np.int64)))
    return predictions


def overlap(box: F32, others: F32) -> F32:
    """Intersection over union of one box (4,) with others (n, 4): (n,)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared
    result: F32 = shared / np.maximum(areas, 1e-9)
    return result


def average_precision(class_id: int, predictions: Sequence[Predictions], truth: Sequence[Sequence[Label]]) -> float:
    """Area under the precision-recall curve of one class at IoU 0.5, over all pictures; nan without objects.

    Predictions are matched in order of descending score. Each one matches the unmatched object with the highest IoU.
    Without an object at IoU >= 0.5 it is a false positive, so a second box for a matched object is one, too.
    """
    objects = [
        np.array([o.box for o in labels if o.class_id == class_id], np.float32).reshape(-1, 4) for labels in truth
    ]
    total = sum(len(boxes) for boxes in objects)
    if total == 0:
        return float("nan")
    ranked = [
        (float(score), picture, box)
        for picture, f in enumerate(predictions)
        for box, score in zip(f.boxes[f.class_ids == class_id], f.scores[f.class_ids == class_id], strict=True)
    ]
    matched = [np.zeros(len(boxes), dtype=bool) for boxes in objects]
    right = np.zeros(len(ranked))
    for rank, (_, picture, box) in enumerate(sorted(ranked, key=lambda each: -each[0])):
        if len(objects[picture]) == 0:
            continue
        overlaps = np.where(matched[picture], 0.0, overlap(box, objects[picture]))
        best = int(overlaps.argmax())
        if overlaps[best] >= 0.5:
            matched[picture][best], right[rank] = True, 1.0
    hits = np.cumsum(right)
    recall = np.concatenate([[0.0], hits / total])
    precision = np.concatenate([[1.0], hits / np.arange(1, len(ranked) + 1)])
    # The envelope: the best precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(((recall[1:] - recall[:-1]) * envelope[1:]).sum())


def score(predictions: Sequence[Predictions], truth: Sequence[Sequence[Label]]) -> dict[str, float]:
    """Average precision at IoU 0.5 per class name, and their mean as `mean`."""
    per_class = {name: average_precision(k, predictions, truth) for k, name in enumerate(CLASS_NAMES)}
    return {**per_class, "mean": float(np.mean(list(per_class.values())))}
