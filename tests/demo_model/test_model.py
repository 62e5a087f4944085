"""The committed demo model: it is the file that was scored, and it detects objects on held-out streets."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest

import dataset
import scoring
import train
from consumer.tools.assets import MODEL
from scenes import CLASS_NAMES, Label, Street
from scoring import Predictions, average_precision, score

CARD = MODEL.with_suffix(".json")


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(CARD.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def held_out() -> tuple[list[np.ndarray[Any, np.dtype[np.uint8]]], list[list[Label]]]:
    return dataset.held_out_set(streets=20, pictures=4)


def test_the_card_describes_the_committed_file(card: dict[str, Any]) -> None:
    """Catches a new model with the card of the old one, so that its digest and its scores are wrong."""
    assert card["sha256"] == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert tuple(card["classes"]) == CLASS_NAMES


def test_the_file_is_small_enough_to_commit() -> None:
    """Catches a checkpoint with optimizer state or float32 weights."""
    assert MODEL.stat().st_size <= 3_000_000


def test_training_and_held_out_seeds_do_not_overlap(card: dict[str, Any]) -> None:
    """Catches scores on streets of the training set, and streets of the demo in either set."""
    train = range(card["train"]["first_seed"], card["train"]["first_seed"] + card["train"]["streets"])
    test = range(card["held_out"]["first_seed"], card["held_out"]["first_seed"] + card["held_out"]["streets"])
    assert not set(train) & set(test)
    assert min(*train, *test) >= 1000, "seeds below 1000 are for demonstrations"


def test_held_out_streets_have_every_class_by_day_and_by_night(
    held_out: tuple[list[np.ndarray[Any, np.dtype[np.uint8]]], list[list[Label]]],
) -> None:
    """Catches a held-out set that lacks a class, or a time of day."""
    counts = np.bincount([label.class_id for labels in held_out[1] for label in labels], minlength=len(CLASS_NAMES))
    assert counts.min() >= 40
    times = [Street(dataset.HELD_OUT_SEED + k, width=64, height=36).time_of_day for k in range(20)]
    assert {"day", "night"} <= set(times)


@pytest.mark.timeout(240)
def test_the_model_detects_the_objects_of_held_out_streets(
    card: dict[str, Any], held_out: tuple[list[np.ndarray[Any, np.dtype[np.uint8]]], list[list[Label]]]
) -> None:
    """Catches a model that does not fit the renderer: other classes, another input size, a changed renderer."""
    train.use_offline()
    result = score(scoring.predict(MODEL, held_out[0], card["image_size"]), held_out[1])
    assert result["mean"] >= 0.95, result


def _predicted(*rows: tuple[float, float, float, float, float]) -> Predictions:
    values = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return Predictions(values[:, :4], values[:, 4], np.zeros(len(values), dtype=np.int64))


def test_average_precision_equals_the_value_computed_by_hand() -> None:
    """Catches a score that ignores duplicates, false positives or misses."""
    truth = [[Label(0, (0, 0, 10, 10)), Label(0, (20, 0, 30, 10))]]
    both = ((0, 0, 10, 10, 0.9), (20, 0, 30, 10, 0.8))
    assert average_precision(0, [_predicted(*both)], truth) == pytest.approx(1.0)
    assert average_precision(0, [_predicted(both[0])], truth) == pytest.approx(0.5)
    assert average_precision(0, [_predicted()], truth) == pytest.approx(0.0)
    # A false positive with a higher score: precision 1/2 at the first match, 2/3 at the second; envelope 2/3.
    assert average_precision(0, [_predicted((50, 50, 60, 60, 0.95), *both)], truth) == pytest.approx(2 / 3)
    # A duplicate of the first object with a higher score than the second: precision 2/3 at the second.
    assert average_precision(0, [_predicted(both[0], (0, 0, 10, 9, 0.85), both[1])], truth) == pytest.approx(
        0.5 + 0.5 * 2 / 3
    )
    # IoU below 0.5 counts as a miss and a false positive.
    assert average_precision(0, [_predicted((6, 0, 16, 10, 0.9))], truth) == pytest.approx(0.0)
