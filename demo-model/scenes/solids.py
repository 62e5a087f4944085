"""Solids made of flat faces: how cars and trucks are modelled, lit, projected and painted."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .camera import F64, NEAR_M, Pose, place
from .light import Colour, Easel
from .paint import fill_fixed, fixed

PAINT, GLASS, HEADLIGHT, TAILLIGHT = 0, 1, 2, 3
"""The material of a face, which determines how light changes its colour."""
_GLASS_MIRROR = {"day": 0.8, "dusk": 0.5, "night": 0.7}


@dataclass(frozen=True, slots=True)
class _Packed:
    points: F64
    normals: F64
    colours: F64
    kinds: NDArray[np.int64]
    details: NDArray[np.bool_]
    firsts: NDArray[np.int64]
    ends: NDArray[np.int64]
    waist: int


@dataclass(slots=True)
class Part:
    """A convex piece with its details. Faces are painted in order; those that face away from the camera are left out.

    Local axes in metres: x right, y up, z forward, the origin on the ground in the middle of the vehicle.
    """

    middle: float
    """The z that separates this piece from its neighbour when pieces are sorted."""
    faces: list[F64] = field(default_factory=list)
    normals: list[F64] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    details: list[bool] = field(default_factory=list)
    waist: int = 0
    """Index of the first face of the upper of two convex pieces, such as the cabin of a car; 0 for one piece."""
    _packed: "_Packed | None" = None

    def packed(self) -> "_Packed":
        """The faces as arrays, computed once, because a part is drawn in many frames."""
        if self._packed is None:
            sizes = [len(face) for face in self.faces]
            firsts = np.cumsum(np.array([0, *sizes[:-1]], dtype=np.int64))
            self._packed = _Packed(
                np.concatenate(self.faces),
                np.array(self.normals),
                np.array(self.colours),
                np.array(self.kinds),
                np.array(self.details),
                firsts,
                firsts + np.array(sizes),
                int(firsts[self.waist]) if self.waist else 0,
            )
        return self._packed

    def add(self, face: F64, outward: F64, colour: Colour, kind: int = PAINT, *, detail: bool = False) -> None:
        """Add one face (n, 3); `outward` (3,) only has to point to the face's outer side."""
        normal = np.cross(face[1] - face[0], face[2] - face[1])
        length = float(np.linalg.norm(normal))
        normal = normal / length if length > 1e-9 else outward
        self.faces.append(face)
        self.normals.append(normal if normal @ outward >= 0 else -normal)
        self.colours.append(colour)
        self.kinds.append(kind)
        self.details.append(detail)

    def loft(self, rings: list[F64], colours: list[list[Colour]], kinds: list[list[int]], cap: Colour) -> None:
        """Join octagonal rings (8, 3), lowest first, with eight faces per level, and close the top."""
        middle = np.concatenate(rings).mean(axis=0)
        for lower, upper, tones, matter in zip(rings, rings[1:], colours, kinds, strict=False):
            for k in range(8):
                j = (k + 1) % 8
                face = np.stack([lower[k], lower[j], upper[j], upper[k]])
                self.add(face, face.mean(axis=0) - middle, tones[k], matter[k])
        self.add(rings[-1], np.array([0.0, 1.0, 0.0]), cap)


def ring(y: float, half_width: float, back: float, front: float, chamfer: float) -> F64:
    """An octagon (8, 3) at height y: right side, front right corner, front, ..., back, back right corner."""
    w, c = half_width, chamfer
    outline = [
        (w, back + c),
        (w, front - c),
        (w - c, front),
        (c - w, front),
        (-w, front - c),
        (-w, back + c),
        (c - w, back),
        (w - c, back),
    ]
    return np.array([(x, y, z) for x, z in outline])


def paint_parts(easel: Easel, parts: list[Part], pose: Pose) -> list[F64] | None:
    """Paint a solid on the canvas; returns pixels (n, 2) of its convex pieces, or None if it is behind the camera."""
    camera = easel.camera
    away = np.array([[camera.x - pose.x, camera.lens_height, -pose.z]])
    eye = place(away, Pose(0.0, 0.0, -pose.heading))[0]
    drawn: list[F64] = []
    for part in sorted(parts, key=lambda part: abs(part.middle - eye[2]), reverse=True):
        pixels = _paint_part(easel, part, eye, pose)
        if pixels is None:
            return None
        waist = part.packed().waist
        drawn += [pixels[:waist], pixels[waist:]] if waist else [pixels]
    return drawn


def _paint_part(easel: Easel, part: Part, eye: F64, pose: Pose) -> F64 | None:
    """Paint one piece as seen from `eye` (3,), the lens in the piece's own axes."""
    canvas, camera, light, packed = easel.canvas, easel.camera, easel.light, part.packed()
    pixels, depth = camera.project(place(packed.points, pose))
    if depth.min() < NEAR_M:
        return None
    seen = ((eye - packed.points[packed.firsts]) * packed.normals).sum(axis=1) > 0
    turned = place(packed.normals, Pose(0.0, 0.0, pose.heading))
    colours = packed.colours * light.on_faces(turned, pose.x, pose.z)
    kinds = packed.kinds
    glass = kinds == GLASS
    mirror = np.clip(0.16 + 0.5 * turned[:, 1], 0, 0.6)[:, None]
    reflected = colours + (np.array(light.sky_low) * _GLASS_MIRROR[light.name] - colours) * mirror
    colours = np.where(glass[:, None], reflected, colours)
    if light.glow > 0:
        colours[kinds == HEADLIGHT] = (228, 246, 255)
        colours[kinds == TAILLIGHT] = (70, 62, 238)
    far = np.clip((float(depth.mean()) - 40) / 160, 0, 0.6)
    colours = np.clip(colours + (np.array(light.haze) - colours) * far, 0, 255)
    # A detail smaller than about a pixel would flicker.
    if camera.focal / float(depth.mean()) < 14:
        seen &= ~packed.details
    corners, tones = fixed(pixels), colours.tolist()
    for k in np.flatnonzero(seen).tolist():
        fill_fixed(canvas, corners[packed.firsts[k] : packed.ends[k]], tones[k])
    return pixels
