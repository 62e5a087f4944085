"""Writes the pictures, and the overview: the picture with most objects of each camera, and the figures of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from consumer.tools.demo.audit import DrawnFrame
from consumer.tools.demo.draw import INK, MUTED, PAPER, U8, Colour, annotate, colour_of, width_of, write
from consumer.tools.demo.summary import Summary

NAME: Final = "overview.jpg"
_GAP: Final = 12
_TILE: Final = 960  # width of a tile in pixels
_MOST: Final = 11  # more tiles would be too small to read
_GOOD: Final[Colour] = (124, 208, 96)
_BAD: Final[Colour] = (88, 88, 255)
_ACCENT: Final[Colour] = (255, 181, 46)


def write_pictures(drawn: Sequence[DrawnFrame], summary: Summary, folder: Path) -> list[str]:
    """Write an annotated picture of each frame, and the overview, to `folder`.

    Returns:
        The names of the files; the overview is the last.
    """
    names = []
    for frame in drawn:
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in frame.source_id)
        names.append(f"{safe}-{frame.number:05d}.jpg")
        _save(annotate(frame), folder / names[-1], quality=90)
    picture = overview(drawn, summary)
    _save(picture, folder / NAME, quality=86)
    return [*names, NAME]


def overview(drawn: Sequence[DrawnFrame], summary: Summary) -> U8:
    """Draw the grid of pictures. The card with the figures fills the cells that the pictures leave free."""
    best: dict[str, DrawnFrame] = {}
    for frame in drawn:
        if frame.source_id not in best or _count(frame) > _count(best[frame.source_id]):
            best[frame.source_id] = frame
    pictures = [_tile(annotate(frame)) for frame in list(best.values())[:_MOST]]
    height = max((picture.shape[0] for picture in pictures), default=_TILE * 9 // 16)
    columns = math.ceil(math.sqrt(len(pictures) + 1))
    rows = math.ceil((len(pictures) + 1) / columns)
    free = rows * columns - len(pictures)
    classes = {d["label"]: d["class_id"] for frame in drawn for d in (frame.result or {}).get("detections", ())}
    colours = {label: colour_of(class_id) for label, class_id in classes.items()}
    card = _card(summary, colours, free * _TILE + (free - 1) * _GAP, height)
    sheet = np.full((rows * (height + _GAP) + _GAP, columns * (_TILE + _GAP) + _GAP, 3), (12, 11, 10), np.uint8)
    for number, picture in enumerate([*pictures, card]):
        row, column = divmod(number, columns)
        y, x = _GAP + row * (height + _GAP), _GAP + column * (_TILE + _GAP)
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet


def _count(frame: DrawnFrame) -> int:
    return len((frame.result or {}).get("detections", ()))


def _tile(picture: U8) -> U8:
    height = round(picture.shape[0] * _TILE / picture.shape[1])
    return np.asarray(cv2.resize(picture, (_TILE, height), interpolation=cv2.INTER_AREA), np.uint8)


def _card(summary: Summary, colours: Mapping[str, Colour], width: int, height: int) -> U8:
    """Draw the figures of the run in the style of the footers."""
    card = np.full((height, width, 3), INK, np.uint8)
    step = height / 12
    x = round(step)
    write(card, "Sluice", (x, round(1.5 * step)), 1.5, PAPER, bold=True)
    kind = "SIMULATED DETECTOR: " if summary.detector.simulated else ""
    model = f"{kind}{Path(summary.detector.model).name} on {summary.detector.device}"
    write(card, model, (x, round(2.3 * step)), 0.6, MUTED)
    faults = summary.lost + summary.duplicates + summary.out_of_order + summary.unexpected + summary.uncommitted
    result = "every frame has one outcome, in order" if not faults else "  ".join(summary.problems)[:70]
    write(card, result, (x, round(3.3 * step)), 0.7, _BAD if faults else _GOOD)
    left = (
        (f"{summary.frames_in}", "frames in"),
        (f"{summary.detections_out}", "detection messages"),
        (f"{summary.frames_per_second:.1f}", "frames/s"),
        (_ms(summary.latency_ms["p50"]), "camera to result, median"),
        (_ms(summary.latency_ms["p99"]), "camera to result, 99th percentile"),
        (f"{summary.detector.busy_share:.0%}", "detector busy"),
    )
    for n, (figure, meaning) in enumerate(left):
        y = round((4.6 + 1.2 * n) * step)
        write(card, figure, (x + 150 - width_of(figure, 1.0), y), 1.0, PAPER, bold=True)
        write(card, meaning, (x + 170, y), 0.6, MUTED)
    column = x + 480
    objects = list(summary.objects.items())[:5]
    _bars(
        card, "objects seen", [(k, v, colours.get(k, _ACCENT)) for k, v in objects], (column, round(4.2 * step)), step
    )
    sizes = sorted(summary.batch_sizes.items(), key=lambda item: -item[1])[:4]
    _bars(
        card,
        "most frequent batch sizes",
        [(str(k), v, _ACCENT) for k, v in sorted(sizes)],
        (column, round(8.4 * step)),
        step,
    )
    return card


def _bars(card: U8, title: str, bars: Sequence[tuple[str, int, Colour]], at: tuple[int, int], step: float) -> None:
    x, y = at
    write(card, title, (x, y), 0.6, MUTED)
    room = min(card.shape[1] - x - round(step), 420) - 190
    most = max((count for _, count, _ in bars), default=1)
    for n, (name, count, colour) in enumerate(bars):
        line = round(y + (n + 1) * 0.72 * step)
        write(card, name[:12], (x, line), 0.55, PAPER)
        length = max(2, round(room * count / most))
        cv2.rectangle(card, (x + 120, line - 13), (x + 120 + length, line + 1), colour, cv2.FILLED)
        write(card, str(count), (x + 130 + length, line), 0.55, PAPER)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.0f} s"


def _save(picture: U8, path: Path, quality: int) -> None:
    encoded, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded
    path.write_bytes(data.tobytes())
