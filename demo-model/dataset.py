"""The pictures for training and scoring the demo model: rendered, stored, augmented, batched."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scenes import Label, Street

TRAIN_SEED, HELD_OUT_SEED = 1_000, 900_000
"""First street of each set. Seeds below 1000 are for demonstrations, and in neither set."""
FRAME_STEP = 43
"""Frames, at 10 frames/s, between two pictures of one street: after these, nearly all actors have changed."""


@dataclass(frozen=True, slots=True)
class Picture:
    """image (h, w, 3) uint8 BGR, boxes float32 (n, 4) x1 y1 x2 y2 in pixels, classes float32 (n,)."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    classes: NDArray[np.float32]


def draw_street(folder: Path, seed: int, pictures: int) -> None:
    """Write `pictures` frames of one street as PNG with YOLO label files beside them."""
    cv2.setNumThreads(1)
    street = Street(seed)
    for number in range(pictures):
        picture, labels = street.frame(number * FRAME_STEP)
        height, width = picture.shape[:2]
        rows = []
        for label in labels:
            x1, y1, x2, y2 = label.box
            values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            rows.append(f"{label.class_id} " + " ".join(f"{value:.6f}" for value in values))
        name = f"{seed}-{number}"
        cv2.imwrite(str(folder / "images" / f"{name}.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        (folder / "labels" / f"{name}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def draw_set(folder: Path, first_seed: int, streets: int, pictures: int, workers: int) -> None:
    """Render a data set in the layout of Ultralytics: folder/images and folder/labels."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        for job in [pool.submit(draw_street, folder, first_seed + k, pictures) for k in range(streets)]:
            job.result()


def load_set(folder: Path) -> list[Picture]:
    """Read a rendered set: pictures with their labels in pixels."""
    pictures = []
    for path in sorted((folder / "images").glob("*.png")):
        image = np.asarray(cv2.imread(str(path)), dtype=np.uint8)
        rows = np.loadtxt(folder / "labels" / f"{path.stem}.txt", dtype=np.float32, ndmin=2)
        boxes = rows[:, 1:5] * np.tile(np.array(image.shape[1::-1], dtype=np.float32), 2)
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        pictures.append(Picture(image, corners, rows[:, 0]))
    return pictures


def augment(picture: Picture, size: tuple[int, int], rng: np.random.Generator) -> Picture:
    """Augment a picture to `size` (width, height): translation, zoom, mirroring, exposure."""
    height, width = picture.image.shape[:2]
    zoom = size[0] / width * float(np.exp(rng.uniform(-0.3, 0.35)))
    mirror = rng.random() < 0.5
    shift = (np.array(size) - np.array([width, height]) * zoom) / 2 + rng.uniform(-0.12, 0.12, 2) * np.array(size)
    scale_x = -zoom if mirror else zoom
    matrix = np.array([[scale_x, 0, shift[0] + (width * zoom if mirror else 0)], [0, zoom, shift[1]]])
    image = cv2.warpAffine(picture.image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(114, 114, 114))
    levels = np.arange(256)[:, None] * rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, 3) + rng.uniform(-12, 12)
    image = cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8)[:, None])
    x = picture.boxes[:, [0, 2]] * scale_x + matrix[0, 2]
    y = picture.boxes[:, [1, 3]] * zoom + matrix[1, 2]
    whole = np.stack([x.min(axis=1), y[:, 0], x.max(axis=1), y[:, 1]], axis=1)
    cut = whole.clip(0, np.tile(np.array(size), 2))
    sides, all_sides = cut[:, 2:] - cut[:, :2], whole[:, 2:] - whole[:, :2]
    kept = (sides.prod(axis=1) > 0.25 * all_sides.prod(axis=1)) & (sides[:, 1] > 5) & (sides[:, 0] > 2)
    return Picture(np.asarray(image, dtype=np.uint8), cut[kept].astype(np.float32), picture.classes[kept])


def make_batch(pictures: Sequence[Picture]) -> dict[str, Any]:
    """The tensors for the loss of Ultralytics: img (n, 3, h, w) RGB 0..1, boxes as relative centre and size."""
    import torch

    images = np.stack([picture.image[..., ::-1].transpose(2, 0, 1) for picture in pictures])
    size = np.tile(np.array(pictures[0].image.shape[1::-1], dtype=np.float32), 2)
    boxes = np.concatenate([picture.boxes for picture in pictures]) / size
    relative = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    counts = [len(picture.boxes) for picture in pictures]
    return {
        "img": torch.from_numpy(images).contiguous(memory_format=torch.channels_last).float() / 255,
        "batch_idx": torch.from_numpy(np.repeat(np.arange(len(pictures)), counts)).float(),
        "cls": torch.from_numpy(np.concatenate([picture.classes for picture in pictures]))[:, None],
        "bboxes": torch.from_numpy(relative),
    }


def held_out_set(streets: int, pictures: int) -> tuple[list[NDArray[np.uint8]], list[list[Label]]]:
    """Pictures of streets outside the training set, without augmentation, and their labels."""
    drawn = []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + streets):
        street = Street(seed)
        drawn += [street.frame(number * FRAME_STEP) for number in range(pictures)]
    return [picture for picture, _ in drawn], [labels for _, labels in drawn]
