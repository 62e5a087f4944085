"""Small drawing helpers over OpenCV: subpixel polygons, tapered limbs, soft light."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from .camera import F64, U8

I32 = NDArray[np.int32]

_SHIFT = 4
_ONE = 1 << _SHIFT


def fixed(points: F64) -> I32:
    """Pixels (n, 2) as OpenCV's fixed-point int32, pixel centres at whole numbers."""
    return np.rint(points * _ONE - _ONE / 2).astype(np.int32)


def fill(canvas: U8, points: F64, colour: Sequence[float]) -> None:
    """Fill a convex polygon (n, 2) pixels on a uint8 canvas, antialiased."""
    cv2.fillConvexPoly(canvas, fixed(points), tuple(colour), cv2.LINE_AA, _SHIFT)


def fill_fixed(canvas: U8, corners: I32, colour: Sequence[float]) -> None:
    """Fill a convex polygon with corners (n, 2) in fixed point."""
    cv2.fillConvexPoly(canvas, corners, colour, cv2.LINE_AA, _SHIFT)


def fill_any(canvas: U8, points: F64, colour: Sequence[float]) -> None:
    """Fill a polygon (n, 2) pixels of any shape on a uint8 canvas, antialiased."""
    cv2.fillPoly(canvas, [fixed(points)], tuple(colour), cv2.LINE_AA, _SHIFT)


def disc(canvas: U8, centre: F64, radius: float, colour: Sequence[float]) -> None:
    """Fill a circle with its centre (2,) and radius in pixels, antialiased."""
    at = (int(centre[0] * _ONE) - _ONE // 2, int(centre[1] * _ONE) - _ONE // 2)
    cv2.circle(canvas, at, max(int(radius * _ONE), 1), tuple(colour), -1, cv2.LINE_AA, _SHIFT)


def stroke(canvas: U8, points: F64, width: float, colour: Sequence[float], *, closed: bool = False) -> None:
    """A line of `width` pixels through points (n, 2), with round ends, antialiased."""
    cv2.polylines(canvas, [fixed(points)], closed, tuple(colour), max(round(width), 1), cv2.LINE_AA, _SHIFT)


def limb(canvas: U8, ends: tuple[F64, F64], radii: tuple[float, float], colour: Sequence[float]) -> None:
    """A tapered round-ended bar between two points (2,), radii in pixels."""
    (a, b), (radius_a, radius_b) = ends, radii
    ax, ay, bx, by = float(a[0]), float(a[1]), float(b[0]), float(b[1])
    if radius_a + radius_b < 5.0:
        # The taper would not be visible: one thick line is much cheaper.
        tips = [(int(x * _ONE) - _ONE // 2, int(y * _ONE) - _ONE // 2) for x, y in ((ax, ay), (bx, by))]
        cv2.line(canvas, tips[0], tips[1], tuple(colour), max(round(radius_a + radius_b), 1), cv2.LINE_AA, _SHIFT)
        return
    length = ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5
    if length > 1e-3:
        nx, ny = (ay - by) / length, (bx - ax) / length
        corners = (
            (ax + nx * radius_a, ay + ny * radius_a),
            (bx + nx * radius_b, by + ny * radius_b),
            (bx - nx * radius_b, by - ny * radius_b),
            (ax - nx * radius_a, ay - ny * radius_a),
        )
        fill(canvas, np.array(corners), colour)
    disc(canvas, a, radius_a, colour)
    disc(canvas, b, radius_b, colour)


def hull(points: F64) -> F64:
    """Convex hull (m, 2) of pixels (n, 2)."""
    return np.asarray(cv2.convexHull(points.astype(np.float32))[:, 0], dtype=np.float64)


def mix(a: Sequence[float], b: Sequence[float], share: float) -> tuple[float, float, float]:
    """Colour between a (share 0) and b (share 1)."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)
