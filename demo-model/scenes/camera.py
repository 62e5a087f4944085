"""A pinhole camera: projects world coordinates in metres to image pixels and back."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

NEAR_M = 0.6
"""Points closer than this in front of the lens are not drawn."""


class Pose(NamedTuple):
    """Position on the ground in metres, and heading in radians (0 along +z, positive towards +x)."""

    x: float
    z: float
    heading: float


def place(local: F64, pose: Pose) -> F64:
    """Transform points (n, 3) from object axes (x right, y up, z forward) to world axes (n, 3)."""
    sin, cos = np.sin(pose.heading), np.cos(pose.heading)
    x = pose.x + local[:, 0] * cos + local[:, 2] * sin
    z = pose.z - local[:, 0] * sin + local[:, 2] * cos
    return np.stack([x, local[:, 1], z], axis=1)


@dataclass(frozen=True, slots=True)
class Camera:
    """A fixed camera. World axes in metres: x right, y up, z along the street; the lens is at (x, height, 0).

    `yaw` turns to the right and `pitch` down (radians); `focal` is in pixels of the picture (width, height).
    """

    width: int
    height: int
    focal: float
    x: float
    lens_height: float
    yaw: float
    pitch: float

    def axes(self) -> F64:
        """(3, 3): the camera's right, down and forward unit vectors as rows."""
        sy, cy, sp, cp = np.sin(self.yaw), np.cos(self.yaw), np.sin(self.pitch), np.cos(self.pitch)
        return np.array([[cy, 0.0, -sy], [-sy * sp, -cp, -cy * sp], [sy * cp, -sp, cy * cp]])

    def position(self) -> F64:
        """(3,): the position of the lens."""
        return np.array([self.x, self.lens_height, 0.0])

    def to_view(self, points: F64) -> F64:
        """World points (n, 3) to camera coordinates (n, 3): right, down, depth; all in metres."""
        view: F64 = (points - self.position()) @ self.axes().T
        return view

    def to_pixels(self, view: F64) -> F64:
        """Camera coordinates (n, 3) to pixels (n, 2); depth is clamped to NEAR_M."""
        depth = np.maximum(view[:, 2:3], NEAR_M)
        centre = np.array([self.width / 2, self.height / 2])
        pixels: F64 = view[:, :2] * self.focal / depth + centre
        return np.clip(pixels, -12_000, 12_000)

    def project(self, points: F64) -> tuple[F64, F64]:
        """World points (n, 3) to pixels (n, 2) and depths in metres (n,)."""
        view = self.to_view(points)
        return self.to_pixels(view), view[:, 2]

    def polygon(self, points: F64) -> F64 | None:
        """A flat world polygon (n, 3) cut at the near plane, as pixels (m, 2); None if nothing of it remains."""
        view = self.to_view(points)
        kept: list[F64] = []
        for a, b in zip(view, np.roll(view, -1, axis=0), strict=True):
            if a[2] >= NEAR_M:
                kept.append(a)
            if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
                kept.append(a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2]))
        return self.to_pixels(np.array(kept)) if len(kept) >= 3 else None

    def plane_to_pixels(self, origin: F64, u: F64, v: F64) -> F64:
        """(3, 3) homography of the plane `origin + a*u + b*v` (a, b metres): (a, b, 1) to homogeneous pixels."""
        axes = self.axes()
        lens = np.array([[self.focal, 0, self.width / 2], [0, self.focal, self.height / 2], [0, 0, 1.0]])
        columns = np.stack([axes @ u, axes @ v, axes @ (origin - self.position())], axis=1)
        matrix: F64 = lens @ columns
        return matrix

    def horizon(self) -> float:
        """The picture row of the horizon, in pixels."""
        return float(self.height / 2 - self.focal * np.tan(self.pitch))

    def ground(self) -> tuple[F64, F64, F64]:
        """For every pixel (height, width): x and z of its ground point, and metres per pixel sideways.

        Pixels at or above the horizon get ground points 2 km away; later layers cover them.
        """
        axes = self.axes()
        right = (np.arange(self.width) + 0.5 - self.width / 2) / self.focal
        down = (np.arange(self.height) + 0.5 - self.height / 2) / self.focal
        ray_y = down * axes[1, 1] + axes[2, 1]
        depth = np.where(ray_y < -1e-9, self.lens_height / np.maximum(-ray_y, 1e-9), 2000.0)
        depth = np.minimum(depth, 2000.0)[:, None]
        x = self.x + depth * (right[None] * axes[0, 0] + down[:, None] * axes[1, 0] + axes[2, 0])
        z = depth * (right[None] * axes[0, 2] + down[:, None] * axes[1, 2] + axes[2, 2])
        return x, z, np.broadcast_to(depth / self.focal, x.shape)
