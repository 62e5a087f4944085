"""The static part of the picture, painted once per street: sky, skyline, ground, houses, trees, street lamps."""

from dataclasses import dataclass

import cv2
import numpy as np

from .camera import F64, U8, Camera
from .ground import paint_ground
from .houses import Scenery, house_walls, paint_house
from .layout import Plan
from .light import LAMP_COLOUR, Easel, Light
from .paint import disc, limb, mix, stroke

LAMP_HEIGHT_M = 7.2


@dataclass(frozen=True, slots=True)
class Backdrop:
    """The static picture (height, width, 3) uint8, lit and in shadow, and the mask of what hides the junction."""

    lit: U8
    shaded: U8
    corner_mask: U8


def paint_backdrop(camera: Camera, plan: Plan, light: Light, rng: np.random.Generator, *, across: bool) -> Backdrop:
    """Paint everything that does not move."""
    ground = paint_ground(camera, plan, light, rng)
    easel = Easel(_sky(camera, light, rng), camera, light)
    scene = Scenery(easel, np.zeros((camera.height, camera.width), dtype=np.uint8))
    _skyline(easel.canvas, camera, light, rng)
    top = int(np.clip(camera.horizon() + 1, 0, camera.height))
    easel.canvas[top:] = ground[top:]
    walls = house_walls(plan, rng, across=across)
    back = plan.far_kerb + plan.pavement
    for wall, style in walls:
        if wall.start[1] == wall.end[1] == back:
            paint_house(scene, wall, style)
    scene.mask[:] = 0
    for wall, style in walls:
        if not wall.start[1] == wall.end[1] == back:
            paint_house(scene, wall, style, 0.82 if wall.plain else 1.0)
    _plant_trees(scene, plan, rng, across=across)
    shaded = (easel.canvas * np.array([light.shadow * 1.06, light.shadow, light.shadow * 0.97])).clip(0, 255)
    return Backdrop(easel.canvas, shaded.astype(np.uint8), scene.mask)


