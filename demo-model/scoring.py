"""How well a model finds what was drawn: average precision at IoU 0.5, computed in the open."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenes import CLASS_NAMES, Label

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Found:
    """What a model found in one picture: boxes (n, 4) x1 y1 x2 y2 in pixels, scores (n,), class_ids (n,)."""

    boxes: F32
    scores: F32
    class_ids: NDArray[np.int64]


def find(model: Path, pictures: Sequence[NDArray[np.uint8]], image_size: int) -> list[Found]:
    """Run an Ultralytics model on BGR pictures (h, w, 3), one at a time on the CPU, keeping even faint finds."""
    from ultralytics import YOLO  # type: ignore[attr-defined]

    network: Any = YOLO(str(model), task="detect")
    found = []
    for picture in pictures:
        boxes = network.predict(picture, imgsz=image_size, conf=0.001, device="cpu", verbose=False)[0].boxes
        found.append(Found(boxes.xyxy.numpy(), boxes.conf.numpy(), boxes.cls.numpy().astype(np.int64)))
    return found


def overlap(box: F32, others: F32) -> F32:
    """Intersection over union of one box (4,) with others (n, 4): (n,)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared
    result: F32 = shared / np.maximum(areas, 1e-9)
    return result


def average_precision(class_id: int, found: Sequence[Found], truth: Sequence[Sequence[Label]]) -> float:
    """Area under the precision-recall curve of one class at IoU 0.5, over all pictures; nan when none was drawn.

    Finds are taken from the surest down. Each claims the unclaimed object that it overlaps most; without one at
    IoU >= 0.5 it is a false alarm, so a second box on an object already found counts against the model.
    """
    drawn = [np.array([o.box for o in labels if o.class_id == class_id], np.float32).reshape(-1, 4) for labels in truth]
    total = sum(len(boxes) for boxes in drawn)
    if total == 0:
        return float("nan")
    finds = [
        (float(score), picture, box)
        for picture, f in enumerate(found)
        for box, score in zip(f.boxes[f.class_ids == class_id], f.scores[f.class_ids == class_id], strict=True)
    ]
    claimed = [np.zeros(len(boxes), dtype=bool) for boxes in drawn]
    right = np.zeros(len(finds))
    for rank, (_, picture, box) in enumerate(sorted(finds, key=lambda find: -find[0])):
        if len(drawn[picture]) == 0:
            continue
        overlaps = np.where(claimed[picture], 0.0, overlap(box, drawn[picture]))
        best = int(overlaps.argmax())
        if overlaps[best] >= 0.5:
            claimed[picture][best], right[rank] = True, 1.0
    hits = np.cumsum(right)
    recall = np.concatenate([[0.0], hits / total])
    precision = np.concatenate([[1.0], hits / np.arange(1, len(finds) + 1)])
    # The envelope: the best precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(((recall[1:] - recall[:-1]) * envelope[1:]).sum())


def score(found: Sequence[Found], truth: Sequence[Sequence[Label]]) -> dict[str, float]:
    """Average precision at IoU 0.5 per class name, and their mean as `mean`."""
    per_class = {name: average_precision(k, found, truth) for k, name in enumerate(CLASS_NAMES)}
    return {**per_class, "mean": float(np.mean(list(per_class.values())))}
