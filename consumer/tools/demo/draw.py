"""Annotates frames with boxes, labels and a footer. Small frames are enlarged first, so that labels are readable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from consumer.tools.demo.audit import DrawnFrame

U8 = NDArray[np.uint8]
Colour = tuple[int, int, int]  # BGR
Area = tuple[int, int, int, int]  # x1, y1, x2, y2

FOOTER: Final = 44
INK: Final[Colour] = (27, 24, 22)
PAPER: Final[Colour] = (245, 244, 242)
MUTED: Final[Colour] = (168, 160, 154)
# Distinguishable by day and by night. Neighbouring numbers differ most in hue.
_COLOURS: Final[tuple[Colour, ...]] = (
    (255, 181, 46),
    (60, 148, 255),
    (120, 214, 92),
    (226, 108, 255),
    (84, 226, 255),
    (110, 94, 255),
    (214, 226, 70),
    (255, 128, 148),
)
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
_LARGE: Final = 1280  # a frame is enlarged by an integer factor up to this width


def colour_of(class_id: int) -> Colour:
    """The colour of a class in every picture."""
    return _COLOURS[class_id % len(_COLOURS)]


def plain(text: str) -> str:
    """Escape everything but printable ASCII, because cv2 can draw nothing else."""
    escaped = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped)


def write(image: U8, text: str, at: tuple[int, int], size: float, colour: Colour, *, bold: bool = False) -> int:
    """Draw a text with the left end of its baseline at `at` (x, y). Returns the x of its right end."""
    text = plain(text)
    cv2.putText(image, text, at, _FONT, size, colour, 2 if bold else 1, cv2.LINE_AA)
    return at[0] + width_of(text, size)


def width_of(text: str, size: float) -> int:
    """The width of a text in pixels."""
    return int(cv2.getTextSize(plain(text), _FONT, size, 1)[0][0])


def scale_of(width: int) -> int:
    """The factor by which a frame of this width is enlarged."""
    return max(1, _LARGE // max(width, 1))


def annotate(drawn: DrawnFrame) -> U8:
    """Draw the detections of a frame, and a footer below it. Returns (height, width, 3) uint8 BGR."""
    frame: Any = cv2.imdecode(np.frombuffer(drawn.jpeg, np.uint8), cv2.IMREAD_COLOR)
    if frame is None:
        frame = np.zeros((360, 640, 3), np.uint8)  # a dead letter; the footer shows that
    scale = scale_of(frame.shape[1])
    picture: U8 = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) if scale > 1 else frame
    detections: Sequence[Mapping[str, Any]] = (drawn.result or {}).get("detections", ())
    _Boxes(picture, scale).draw(detections)
    footer = np.full((FOOTER, picture.shape[1], 3), INK, np.uint8)
    _fill_footer(footer, drawn, detections)
    return np.vstack([picture, footer])


@dataclass(slots=True)
class _Boxes:
    """Boxes and labels on one picture. A label without free space is left out; the colour of its box remains."""

    picture: U8
    scale: int
    taken: list[Area] = field(default_factory=list)

    def draw(self, detections: Sequence[Mapping[str, Any]]) -> None:
        """Draw boxes, the highest score on top; then labels, the highest score first."""
        for detection in reversed(detections):
            x1, y1, x2, y2 = self._pixels(detection)
            colour = colour_of(detection["class_id"])
            self._tint((x1, y1, x2, y2), colour)
            cv2.rectangle(self.picture, (x1, y1), (x2, y2), INK, 4, cv2.LINE_AA)
            cv2.rectangle(self.picture, (x1, y1), (x2, y2), colour, 2, cv2.LINE_AA)
        for detection in detections:
            self._label(detection)

    def _pixels(self, detection: Mapping[str, Any]) -> Area:
        height, width = self.picture.shape[:2]
        x1, y1, x2, y2 = (round(edge * self.scale) for edge in detection["box"])
        # Half of a line on the last pixel would lie outside.
        return max(x1, 1), max(y1, 1), min(x2, width - 2), min(y2, height - 2)

    def _tint(self, area: Area, colour: Colour) -> None:
        x1, y1, x2, y2 = area
        inside = self.picture[y1:y2, x1:x2]
        if inside.size:
            inside[:] = cv2.addWeighted(inside, 0.88, np.full_like(inside, colour), 0.12, 0)

    def _label(self, detection: Mapping[str, Any]) -> None:
        text = f"{plain(detection['label'])} {detection['score']:.2f}"
        size, height = 0.46, 20
        width = width_of(text, size) + 10
        x1, y1, x2, y2 = self._pixels(detection)
        places = (
            (x1 - 1, y1 - height),
            (x2 - width + 1, y1 - height),
            (x1 - 1, y2),
            (x2 - width + 1, y2),
            (x1 - 1, y1),
        )
        for left, top in places:
            area = left, top, left + width, top + height
            if self._is_free(area):
                self.taken.append(area)
                cv2.rectangle(self.picture, area[:2], area[2:], colour_of(detection["class_id"]), cv2.FILLED)
                write(self.picture, text, (left + 5, top + 15), size, INK)
                return

    def _is_free(self, area: Area) -> bool:
        height, width = self.picture.shape[:2]
        x1, y1, x2, y2 = area
        if x1 < 0 or y1 < 0 or x2 >= width or y2 >= height:
            return False
        return all(x2 < left or right < x1 or y2 < top or bottom < y1 for left, top, right, bottom in self.taken)


def _fill_footer(footer: U8, drawn: DrawnFrame, detections: Sequence[Mapping[str, Any]]) -> None:
    """Left: source, frame number, and number of objects by class. Right: timings."""
    line = FOOTER // 2 + 6
    x = write(footer, drawn.source_id, (16, line), 0.62, PAPER, bold=True)
    x = write(footer, f"frame {drawn.number}", (x + 18, line), 0.5, MUTED) + 30
    right = _timing(drawn.result)
    limit = footer.shape[1] - width_of(right, 0.5) - 16
    write(footer, right, (limit, line), 0.5, MUTED)
    classes = {detection["class_id"]: detection["label"] for detection in detections}
    for class_id, count in sorted(Counter(detection["class_id"] for detection in detections).items()):
        text = f"{count} {plain(classes[class_id])}"
        if x + 22 + width_of(text, 0.5) > limit - 20:
            break
        cv2.rectangle(footer, (x, line - 12), (x + 14, line + 2), colour_of(class_id), cv2.FILLED)
        x = write(footer, text, (x + 22, line), 0.5, PAPER) + 26


def _timing(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "no detection message"
    if "skipped" in result:
        return f"skipped: {result['skipped']['reason']}"
    parts = [f"batch of {result['batch_size']}", f"detector {result['timings_ms']['infer']:.0f} ms"]
    if result["captured_at_ms"] is not None:
        parts.append(f"camera to result {result['published_at_ms'] - result['captured_at_ms']} ms")
    return "   ".join(parts)
