"""Images for detector tests, how they get into slots, and how two results are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from consumer.detectors.base import Detector
from consumer.types import Detections, Letterbox

Image = NDArray[np.uint8]  # BGR, as cv2 and Ultralytics have it
PAD = 114

# (width, height): common ones, odd ones, and extreme shapes.
SIZES = [(640, 480), (768, 432), (641, 333), (100, 700), (333, 641), (1280, 720), (97, 61), (640, 640)]


def draw(width: int, height: int, seed: int) -> Image:
    """A gradient with shapes and some noise: every part of it differs, and it is the same on every machine."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([(x * (c + 1) // 3 + y * (3 - c) // 2 + 40 * seed) % 256 for c in range(3)], axis=2)
    image = np.ascontiguousarray(image, np.uint8)
    for _ in range(12):
        left, top = int(random.integers(width)), int(random.integers(height))
        colour = tuple(int(c) for c in random.integers(0, 256, 3))
        size = int(random.integers(5, max(6, min(width, height) // 3)))
        if random.random() < 0.5:
            cv2.rectangle(image, (left, top), (left + size, top + size // 2), colour, -1)
        else:
            cv2.circle(image, (left, top), size // 2, colour, -1)
    noise = random.integers(-20, 21, image.shape)
    return np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def grey(width: int, height: int) -> Image:
    return np.full((height, width, 3), PAD, np.uint8)


def fill(detector: Detector, images: Sequence[Image]) -> tuple[NDArray[np.uint8], list[Letterbox]]:
    """Slots with the canvases of the images, and garbage where no canvas is."""
    letterboxes = [Letterbox.fit(image.shape[1], image.shape[0], detector.policy) for image in images]
    slots = np.zeros((len(images), detector.policy.slot_bytes), np.uint8)
    detector.pin(slots)
    slots[:] = 201
    for slot, image, lb in zip(slots, images, letterboxes, strict=True):
        canvas = slot[: lb.canvas_height * lb.canvas_width * 3].reshape(lb.canvas_height, lb.canvas_width, 3)
        canvas[:] = PAD
        scaled = cv2.resize(image, (lb.scaled_width, lb.scaled_height), interpolation=cv2.INTER_LINEAR)
        canvas[lb.pad_y : lb.pad_y + lb.scaled_height, lb.pad_x : lb.pad_x + lb.scaled_width] = scaled[..., ::-1]
    return slots, letterboxes


def detect(detector: Detector, images: Sequence[Image]) -> list[Detections]:
    return detector.detect(*fill(detector, images))


@dataclass
class Agreement:
    """How two results of one image agree."""

    pairs: int = 0
    least_iou: float = 1.0
    worst_score: float = 0.0
    unmatched: int = 0

    def add(self, other: Agreement) -> None:
        self.pairs += other.pairs
        self.unmatched += other.unmatched
        self.least_iou = min(self.least_iou, other.least_iou)
        self.worst_score = max(self.worst_score, other.worst_score)


def agreement(actual: Detections, expected: Detections, confidence: float) -> Agreement:
    """Pair boxes of one class by overlap. A box without a partner counts, unless its score is at the threshold."""
    found = Agreement()
    free = set(range(len(actual)))
    for box, score, label in zip(expected.boxes, expected.scores, expected.class_ids, strict=True):
        rivals = [i for i in free if actual.class_ids[i] == label]
        overlaps = [_iou(actual.boxes[i], box) for i in rivals]
        if not rivals or max(overlaps) < 0.9:
            found.unmatched += bool(abs(score - confidence) > 1e-2)
            continue
        best = rivals[int(np.argmax(overlaps))]
        free.discard(best)
        found.pairs += 1
        found.least_iou = min(found.least_iou, max(overlaps))
        found.worst_score = max(found.worst_score, float(abs(actual.scores[best] - score)))
    found.unmatched += sum(bool(abs(actual.scores[i] - confidence) > 1e-2) for i in free)
    return found


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    if np.array_equal(a, b):
        return 1.0  # also where the box has no area
    # In float64, with a hair of slack for boxes that clipping has left without area.
    a, b = a.astype(np.float64), b.astype(np.float64)
    shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None) + 1e-3)
    return float(shared / (np.prod(a[2:] - a[:2] + 1e-3) + np.prod(b[2:] - b[:2] + 1e-3) - shared))
