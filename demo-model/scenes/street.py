"""Renders the view of one camera on one street: the static picture once, moving objects in each frame."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .camera import F64, U8, Camera, Pose, place
from .layout import make_plan
from .light import Easel, Light, TimeOfDay, make_light
from .paint import disc, fill, fixed, hull
from .people import paint_cyclist, paint_pedestrian
from .scenery import bake_glow, draw_lamp_post, lamp_posts, paint_backdrop
from .solids import paint_parts
from .traffic import PEDESTRIAN, Actor, make_actors

CLASS_NAMES: tuple[str, ...] = ("car", "truck", "cyclist", "pedestrian")
"""The classes of the model; a class_id is an index of this tuple."""

DEMO_SEEDS: tuple[int, ...] = (24, 10, 12)
"""Seeds of a street by day, one at dusk and one by night: those of the clips."""

MIN_HEIGHT_SHARE = 10 / 360
"""An object lower than this share of the picture's height (10 px of 360) gets no label."""
MIN_VISIBLE = 0.42
"""An object gets no label if less than this share of its part within the picture is visible."""
MIN_INSIDE = 0.20
"""An object gets no label if less than this share of it lies within the picture."""


@dataclass(frozen=True, slots=True)
class Label:
    """One object: `class_id` is an index of CLASS_NAMES; `box` is x1, y1, x2, y2 in pixels, around the visible part."""

    class_id: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _Placed:
    """An actor at one time: its pose, and its distance from the camera in metres."""

    actor: Actor
    pose: Pose
    covered: float
    distance: float


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The area of one object: its convex outline (n, 2) in pixels, and its number of pixels before others hide some."""

    outline: F64
    pixels: int


class Street:
    """A street seen by one fixed camera. The seed determines everything: plan, time of day, houses, traffic, noise.

    `time_of_day` overrides what the seed would choose. Not for use by two threads at once.
    """

    def __init__(self, seed: int, *, width: int = 640, height: int = 360, time_of_day: TimeOfDay | None = None) -> None:
        rng = np.random.default_rng([seed, 20_26])
        self.seed, self.width, self.height = seed, width, height
        drawn: TimeOfDay = ("day", "dusk", "night")[int(rng.choice(3, p=[0.5, 0.2, 0.3]))]
        self.time_of_day: TimeOfDay = time_of_day or drawn
        # Small pictures are drawn at twice the size and reduced: the cheapest good antialiasing.
        self._zoom = 2 if width <= 800 else 1
        self._plan = make_plan(rng)
        across = bool(rng.random() < 0.35)
        self._camera = _make_camera(width * self._zoom, height * self._zoom, self._plan.houses, rng, across=across)
        light = make_light(self.time_of_day, np.random.default_rng([seed, 1]))
        posts = lamp_posts(self._plan, rng, across=across)
        self._light: Light = replace(light, lamps=posts)
        self._backdrop = paint_backdrop(
            self._camera, self._plan, self._light, np.random.default_rng([seed, 2]), across=across
        )
        for picture in (self._backdrop.lit, self._backdrop.shaded):
            bake_glow(picture, self._camera, self._light)
        self._actors = make_actors(self._plan, np.random.default_rng([seed, 3]), float(rng.uniform(0.55, 1.1)))
        self._small_mask: U8 = np.ascontiguousarray(self._backdrop.corner_mask[:: self._zoom, :: self._zoom])
        levels = np.arange(256) * rng.uniform(0.94, 1.08) + rng.uniform(-6, 6)
        self._exposure: U8 = np.clip(levels, 0, 255).astype(np.uint8)
        self._softness = float(rng.choice([0.0, 0.0, 0.55, 0.8]))
        self._noise = self._make_noise(float(rng.uniform(0.8, 3.2)) * (1.5 if self.time_of_day == "night" else 1.0))

    def frame(self, index: int, fps: float = 10.0) -> tuple[U8, list[Label]]:
        """Render frame `index` at `fps` frames/s.

        Returns:
            The picture (height, width, 3) uint8 BGR, and its labels.
        """
        placed = self._place_actors(index / fps)
        canvas = self._backdrop.lit.copy()
        easel = Easel(canvas, self._camera, self._light)
        self._cast_shadows(canvas, placed)
        ids = np.zeros((self.height, self.width), dtype=np.uint8)
        behind = [p for p in placed if p.pose.z > self._plan.corner_houses]
        outlines = [self._paint(easel, ids, number, thing) for number, thing in enumerate(behind, start=1)]
        self._put_back_corner_houses(canvas, ids, outlines)
        before = [p for p in placed if p.pose.z <= self._plan.corner_houses]
        posts = sorted(self._light.lamps.tolist(), key=lambda post: -self._distance(post[0], post[1]))
        for number, thing in enumerate(before, start=len(behind) + 1):
            while posts and self._distance(*posts[0]) > thing.distance:
                draw_lamp_post(easel, *posts.pop(0))
            outlines.append(self._paint(easel, ids, number, thing))
        for post in posts:
            draw_lamp_post(easel, *post)
        if self._zoom > 1:
            canvas = np.asarray(cv2.resize(canvas, (self.width, self.height), interpolation=cv2.INTER_AREA), np.uint8)
        return self._develop(canvas, behind, before, index), self._labels(behind + before, outlines, ids)

    def _distance(self, x: float, z: float) -> float:
        return float(np.hypot(x - self._camera.x, z))

    def _place_actors(self, seconds: float) -> list[_Placed]:
        """All actors that may be visible, the farthest first."""
        placed = []
        (right_x, _, right_z), _, (ahead_x, _, ahead_z) = self._camera.axes()
        reach = self._camera.width / 2 / self._camera.focal
        for actor in self._actors:
            pose, covered = actor.at(seconds)
            dx = pose.x - self._camera.x
            depth, aside = dx * ahead_x + pose.z * ahead_z, dx * right_x + pose.z * right_z
            slack = 9.0 if actor.vehicle is not None else 2.5
            if depth > 1.0 and abs(aside) < reach * (depth + slack) + slack:
                placed.append(_Placed(actor, pose, covered, self._distance(pose.x, pose.z)))
        return sorted(placed, key=lambda p: -p.distance)[-254:]

    def _cast_shadows(self, canvas: U8, placed: Sequence[_Placed]) -> None:
        """Blend in the darker backdrop where objects cast shadows on the ground."""
        shade = np.zeros(canvas.shape[:2], dtype=np.uint8)
        sun = np.array(self._light.sun_towards)
        # At night and at dusk the lamps come from all sides: only the ground directly below is dark.
        throw = -sun[[0, 2]] / sun[1] * (1.0 if self.time_of_day == "day" else 0.15)
        # All corners in one array, because projecting eight points at a time costs ten times as much.
        corners = np.stack([p.actor.shadow_box() for p in placed]) if placed else np.zeros((0, 8, 3))
        sin, cos = np.sin([p.pose.heading for p in placed])[:, None], np.cos([p.pose.heading for p in placed])[:, None]
        x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]
        world_x = np.array([p.pose.x for p in placed])[:, None] + x * cos + z * sin + throw[0] * y
        world_z = np.array([p.pose.z for p in placed])[:, None] - x * sin + z * cos + throw[1] * y
        pixels, depth = self._camera.project(np.stack([world_x, np.zeros_like(x), world_z], axis=2).reshape(-1, 3))
        for outline, depths in zip(pixels.reshape(-1, 8, 2), depth.reshape(-1, 8), strict=True):
            if depths.min() > 1.0:
                fill(shade, hull(outline), (255,))
        shade = np.asarray(cv2.blur(shade, (2 * self._zoom + 1, 2 * self._zoom + 1)), dtype=np.uint8)
        left, top, w, h = cv2.boundingRect(shade)
        if w and h:
            area = (slice(top, top + h), slice(left, left + w))
            share = shade[area].astype(np.float32) / 255
            canvas[area] = cv2.blendLinear(self._backdrop.shaded[area], canvas[area], share, 1 - share)

    def _paint(self, easel: Easel, ids: U8, number: int, p: _Placed) -> _Drawn | None:
        """Paint one object, and write its number to its pixels of `ids` (height, width)."""
        actor = p.actor
        pieces: list[F64] | None = None
        if actor.vehicle is not None:
            pieces = paint_parts(easel, actor.vehicle.parts, p.pose)
        elif actor.person is not None:
            paint = paint_pedestrian if actor.class_id == PEDESTRIAN else paint_cyclist
            pieces = paint(easel, actor.person, p.pose, p.covered)
        if pieces is None:
            return None
        # Piece by piece, because one hull around a car would also cover a person behind its bonnet.
        for piece in pieces:
            cv2.fillConvexPoly(ids, fixed(hull(piece) / self._zoom), (number,), cv2.LINE_8, 4)
        outline = hull(np.concatenate(pieces)) / self._zoom
        x1, y1 = np.clip(outline.min(axis=0) - 1, 0, None).astype(int)
        x2, y2 = np.clip(outline.max(axis=0) + 2, 0, None).astype(int)
        return _Drawn(outline, int(np.count_nonzero(ids[y1:y2, x1:x2] == number)))

    def _put_back_corner_houses(self, canvas: U8, ids: U8, outlines: Sequence[_Drawn | None]) -> None:
        """Paint the corner houses again over objects on the crossing road, which they hide."""
        drawn = [one.outline for one in outlines if one is not None]
        if not drawn:
            return
        points = np.concatenate(drawn)
        low = np.clip(np.floor(points.min(axis=0)).astype(int) - 3, 0, [self.width, self.height])
        high = np.clip(np.ceil(points.max(axis=0)).astype(int) + 3, 0, [self.width, self.height])
        if (high <= low).any():
            return
        ids[low[1] : high[1], low[0] : high[0]][self._small_mask[low[1] : high[1], low[0] : high[0]] > 127] = 0
        low, high = low * self._zoom, high * self._zoom
        area = (slice(low[1], high[1]), slice(low[0], high[0]))
        cv2.copyTo(self._backdrop.lit[area], self._backdrop.corner_mask[area], canvas[area])

    def _labels(self, placed: Sequence[_Placed], outlines: Sequence[_Drawn | None], ids: U8) -> list[Label]:
        """Boxes of objects that are large enough, inside the picture and not mostly hidden."""
        seen = np.bincount(ids.ravel(), minlength=256)
        edge = np.array([(0, 0), (self.width, 0), (self.width, self.height), (0, self.height)], dtype=np.float32)
        labels = []
        for number, (p, drawn) in enumerate(zip(placed, outlines, strict=True), start=1):
            if drawn is None:
                continue
            outline = drawn.outline
            area = float(cv2.contourArea(outline.astype(np.float32)))
            inside = float(cv2.intersectConvexConvex(outline.astype(np.float32), edge)[0])
            if inside < MIN_INSIDE * area or seen[number] < max(MIN_VISIBLE * drawn.pixels, 1):
                continue
            x1, y1 = np.maximum(outline.min(axis=0), 0.0)
            x2, y2 = np.minimum(outline.max(axis=0), [self.width, self.height])
            if seen[number] < 0.97 * drawn.pixels:
                # Partly hidden: the box encloses the visible part, as a human annotator would draw it.
                rows, columns = np.nonzero(ids[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] == number)
                if rows.size == 0:
                    continue
                x1, x2 = max(x1, int(x1) + float(columns.min())), min(x2, int(x1) + float(columns.max()) + 1)
                y1, y2 = max(y1, int(y1) + float(rows.min())), min(y2, int(y1) + float(rows.max()) + 1)
            if y2 - y1 >= MIN_HEIGHT_SHARE * self.height and x2 - x1 >= 3:
                labels.append(Label(p.actor.class_id, (float(x1), float(y1), float(x2), float(y2))))
        return labels

    def _develop(self, picture: U8, behind: Sequence[_Placed], before: Sequence[_Placed], index: int) -> U8:
        """Apply the effects of the camera: glare, exposure, softness, noise."""
        if self._light.glow > 0:
            picture = np.asarray(cv2.add(picture, self._glare(behind, before)), dtype=np.uint8)
        picture = np.asarray(cv2.LUT(picture, self._exposure), dtype=np.uint8)
        if self._softness > 0:
            picture = np.asarray(cv2.GaussianBlur(picture, (3, 3), self._softness), dtype=np.uint8)
        dice = np.random.default_rng([self.seed, 4, index])
        dx, dy = (int(v) for v in dice.integers(0, _NOISE_SLACK, 2))
        window = (slice(dy, dy + self.height), slice(dx, dx + self.width))
        brighter, darker = self._noise
        return np.asarray(cv2.subtract(cv2.add(picture, brighter[window]), darker[window]), dtype=np.uint8)

    def _glare(self, behind: Sequence[_Placed], before: Sequence[_Placed]) -> U8:
        """(height, width, 3): the light of headlights on the road and around the lamps of vehicles."""
        k = 2 * self._zoom
        size = (self.width // 2, self.height // 2)
        layer = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        glow = self._light.glow
        moving = [p for p in (*behind, *before) if p.actor.vehicle is not None and p.actor.speed > 0]
        for p in moving:
            assert p.actor.vehicle is not None
            half = p.actor.vehicle.length / 2
            beam = np.array(
                [
                    (-0.7, 0, half),
                    (0.7, 0, half),
                    (1.9, 0, half + 7),
                    (0.8, 0, half + 9.5),
                    (-0.8, 0, half + 9.5),
                    (-1.9, 0, half + 7),
                ],
                dtype=np.float64,
            )
            pixels, depth = self._camera.project(place(beam, p.pose))
            if depth.min() > 1.5:
                fill(layer, hull(pixels) / k, (26 * glow, 38 * glow, 44 * glow))
        layer = np.asarray(cv2.GaussianBlur(layer, (0, 0), 3.0), dtype=np.uint8)
        lamps = np.zeros_like(layer)
        for p in moving:
            self._lamp_glow(lamps, p, k)
        lamps = np.asarray(cv2.GaussianBlur(lamps, (0, 0), 2.2), dtype=np.uint8)
        layer = np.asarray(cv2.add(layer, lamps), dtype=np.uint8)
        layer[self._small_mask[::2, ::2][: size[1], : size[0]] > 127] //= 3
        return np.asarray(cv2.resize(layer, (self.width, self.height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)

    def _lamp_glow(self, layer: U8, p: _Placed, k: int) -> None:
        assert p.actor.vehicle is not None
        pixels, depth = self._camera.project(place(p.actor.vehicle.lights(), p.pose))
        if depth.min() < 1.5:
            return
        to_camera = np.arctan2(self._camera.x - p.pose.x, -p.pose.z)
        ahead = float(np.cos(p.pose.heading - to_camera))
        strength, colour = (ahead, (190.0, 225.0, 240.0)) if ahead > 0 else (-ahead, (30.0, 24.0, 190.0))
        for spot in pixels[:2] if ahead > 0 else pixels[2:]:
            radius = self._camera.focal / float(depth.mean()) * (0.34 if ahead > 0 else 0.24)
            level = strength**2 * self._light.glow
            disc(layer, spot / k, radius / k + 0.4, tuple(c * level for c in colour))

    def _make_noise(self, sigma: float) -> tuple[U8, U8]:
        """Noise to add and noise to subtract, larger than the picture, so that each frame uses a window of them."""
        shape = (self.height + _NOISE_SLACK, self.width + _NOISE_SLACK, 3)
        grain = np.random.default_rng([self.seed, 5]).normal(0, sigma, shape)
        return np.clip(grain, 0, 255).astype(np.uint8), np.clip(-grain, 0, 255).astype(np.uint8)


_NOISE_SLACK = 48
"""Pixels by which the noise picture exceeds a frame."""


def _make_camera(width: int, height: int, houses: float, rng: np.random.Generator, *, across: bool) -> Camera:
    """A camera on a mast that looks along the street, or from a window that looks across it."""
    focal = width * float(rng.uniform(0.86, 1.12))
    if across:
        yaw, lens = float(rng.uniform(0.62, 0.95)), float(rng.uniform(4.6, 6.6))
        top = float(rng.uniform(0.10, 0.2))
        x = -houses - float(rng.uniform(1.0, 4.0))
    else:
        lens = float(rng.uniform(5.2, 8.6))
        x = float(rng.uniform(-0.75, 0.75)) * houses
        yaw = -x * 0.022 + float(rng.uniform(-0.10, 0.10))
        top = float(rng.uniform(0.14, 0.26))
    pitch = float(np.arctan((0.5 - top) * height / focal))
    return Camera(width, height, focal, x, lens, yaw, pitch)
