"""The layout of a street: road, pavements, houses, and the routes of the traffic.

The street runs along z and ends in a T-junction, so that everything that moves leaves the picture round a
corner or below the camera, and nothing has to appear or vanish in plain view.
"""

from dataclasses import dataclass

import numpy as np

from .camera import F64

LANE_M = 3.2
BIKE_LANE_M = 1.7
PARKING_M = 2.2
BEHIND_M = 34.0
"""Distance in metres at which routes begin and end behind the camera or beyond the corner."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Widths in metres, measured from the middle line (x = 0) or along the street (z)."""

    lanes: int
    parking: bool
    pavement: float
    corner: float
    """z of the near kerb of the crossing road."""
    crossing: float
    """Width of the crossing road."""

    @property
    def lanes_edge(self) -> float:
        return self.lanes * LANE_M

    @property
    def bike_edge(self) -> float:
        return self.lanes_edge + BIKE_LANE_M

    @property
    def kerb(self) -> float:
        return self.bike_edge + (PARKING_M if self.parking else 0.0)

    @property
    def houses(self) -> float:
        """x of the house fronts (on the left: minus that)."""
        return self.kerb + self.pavement

    @property
    def corner_houses(self) -> float:
        """z where the houses along the street end and the crossing street's pavement begins."""
        return self.corner - self.pavement

    @property
    def far_kerb(self) -> float:
        return self.corner + self.crossing


@dataclass(frozen=True, slots=True)
class Route:
    """The path of an actor on the ground, sampled every half metre: s, x, z in metres, heading in radians.

    Heading 0 looks along +z, and grows towards +x.
    """

    s: F64
    x: F64
    z: F64
    heading: F64

    @property
    def length(self) -> float:
        return float(self.s[-1])

    def at(self, distance: float) -> tuple[float, float, float]:
        """x, z and heading at a distance along the route, which wraps at its end."""
        d = distance % self.length
        x, z, heading = (float(np.interp(d, self.s, values)) for values in (self.x, self.z, self.heading))
        return x, z, heading


def make_route(corners: list[tuple[float, float]], radius: float, *, backwards: bool = False) -> Route:
    """A route through up to one bend: straight pieces between (x, z) corners, the bends rounded with `radius`."""
    points = [np.array(c, dtype=np.float64) for c in corners]
    pieces: list[F64] = [points[0][None]]
    for before, bend, after in zip(points, points[1:], points[2:], strict=False):
        start = bend + (before - bend) / np.linalg.norm(before - bend) * radius
        end = bend + (after - bend) / np.linalg.norm(after - bend) * radius
        t = np.linspace(0, 1, 25)[:, None]
        pieces.append((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end)
    pieces.append(points[-1][None])
    line = np.concatenate(pieces)
    if backwards:
        line = line[::-1]
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    s = np.concatenate([[0.0], np.cumsum(steps)])
    even = np.linspace(0, s[-1], int(s[-1] / 0.5) + 2)
    x, z = np.interp(even, s, line[:, 0]), np.interp(even, s, line[:, 1])
    # Smoothed by differences over about 2 m, so that a vehicle turns gradually.
    pad = 2
    dx = np.gradient(np.convolve(np.pad(x, pad, mode="edge"), np.ones(5) / 5, mode="valid"))
    dz = np.gradient(np.convolve(np.pad(z, pad, mode="edge"), np.ones(5) / 5, mode="valid"))
    return Route(even, x, z, np.unwrap(np.arctan2(dx, dz)))


def road_route(plan: Plan, side: int, offset: float) -> Route:
    """Right-hand traffic at `offset` metres from the middle line: side +1 drives away and turns right at the
    junction, side -1 comes round the left corner towards the camera. The two never cross.
    """
    lane_z = plan.corner + max(1.2, plan.crossing / 2 - offset)
    corners = [(side * offset, -BEHIND_M), (side * offset, lane_z), (side * 75.0, lane_z)]
    return make_route(corners, radius=5.0, backwards=side < 0)


def crossing_route(plan: Plan) -> Route:
    """The far lane of the crossing road, driven right to left."""
    z = plan.corner + plan.crossing * 0.74
    return make_route([(85.0, z), (-85.0, z)], radius=1.0)


def pavement_route(plan: Plan, side: int, offset: float, *, backwards: bool) -> Route:
    """A walk along one pavement and round its corner; `offset` is the distance from the kerb in metres."""
    x = side * (plan.kerb + offset)
    z = plan.corner - offset
    return make_route([(x, -BEHIND_M), (x, z), (side * 70.0, z)], radius=1.2, backwards=backwards)


def far_pavement_route(plan: Plan, offset: float, *, backwards: bool) -> Route:
    """A walk along the far side of the crossing road."""
    z = plan.far_kerb + offset
    return make_route([(-70.0, z), (70.0, z)], radius=1.0, backwards=backwards)


def make_plan(rng: np.random.Generator) -> Plan:
    """A plan drawn at random: one or two lanes each way, with or without parked cars."""
    lanes = int(rng.choice([1, 2], p=[0.7, 0.3]))
    parking = bool(rng.random() < (0.6 if lanes == 1 else 0.2))
    return Plan(lanes, parking, float(rng.uniform(3.4, 4.6)), float(rng.uniform(28, 40)), float(rng.uniform(8.0, 10.0)))
