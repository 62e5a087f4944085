"""Pedestrians and cyclists: jointed figures whose legs move with the distance they have covered."""

from dataclasses import dataclass

import numpy as np

from .camera import F64, NEAR_M, U8, Camera, Pose, place
from .light import Colour, Easel
from .paint import disc, fill, limb, stroke

_SKIN: tuple[Colour, ...] = ((150, 186, 228), (120, 160, 208), (84, 122, 172), (56, 84, 126), (44, 62, 92))
_HAIR: tuple[Colour, ...] = (
    (28, 30, 36),
    (40, 58, 84),
    (60, 110, 160),
    (120, 190, 220),
    (150, 152, 156),
    (30, 50, 110),
)
_CLOTHES: tuple[Colour, ...] = (
    (46, 42, 44),
    (110, 70, 40),
    (52, 48, 160),
    (60, 110, 60),
    (40, 160, 220),
    (200, 206, 210),
    (150, 100, 60),
    (90, 60, 130),
    (70, 130, 200),
    (160, 150, 90),
    (120, 120, 124),
    (60, 80, 120),
    (130, 60, 180),
)


@dataclass(frozen=True, slots=True)
class Person:
    """The appearance of a person: lengths in metres, colours BGR before light."""

    height: float
    skin: Colour
    hair: Colour
    top: Colour
    legs: Colour
    shoes: Colour
    coat: bool
    hat: bool
    bag: Colour | None
    bike: Colour = (60, 60, 60)
    helmet: bool = False


_RIDER, _MACHINE = [0, 1, 2, *range(9, 21)], [*range(3, 9), *range(21, 61)]
"""Indices of the joints of the cyclist and of the bicycle."""
_REAR_HUB, _FRONT_HUB = np.array([0.0, 0.0, -0.52]), np.array([0.0, 0.0, 0.54])


def make_person(rng: np.random.Generator) -> Person:
    """A person of random appearance."""

    def pick(colours: tuple[Colour, ...]) -> Colour:
        return colours[int(rng.integers(len(colours)))]

    return Person(
        float(np.clip(rng.normal(1.72, 0.09), 1.45, 1.95)),
        pick(_SKIN),
        pick(_HAIR),
        pick(_CLOTHES),
        pick(_CLOTHES),
        pick(((30, 30, 34), (60, 70, 90), (220, 224, 226))),
        bool(rng.random() < 0.35),
        bool(rng.random() < 0.25),
        pick(_CLOTHES) if rng.random() < 0.4 else None,
    )


@dataclass(slots=True)
class _Figure:
    """Projected joints, and the data for painting between them."""

    canvas: U8
    pixels: F64
    scale: float
    light: Colour
    haze: Colour
    far: float

    def tone(self, colour: Colour, factor: float = 1.0) -> Colour:
        keep, (lb, lg, lr) = 1 - self.far, self.light
        return (
            min(colour[0] * lb * factor, 255.0) * keep + self.haze[0] * self.far,
            min(colour[1] * lg * factor, 255.0) * keep + self.haze[1] * self.far,
            min(colour[2] * lr * factor, 255.0) * keep + self.haze[2] * self.far,
        )

    def bar(self, joints: tuple[int, int], radii: tuple[float, float], colour: Colour) -> None:
        """A limb between two joints; radii in metres."""
        ends = (self.pixels[joints[0]], self.pixels[joints[1]])
        limb(self.canvas, ends, (radii[0] * self.scale, radii[1] * self.scale), colour)


def _figure(easel: Easel, joints: F64, pose: Pose) -> _Figure | None:
    """Project joints (n, 3) in local metres; None if they are behind the camera."""
    pixels, depth = easel.camera.project(place(joints, pose))
    if depth.min() < NEAR_M + 0.5:
        return None
    facing = np.array([[0.0, 0.35, -0.94]])
    light = easel.light
    lit = light.on_faces(facing, pose.x, pose.z)[0] * (1.12 + 0.3 * light.glow)
    mean = float(depth.mean())
    far = min(max((mean - 40) / 160, 0.0), 0.6)
    colour = (float(lit[0]), float(lit[1]), float(lit[2]))
    return _Figure(easel.canvas, pixels, easel.camera.focal / mean, colour, light.haze, far)


def _side_on(camera: Camera, pose: Pose) -> float:
    """0 for a front or rear view, 1 for a side view."""
    return float(abs(np.sin(pose.heading - np.arctan2(pose.x - camera.x, pose.z))))


