"""Cars and trucks: many variants from a few parameters."""

from dataclasses import dataclass

import numpy as np

from .camera import F64
from .light import Colour
from .solids import GLASS, HEADLIGHT, PAINT, TAILLIGHT, Part, ring

_CAR_PAINTS: tuple[Colour, ...] = (
    (214, 216, 218),
    (232, 234, 235),
    (60, 58, 56),
    (34, 32, 32),
    (150, 148, 146),
    (44, 40, 172),
    (30, 28, 120),
    (150, 82, 36),
    (110, 56, 24),
    (60, 96, 46),
    (40, 170, 226),
    (190, 180, 150),
    (96, 120, 150),
    (36, 110, 214),
    (170, 146, 60),
    (120, 70, 100),
)
_CARGO_PAINTS: tuple[Colour, ...] = (
    (226, 230, 232),
    (206, 210, 212),
    (60, 120, 200),
    (140, 80, 40),
    (70, 120, 60),
    (40, 44, 150),
    (40, 180, 230),
    (120, 116, 110),
)
_GLASS: Colour = (74, 62, 52)
_DARK: Colour = (38, 36, 36)


@dataclass(frozen=True, slots=True)
class Vehicle:
    """A modelled vehicle: its parts, and its length, width and height in metres."""

    parts: list[Part]
    length: float
    width: float
    height: float
    footprint: F64
    """(8, 3): the corners of its box, ground first, in local metres; shadows are cast from these."""

    def lights(self) -> F64:
        """(4, 3): two headlights, then two tail lights, in local metres."""
        w, half, y = self.width * 0.38, self.length / 2, 0.68 if self.height < 2.2 else 0.85
        return np.array([(w, y, half), (-w, y, half), (w, y + 0.1, -half), (-w, y + 0.1, -half)])


def _darker(colour: Colour, share: float) -> Colour:
    return (colour[0] * share, colour[1] * share, colour[2] * share)


def _footprint(w: float, half: float, height: float) -> F64:
    sides = ((w, half), (w, -half), (-w, -half), (-w, half))
    return np.array([(x * 1.03, y, z * 1.03) for y in (0.0, height * 0.92) for x, z in sides])


def make_car(rng: np.random.Generator) -> Vehicle:
    """A hatchback, a saloon, an estate or an SUV, in one of many colours."""
    paint = _CAR_PAINTS[int(rng.integers(len(_CAR_PAINTS)))]
    shape = str(rng.choice(["hatch", "saloon", "estate", "suv"]))
    length = {"hatch": 4.0, "saloon": 4.7, "estate": 4.7, "suv": 4.55}[shape] * float(rng.uniform(0.95, 1.05))
    height = {"hatch": 1.48, "saloon": 1.43, "estate": 1.48, "suv": 1.70}[shape] * float(rng.uniform(0.97, 1.04))
    w, half = 0.90 * float(rng.uniform(0.97, 1.04)), length / 2
    belt = height * 0.62
    body = Part(0.0)
    lower, upper = _darker(paint, 0.72), paint
    body.loft(
        [
            ring(0.20, w * 0.93, 0.08 - half, half - 0.10, 0.25),
            ring(0.50, w, -half, half, 0.30),
            ring(belt * 0.82, w, 0.02 - half, half - 0.06, 0.30),
            ring(belt, w * 0.93, 0.14 - half, half - 0.34, 0.28),
        ],
        [[lower] * 8, [upper] * 8, [_darker(paint, 1.08)] * 8],
        [[PAINT] * 8] * 3,
        _darker(paint, 1.03),
    )
    _car_details(body, paint, w, half, belt)
    body.waist = len(body.faces)
    back = {"hatch": 0.10, "saloon": 0.85, "estate": 0.12, "suv": 0.12}[shape] - half
    front = half - (1.02 if shape != "suv" else 0.95)
    slope = 0.32 if shape in ("estate", "suv") else 0.55
    glass = [GLASS, PAINT, GLASS, PAINT, GLASS, PAINT, GLASS, PAINT]
    tones = [_GLASS if kind == GLASS else _darker(paint, 0.92) for kind in glass]
    body.loft(
        [
            ring(belt - 0.02, w * 0.90, back, front, 0.14),
            ring(height - 0.07, w * 0.74, back + slope, front - 0.75, 0.12),
            ring(height, w * 0.66, back + slope + 0.12, front - 0.92, 0.14),
        ],
        [tones, [paint] * 8],
        [glass, [PAINT] * 8],
        _darker(paint, 1.06),
    )
    for x in (-1.0, 1.0):
        middle = (back + front) / 2 - 0.05
        low, high = np.array([x * (w * 0.90 + 0.006), belt, 0]), np.array([x * (w * 0.74 + 0.006), height - 0.08, 0])
        pillar = np.stack(
            [
                low + np.array([0, 0, middle - 0.05]),
                low + np.array([0, 0, middle + 0.05]),
                high + np.array([0, 0, middle + 0.05]),
                high + np.array([0, 0, middle - 0.05]),
            ]
        )
        body.add(pillar, np.array([x, 0.2, 0]), _darker(paint, 0.8), detail=True)
    return Vehicle([body], length, w * 2, height, _footprint(w, half, height))


