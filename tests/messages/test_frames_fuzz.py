"""parse_frame never raises, for any bytes."""

from __future__ import annotations

import random
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer import messages as wire
from consumer.types import Record
from wire_records import JPEG, RECEIPT, TRACE, check_frame

HEADER_NAMES = st.sampled_from(["source-id", "frame-id", "captured-at-ms", "content-type", "traceparent"]) | st.text()
MSGPACK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
FIELD_NAMES = st.sampled_from(["source_id", "frame-id", "captured_at_ms", "content_type", "traceparent", "data"])
ENVELOPES = st.dictionaries(FIELD_NAMES | st.text(max_size=5), MSGPACK, max_size=8).map(msgpack.packb)


@settings(max_examples=400, deadline=None)
@given(
    key=st.none() | st.binary(max_size=200),
    value=st.none() | st.binary() | ENVELOPES,
    headers=st.lists(st.tuples(HEADER_NAMES, st.none() | st.binary(max_size=60) | st.just(b"application/msgpack"))),
    timestamp=st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_parse_frame_never_raises(key: Any, value: Any, headers: Any, timestamp: Any) -> None:
    """Catches the one exception that stops a whole partition at a poison pill."""
    check_frame(Record(key, value, tuple(headers), timestamp))


def test_parse_frame_never_raises_for_mutations_of_valid_envelopes() -> None:
    """Catches errors that random bytes never reach, because they come after a valid start."""
    chance = random.Random(1)
    whole = wire.encode_envelope(
        JPEG, source_id="Küche", frame_id=7, captured_at_ms=5, content_type="image/jpeg", traceparent=TRACE
    )
    accepted = 0
    for _ in range(20_000):
        value = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(value) + 1)
            match chance.randrange(4):
                case 0 | 1 if at < len(value):
                    value[at] = chance.randrange(256)
                case 2:
                    value.insert(at, chance.randrange(256))
                case _ if at:
                    del value[at:]
        record = Record(b"cam-1", bytes(value), (), 0)
        check_frame(record)
        accepted += wire.parse_frame(record, RECEIPT, 0.0).verdict is None
    assert 1000 < accepted < 19_000  # the mutations are neither all harmless nor all fatal