def paint_pedestrian(easel: Easel, person: Person, pose: Pose, walked: float) -> list[F64] | None:
    """Paint a walking person; `walked` is the distance covered in metres. Returns pixels (n, 2) of the outline."""
    h = person.height
    stride = walked * 2 * np.pi / (0.86 * h)
    swing = np.sin(stride) * 0.46
    bob = 0.018 * h * np.cos(2 * stride)
    hip, knee_up = 0.50 * h + bob, 0.26 * h
    joints = [(0.0, 0.56 * h + bob, 0.0), (0.0, 0.80 * h + bob, 0.02), (0.0, 0.925 * h + bob, 0.03)]
    for side, phase in ((-1.0, 0.0), (1.0, np.pi)):
        a = swing * np.cos(phase)
        lift = max(0.0, np.cos(stride + phase)) * 0.55
        knee = (side * 0.09, hip - knee_up * np.cos(a), knee_up * np.sin(a) + 0.03)
        shin = a - lift
        foot = (side * 0.09, max(knee[1] - 0.235 * h * np.cos(shin), 0.04), knee[2] + 0.235 * h * np.sin(shin))
        toe = (side * 0.09, max(foot[1] - 0.015, 0.025), foot[2] + 0.17)
        elbow = (side * 0.235, 0.63 * h + bob, -np.sin(a) * 0.20)
        hand = (side * 0.24, 0.49 * h + bob, -np.sin(a) * 0.40 + 0.10)
        shoulder = (side * 0.185, 0.795 * h + bob, 0.0)
        joints += [(side * 0.08, hip, 0.0), knee, foot, toe, shoulder, elbow, hand]
    figure = _figure(easel, np.array(joints), pose)
    if figure is None:
        return None
    camera = easel.camera
    _dress(figure, person, _side_on(camera, pose), _nearer_side(camera, pose), _away(camera, pose))
    reach = np.array([[0.12 * h * 0.6, 0.085 * h]]) * figure.scale
    head = figure.pixels[2]
    outline = np.concatenate(
        [
            figure.pixels,
            head + reach * [[-0.5, 0]],
            head + reach * [[0.5, 0]],
            head - reach * [[0, 1.0]],
            figure.pixels[[1]] + [[0.19 * figure.scale, 0.0]],
            figure.pixels[[1]] - [[0.19 * figure.scale, 0.0]],
        ]
    )
    return [outline]


def _away(camera: Camera, pose: Pose) -> float:
    """1 for motion straight away from the camera, -1 for motion straight towards it."""
    return float(np.cos(pose.heading - np.arctan2(pose.x - camera.x, pose.z)))


def _nearer_side(camera: Camera, pose: Pose) -> int:
    """0 if the left (first) arm and leg are nearer to the camera, 1 if the right ones are."""
    return int(np.cos(pose.heading) * (camera.x - pose.x) + np.sin(pose.heading) * pose.z > 0)


def _dress(figure: _Figure, person: Person, side_on: float, nearer: int, away: float) -> None:
    """Paint from the far arm to the near one; joints as laid out in paint_pedestrian."""
    far_leg, near_leg = 3 + 7 * (1 - nearer), 3 + 7 * nearer
    for start, shade in ((far_leg, 0.74), (near_leg, 1.0)):
        if start == near_leg:
            _arm(figure, person, far_leg, 0.72)
        legs = figure.tone(person.legs, shade)
        figure.bar((start, start + 1), (0.088, 0.066), legs)
        figure.bar((start + 1, start + 2), (0.062, 0.045), legs)
        figure.bar((start + 2, start + 3), (0.045, 0.035), figure.tone(person.shoes, shade))
    if person.bag is not None and away < 0:
        figure.bar((0, 1), (0.17, 0.19), figure.tone(person.bag, 0.8))
    chest = 0.205 - 0.075 * side_on
    top = figure.tone(person.top)
    if person.coat:
        middle = figure.pixels[[3, 10]].mean(axis=0) * 0.35 + figure.pixels[[4, 11]].mean(axis=0) * 0.65
        radii = (chest * figure.scale, (chest + 0.03) * figure.scale)
        limb(figure.canvas, (figure.pixels[1], middle), radii, top)
    figure.bar((0, 1), (chest * 0.84, chest), top)
    lit_edge = figure.tone(person.top, 1.16)
    if figure.scale > 20:
        shift = np.array([-0.06 * figure.scale, 0.0])
        radii = (chest * 0.40 * figure.scale, chest * 0.5 * figure.scale)
        limb(figure.canvas, (figure.pixels[0] + shift, figure.pixels[1] + shift), radii, lit_edge)
    if person.bag is not None and away >= 0:
        figure.bar((0, 1), (0.15, 0.16), figure.tone(person.bag))
    _arm(figure, person, near_leg, 0.92)
    _head(figure, person, away)


def _arm(figure: _Figure, person: Person, start: int, shade: float) -> None:
    sleeve = figure.tone(person.top, shade * 0.92)
    figure.bar((start + 4, start + 5), (0.062, 0.052), sleeve)
    figure.bar((start + 5, start + 6), (0.052, 0.040), sleeve)
    disc(figure.canvas, figure.pixels[start + 6], 0.048 * figure.scale, figure.tone(person.skin, shade))


