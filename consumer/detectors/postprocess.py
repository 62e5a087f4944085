"""Turns the raw output of a model into boxes in the original image, as Ultralytics does. NumPy only, for all backends.

Sources: ultralytics/utils/nms.py `non_max_suppression`, ultralytics/utils/ops.py `scale_boxes`. The order of ties and
the comparison with the threshold follow the CPU kernel of torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from consumer.config import DetectorConfig
from consumer.errors import ModelError
from consumer.types import Detections, Letterbox

# float32 (k, 6): x1, y1, x2, y2 in pixels of the canvas, score, class ID; best score first.
Rows = NDArray[np.float32]

# The offset in pixels between the boxes of two classes. With it, boxes of different classes never suppress each other.
CLASS_SPAN = 7680
# The maximum number of candidates per image for NMS. The candidates with the best scores are kept.
MAX_CANDIDATES = 30_000
# The number of columns of a row. An output of this width, (n, k, 6), needs no NMS.
ROW_WIDTH = 6


def check_finite(name: str, results: Sequence[Detections]) -> None:
    """Check the results of a warm-up.

    Args:
        name: The name of the model, for the error message.
        results: One result per frame of the warm-up.

    Raises:
        ModelError: A number is NaN or infinite. With this model every frame would become a dead letter.
    """
    if not all(np.isfinite(result.scores).all() and np.isfinite(result.boxes).all() for result in results):
        raise ModelError(
            f"{name} gives numbers that are not finite for an empty picture: export it anew; with detector.half it may "
            "overflow, then leave that out"
        )


def is_end_to_end(shape: tuple[int, ...]) -> bool:
    """Return whether an output of this shape has final boxes (n, k, 6), not candidates (n, 4 + classes, anchors)."""
    return shape[-1] == ROW_WIDTH


def select(prediction: NDArray[np.floating], config: DetectorConfig) -> list[Rows]:
    """Select the detections of each image of a forward pass.

    Args:
        prediction: The raw output: final boxes (n, k, 6) or candidates (n, 4 + classes, anchors).
        config: `confidence`, `iou` and `max_detections` are used.

    Returns:
        The rows of each image: scores above `confidence`, not suppressed by NMS, at most `max_detections`.
    """
    outputs = prediction.astype(np.float32, copy=False)
    if is_end_to_end(outputs.shape):
        return [_select_final(output, config) for output in outputs]
    return [_select_from_candidates(output, config) for output in outputs]


def _told(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce scores that contain a NaN to a single NaN, with 0 in all other places.

    The NaN must reach the result: without it, the image would look like one without objects.
    """
    if not np.isnan(scores).any():
        return scores
    told = np.zeros_like(scores)
    told[0] = np.nan
    return told


def _select_final(output: NDArray[np.float32], config: DetectorConfig) -> Rows:
    """Select rows from final boxes, (boxes, 6) with the columns of `Rows`."""
    scores = _told(output[:, 4])
    kept = np.flatnonzero(~(scores <= config.confidence))[: config.max_detections]
    rows = output[kept]
    rows[:, 4] = scores[kept]
    return rows


def _select_from_candidates(output: NDArray[np.float32], config: DetectorConfig) -> Rows:
    """Select rows from candidates, (4 + classes, anchors): centre x, centre y, width, height, a score per class."""
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
    """Run greedy non-maximum suppression (NMS).

    It stops at `limit` boxes, because later boxes cannot displace earlier ones. So a dense scene costs at most `limit`
    rounds.

    Args:
        boxes: float32 (n, 4): x1, y1, x2, y2.
        scores: float32 (n,).
        iou: A box is dropped if its IoU with a better box is above this value.
        limit: The maximum number of boxes to keep.

    Returns:
        The indices of the boxes that were kept, best score first.
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
        with np.errstate(divide="ignore", invalid="ignore"):  # boxes without area give NaN, which suppresses nothing
            overlap = shared / (areas[best] + areas[rest] - shared)
        # torchvision compares in float64, where 0.6 as float32 is above 0.6.
        alive = rest[~(overlap > np.float64(iou))]
    return order[kept]


def to_original(boxes: NDArray[np.float32], letterbox: Letterbox) -> NDArray[np.float32]:
    """Map boxes from the canvas to the original image.

    Each axis has its own gain, because each scaled side was rounded to whole pixels separately. Ultralytics derives the
    gains from the two sizes instead. For one of 140 random image sizes (none of a common camera) its boxes are off by a
    few canvas pixels; these are not.

    Args:
        boxes: float32 (n, 4): x1, y1, x2, y2 in pixels of the canvas.
        letterbox: The placement of the image in its canvas.

    Returns:
        A new array of the same shape, in pixels of the original image, clipped to the image. Infinite values become
        NaN.
    """
    lb = letterbox
    moved = boxes - np.array([lb.pad_x, lb.pad_y] * 2, np.float32)
    moved /= np.array([lb.scaled_width / lb.width, lb.scaled_height / lb.height] * 2, np.float32)
    moved[np.isinf(moved)] = np.nan  # clipping would turn infinity into a plausible box at the edge of the image
    return np.clip(moved, 0, np.array([lb.width, lb.height] * 2, np.float32), out=moved)


def to_detections(rows: Rows, letterbox: Letterbox) -> Detections:
    """Convert the rows of one frame to its result. All arrays are copies, so none refers to memory of the detector."""
    if not len(rows):
        return Detections.none()
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]  # a head without NMS guarantees no order
    return Detections(to_original(rows[:, :4], letterbox), rows[:, 4].copy(), rows[:, 5].astype(np.int32))
