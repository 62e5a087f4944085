"""The pure parts of `sluice dlq`: what is chosen, what is written back, what is remembered, what is shown."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import images
from consumer.errors import ConfigError
from consumer.messages import Message, encode_dead_letter, encode_envelope, parse_frame
from consumer.tools.dlq import formatting
from consumer.tools.dlq.dead_letters import (
    DeadLetterRecord,
    Filter,
    Selection,
    message_for,
    parse_position,
    parse_since,
    read_letter,
)
from consumer.tools.dlq.progress import Progress, ReplayPass
from consumer.tools.dlq.replay import ReplayCounts, classify
from consumer.tools.kafka.reader import TopicRecord
from consumer.types import Frame, Headers, Receipt, Record, Rejected, TopicPartition

NOW = 1_700_000_000_000
NASTY = "\x1b]0;owned\x07\n\r\x9b2J\u202e\u2028"
REASONS, STAGES, SOURCES = ("damaged", "too_large"), ("decode", "infer"), ("cam-1", "cam-2")


def dead_letter(
    record: Record | None = None, *, reason: str = "damaged", stage: Any = "decode", topic: str = "frames", **more: Any
) -> Message:
    record = record or Record(b"cam-1", b"image", (("frame-id", b"7"),), NOW)
    frame = Frame("cam-1", "7", NOW, b"", 0.0, Receipt(TopicPartition(topic, 3), 42, 1), record)
    options = {"source": "/sluice/g", "max_bytes": 10**6, "now_ms": NOW} | more
    return encode_dead_letter(frame, Rejected(stage, reason, "why"), **options)


def letter_of(message: Message, partition: int = 0, offset: int = 5) -> DeadLetterRecord:
    letter = read_letter(partition, offset, record_of(message))
    assert letter is not None
    return letter


def record_of(message: Message) -> Record:
    return Record(message.key, message.value, tuple(message.headers), message.timestamp_ms)


header_names = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["ce_id", "sluice-truncated", "sluice-original-bytes", "source-id", "__connect.errors.other"]),
)
headers = st.lists(st.tuples(header_names, st.none() | st.binary(max_size=8)), max_size=6).map(tuple)
records = st.builds(
    Record, st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=40), headers, st.integers(0, 2**50)
)


def plain(headers: Headers) -> Headers:
    """Without headers of a producer whose names are those of Sluice: they cannot be distinguished."""
    return tuple(header for header in headers if not header[0].startswith("sluice-"))


@given(record=records, turns=st.integers(1, 4))
def test_repeated_replays_send_the_original_with_its_replay_count(record: Record, turns: int) -> None:
    """Catches: headers that accumulate, a producer's ce_id taken for Sluice's, a count that does not grow."""
    record = Record(record.key, record.value, plain(record.headers), record.timestamp_ms)
    sent = record
    for _ in range(turns):
        message = message_for(letter_of(dead_letter(sent)))
        sent = record_of(message)
    added = (
        ("sluice-original-timestamp-ms", b"%d" % (record.timestamp_ms or 0)),
        ("sluice-replays", b"%d" % turns),
    )
    assert sent == Record(record.key, record.value, (*record.headers, *added), None)


def test_a_replay_has_the_present_time_and_its_frame_keeps_the_first_one() -> None:
    """Catches: a replay of old letters that retention deletes before it is read, and results dated at the replay."""
    message = message_for(letter_of(dead_letter(Record(b"cam-1", b"image", (), NOW))))
    assert message.timestamp_ms is None, "the client puts the time of writing"
    again = record_of(message)._replace(timestamp_ms=NOW + 10**6)
    assert parse_frame(again, Receipt(TopicPartition("frames", 3), 43, 1), 0.0).captured_at_ms == NOW


def test_a_replay_of_a_letter_that_was_given_a_key_has_none() -> None:
    """Catches: a frame that comes back under the name of its dead letter."""
    letter = letter_of(dead_letter(Record(None, b"image", (("source-id", b"cam-1"),), NOW), keyed=True, max_bytes=9))
    message = message_for(letter)
    assert message.key is None
    assert "sluice-original-key" not in dict(message.headers)
    assert [name for name, _ in message.headers].count("sluice-original-timestamp-ms") == 1


def test_a_truncated_one_stays_known_as_such_when_it_fails_again() -> None:
    """Catches: a replay that makes half an image look whole, so that the next one sends it unrequested."""
    record = Record(b"cam-1", b"x" * 9000, (("sluice-mine", b"1"), ("frame-id", b"7")), NOW)
    message = message_for(letter_of(dead_letter(record, max_bytes=4096)))
    headers = dict(message.headers)
    assert (headers["sluice-truncated"], headers["sluice-original-bytes"]) == (b"true", b"9000")
    assert [name for name, _ in message.headers].count("sluice-mine") == 1
    assert not [name for name in headers if "errors" in name or name in ("ce_id", "sluice-rejected-at-ms")]
    again = letter_of(dead_letter(record_of(message)))
    assert again.dead.truncated
    assert again.replays == 1


@pytest.mark.parametrize("count", [b"", b"-1", b"1e9", b"x", b"9" * 400, None])
def test_a_count_that_is_none_is_no_replay(count: bytes | None) -> None:
    """Catches: a forged header that ends the program, or a huge number that costs seconds to read."""
    assert letter_of(dead_letter(Record(b"k", b"v", (("sluice-replays", count),), NOW))).replays == 0


selections = st.builds(
    Selection,
    st.builds(
        Filter,
        st.frozensets(st.sampled_from(REASONS)),
        st.frozensets(st.sampled_from(STAGES)),
        st.frozensets(st.sampled_from(SOURCES)),
        st.frozensets(st.sampled_from(["frames", "other"])),
        st.none() | st.integers(NOW - 2, NOW + 2),
    ),
    st.sampled_from([None, "frames", "trial"]),
    st.booleans(),
    st.integers(1, 3),
)


@st.composite
def letters(draw: st.DrawFn) -> DeadLetterRecord:
    replays = draw(st.integers(0, 3))
    record = Record(draw(st.sampled_from(SOURCES)).encode(), b"x" * 5000, (("sluice-replays", b"%d" % replays),), NOW)
    return letter_of(
        dead_letter(
            record,
            reason=draw(st.sampled_from(REASONS)),
            stage=draw(st.sampled_from(STAGES)),
            topic=draw(st.sampled_from(["frames", "other"])),
            now_ms=NOW + draw(st.integers(-2, 2)),
            max_bytes=draw(st.sampled_from([4096, 10**6])),
        ),
        offset=draw(st.integers(0, 9)),
    )


@given(wide=selections, narrow=selections, letter=letters())
def test_what_covers_another_selection_sends_all_that_the_other_sends(
    wide: Selection, narrow: Selection, letter: DeadLetterRecord
) -> None:
    """Progress depends on it. Catches: a run that starts after letters that were never sent."""
    if wide.covers(narrow) and narrow.status_of(letter) == "replay":
        assert wide.status_of(letter) == "replay"
        assert wide.destination(letter) == narrow.destination(letter)


@given(
    topic=st.lists(letters(), min_size=1, max_size=12),
    runs=st.lists(st.tuples(selections, st.integers(1, 6)), min_size=1, max_size=6),
)
def test_any_sequence_of_runs_sends_each_letter_once_to_each_topic(
    topic: list[DeadLetterRecord], runs: list[tuple[Selection, int]]
) -> None:
    """The model: a set of what was sent. Catches: any loss or repeat in progress, with limits, over its stored form."""
    found = [TopicRecord(0, n, letter.raw) for n, letter in enumerate(topic)]
    stored, sent = Progress().to_metadata(), Counter[tuple[int, str]]()
    for selection, limit in runs:
        progress = Progress.from_commit(0, stored)
        rest = [each for each in found if each.offset >= progress.start_for(selection)]
        upto, count = 0, 0
        for each, letter in classify(rest, selection, {0: progress}, ReplayCounts()):
            upto = each.offset + 1
            if letter is not None:
                sent[each.offset, selection.destination(letter)] += 1
                count += 1
                if count == limit:
                    break
        else:
            for each in found:
                whole = read_letter(*each)
                assert whole is not None
                if selection.status_of(whole) == "replay":
                    assert sent[each.offset, selection.destination(whole)] == 1, "forgotten"
        if count:
            stored = progress.advanced(selection, upto).to_metadata()
    assert set(sent.values()) <= {1}, "sent twice"


@given(passes=st.lists(st.tuples(selections, st.integers(1, 100)), max_size=5), floor=st.integers(0, 50))
def test_progress_is_the_same_after_being_stored(passes: list[tuple[Selection, int]], floor: int) -> None:
    progress = Progress(tuple(ReplayPass(*each) for each in passes), floor)
    assert Progress.from_commit(progress.offset, progress.to_metadata()) == progress


def test_passes_over_letters_that_retention_has_removed_are_forgotten() -> None:
    """Catches: progress that fills up with the --since of every night."""
    progress = Progress()
    for night in range(1, 1000):
        selection = Selection(Filter(since_ms=night))
        progress = progress.advanced(selection, night * 10, oldest=night * 10 - 30)
    assert len(progress.passes) < 5


def test_more_selections_than_a_commit_can_hold_are_refused_with_advice() -> None:
    """Catches: a commit that the broker refuses after the records were produced."""
    progress = Progress(tuple(ReplayPass(Selection(Filter(sources=frozenset([f"cam-{n}" * 9]))), 5) for n in range(99)))
    with pytest.raises(ConfigError, match="--group"):
        progress.to_metadata()


@pytest.mark.parametrize("metadata", ["x", "[]", "{}", '{"v":2,"f":0,"p":[]}', '{"v":1,"f":0,"p":[{}]}', "[" * 9999])
def test_an_offset_that_another_program_committed_is_refused(metadata: str) -> None:
    """Catches: a replay that starts again from the beginning in a group that another program uses."""
    with pytest.raises(ValueError, match="progress"):
        Progress.from_commit(5, metadata)


@pytest.mark.parametrize(
    ("given_", "ago_ms"), [("90s", 90_000), ("30m", 1_800_000), ("2h", 7_200_000), ("7d", 604_800_000), ("0s", 0)]
)
def test_since_takes_spans(given_: str, ago_ms: int) -> None:
    assert parse_since(given_, NOW) == NOW - ago_ms


def test_since_takes_times_and_refuses_the_rest() -> None:
    moment = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert parse_since("2023-11-14T22:13:20+00:00", 0) == NOW
    assert parse_since(moment.astimezone().replace(tzinfo=None).isoformat(), 0) == NOW
    assert parse_since(None, NOW) is None
    for wrong in ("", "2", "h", "-2h", "yesterday", "2h\x1b[2J", "9" * 50 + "d"):
        with pytest.raises(ConfigError) as refused:
            assert parse_since(wrong, NOW) is None
        assert str(refused.value).isprintable()


def test_positions_and_ids_are_distinguished() -> None:
    assert parse_position("3@42") == (3, 42)
    assert [parse_position(other) for other in ("frames/3/42", "3@", "@", "3@-1", "3@42x")] == [None] * 5


@given(value=st.text(max_size=30), width=st.integers(0, 120))
def test_nothing_that_a_producer_wrote_reaches_the_terminal_raw(value: str, width: int) -> None:
    """Every text and byte of a letter. Catches one field that is printed as it came."""
    value += NASTY
    raw = value.encode("utf-8", "replace")
    record = Record(raw, b"\xff\xd8\xff" + raw, ((value, raw), ("source-id", raw)), NOW)
    letter = letter_of(dead_letter(record, topic=value, reason=value))
    lines = [*formatting.table([formatting.row_of(letter)], width), *formatting.letter_lines(letter)]
    lines += formatting.summary(Counter({value: 1}), 1, 1, 0)
    counts = ReplayCounts()
    counts.sent([letter], Selection())
    lines += formatting.replay_summary(counts, dry=True)
    lines += [formatting.unknown_reasons([value], Counter({value + "x": 1})) or ""]
    lines += [formatting.as_json(formatting.row_of(letter)), formatting.as_json(formatting.details(letter))]
    assert all(line.isprintable() for line in lines), lines
    assert not width or all(len(line) <= width for line in formatting.table([formatting.row_of(letter)], width))


def test_a_table_has_a_column_for_every_field() -> None:
    heading, line = formatting.table([formatting.row_of(letter_of(dead_letter()))], 0, UTC)
    assert heading.split() == ["REJECTED", "PLACE", "INPUT", "SOURCE", "STAGE", "REASON", "SIZE", "DETAIL"]
    assert line.split() == [
        "2023-11-14", "22:13:20", "0@5", "frames[3]@42", "cam-1", "decode", "damaged", "5", "B", "why",
    ]  # fmt: skip


def test_a_record_that_is_no_dead_letter_has_its_line() -> None:
    """Catches: records that are hidden, so that the counts do not add up."""
    (_, line) = formatting.table([formatting.foreign_row(1, 9, Record(None, b"x" * 2000, (), None))], 0)
    assert line.split() == ["-", "1@9", "not", "a", "dead", "letter:", "2.0", "kB"]


def test_the_source_of_an_envelope_is_found_inside_it() -> None:
    """Catches: --source that only knows record keys."""
    value = encode_envelope(images.jpeg(64, 48), source_id="cam-9", frame_id=4, captured_at_ms=5)
    letter = letter_of(dead_letter(Record(None, value, (), NOW)))
    assert Filter(sources=frozenset(["cam-9"])).matches(letter)
    frame = formatting.details(letter)["frame"]
    assert (frame["form"], frame["frame_id"], frame["captured_at_ms"]) == ("envelope", "4", 5)
    assert (frame["image"]["width"], frame["image"]["height"]) == (64, 48)


def test_a_hostile_image_is_described_and_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: showing a letter takes the 6 GiB for which the frame was rejected."""
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    for value, _reason in images.hostile().values():
        letter = letter_of(dead_letter(Record(b"cam-1", value, (), NOW)))
        assert all(line.isprintable() for line in formatting.letter_lines(letter))


def test_a_misspelt_reason_is_pointed_out() -> None:
    """Catches: "0 dead letters" at night, for a topic full of them."""
    assert formatting.unknown_reasons(["damaged"], Counter(damaged=1)) is None
    assert formatting.unknown_reasons(["damagd"], Counter(damaged=1)) == (
        "no dead letter has the reason damagd; there are: damaged"
    )
