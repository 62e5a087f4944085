"""The committed demo model: it is the file that was measured, and it finds what is drawn on streets it never saw."""

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


def test_the_card_describes_this_very_file(card: dict[str, Any]) -> None:
    """Catches a model that was trained again without its card, so that the digest in every result would be a lie."""
    assert card["sha256"] == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert tuple(card["classes"]) == CLASS_NAMES


def test_the_file_is_small_enough_to_commit() -> None:
    """Catches a checkpoint with optimizer state or float32 weights."""
    assert MODEL.stat().st_size <= 3_000_000


def test_no_seed_is_in_both_sets(card: dict[str, Any]) -> None:
    """Catches a measurement on streets that the model was trained on, and demo streets among them."""
    train = range(card["train"]["first_seed"], card["train"]["first_seed"] + card["train"]["streets"])
    test = range(card["held_out"]["first_seed"], card["held_out"]["first_seed"] + card["held_out"]["streets"])
    assert not set(train) & set(test)
    assert min(*train, *test) >= 1000, "seeds below 1000 are for demonstrations"


def test_held_out_streets_show_every_class_by_day_and_by_night(
    held_out: tuple[list[np.ndarray[Any, np.dtype[np.uint8]]], list[list[Label]]],
) -> None:
    """Catches a held-out set that proves little: without lorries, say, or without nights."""
    counts = np.bincount([label.class_id for labels in held_out[1] for label in labels], minlength=len(CLASS_NAMES))
    assert counts.min() >= 40
    times = [Street(dataset.HELD_OUT_SEED + k, width=64, height=36).time_of_day for k in range(20)]
    assert {"day", "night"} <= set(times)


@pytest.mark.timeout(240)
def test_the_model_finds_what_is_drawn_on_streets_it_never_saw(
    card: dict[str, Any], held_out: tuple[list[np.ndarray[Any, np.dtype[np.uint8]]], list[list[Label]]]
) -> None:
    """Catches a model that does not match its pictures: other classes, another input size, drawings since changed."""
    train.use_offline()
    result = score(scoring.predict(MODEL, held_out[0], card["image_size"]), held_out[1])
    assert result["mean"] >= 0.95, result


def _predicted(*rows: tuple[float, float, float, float, float]) -> Predictions:
    values = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return Predictions(values[:, :4], values[:, 4], np.zeros(len(values), dtype=np.int64))


def test_average_precision_is_what_one_computes_by_hand() -> None:
    """Catches a measure that flatters: one that forgives doubles, false alarms or misses."""
    truth = [[Label(0, (0, 0, 10, 10)), Label(0, (20, 0, 30, 10))]]
    both = ((0, 0, 10, 10, 0.9), (20, 0, 30, 10, 0.8))
    assert average_precision(0, [_predicted(*both)], truth) == pytest.approx(1.0)
    assert average_precision(0, [_predicted(both[0])], truth) == pytest.approx(0.5)
    assert average_precision(0, [_predicted()], truth) == pytest.approx(0.0)
    # A false positive with a higher score: precision 1/2 at the first match, 2/3 at the second; envelope 2/3.
    assert average_precision(0, [_predicted((50, 50, 60, 60, 0.95), *both)], truth) == pytest.approx(2 / 3)
    # A double of the first object, surer than the second: the second is reached at precision 2/3.
    assert average_precision(0, [_predicted(both[0], (0, 0, 10, 9, 0.85), both[1])], truth) == pytest.approx(
        0.5 + 0.5 * 2 / 3
    )
    # Overlap below one half counts as a miss and a false alarm.
    assert average_precision(0, [_predicted((6, 0, 16, 10, 0.9))], truth) == pytest.approx(0.0)
