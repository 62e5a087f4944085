"""House fronts: drawn flat in metres, then projected onto the walls by a homography."""

from dataclasses import dataclass

import cv2
import numpy as np

from .camera import F64, NEAR_M, U8
from .layout import Plan
from .light import Colour, Easel, Light
from .paint import fill_any, mix

_PAINTS: tuple[Colour, ...] = (
    (150, 172, 196),
    (120, 142, 178),
    (86, 104, 152),
    (176, 186, 190),
    (140, 160, 164),
    (196, 206, 214),
    (110, 128, 140),
    (164, 150, 132),
    (120, 160, 190),
    (152, 176, 214),
    (96, 110, 128),
    (132, 120, 168),
)
_SHOPS: tuple[Colour, ...] = ((70, 62, 150), (110, 84, 40), (70, 110, 50), (40, 130, 200), (60, 60, 64), (128, 60, 96))
_LIT: tuple[Colour, ...] = ((130, 205, 250), (150, 218, 248), (110, 180, 240), (205, 224, 236))


@dataclass(frozen=True, slots=True)
class Wall:
    """A vertical wall: from `start` to `end` on the ground (x, z), `height` metres high."""

    start: tuple[float, float]
    end: tuple[float, float]
    height: float
    plain: bool = False
    """A gable: few windows, no shop."""

    @property
    def width(self) -> float:
        return float(np.hypot(self.end[0] - self.start[0], self.end[1] - self.start[1]))


@dataclass(slots=True)
class Scenery:
    """The canvas of the static picture, and the mask of the houses that hide the junction."""

    easel: Easel
    mask: U8


def paint_house(scene: Scenery, wall: Wall, style: int, shadow: float = 1.0) -> None:
    """Draw one wall. `style` is the seed of its appearance; `shadow` scales its light."""
    canvas, camera, light = scene.easel.canvas, scene.easel.camera, scene.easel.light
    x0, z0 = wall.start
    x1, z1 = wall.end
    corners = np.array([[x0, 0, z0], [x1, 0, z1], [x1, wall.height, z1], [x0, wall.height, z0]])
    outline = camera.polygon(corners)
    if outline is None:
        return
    low = np.maximum(np.floor(outline.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 2, [camera.width, camera.height])
    if (high - low < 2).any():
        return
    depth = np.maximum(camera.to_view(corners)[:, 2], NEAR_M)
    # About one texture pixel per picture pixel at the nearest visible part, so that far fronts do not alias.
    scale = float(np.clip(camera.focal / max(float(depth.min()), 5.0) * 0.8, 6, 40))
    flat, lamps = draw_front(wall, scale, np.random.default_rng(style), light)
    along = np.array([x1 - x0, 0.0, z1 - z0]) / wall.width
    normal = np.array([along[2], 0.0, -along[0]])
    if normal @ (camera.position() - corners[0]) < 0:
        normal = -normal
    lit = light.on_faces(normal[None], x0 + normal[0], (z0 + z1) / 2)[0] * shadow
    flat = np.clip(flat * lit + lamps, 0, 255).astype(np.uint8)
    to_pixels = camera.plane_to_pixels(np.array([x0, wall.height, z0]), along, np.array([0.0, -1.0, 0.0]))
    offset = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1.0]])
    matrix = offset @ to_pixels @ np.diag([1 / scale, 1 / scale, 1.0])
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    laid = cv2.warpPerspective(flat, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = np.zeros((size[1], size[0]), dtype=np.uint8)
    fill_any(cover, outline - low, (255,))
    far = float(np.clip((float(depth.mean()) - 40) / 160, 0, 0.6))
    hazy = laid + (np.array(light.haze) - laid) * far
    area = (slice(low[1], high[1]), slice(low[0], high[0]))
    share = cover[..., None] / 255.0
    canvas[area] = (canvas[area] * (1 - share) + hazy * share).astype(np.uint8)
    scene.mask[area] = np.maximum(scene.mask[area], cover)


@dataclass(frozen=True, slots=True)
class _Front:
    """A front being drawn, `scale` pixels a metre: its paint and the light of its lamps, (h, w, 3) uint8 each."""

    paint: U8
    glow: U8
    scale: float
    rng: np.random.Generator
    light: Light

    def box(self, x: float, y: float, w: float, h: float, colour: tuple[float, ...]) -> None:
        """Paint a rectangle; metres from the top left corner."""
        _fill_box(self.paint, [v * self.scale for v in (x, y, x + w, y + h)], colour)

    def shine(self, x: float, y: float, w: float, h: float, colour: tuple[float, ...]) -> None:
        """Paint a rectangle of lamp light; metres from the top left corner."""
        _fill_box(self.glow, [v * self.scale for v in (x, y, x + w, y + h)], colour)


def _fill_box(image: U8, edges: list[float], colour: tuple[float, ...]) -> None:
    x0, y0, x1, y1 = (round(edge) for edge in edges)
    cv2.rectangle(image, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), colour, -1)


