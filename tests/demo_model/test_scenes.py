"""The rendered streets: determined by their seed, labelled exactly, with plausible motion."""

import numpy as np
import pytest

from scenes import CLASS_NAMES, DEMO_SEEDS, Label, Street


@pytest.fixture(scope="module")
def streets() -> list[Street]:
    return [Street(seed) for seed in DEMO_SEEDS]


def _overlap(a: Label, b: Label) -> float:
    low, high = np.maximum(a.box[:2], b.box[:2]), np.minimum(a.box[2:], b.box[2:])
    shared = float(np.clip(high - low, 0, None).prod())
    areas = [(o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) for o in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def test_a_frame_depends_on_seed_and_index_only(streets: list[Street]) -> None:
    """Catches a generator that advances with every call, so that looping or seeking shows other frames."""
    forwards = [streets[0].frame(k) for k in (0, 7, 300)]
    again = Street(DEMO_SEEDS[0])
    backwards = [again.frame(k) for k in (300, 7, 0)][::-1]
    for (picture, labels), (same_picture, same_labels) in zip(forwards, backwards, strict=True):
        assert np.array_equal(picture, same_picture)
        assert labels == same_labels


def test_the_frame_rate_does_not_change_the_speed_of_motion(streets: list[Street]) -> None:
    """Catches motion per frame instead of per second: at 20 frames/s all objects would be twice as fast."""
    assert streets[0].frame(10, fps=10.0)[1] == streets[0].frame(20, fps=20.0)[1]


def test_different_seeds_are_different_streets(streets: list[Street]) -> None:
    """Catches a seed that determines only the traffic."""
    pictures = [street.frame(0)[0].astype(np.int16) for street in streets]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(pictures[a] - pictures[b]).mean() > 20


def test_the_demo_seeds_are_a_day_a_dusk_and_a_night(streets: list[Street]) -> None:
    """Catches a change in the order of random numbers that changes the times of day of the demo streets."""
    assert [street.time_of_day for street in streets] == ["day", "dusk", "night"]
    day, _, night = (street.frame(0)[0].mean() for street in streets)
    assert night < 0.75 * day


@pytest.mark.parametrize("size", [(640, 360), (1280, 720), (426, 240)])
def test_pictures_have_the_requested_size_and_labels_lie_within(size: tuple[int, int]) -> None:
    """Catches boxes in the coordinates of the enlarged canvas, and boxes that extend beyond the picture."""
    width, height = size
    street = Street(3, width=width, height=height)
    seen = 0
    for index in range(0, 400, 40):
        picture, labels = street.frame(index)
        assert picture.shape == (height, width, 3)
        assert picture.dtype == np.uint8
        for label in labels:
            x1, y1, x2, y2 = label.box
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert y2 - y1 >= height * 10 / 360 - 1e-6
            assert 0 <= label.class_id < len(CLASS_NAMES)
        seen += len(labels)
    assert seen > 50


def test_boxes_enclose_the_rendered_objects() -> None:
    """Catches labels of another time, or with a wrong offset.

    Two frames of one street differ, beyond noise, at the objects of either frame. Nearly all of these pixels must lie
    within slightly enlarged boxes. Shadows and lamps are exceptions, so the test uses a street by day.
    """
    street = Street(DEMO_SEEDS[0])
    (first, labels), (second, later) = street.frame(0), street.frame(300)
    changed = np.abs(first.astype(np.int16) - second).max(axis=2) > 60
    covered = np.zeros(changed.shape, dtype=bool)
    for label in (*labels, *later):
        x1, y1, x2, y2 = (round(v) for v in label.box)
        covered[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3] = True
    assert changed.mean() > 0.01
    assert (changed & covered).sum() / changed.sum() > 0.85


def test_objects_move_continuously(streets: list[Street]) -> None:
    """Catches routes that wrap within the picture, objects that appear from nowhere, and headings that flip.

    At 30 frames/s every object well inside the picture hardly moves between two frames. Only hidden objects may
    appear or disappear.
    """
    for street in streets:
        kept = total = 0
        before = street.frame(0, fps=30.0)[1]
        for index in range(1, 40):
            now = street.frame(index, fps=30.0)[1]
            for label in before:
                x1, _, x2, y2 = label.box
                if x1 < 30 or x2 > street.width - 30 or y2 > street.height - 30:
                    continue
                total += 1
                kept += any(other.class_id == label.class_id and _overlap(label, other) > 0.5 for other in now)
            before = now
        assert total > 100
        assert kept / total > 0.98


def test_most_objects_move(streets: list[Street]) -> None:
    """Catches a street without motion, which would prove nothing about the order of frames."""
    for street in streets:
        _, before = street.frame(0)
        _, after = street.frame(50)
        stayed = sum(any(o.class_id == n.class_id and _overlap(o, n) > 0.9 for n in after) for o in before)
        assert stayed < 0.5 * len(before)