def _sky(camera: Camera, light: Light, rng: np.random.Generator) -> U8:
    """Gradient, clouds, and stars at night: (height, width, 3) uint8."""
    height, width = camera.height, camera.width
    share = np.clip(np.arange(height) / max(camera.horizon(), 1), 0, 1)[:, None, None] ** 0.9
    sky = np.array(light.sky_top) * (1 - share) + np.array(light.sky_low) * share + np.zeros((height, width, 3))
    cloud = np.zeros((height, width), dtype=np.float32)
    for cells, weight in ((5, 1.0), (11, 0.5), (23, 0.28)):
        coarse = rng.normal(size=(max(cells // 2, 2), cells)).astype(np.float32)
        cloud += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    cover = np.clip((cloud - 0.1) * 0.7, 0, 0.75)[..., None]
    tint = {"day": (250.0, 246.0, 242.0), "dusk": (148.0, 150.0, 214.0), "night": (66.0, 50.0, 44.0)}[light.name]
    sky += (np.array(tint) - sky) * cover
    if light.name == "night":
        for _ in range(60):
            spot = np.array([rng.uniform(0, width), rng.uniform(0, max(camera.horizon(), 1))])
            value = float(rng.uniform(110, 210))
            y, x = int(min(spot[1], height - 1)), int(min(spot[0], width - 1))
            sky[y, x] = np.maximum(sky[y, x], value * (1 - cover[y, x, 0]))
    return np.clip(sky, 0, 255).astype(np.uint8)


def _skyline(canvas: U8, camera: Camera, light: Light, rng: np.random.Generator) -> None:
    """A hazy row of far roofs on the horizon."""
    horizon = camera.horizon()
    x = 0.0
    while x < camera.width:
        width = float(rng.uniform(0.02, 0.07)) * camera.width
        height = float(rng.uniform(0.01, 0.07)) * camera.height
        tone = mix(light.sky_low, light.haze, float(rng.uniform(0.5, 1.0)))
        tone = mix(tone, (0, 0, 0), 0.12)
        corner = (int(x + width), int(horizon + 3))
        cv2.rectangle(canvas, (int(x), int(horizon - height)), corner, tone, -1)
        x += width


def _plant_trees(scene: Scenery, plan: Plan, rng: np.random.Generator, *, across: bool) -> None:
    """Paint small trees along the house fronts, behind all pedestrians, so that they hide nobody."""
    spots: list[tuple[float, float]] = []
    for side in (1.0,) if across else (-1.0, 1.0):
        z = plan.corner_houses - float(rng.uniform(2, 6))
        while z > 4:
            if rng.random() < 0.6:
                spots.append((side * (plan.houses - 0.5), z))
            z -= float(rng.uniform(7, 12))
    season = float(rng.random())
    leaf = np.array([46.0, 112.0, 70.0]) if season < 0.65 else np.array([44.0, 110.0, 168.0])
    for x, z in sorted(spots, key=lambda spot: -spot[1]):
        _tree(scene, x, z, leaf * rng.uniform(0.8, 1.15, 3), rng)


def _tree(scene: Scenery, x: float, z: float, leaf: F64, rng: np.random.Generator) -> None:
    canvas, camera, light = scene.easel.canvas, scene.easel.camera, scene.easel.light
    height, crown = float(rng.uniform(3.6, 5.2)), float(rng.uniform(0.95, 1.35))
    points, depth = camera.project(np.array([[x, 0.0, z], [x, height - crown, z], [x, height, z]]))
    if depth.min() < 3.0:
        return
    scale = camera.focal / float(depth[1])
    for target, plain in ((canvas, False), (scene.mask, True)):
        bark = (255.0,) if plain else tuple(np.array([58.0, 72.0, 92.0]) * np.array(light.ambient) * 1.2)
        limb(target, (points[0], points[1]), (0.13 * scale, 0.08 * scale), bark)
    lit = light.on_faces(np.array([[0.0, 1.0, 0.0], [0.0, -0.4, 0.0]]), x, z)
    blobs = int(np.clip(scale * 9, 40, 420))
    spread = rng.normal(0, 0.42, (blobs, 2)).clip(-1, 1) * np.array([1.0, 1.15]) * crown
    order = np.argsort(-spread[:, 1] + rng.normal(0, 0.25, blobs))[::-1]
    for number, k in enumerate(order):
        spot = points[1] + np.array([spread[k, 0], spread[k, 1] - crown * 0.25]) * scale
        radius = float(rng.uniform(0.10, 0.30)) * scale * (1.35 - 0.6 * number / blobs)
        toward = np.clip(0.5 - spread[k, 1] / crown * 0.45 + spread[k, 0] * light.sun_towards[0] * 0.2, 0, 1)
        shade = lit[1] * 0.75 + (lit[0] - lit[1] * 0.75) * toward
        colour = leaf * shade * float(rng.uniform(0.82, 1.15))
        disc(canvas, spot, radius, tuple(np.clip(colour, 0, 255)))
        disc(scene.mask, spot, radius, (255,))


def lamp_posts(plan: Plan, rng: np.random.Generator, *, across: bool) -> F64:
    """Ground points (n, 2) x, z of the street lamps, just behind the kerbs."""
    spacing, first = float(rng.uniform(15, 20)), float(rng.uniform(14, 20))
    posts: list[tuple[float, float]] = []
    for side in (1.0,) if across else (-1.0, 1.0):
        along = np.arange(first + (spacing / 2 if side < 0 else 0), plan.corner - 3, spacing)
        posts.extend((side * (plan.kerb + 0.35), float(z)) for z in along)
    return np.array(posts).reshape(-1, 2)


def draw_lamp_post(easel: Easel, x: float, z: float) -> None:
    """One lamp: a pole, an arm over the road and the head."""
    canvas, camera, light = easel.canvas, easel.camera, easel.light
    toward_road = -np.sign(x)
    world = np.array(
        [
            [x, 0, z],
            [x, LAMP_HEIGHT_M - 0.3, z],
            [x + toward_road * 1.4, LAMP_HEIGHT_M, z],
            [x + toward_road * 1.9, LAMP_HEIGHT_M - 0.02, z],
        ]
    )
    points, depth = camera.project(world)
    if depth.min() < 2.0:
        return
    scale = camera.focal / float(depth[0])
    tone = np.array([104.0, 100.0, 96.0]) * (np.array(light.ambient) + 0.12)
    limb(canvas, (points[0], points[1]), (0.09 * scale, 0.055 * scale), tuple(tone))
    stroke(canvas, points[1:3], max(0.09 * scale, 1), tuple(tone))
    on = mix((150, 152, 152), (215, 244, 255), float(light.glow > 0))
    limb(canvas, (points[2], points[3]), (0.10 * scale, 0.07 * scale), on)


def lamp_heads(camera: Camera, light: Light) -> list[tuple[F64, float]]:
    """Pixel centre (2,) and glow radius in pixels of every lamp head in front of the camera."""
    found = []
    for x, z in light.lamps:
        points, depth = camera.project(np.array([[x - np.sign(x) * 1.7, LAMP_HEIGHT_M - 0.05, z]]))
        if depth[0] > 2.0:
            found.append((points[0], camera.focal / float(depth[0])))
    return found


def bake_glow(canvas: U8, camera: Camera, light: Light) -> None:
    """Add the halo of the lamp heads to a static picture (in place); nothing by day."""
    if light.glow <= 0:
        return
    halo = np.zeros((camera.height // 4, camera.width // 4, 3), dtype=np.float32)
    rows, columns = np.mgrid[0 : halo.shape[0], 0 : halo.shape[1]].astype(np.float64)
    for centre, scale in lamp_heads(camera, light):
        distance = ((columns - centre[0] / 4) ** 2 + (rows - centre[1] / 4) ** 2) / (0.32 * scale) ** 2
        halo += (np.exp(-distance)[..., None] * 0.5 + 0.5 / (1 + distance)[..., None] ** 1.5) * np.array(LAMP_COLOUR)
    wide = cv2.resize(halo, (camera.width, camera.height), interpolation=cv2.INTER_LINEAR)
    np.copyto(canvas, np.clip(canvas + wide * (170 * light.glow), 0, 255).astype(np.uint8))
