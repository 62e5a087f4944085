"""The actors of a street and their positions, as functions of seed and time."""

from dataclasses import dataclass, replace

import numpy as np

from .camera import F64, Pose
from .layout import (
    BIKE_LANE_M,
    LANE_M,
    Plan,
    Route,
    crossing_route,
    far_pavement_route,
    pavement_route,
    road_route,
)
from .light import Colour
from .people import Person, make_person
from .vehicles import Vehicle, make_car, make_truck

CAR, TRUCK, CYCLIST, PEDESTRIAN = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Actor:
    """A moving object: at `start + speed * time` metres along its route, which wraps out of sight."""

    class_id: int
    route: Route
    start: float
    speed: float
    """Metres a second; 0 for a parked car."""
    vehicle: Vehicle | None = None
    person: Person | None = None
    sway: float = 0.0
    """Sideways drift of a pedestrian, in metres."""

    def at(self, seconds: float) -> tuple[Pose, float]:
        """The pose at a time, and the distance covered in metres."""
        covered = self.start + self.speed * seconds
        x, z, heading = self.route.at(covered)
        if self.sway:
            aside = self.sway * float(np.sin(covered * 0.35 + self.start))
            x, z = x + aside * np.cos(heading), z - aside * np.sin(heading)
        return Pose(x, z, heading), covered

    def shadow_box(self) -> F64:
        """(8, 3): corners in local metres of the box that casts the shadow of this actor."""
        if self.vehicle is not None:
            return self.vehicle.footprint
        return _RIDER_BOX if self.class_id == CYCLIST else _WALKER_BOX


def _box(half_length: float) -> F64:
    return np.array([(x, y, z) for y in (0.0, 1.6) for x in (-0.18, 0.18) for z in (-half_length, half_length)])


_WALKER_BOX, _RIDER_BOX = _box(0.16), _box(0.75)


def make_actors(plan: Plan, rng: np.random.Generator, busy: float) -> list[Actor]:
    """All actors of a street; `busy` scales their number."""
    actors: list[Actor] = []
    for side in (-1, 1):
        for lane in range(plan.lanes):
            route = road_route(plan, side, (lane + 0.5) * LANE_M)
            actors += _lane(route, rng, busy, float(rng.uniform(6.5, 10.0)))
        bikes = road_route(plan, side, plan.lanes_edge + BIKE_LANE_M / 2)
        actors += _spread_cyclists(bikes, rng, busy)
        actors += _walkers(plan, side, rng, busy)
        if plan.parking:
            actors += _parked(plan, side, rng)
    actors += _lane(crossing_route(plan), rng, busy, float(rng.uniform(6.0, 9.0)))
    for backwards in (False, True):
        route = far_pavement_route(plan, 1.2 if backwards else 2.3, backwards=backwards)
        for start in _starts(route, rng, 22.0 / busy, 4.0):
            actors.append(_walker(route, start, float(rng.uniform(1.0, 1.4)), rng))
    return actors


def _starts(route: Route, rng: np.random.Generator, gap: float, least: float) -> list[float]:
    """Starting points with random gaps of `gap` metres on average and at least `least`, also across the wrap."""
    found, at = [], float(rng.uniform(0, gap))
    first = at
    while at < route.length - least + first:
        found.append(at)
        at += least + float(rng.exponential(max(gap - least, 0.5)))
    return found


def _lane(route: Route, rng: np.random.Generator, busy: float, speed: float) -> list[Actor]:
    """Cars and trucks in one lane, all at one speed, so that they do not collide."""
    actors = []
    for start in _starts(route, rng, 24.0 / busy, 12.5):
        truck = rng.random() < 0.24
        vehicle = make_truck(rng) if truck else make_car(rng)
        actors.append(Actor(TRUCK if truck else CAR, route, start, speed, vehicle))
    return actors


def _spread_cyclists(route: Route, rng: np.random.Generator, busy: float) -> list[Actor]:
    speed = float(rng.uniform(3.8, 5.2))
    actors = []
    for start in _starts(route, rng, 26.0 / busy, 6.0):
        bike: Colour = (float(rng.uniform(20, 210)), float(rng.uniform(20, 210)), float(rng.uniform(20, 210)))
        rider = replace(make_person(rng), bike=bike, helmet=bool(rng.random() < 0.5))
        actors.append(Actor(CYCLIST, route, start, speed, None, rider))
    return actors


def _walker(route: Route, start: float, speed: float, rng: np.random.Generator) -> Actor:
    return Actor(PEDESTRIAN, route, start, speed, None, make_person(rng), sway=float(rng.uniform(0.03, 0.15)))


def _walkers(plan: Plan, side: int, rng: np.random.Generator, busy: float) -> list[Actor]:
    """Two streams of pedestrians on one pavement; each stream has one speed, as a lane has."""
    actors = []
    for backwards, share in ((False, 0.28), (True, 0.60)):
        route = pavement_route(plan, side, plan.pavement * share + 0.25, backwards=backwards)
        pace = float(rng.uniform(1.05, 1.5))
        actors += [_walker(route, start, pace, rng) for start in _starts(route, rng, 22.0 / busy, 3.0)]
    return actors


def _parked(plan: Plan, side: int, rng: np.random.Generator) -> list[Actor]:
    actors = []
    x = side * (plan.bike_edge + 1.15)
    for bay in range(1, int((plan.corner - 9) / 6)):
        if rng.random() < 0.5:
            z = 6.0 * bay + 0.0
            heading = 0.0 if side > 0 else np.pi
            spot = np.array([0.0, 1.0])
            route = Route(spot, np.full(2, x), np.full(2, z), np.full(2, heading))
            actors.append(Actor(CAR, route, 0.0, 0.0, make_car(rng)))
    return actors