def _head(figure: _Figure, person: Person, away: float) -> None:
    neck, head = figure.pixels[1], figure.pixels[2]
    skin, size = figure.tone(person.skin), 0.118 * figure.scale
    throat = 0.06 * figure.scale
    limb(figure.canvas, (neck, head), (throat, throat), figure.tone(person.skin, 0.8))
    cover = figure.tone(person.top if person.hat else person.hair, 0.85 if person.hat else 1.0)
    disc(figure.canvas, head, size, cover if away > 0.2 else skin)
    if away <= 0.2:
        turn = np.linspace(np.pi, 2 * np.pi, 9)
        cap = head + np.stack([np.cos(turn), np.sin(turn)], axis=1) * size * 1.06
        fill(figure.canvas, cap - [0, size * 0.12], cover)


def paint_cyclist(easel: Easel, person: Person, pose: Pose, ridden: float) -> list[F64] | None:
    """Paint a cyclist who has covered a distance in metres. Returns pixels (n, 2) of person and bicycle."""
    lean = 0.34 * person.height
    joints: list[tuple[float, float, float]] = [
        (0, 0.95, -0.22),
        (0, 0.95 + lean * 0.92, 0.16),
        (0, 0.95 + lean * 0.92 + 0.24, 0.27),
        (0, 0.34, -0.52),
        (0, 0.34, 0.54),
        (0, 0.32, 0.02),
        (0, 0.90, -0.20),
        (0, 0.88, 0.42),
        (0, 1.02, 0.40),
    ]
    turn = ridden / 0.34 * 0.42
    for side, phase in ((-1.0, 0.0), (1.0, np.pi)):
        foot = (side * 0.10, 0.30 + 0.17 * np.sin(turn + phase), 0.02 + 0.17 * np.cos(turn + phase))
        knee = (side * 0.12, 0.66 + 0.11 * np.sin(turn + phase), 0.19 + 0.06 * np.cos(turn + phase))
        joints += [
            (side * 0.09, 0.95, -0.20),
            knee,
            foot,
            (side * 0.18, 0.90 + lean * 0.88, 0.14),
            (side * 0.26, 1.12, 0.24),
            (side * 0.24, 1.05, 0.42),
        ]
    spokes = np.linspace(0, 2 * np.pi, 21)[:-1]
    rim = np.stack([np.zeros(20), 0.34 + 0.34 * np.sin(spokes), 0.34 * np.cos(spokes)], axis=1)
    everything = np.concatenate([np.array(joints), rim + _REAR_HUB, rim + _FRONT_HUB])
    figure = _figure(easel, everything, pose)
    if figure is None:
        return None
    camera = easel.camera
    _bicycle(figure, person.bike)
    _rider(figure, person, _nearer_side(camera, pose), _side_on(camera, pose), _away(camera, pose))
    crown = figure.pixels[[2]] - [[0.0, 0.15 * figure.scale]]
    return [figure.pixels[_MACHINE], np.concatenate([figure.pixels[_RIDER], crown])]


def _bicycle(figure: _Figure, bike: Colour) -> None:
    tyre, width = figure.tone((36, 36, 38)), 0.045 * figure.scale
    for start in (21, 41):
        rim = figure.pixels[start : start + 20]
        stroke(figure.canvas, rim, width, tyre, closed=True)
    tone = figure.tone(bike, 1.1)
    for a, b in ((3, 5), (5, 7), (6, 7), (6, 5), (3, 6), (7, 4), (7, 8)):
        stroke(figure.canvas, figure.pixels[[a, b]], max(0.04 * figure.scale, 1), tone)
    stroke(figure.canvas, figure.pixels[[14, 20]], max(0.035 * figure.scale, 1), figure.tone((60, 60, 62)))


def _rider(figure: _Figure, person: Person, nearer: int, side_on: float, away: float) -> None:
    far, near = 9 + 6 * (1 - nearer), 9 + 6 * nearer
    top = figure.tone(person.top)
    for start, shade in ((far, 0.74), (near, 1.0)):
        if start == near:
            chest = 0.20 - 0.05 * side_on
            figure.bar((0, 1), (chest * 0.85, chest), top)
        legs = figure.tone(person.legs, shade)
        figure.bar((start, start + 1), (0.085, 0.065), legs)
        figure.bar((start + 1, start + 2), (0.06, 0.045), legs)
        disc(figure.canvas, figure.pixels[start + 2], 0.055 * figure.scale, figure.tone(person.shoes, shade))
        sleeve = figure.tone(person.top, shade * 0.9)
        figure.bar((start + 3, start + 4), (0.058, 0.05), sleeve)
        figure.bar((start + 4, start + 5), (0.048, 0.04), figure.tone(person.skin, shade))
    if person.bag is not None and away > 0:
        figure.bar((0, 1), (0.13, 0.15), figure.tone(person.bag))
    _head(figure, person, away)
    if person.helmet:
        turn = np.linspace(np.pi, 2 * np.pi, 9)
        dome = figure.pixels[2] + np.stack([np.cos(turn), np.sin(turn)], axis=1) * 0.145 * figure.scale
        fill(figure.canvas, dome, figure.tone((60, 70, 220) if person.hat else (228, 230, 232)))
