"""The ground, painted per pixel in world metres: asphalt, lane markings, kerbs, pavement slabs, lamp light."""

import cv2
import numpy as np

from .camera import F64, U8, Camera
from .layout import LANE_M, Plan
from .light import LAMP_COLOUR, Light

_TILE = 512
"""Side of the noise tile in pixels."""


def paint_ground(camera: Camera, plan: Plan, light: Light, rng: np.random.Generator) -> U8:
    """The whole picture (height, width, 3) uint8 BGR filled with ground; later layers cover parts of it."""
    x, z, size = camera.ground()
    size = size / np.clip(np.abs(np.cos(camera.yaw)), 0.5, 1.0)
    rough = _noise(rng, x, z, 0.5) * np.clip(0.02 / size, 0.15, 1) + 0.22 * _noise(rng, x, z, 5.0)
    road = _road_distance(plan, x, z)
    on_road = _edge(-road, size)
    colour = _asphalt(plan, (x, z, size), rough, rng)
    slabs = _pavement(x, z, size, rough, rng)
    colour = slabs + (colour - slabs) * on_road[..., None]
    kerb = _edge(0.16 - np.abs(road - 0.08), size)[..., None]
    colour += (np.array([176.0, 180.0, 182.0]) - colour) * kerb * 0.9
    gutter = _edge(0.22 - np.abs(road + 0.2), size)[..., None]
    colour *= 1 - 0.16 * gutter
    # Less open sky close to the house fronts.
    near_wall = np.clip(1 - (plan.houses - np.abs(x)) / 2.2, 0, 1) * (z < plan.corner_houses)
    colour *= (1 - 0.22 * near_wall)[..., None]
    lit = np.array(light.ambient) + np.array(light.sun) * light.sun_towards[1]
    lamp = light.lamp_light(x, z)[..., None] * np.array(LAMP_COLOUR)
    colour *= lit + lamp
    far = np.clip((z - 40) / 160, 0, 0.7)[..., None]
    colour += (np.array(light.haze) - colour) * far
    return np.clip(colour, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, x: F64, z: F64, scale: float) -> F64:
    """Smooth noise (height, width), about -1 to 1, with features of `scale` metres, repeating every 64 features."""
    grain = rng.normal(size=(_TILE, _TILE)).astype(np.float32)
    smooth = np.asarray(cv2.GaussianBlur(grain, (0, 0), 2.0, borderType=cv2.BORDER_REFLECT), dtype=np.float32)
    smooth /= smooth.std() * 2
    step = 8 / scale
    map_x, map_z = ((v * step) % (_TILE - 1) for v in (x, z))
    found = cv2.remap(smooth, map_x.astype(np.float32), map_z.astype(np.float32), cv2.INTER_LINEAR)
    return np.asarray(found, dtype=np.float64)


def _edge(inside: F64, size: F64) -> F64:
    """Antialiasing: coverage, 0 to 1, of a pixel of `size` metres with its centre `inside` metres within a shape."""
    covered: F64 = np.clip(0.5 + inside / size, 0, 1)
    return covered


def _road_distance(plan: Plan, x: F64, z: F64) -> F64:
    """Signed distance in metres to the kerb line, negative on the road; the junction's corners are rounded."""
    street = np.maximum(np.abs(x) - plan.kerb, z - plan.far_kerb)
    crossing = np.abs(z - (plan.corner + plan.far_kerb) / 2) - plan.crossing / 2
    radius = 4.0
    blend = np.clip(0.5 + 0.5 * (crossing - street) / radius, 0, 1)
    joined: F64 = crossing + (street - crossing) * blend - radius * blend * (1 - blend)
    return joined


