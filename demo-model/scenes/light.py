"""The light by time of day: sky, sun, street lamps and headlights."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .camera import F64, U8, Camera

TimeOfDay = Literal["day", "dusk", "night"]
Colour = tuple[float, float, float]
"""Blue, green, red; 0 to 255 for paint, about 0 to 1 for light."""


@dataclass(frozen=True, slots=True)
class Light:
    """The light of one street. Colours of light are factors on paint; `lamps` are (n, 2) ground x, z in metres."""

    name: TimeOfDay
    ambient: Colour
    sun: Colour
    sun_towards: tuple[float, float, float]
    shadow: float
    """Share of the light that a shadow leaves on the ground."""
    sky_top: Colour
    sky_low: Colour
    haze: Colour
    windows_lit: float
    """Share of the windows with the lights on."""
    glow: float
    """Strength of street lamps and headlights, 0 (day) to 1 (night)."""
    lamps: F64 = field(default_factory=lambda: np.zeros((0, 2)))

    def lamp_light(self, x: F64, z: F64) -> F64:
        """Lamp light on ground points (any shape), 0 to about 1."""
        if self.glow <= 0:
            return np.zeros(np.broadcast(x, z).shape)
        total = np.zeros(np.broadcast(x, z).shape)
        for lamp_x, lamp_z in self.lamps:
            total += np.exp(-((x - lamp_x) ** 2 + (z - lamp_z) ** 2) / 45.0)
        return np.minimum(total, 1.2) * self.glow

    def _lamp_light_at(self, x: float, z: float) -> float:
        """Lamp light on one point, without an array per lamp."""
        if self.glow <= 0 or not len(self.lamps):
            return 0.0
        near = ((self.lamps - (x, z)) ** 2).sum(axis=1)
        return min(float(np.exp(near / -45.0).sum()), 1.2) * self.glow

    def on_faces(self, normals: F64, x: float, z: float) -> F64:
        """Light (n, 3) on faces with outward normals (n, 3) of an object at ground point x, z."""
        facing = np.maximum(normals @ np.array(self.sun_towards), 0.0)[:, None]
        lamp = self._lamp_light_at(x, z)
        from_lamp = (0.35 + 0.65 * np.maximum(normals[:, 1:2], 0.0)) * np.array(LAMP_COLOUR) * lamp
        light: F64 = np.array(self.ambient) * (0.86 + 0.14 * normals[:, 1:2]) + np.array(self.sun) * facing + from_lamp
        return light


@dataclass(frozen=True, slots=True)
class Easel:
    """The canvas (h, w, 3) uint8, the camera and the light."""

    canvas: U8
    camera: Camera
    light: Light


LAMP_COLOUR: Colour = (0.38, 0.58, 0.74)


def make_light(name: TimeOfDay, rng: np.random.Generator) -> Light:
    """Random light for a time of day."""
    side = float(rng.choice([-1.0, 1.0]))
    if name == "day":
        clear = float(rng.uniform(0, 1))
        direction = np.array([side * rng.uniform(0.35, 0.9), rng.uniform(0.8, 1.2), rng.uniform(-0.8, 0.1)])
        k = 0.60 + 0.14 * (1 - clear)
        sun = 0.26 + 0.26 * clear
        return Light(
            name,
            (k * 1.06, k, k * 0.96),
            (sun * 0.86, sun * 0.96, sun),
            _unit(direction),
            0.80 - 0.26 * clear,
            (205 + 20 * clear, 150 + 30 * (1 - clear), 105 + 75 * (1 - clear)),
            (238, 226, 212),
            (226, 216, 206),
            0.0,
            0.0,
        )
    if name == "dusk":
        direction = np.array([side * rng.uniform(0.8, 1.2), rng.uniform(0.35, 0.55), rng.uniform(-0.3, 0.7)])
        return Light(
            name,
            (0.50, 0.42, 0.43),
            (0.10, 0.20, 0.33),
            _unit(direction),
            0.72,
            (150, 96, 78),
            (120, 168, 246),
            (140, 142, 176),
            float(rng.uniform(0.25, 0.45)),
            0.55,
        )
    return Light(
        name,
        (0.30, 0.235, 0.205),
        (0.05, 0.04, 0.03),
        _unit(np.array([0.3 * side, 1.0, -0.4])),
        0.66,
        (44, 24, 14),
        (84, 54, 42),
        (58, 40, 34),
        float(rng.uniform(0.35, 0.6)),
        1.0,
    )


def _unit(vector: F64) -> tuple[float, float, float]:
    x, y, z = vector / np.linalg.norm(vector)
    return float(x), float(y), float(z)
