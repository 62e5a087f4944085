"""Tests the limits of the topics: reported by the brokers, or learned from refusals and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from consumer.concurrency import Stop
from consumer.config import Config
from consumer.errors import RefusedError
from consumer.kafka.producer_settings import producer_settings
from consumer.kafka.topic_configs import Described
from consumer.kafka.topic_limits import LADDER, SLOW_S, TopicLimits, fitted, topic_limits
from made_frames import VirtualClock
from waiting import wait_until

OUT, DEAD = "detections", "frames-dead"


class Brokers:
    """Fake brokers. They answer with `says`, and count the requests."""

    def __init__(self, **says: Described) -> None:
        self.says: Mapping[str, Described] = {OUT: says.get("out", Described()), DEAD: says.get("dead", Described())}
        self.asked = 0

    def __call__(self) -> Mapping[str, Described]:
        self.asked += 1
        return self.says


def limits_of(brokers: Callable[[], Mapping[str, Described]] | None, clock: VirtualClock | None = None) -> TopicLimits:
    made = TopicLimits((OUT, DEAD), describe=brokers, clock=clock or VirtualClock())
    wait_for(made)
    return made


def wait_for(limits: TopicLimits) -> None:
    """Wait for the answer to a request. Asks first if no request is pending."""
    limits.ask()
    wait_until(lambda: limits.largest(OUT) and not limits._asking, 10, "an answer")


def test_reported_limits_apply_immediately() -> None:
    limits = limits_of(Brokers(out=Described(500_000), dead=Described(1_000_000, compacted=True)))
    assert (limits.largest(OUT), limits.largest(DEAD)) == (500_000, 1_000_000)
    assert (limits.needs_key(OUT), limits.needs_key(DEAD)) == (False, True)


def test_the_limit_of_the_producer_applies_too() -> None:
    limits = TopicLimits((OUT, DEAD), most=700_000, clock=VirtualClock())
    assert limits.largest(DEAD) == 700_000


def test_without_permission_limits_are_learned_from_refusals() -> None:
    """Catches limits that apply to one frame only, and a request after each refusal without the permission."""
    brokers = Brokers(out=Described(refused=True), dead=Described(refused=True))
    limits = limits_of(brokers)
    assert limits.largest(DEAD) == LADDER[0]
    assert limits.refused(DEAD, 1_200_000)
    assert limits.refused(DEAD, 1_300_000), "one of the same transaction"
    assert limits.largest(DEAD) == LADDER[1]
    assert limits.largest(OUT) == LADDER[0], "another topic"
    assert limits.refused(DEAD, LADDER[1])
    assert limits.largest(DEAD) == LADDER[2]
    assert not limits.refused(DEAD, LADDER[2]), "nothing smaller is left"
    assert brokers.asked == 1


def test_a_refused_result_does_not_limit_smaller_ones() -> None:
    """Catches results of 950 kB that become dead letters because one of 1.1 MB was refused."""
    limits = limits_of(None)
    assert limits.refused(OUT, 1_100_000, exactly=True)
    assert limits.largest(OUT) == 1_099_999


def test_a_lowered_limit_is_requested_again() -> None:
    """Catches a limit from the start that is never refreshed."""
    brokers = Brokers(dead=Described(1_000_000))
    limits = limits_of(brokers)
    brokers.says = {OUT: Described(), DEAD: Described(300_000)}
    assert limits.refused(DEAD, 950_000)
    assert limits.largest(DEAD) in (LADDER[1], 300_000)
    wait_until(lambda: limits.largest(DEAD) == 300_000, 10, "the new limit")


def test_a_raised_limit_is_found_when_the_old_one_cuts_a_message() -> None:
    clock = VirtualClock()
    brokers = Brokers(dead=Described(100_000))
    limits = limits_of(brokers, clock)
    brokers.says = {OUT: Described(), DEAD: Described(1_000_000)}
    limits.refresh_if_stale(DEAD)
    assert brokers.asked == 1, "each large letter asks"
    clock.advance(61)
    limits.refresh_if_stale(DEAD)
    wait_until(lambda: limits.largest(DEAD) == 1_000_000, 10, "the new limit")


def test_a_reported_limit_above_a_refused_size_is_not_trusted() -> None:
    """Catches an endless series of refusals if the actual limit of the brokers is below the reported one."""
    limits = limits_of(Brokers(dead=Described(10_000_000)))
    for size in (5_000_000, LADDER[1], LADDER[2]):
        again = limits.refused(DEAD, size)
        wait_for(limits)
        assert limits.largest(DEAD) < size or not again
    assert not again


def test_a_required_key_is_learned_once() -> None:
    limits = limits_of(None)
    assert limits.refused_keyless(DEAD)
    assert limits.needs_key(DEAD)
    assert not limits.refused_keyless(DEAD), "it is not for want of a key"


def test_a_stop_ends_the_wait_for_an_answer() -> None:
    """Catches a pod that cannot be stopped while its brokers are unavailable."""
    clock, never = VirtualClock(), threading.Event()
    stop = Stop(clock)
    stop.set()
    limits = TopicLimits((OUT, DEAD), describe=lambda: never.wait() and {}, clock=clock)  # type: ignore[arg-type, return-value]
    limits.ask(1e9, stop)
    assert limits.largest(DEAD) == LADDER[0]
    never.set()


def test_limits_stay_unknown_without_an_answer() -> None:
    def fails() -> Mapping[str, Described]:
        raise TimeoutError("the brokers are away")

    assert limits_of(fails).largest(DEAD) == LADDER[0]


def test_batches_fit_the_smaller_topic_unless_the_user_sets_a_size() -> None:
    """Catches a full batch of small results that a topic with a low limit refuses as a whole."""
    limits = limits_of(Brokers(out=Described(200_000), dead=Described(1_000_000)))
    assert 199_000 < fitted({}, limits)["batch.size"] < 200_000
    assert fitted({"batch.size": 300_000}, limits)["batch.size"] == 300_000
    assert (
        fitted({}, limits_of(Brokers(out=Described(5_000_000), dead=Described(5_000_000))))["batch.size"] == 1_000_000
    )


def test_batches_are_small_if_a_limit_is_unknown_and_no_size_is_set() -> None:
    """Catches full batches of 1 MB that a topic with a lower limit refuses after each restart."""
    for limits in (limits_of(None), limits_of(Brokers(dead=Described(2_000_000)))):
        assert fitted({}, limits)["batch.size"] < LADDER[-1]
        assert fitted({"batch.size": 900_000}, limits)["batch.size"] == 900_000


@pytest.mark.parametrize("chosen", [{}, {"batch.size": 1_000_000}])
def test_batches_become_smaller_after_a_refusal_without_a_warning(chosen: dict[str, int]) -> None:
    """Catches a warning about a batch.size that the user did not set, and one that exceeds the reported limit."""
    limits = limits_of(Brokers(out=Described(100_000), dead=Described(1_000_000)))
    assert limits.refused_batch(1_000_000)
    with capture_logs() as logs:
        assert 99_000 < fitted(dict(chosen), limits)["batch.size"] < 100_000
        assert limits.refused_batch(99_000)
        assert fitted(dict(chosen), limits)["batch.size"] == 49_500
    assert not [line for line in logs if "kafka.producer" in line["event"]]
    assert not limits.refused_batch(5000), "a smaller one changes nothing"


@pytest.mark.parametrize(("name", "value"), [("batch.size", "many"), ("message.max.bytes", "1MB")])
def test_a_setting_that_is_not_a_number_is_refused_by_name(name: str, value: str) -> None:
    """Catches a traceback."""
    config = Config(kafka={"producer": {name: value}})  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=rf"kafka\.producer: {name} is '{value}', not a number of bytes"):
        fitted(producer_settings(config), topic_limits(config, producer_settings(config), VirtualClock()))


def test_the_admin_client_writes_no_debug_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches lines on stderr outside the log: the admin client has no logger."""
    asked: list[Mapping[str, object]] = []
    monkeypatch.setattr("consumer.kafka.topic_limits.describe", lambda settings, _: asked.append(settings) or {})
    config = Config(kafka={"client": {"debug": "all"}})  # type: ignore[arg-type]
    assert producer_settings(config)["debug"] == "all"
    topic_limits(config, producer_settings(config), VirtualClock()).ask()
    wait_until(lambda: asked, 10, "a question")
    assert "debug" not in asked[0]