def _asphalt(plan: Plan, where: tuple[F64, F64, F64], rough: F64, rng: np.random.Generator) -> F64:
    """Road colour (height, width, 3) at `where` (x, z, pixel size): asphalt worn by tyres, cycle lanes, lines."""
    x, z, size = where
    base = rng.uniform(88, 122)
    shade = base * (1 + 0.075 * rough)
    for lane in range(plan.lanes):
        middle = (lane + 0.5) * LANE_M
        for wheel in (-0.85, 0.85):
            shade *= 1 - 0.10 * np.exp(-(((np.abs(x) - middle - wheel) / 0.3) ** 2)) * (z < plan.corner)
    colour: F64 = shade[..., None] * np.array([1.03, 1.0, 0.98])
    on_street = _edge(plan.corner - 1.0 - z, size * 4)
    bike = _edge(0.78 - np.abs(np.abs(x) - plan.lanes_edge - 0.85), size) * on_street
    tint = np.array([[98, 104, 150], [108, 132, 96], [104, 106, 108]][int(rng.integers(3))], dtype=np.float64)
    colour += (tint * (1 + 0.06 * rough[..., None]) - colour) * bike[..., None] * 0.8
    lines = _lines(plan, x, z, size) * on_street + _crossing_lines(plan, x, z, size)
    worn = np.clip(0.92 + 0.16 * rough, 0.6, 1)
    colour += (np.array([226.0, 230.0, 230.0]) - colour) * (np.clip(lines, 0, 1) * worn)[..., None]
    return colour


def _lines(plan: Plan, x: F64, z: F64, size: F64) -> F64:
    """Coverage of the white lines along the street."""
    side = np.abs(x)
    along = size * 6
    dashes = np.clip(0.5 + (1.5 - np.abs(z % 6.0 - 3.0)) / along, 0, 1)
    total = _edge(0.07 - np.abs(x), size) * (dashes if plan.lanes == 1 else 1.0)
    for lane in range(1, plan.lanes):
        total = total + _edge(0.06 - np.abs(side - lane * LANE_M), size) * dashes
    total = total + _edge(0.07 - np.abs(side - plan.lanes_edge), size)
    stop_zone = (plan.corner - 4.2 < z) & (z < plan.corner - 0.6)
    zebra = _edge(0.25 - np.abs(x % 1.0 - 0.5), size) * stop_zone * (side < plan.kerb - 0.4)
    stop = _edge(0.2 - np.abs(z - plan.corner + 5.6), along) * (x > 0) * (x < plan.lanes_edge)
    if plan.parking:
        bay = _edge(0.05 - np.abs(z % 6.0 - 3.0), along) * (side > plan.bike_edge)
        total = total + bay * 0.8 + _edge(0.05 - np.abs(side - plan.bike_edge), size) * 0.8
    return np.where(stop_zone, 0.0, total) + zebra + stop


def _crossing_lines(plan: Plan, x: F64, z: F64, size: F64) -> F64:
    """Coverage of the middle line of the crossing road."""
    middle = plan.corner + plan.crossing / 2
    dashes = _edge(1.0 - np.abs(x % 4.0 - 2.0), size)
    return _edge(0.08 - np.abs(z - middle), size * 4) * dashes * (np.abs(x) > plan.kerb)


def _pavement(x: F64, z: F64, size: F64, rough: F64, rng: np.random.Generator) -> F64:
    """Pavement colour (height, width, 3): slabs with joints and slightly different shades."""
    tint = np.array([[150, 158, 164], [142, 150, 162], [160, 162, 164], [136, 148, 166]][int(rng.integers(4))])
    slab = float(rng.choice([0.8, 1.0, 1.4]))
    column, row = np.floor(x / slab), np.floor(z / slab)
    shade = ((np.sin(column * 12.9898 + row * 78.233) * 43758.5453) % 1.0 - 0.5) * 0.10
    fade = np.clip(0.06 / size, 0, 1)
    joints = np.maximum(
        _edge(0.025 - np.abs(x % slab - slab / 2), size), _edge(0.025 - np.abs(z % slab - slab / 2), size * 3)
    )
    factor = (1 + shade * fade + 0.05 * rough) * (1 - 0.22 * joints * fade)
    return tint.astype(np.float64) * factor[..., None]
