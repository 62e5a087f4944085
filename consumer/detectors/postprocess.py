"""From a model's raw output to boxes in the original image, as Ultralytics does it. NumPy only, shared by backends.

Rows are float32 (k, 6): x1 y1 x2 y2 in pixels of the canvas, score, class; best score first.

Sources: ultralytics/utils/nms.py `non_max_suppression`, ultralytics/utils/ops.py `scale_boxes`, and torchvision's
CPU kernel for the order of ties and the comparison with the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from consumer.config import DetectorConfig
from consumer.errors import ModelError
from consumer.types import Detections, Letterbox

Rows = NDArray[np.float32]

# Boxes of different classes never suppress each other: each class lies this many pixels from the next.
CLASS_SPAN = 7680
# Candidates of one image that take part in NMS, the best ones.
MAX_CANDIDATES = 30_000
# Columns of a row, and the width by which an output that needs no NMS is known: (n, k, 6).
ROW_WIDTH = 6


def check_finite(name: str, results: Sequence[Detections]) -> None:
    """For the results of a warm-up. Raises ModelError where there is a NaN: each frame would be a dead letter."""
    if not all(np.isfinite(result.scores).all() and np.isfinite(result.boxes).all() for result in results):
        raise ModelError(
            f"{name} gives numbers that are not finite for an empty picture: export it anew; with detector.half it may "
            "overflow, then leave that out"
        )


def is_end_to_end(shape: tuple[int, ...]) -> bool:
    """Whether an output of this shape holds final boxes (n, k, 6) rather than candidates (n, 4 + classes, anchors)."""
    return shape[-1] == ROW_WIDTH


def select(prediction: NDArray[np.floating], config: DetectorConfig) -> list[Rows]:
    """The detections of each image of a forward pass: above the confidence, not suppressed, at most so many."""
    outputs = prediction.astype(np.float32, copy=False)
    if is_end_to_end(outputs.shape):
        return [_select_final(output, config) for output in outputs]
    return [_select_from_candidates(output, config) for output in outputs]


def _told(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """With one NaN, in place of all others, where there is any: it must not look like an image that shows nothing."""
    if not np.isnan(scores).any():
        return scores
    told = np.zeros_like(scores)
    told[0] = np.nan
    return told


def _select_final(output: NDArray[np.float32], config: DetectorConfig) -> Rows:
    """`output` is (boxes, 6), as a row is."""
    scores = _told(output[:, 4])
    kept = np.flatnonzero(~(scores <= config.confidence))[: config.max_detections]
    rows = output[kept]
    rows[:, 4] = scores[kept]
    return rows


def _select_from_candidates(output: NDArray[np.float32], config: DetectorConfig) -> Rows:
    """`output` is (4 + classes, anchors): centre x, centre y, width, height, then a score per class."""
    best = _told(output[4:].max(axis=0))
    candidates = np.flatnonzero(~(best <= config.confidence))
    if len(candidates) > MAX_CANDIDATES:
        candidates = candidates[np.argsort(-best[candidates], kind="stable")[:MAX_CANDIDATES]]
    picked = output[:, candidates]
    rows = np.empty((len(candidates), ROW_WIDTH), np.float32)
    half = picked[2:4] / 2
    rows[:, 0:2] = (picked[0:2] - half).T
    rows[:, 2:4] = (picked[0:2] + half).T
    rows[:, 4] = best[candidates]
    rows[:, 5] = picked[4:].argmax(axis=0)
    apart = rows[:, :4] + rows[:, 5:6] * CLASS_SPAN
    return rows[suppress(apart, rows[:, 4], config.iou, config.max_detections)]


def suppress(boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float, limit: int) -> NDArray[np.intp]:
    """Greedy NMS: indices of at most `limit` boxes, best score first, none overlapping a better one by more than `iou`.

    Stops at `limit`: later boxes cannot displace earlier ones, so dense scenes cost no more than `limit` rounds.
    """
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes[order].T
    areas = (x2 - x1) * (y2 - y1)
    alive = np.arange(len(order))
    kept: list[int] = []
    while alive.size and len(kept) < limit:
        best, rest = alive[0], alive[1:]
        kept.append(int(best))
        width = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        height = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(divide="ignore", invalid="ignore"):  # boxes without area: NaN, which suppresses nothing
            overlap = shared / (areas[best] + areas[rest] - shared)
        # In float64, as torchvision compares: 0.6 as float32 is above 0.6.
        alive = rest[~(overlap > np.float64(iou))]
    return order[kept]


def to_original(boxes: NDArray[np.float32], letterbox: Letterbox) -> NDArray[np.float32]:
    """Boxes (n, 4) x1 y1 x2 y2 from canvas pixels to pixels of the original image, clipped to it; a new array.

    Each axis has its own gain, because each scaled side was rounded to whole pixels by itself. Ultralytics works the
    gains out again from the two sizes; in one of 140 random image sizes (none of a common camera) it is then off by a
    few pixels of the canvas, and this is not.
    """
    lb = letterbox
    moved = boxes - np.array([lb.pad_x, lb.pad_y] * 2, np.float32)
    moved /= np.array([lb.scaled_width / lb.width, lb.scaled_height / lb.height] * 2, np.float32)
    moved[np.isinf(moved)] = np.nan  # the edge of the image would be a lie
    return np.clip(moved, 0, np.array([lb.width, lb.height] * 2, np.float32), out=moved)


def to_detections(rows: Rows, letterbox: Letterbox) -> Detections:
    """The rows of one frame as its result. Copies: nothing refers to the engine's memory."""
    if not len(rows):
        return Detections.none()
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]  # a head without NMS promises no order
    return Detections(to_original(rows[:, :4], letterbox), rows[:, 4].copy(), rows[:, 5].astype(np.int32))