def test_a_refused_compressed_result_limits_until_the_limit_is_raised() -> None:
    """Catches using the reported limit instead of the refused size, and a limit that no later change raises."""
    clock, brokers = VirtualClock(), Brokers(out=Described(1_000_000))
    limits = limits_of(brokers, clock)
    limits.refused_uncompressed(OUT, 3_000_000)
    wait_for(limits)
    assert limits.largest_uncompressed(OUT) == 2_999_999
    brokers.says = {OUT: Described(2_000_000)}
    clock.advance(61)
    limits.refresh_if_stale(OUT)
    wait_until(lambda: limits.largest_uncompressed(OUT) > 1e9, 10, "the new limit")


def test_a_slow_connection_cuts_dead_letters_for_a_while() -> None:
    clock = VirtualClock()
    limits = limits_of(None, clock)
    cut = limits.too_slow(9_000_000)
    assert cut == limits.largest_dead_letter(DEAD) == 3_000_000
    assert limits.largest(DEAD) == LADDER[0]
    clock.advance(SLOW_S)
    assert limits.largest_dead_letter(DEAD) == LADDER[0]


@given(limit=st.integers(70_000, 20_000_000), sizes=st.lists(st.integers(1, 20_000_000), min_size=1, max_size=20))
def test_dead_letters_are_refused_at_most_twice(limit: int, sizes: list[int]) -> None:
    """Catches a limit that is learned again for each new size."""
    limits = limits_of(None)
    refusals = 0
    for size in sizes:
        while (sent := min(size, limits.largest(DEAD))) > limit:
            refusals += 1
            assert limits.refused(DEAD, sent)
    assert refusals <= len(LADDER) - 1


@pytest.mark.parametrize("topic", [OUT, DEAD])
def test_a_topic_without_a_description_has_no_known_limit(topic: str) -> None:
    assert limits_of(dict).largest(topic) == LADDER[0]