def draw_front(wall: Wall, scale: float, rng: np.random.Generator, light: Light) -> tuple[F64, F64]:
    """The front's paint and the light its lamps add, both (height, width, 3) float, at `scale` pixels a metre."""
    width, height = max(int(wall.width * scale), 4), max(int(wall.height * scale), 4)
    paint = np.array(_PAINTS[int(rng.integers(len(_PAINTS)))]) * rng.uniform(0.9, 1.08)
    grain = cv2.resize(
        rng.normal(0, 2.5, (max(height // 6, 1), max(width // 6, 1))).astype(np.float32), (width, height)
    )
    gradient = np.linspace(1.04, 0.90, height)[:, None, None]
    front = (np.ones((height, width, 1)) * paint * gradient + grain[..., None]).clip(0, 255).astype(np.uint8)
    face = _Front(front, np.zeros_like(front), scale, rng, light)
    if rng.random() < 0.4 and scale > 12:
        _bricks(face)
    if not wall.plain:
        _shop(face, wall.height)
    _windows(face, wall)
    trim = mix(tuple(paint), (235, 238, 240), 0.45)
    face.box(0, 0, wall.width, 0.35, trim)
    face.box(0, 0.35, wall.width, 0.12, tuple(paint * 0.7))
    if not wall.plain:
        face.box(0, wall.height - 3.7, wall.width, 0.2, trim)
    face.box(0, 0, 0.12, wall.height, tuple(paint * 0.86))
    return front.astype(np.float64), face.glow.astype(np.float64)


def _bricks(face: _Front) -> None:
    front, scale, rng = face.paint, face.scale, face.rng
    rows = max(int(0.28 * scale), 3)
    front[::rows] = (front[::rows] * 0.90).astype(np.uint8)
    columns = max(int(0.6 * scale), 4)
    for row in range(0, front.shape[0], rows):
        start = int(rng.integers(columns))
        front[row : row + rows, start::columns] = (front[row : row + rows, start::columns] * 0.93).astype(np.uint8)


def _windows(face: _Front, wall: Wall) -> None:
    """Rows of windows above the shop; some with curtains, some lit."""
    rng, ground = face.rng, 0.0 if wall.plain else 3.6
    pitch, storey = float(rng.uniform(2.2, 3.2)), float(rng.uniform(2.9, 3.4))
    w, h = float(rng.uniform(1.0, 1.5)), float(rng.uniform(1.4, 1.9))
    frame = mix((240, 242, 244), (70, 74, 80), float(rng.random() < 0.3))
    shutters = tuple(rng.uniform(50, 130, 3)) if rng.random() < 0.3 else None
    balconies = rng.random() < 0.25
    columns = max(int((wall.width - 0.8) / pitch), 1)
    left = (wall.width - columns * pitch) / 2 + (pitch - w) / 2
    y = wall.height - ground - storey + (storey - h) / 2
    while y > 0.7:
        for column in range(columns):
            x = left + column * pitch
            if wall.plain and rng.random() < 0.55:
                continue
            face.box(x - 0.12, y - 0.12, w + 0.24, h + 0.24, frame)
            _pane(face, x, y, w, h)
            face.box(x + w / 2 - 0.04, y, 0.08, h, frame)
            face.box(x, y + h * 0.35, w, 0.07, frame)
            face.box(x - 0.2, y + h + 0.1, w + 0.4, 0.12, mix(frame, (120, 120, 120), 0.35))
            if shutters is not None:
                face.box(x - 0.55, y - 0.05, 0.4, h + 0.1, shutters)
                face.box(x + w + 0.15, y - 0.05, 0.4, h + 0.1, shutters)
            if balconies and column % 2 == 0:
                face.box(x - 0.4, y + h * 0.55, w + 0.8, h * 0.5, (62, 62, 66))
                face.box(x - 0.4, y + h * 1.05, w + 0.8, 0.14, (150, 152, 156))
        y -= storey


def _pane(face: _Front, x: float, y: float, w: float, h: float) -> None:
    """The glass of one window: reflects the sky by day, shows a lamp by night."""
    rng, light = face.rng, face.light
    shade = float(rng.uniform(0.8, 1.2))
    face.box(x, y, w, h, mix((92 * shade, 80 * shade, 70 * shade), light.sky_low, 0.12))
    face.box(x, y, w, h * float(rng.uniform(0.2, 0.5)), mix((120, 108, 98), light.sky_low, 0.3))
    if rng.random() < light.windows_lit:
        colour = np.array(_LIT[int(rng.integers(len(_LIT)))]) * float(rng.uniform(0.55, 0.95))
        face.shine(x, y, w, h, tuple(colour))
        face.shine(x, y + h * 0.6, w, h * 0.4, tuple(colour * 0.75))
        face.box(x, y, w, h, (30, 30, 30))
        face.shine(x + w / 2 - 0.05, y, 0.1, h, tuple(colour * 0.3))
    elif rng.random() < 0.4:
        face.box(x, y, w * 0.28, h, (196, 204, 210))
        face.box(x + w * 0.72, y, w * 0.28, h, (196, 204, 210))


def _shop(face: _Front, height: float) -> None:
    """The ground floor: shop windows, a door, a sign band, sometimes an awning."""
    rng, light, width = face.rng, face.light, face.paint.shape[1] / face.scale
    colour = _SHOPS[int(rng.integers(len(_SHOPS)))]
    top = height - 3.5
    face.box(0, top, width, 3.5, tuple(np.array(colour) * 0.55 + 30))
    face.box(0.3, top + 0.1, width - 0.6, 0.65, colour)
    for k in range(int(rng.integers(4, 9))):
        face.box(width * 0.3 + k * 0.42, top + 0.28, 0.28, 0.3, (226, 232, 236))
    open_late = rng.random() < light.windows_lit * 1.6
    door = float(rng.uniform(0.15, 0.8)) * width
    x = 0.5
    while x < width - 1.2:
        w = min(2.6, width - 0.5 - x)
        if x <= door < x + w:
            face.box(x, top + 1.0, w, 2.5, tuple(np.array(colour) * 0.4))
            face.box(x + w / 2 - 0.45, top + 1.2, 0.9, 2.3, (70, 64, 60))
        else:
            face.box(x, top + 1.0, w - 0.15, 2.0, mix((96, 88, 80), light.sky_low, 0.2))
            face.box(x, top + 1.0, (w - 0.15) * 0.4, 2.0, mix((120, 112, 104), light.sky_low, 0.3))
            if open_late:
                face.shine(x, top + 1.0, w - 0.15, 2.0, tuple(np.array(_LIT[int(rng.integers(4))]) * 0.85))
        x += w
    if rng.random() < 0.45:
        stripe = (232, 236, 238)
        for k in range(int(width / 0.5)):
            face.box(k * 0.5, top + 0.75, 0.5, 0.7, colour if k % 2 else stripe)
            face.shine(k * 0.5, top + 0.75, 0.5, 0.7, (0, 0, 0))


def house_walls(plan: Plan, rng: np.random.Generator, *, across: bool) -> list[tuple[Wall, int]]:
    """All walls with their style seeds, far ones first: the far row, then both sides of the street."""
    walls: list[tuple[Wall, int]] = []
    back = plan.far_kerb + plan.pavement
    x = -70.0
    while x < 90.0:
        width = float(rng.uniform(9, 16))
        walls.append((Wall((x, back), (x + width, back), float(rng.uniform(10, 19))), int(rng.integers(1 << 30))))
        x += width
    sides: list[tuple[Wall, int]] = []
    for side in (1,) if across else (-1, 1):
        z = plan.corner_houses
        while z > -25:
            width = float(rng.uniform(8, 15))
            height, style = float(rng.uniform(9.5, 18)), int(rng.integers(1 << 30))
            front = side * plan.houses
            sides.append((Wall((front, z), (front, z - width), height), style))
            # The wall above a lower neighbour that is nearer to the camera.
            sides.append((Wall((side * (plan.houses + 12), z - width), (front, z - width), height, plain=True), style))
            z -= width
    return walls + sorted(sides, key=lambda item: -(item[0].start[1] + item[0].end[1]) - 0.01 * item[0].plain)
