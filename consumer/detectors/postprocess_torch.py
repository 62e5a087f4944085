"""What `postprocess.select` does, on the device: only what is kept crosses back, in one transfer per forward pass."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from consumer.config import DetectorConfig
from consumer.detectors.postprocess import CLASS_SPAN, MAX_CANDIDATES, Rows, is_end_to_end

# Above so many candidates in a forward pass, each image has its own NMS: its cost grows with their square.
POOLED_CANDIDATES = 4096
# Images that share an NMS: they lie apart in y, as far as float32 still knows a twentieth of a pixel.
POOLED_IMAGES = 64


def select(prediction: Tensor, config: DetectorConfig) -> list[Rows]:
    """The detections of each image of a forward pass: above the confidence, not suppressed, at most so many."""
    prediction = prediction.float()
    if is_end_to_end(prediction.shape):
        kept = _final(prediction, config.confidence)
    else:
        kept = _from_candidates(prediction, config.confidence, config.iou)
    table: Rows = kept.cpu().numpy()
    return [table[table[:, 0] == image, 1:][: config.max_detections] for image in range(len(prediction))]


def _final(prediction: Tensor, confidence: float) -> Tensor:
    """(n, k, 6) -> (m, 7): image, x1 y1 x2 y2, score, class."""
    scores = _told(prediction[..., 4])
    image, place = (~(scores <= confidence)).nonzero(as_tuple=True)
    found = prediction[image, place]
    return torch.cat((image[:, None].float(), found[:, :4], scores[image, place, None], found[:, 5:]), 1)


def _from_candidates(prediction: Tensor, confidence: float, iou: float) -> Tensor:
    """(n, 4 + classes, anchors) -> (m, 7) as in `_final`, without what NMS suppresses."""
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
    """Scores (n, k) with one NaN, in place of all others, for an image that has any: it must not look like nothing."""
    broken = scores.isnan().any(1, keepdim=True)
    first = torch.arange(scores.shape[1], device=scores.device) == 0
    return torch.where(broken, torch.where(first, torch.nan, 0.0), scores)


def _suppressed(table: Tensor, iou: float) -> Tensor:
    """One NMS over the images in `table`, best score first; only boxes of one image and class compete.

    Classes lie apart in x and images in y, at most 64 of them. One common offset for both would reach 2e7 at 32 images
    and 80 classes, where float32 knows only every second pixel; so it stays as exact as Ultralytics' own.
    """
    if len(table) > MAX_CANDIDATES:
        table = table[table[:, 5].argsort(descending=True, stable=True)[:MAX_CANDIDATES]]
    image, boxes, scores, label = table[:, :1], table[:, 1:5], table[:, 5], table[:, 6:]
    offset = torch.cat((label, image % POOLED_IMAGES), 1).mul_(CLASS_SPAN).repeat(1, 2)
    return table[torchvision.ops.nms(boxes + offset, scores, iou)]
