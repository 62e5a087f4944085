"""Selects detections on the device, with the same result as `postprocess.select`.

Only the selected rows are copied to the host, in one transfer per forward pass.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from consumer.config import DetectorConfig
from consumer.detectors.postprocess import CLASS_SPAN, MAX_CANDIDATES, Rows, is_end_to_end

# The maximum number of candidates for one NMS over several images. With more, each image gets its own NMS, because the
# cost grows with the square of the number.
POOLED_CANDIDATES = 4096
# The maximum number of images in one NMS. They are offset in y, and with 64 images float32 still resolves a twentieth
# of a pixel.
POOLED_IMAGES = 64


def select(prediction: Tensor, config: DetectorConfig) -> list[Rows]:
    """Select the detections of each image of a forward pass.

    Args:
        prediction: The raw output on the device: final boxes (n, k, 6) or candidates (n, 4 + classes, anchors).
        config: `confidence`, `iou` and `max_detections` are used.

    Returns:
        The rows of each image, on the host: scores above `confidence`, not suppressed by NMS, at most
        `max_detections`.
    """
    prediction = prediction.float()
    if is_end_to_end(prediction.shape):
        kept = _final(prediction, config.confidence)
    else:
        kept = _from_candidates(prediction, config.confidence, config.iou)
    table: Rows = kept.cpu().numpy()
    return [table[table[:, 0] == image, 1:][: config.max_detections] for image in range(len(prediction))]


def _final(prediction: Tensor, confidence: float) -> Tensor:
    """Select from final boxes: (n, k, 6) to (m, 7) with the columns image, x1, y1, x2, y2, score, class ID."""
    scores = _told(prediction[..., 4])
    image, place = (~(scores <= confidence)).nonzero(as_tuple=True)
    found = prediction[image, place]
    return torch.cat((image[:, None].float(), found[:, :4], scores[image, place, None], found[:, 5:]), 1)


def _from_candidates(prediction: Tensor, confidence: float, iou: float) -> Tensor:
    """Select from candidates: (n, 4 + classes, anchors) to (m, 7) as in `_final`, with NMS."""
    best, label = prediction[:, 4:].max(1)
    best = _told(best)
    image, anchor = (~(best <= confidence)).nonzero(as_tuple=True)
    centre, half = prediction[image, :2, anchor], prediction[image, 2:4, anchor] / 2
    columns = (image[:, None], centre - half, centre + half, best[image, anchor, None], label[image, anchor, None])
    table = torch.cat([column.float() for column in columns], 1)
    together = POOLED_IMAGES if len(table) <= POOLED_CANDIDATES else 1
    if len(prediction) <= together:
        return _suppressed(table, iou)
    groups = image // together
    return torch.cat([_suppressed(table[groups == n], iou) for n in range(-(-len(prediction) // together))])


def _told(scores: Tensor) -> Tensor:
    """Reduce the scores of each image that contain a NaN to a single NaN, with 0 in all other places.

    `scores` is (n, k). The NaN must reach the result: without it, the image would look like one without objects.
    """
    broken = scores.isnan().any(1, keepdim=True)
    first = torch.arange(scores.shape[1], device=scores.device) == 0
    return torch.where(broken, torch.where(first, torch.nan, 0.0), scores)


def _suppressed(table: Tensor, iou: float) -> Tensor:
    """Run one NMS over all images in `table`. Only boxes of the same image and class suppress each other.

    Classes are offset in x, and images (at most 64) in y. One common offset for both would reach 2e7 at 32 images and
    80 classes, where float32 resolves only every second pixel. With two offsets it is as exact as NMS in Ultralytics.

    Returns:
        The rows that were kept, best score first.
    """
    if len(table) > MAX_CANDIDATES:
        table = table[table[:, 5].argsort(descending=True, stable=True)[:MAX_CANDIDATES]]
    image, boxes, scores, label = table[:, :1], table[:, 1:5], table[:, 5], table[:, 6:]
    offset = torch.cat((label, image % POOLED_IMAGES), 1).mul_(CLASS_SPAN).repeat(1, 2)
    return table[torchvision.ops.nms(boxes + offset, scores, iou)]