def _quad(x0: float, x1: float, y0: float, y1: float, z: float) -> F64:
    return np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)])


def _wheel(part: Part, x: float, z: float, radius: float) -> None:
    """A wheel on the side x: the dark arch, the tyre, the rim."""
    outward = np.array([np.sign(x), 0.0, 0.0])
    turn = np.linspace(0, 2 * np.pi, 17)[:-1]
    circle = np.stack([np.zeros(16), np.sin(turn), np.cos(turn)], axis=1)
    shift = outward * 0.012
    arch = circle * (radius + 0.07) + [x, radius, z] + shift
    arch[:, 1] = np.maximum(arch[:, 1], 0.2)
    part.add(arch, outward, (24, 23, 23))
    part.add(circle * radius + [x, radius, z] + shift * 2, outward, (30, 29, 29))
    part.add(circle * radius * 0.62 + [x, radius, z] + shift * 3, outward, (150, 150, 150))
    part.add(circle * radius * 0.22 + [x, radius, z] + shift * 4, outward, (70, 70, 70), detail=True)


def _car_details(body: Part, paint: Colour, w: float, half: float, belt: float) -> None:
    ahead, behind = np.array([0.0, 0.1, 1.0]), np.array([0.0, 0.1, -1.0])
    top = belt * 0.82
    body.add(_quad(-w * 0.62, w * 0.62, 0.34, top - 0.10, half + 0.01), ahead, _DARK)
    body.add(_quad(-0.26, 0.26, 0.42, 0.54, half + 0.02), ahead, (222, 226, 226), detail=True)
    body.add(_quad(-0.26, 0.26, 0.52, 0.64, -half - 0.01), behind, (222, 226, 226), detail=True)
    body.add(_quad(-w * 0.8, w * 0.8, 0.26, 0.40, -half - 0.01), behind, _darker(paint, 0.45))
    for side in (-1.0, 1.0):
        inner, outer = side * w * 0.52, side * w * 0.88
        body.add(_quad(inner, outer, top - 0.20, top - 0.02, half - 0.02), ahead, (226, 224, 220), HEADLIGHT)
        body.add(_quad(inner, outer, top - 0.18, top + 0.02, -half - 0.005), behind, (44, 40, 170), TAILLIGHT)
        sideways = np.array([side, 0.0, 0.0])
        for z in (-0.62 * half, 0.62 * half):
            _wheel(body, side * w, z, 0.32)
        for z in (-0.28 * half, 0.16 * half):
            line = np.array(
                [(side * (w + 0.008), y, z + d) for y, d in ((0.35, 0.0), (top, 0.0), (top, 0.03), (0.35, 0.03))]
            )
            body.add(line, sideways, _darker(paint, 0.5), detail=True)
        mirror_at = half - 1.35
        mirror = np.array(
            [
                (side * (w + d), y, mirror_at)
                for d, y in ((0, belt), (0.18, belt), (0.18, belt + 0.14), (0, belt + 0.14))
            ]
        )
        body.add(mirror, ahead, _darker(paint, 0.8), detail=True)
        body.add(mirror, behind, _DARK, detail=True)


def make_truck(rng: np.random.Generator) -> Vehicle:
    """A lorry: a cab, a chassis and a box or a tipper in its own colour."""
    cab_paint = _CAR_PAINTS[int(rng.integers(len(_CAR_PAINTS)))]
    cargo_paint = _CARGO_PAINTS[int(rng.integers(len(_CARGO_PAINTS)))]
    length, w = float(rng.uniform(6.6, 8.6)), float(rng.uniform(1.14, 1.24))
    half = length / 2
    cab_top = float(rng.uniform(2.35, 2.75))
    cab_back = half - float(rng.uniform(1.8, 2.2))
    box_top = float(rng.uniform(2.9, 3.5)) if rng.random() < 0.8 else 2.0
    cargo = Part(-half)
    cargo.loft(
        [ring(0.45, w * 0.75, 0.1 - half, cab_back, 0.05), ring(0.92, w * 0.75, 0.1 - half, cab_back, 0.05)],
        [[_DARK] * 8],
        [[PAINT] * 8],
        _DARK,
    )
    for side in (-1.0, 1.0):
        for z in (-0.62 * half, -0.62 * half + 1.0):
            _wheel(cargo, side * w * 0.96, z, 0.46)
    band = _darker(cargo_paint, 0.86)
    cargo.loft(
        [
            ring(0.92, w, -half, cab_back - 0.15, 0.06),
            ring(1.15, w, -half, cab_back - 0.15, 0.06),
            ring(box_top, w, -half, cab_back - 0.15, 0.06),
        ],
        [[band] * 8, [cargo_paint] * 8],
        [[PAINT] * 8] * 2,
        _darker(cargo_paint, 0.95) if box_top > 2.5 else (70, 96, 120),
    )
    stripe = _CARGO_PAINTS[int(rng.integers(len(_CARGO_PAINTS)))]
    _cargo_details(cargo, (cargo_paint, stripe), (w, half, cab_back, box_top))
    cab = _make_cab(cab_paint, w, half, cab_back, cab_top)
    height = max(box_top, cab_top)
    return Vehicle([cargo, cab], length, 2 * w, height, _footprint(w, half, height))


def _cargo_details(cargo: Part, paints: tuple[Colour, Colour], size: tuple[float, float, float, float]) -> None:
    """Add doors, tail lights, stripe. `paints`: box, stripe; `size`: half width, half length, back of cab, top."""
    (paint, logo), (w, half, cab_back, top) = paints, size
    behind = np.array([0.0, 0.0, -1.0])
    cargo.add(_quad(-0.03, 0.03, 1.15, top - 0.1, -half - 0.01), behind, _darker(paint, 0.55))
    for side in (-1.0, 1.0):
        cargo.add(_quad(side * w * 0.72, side * w * 0.96, 0.72, 0.92, -half - 0.012), behind, (44, 40, 190), TAILLIGHT)
        cargo.add(_quad(side * 0.10, side * w * 0.9, 1.3, top - 0.25, -half - 0.01), behind, _darker(paint, 0.93))
        z0, z1 = -half + 0.6, cab_back - 0.9
        y0, y1 = 1.15 + (top - 1.15) * 0.35, 1.15 + (top - 1.15) * 0.62
        stripe = np.array([(side * (w + 0.01), y, z) for y, z in ((y0, z0), (y0, z1), (y1, z1), (y1, z0 + 0.5))])
        cargo.add(stripe, np.array([side, 0.0, 0.0]), logo)


def _make_cab(paint: Colour, w: float, half: float, back: float, top: float) -> Part:
    cab = Part(half)
    glass = [GLASS, PAINT, GLASS, PAINT, GLASS, PAINT, PAINT, PAINT]
    tones = [_GLASS if kind == GLASS else _darker(paint, 0.9) for kind in glass]
    cab.loft(
        [
            ring(0.38, w * 0.96, back, half - 0.04, 0.12),
            ring(1.35, w * 0.98, back, half, 0.16),
            ring(top - 0.30, w * 0.95, back, half - 0.22, 0.16),
            ring(top, w * 0.90, back, half - 0.40, 0.2),
        ],
        [[paint] * 8, tones, [paint] * 8],
        [[PAINT] * 8, glass, [PAINT] * 8],
        _darker(paint, 1.05),
    )
    ahead = np.array([0.0, 0.0, 1.0])
    cab.add(_quad(-w * 0.7, w * 0.7, 0.75, 1.2, half + 0.01), ahead, _DARK)
    cab.add(_quad(-w * 0.94, w * 0.94, 0.36, 0.62, half + 0.01), ahead, _darker(paint, 0.5))
    for side in (-1.0, 1.0):
        cab.add(_quad(side * w * 0.62, side * w * 0.92, 0.66, 0.86, half + 0.02), ahead, (226, 224, 220), HEADLIGHT)
        _wheel(cab, side * w * 0.98, half - 0.95, 0.46)
    return cab
