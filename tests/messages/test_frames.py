"""Input records to frames: the two forms are never confused, and hostile input is rejected."""

from __future__ import annotations

import sys
import time
import tracemalloc

import msgpack
import pytest

from consumer import messages as wire
from consumer.messages import frames as wire_frames
from consumer.types import Headers, Record, Rejected
from wire_records import JPEG, RECEIPT, TRACE, parse, reason

SIGNATURES = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF\x10\x00\x00\x00WEBP"}


class TestRawImages:
    def test_the_value_is_the_payload_and_the_key_is_the_source(self) -> None:
        frame = parse()
        assert (frame.source_id, frame.frame_id, frame.captured_at_ms) == ("cam-1", "3-42", 7)
        assert (frame.payload, frame.verdict, frame.received_at, frame.receipt) == (JPEG, None, 1.25, RECEIPT)

    def test_headers_override_the_key_and_the_record(self) -> None:
        headers = (
            ("source-id", b"cam-2"),
            ("frame-id", b"17"),
            ("captured-at-ms", b"1700000000000"),
            ("content-type", b"image/jpeg"),
            ("traceparent", TRACE.encode()),
            ("something-else", b"\xff"),
        )
        frame = parse(headers=headers)
        assert (frame.source_id, frame.frame_id, frame.captured_at_ms) == ("cam-2", "17", 1_700_000_000_000)
        assert (frame.traceparent, frame.verdict) == (TRACE, None)

    def test_the_last_of_several_headers_with_one_name_wins(self) -> None:
        """Catches first-wins, with which nobody after a proxy could override its header."""
        assert parse(headers=(("source-id", b"a"), ("source-id", b"b"))).source_id == "b"

    def test_a_header_without_value_counts_as_absent(self) -> None:
        """Catches a null header that turns every frame of a producer into a dead letter."""
        frame = parse(headers=(("source-id", None), ("frame-id", None), ("captured-at-ms", None)))
        assert (frame.source_id, frame.frame_id, frame.captured_at_ms, frame.verdict) == ("cam-1", "3-42", 7, None)

    @pytest.mark.parametrize("value", [None, b""])
    def test_a_tombstone_is_rejected_as_empty_and_keeps_its_source(self, value: bytes | None) -> None:
        frame = parse(value)
        assert (reason(frame), frame.source_id, frame.payload) == ("empty", "cam-1", b"")

    @pytest.mark.parametrize("at", [None, -1, 2**53 + 1])
    def test_a_record_without_a_usable_timestamp_has_no_capture_time(self, at: int | None) -> None:
        """Catches an age of 1.7 trillion milliseconds, which would skip every frame as stale."""
        frame = parse(at=at)
        assert (frame.captured_at_ms, frame.verdict) == (None, None)

    @pytest.mark.parametrize(
        "value", [b"-1", b"1.5", b"", b" 1", b"0x10", b"1e3", "\u0661".encode(), b"1" * 17, b"1_0"]
    )
    def test_a_capture_time_that_is_not_plain_digits_is_rejected(self, value: bytes) -> None:
        """Catches `int(header)`, which accepts blanks, signs, underscores and Arabic digits."""
        assert reason(parse(headers=(("captured-at-ms", value),))) == "bad_envelope"

    @pytest.mark.parametrize("value", [b"", b"a\nb", b" a", b"\xff", b"x" * 257])
    def test_an_invalid_frame_id_is_rejected_and_not_replaced(self, value: bytes) -> None:
        """Catches a silent default: nobody could match the result with the frame again."""
        assert reason(parse(headers=(("frame-id", value),))) == "bad_envelope"


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "00",
        TRACE.upper(),
        "ff" + TRACE[2:],
        TRACE + "-00",
        TRACE + "\n",
        "00-" + "0" * 32 + TRACE[35:],
        TRACE[:36] + "0" * 16 + "-01",
        "\u0660" + TRACE[1:],
    ],
)
def test_a_malformed_trace_is_dropped_and_costs_no_frame(trace: str) -> None:
    """Catches tracing that can break the data path, and a header that is injected through it."""
    frame = parse(headers=(("traceparent", trace.encode()),))
    assert (frame.traceparent, frame.verdict) == (None, None)
    frame = parse(wire.encode_envelope(JPEG, source_id="a", traceparent=trace))
    assert (frame.traceparent, frame.verdict) == (None, None)


class TestSourceIds:
    @pytest.mark.parametrize(
        "good", ["a", "cam-1", "x" * 128, "\u6771" * 128, "Küche 2", "a/b?c=d&e", "\U0001f4f7" * 128, '"', "a\u0301"]
    )
    def test_printable_names_pass_by_key_header_and_field(self, good: str) -> None:
        """Catches a limit that counts bytes instead of characters."""
        assert parse(key=good.encode()).source_id == good
        assert parse(headers=(("source-id", good.encode()),)).source_id == good
        assert parse(wire.encode_envelope(JPEG, source_id=good)).source_id == good

    @pytest.mark.parametrize(
        "bad",
        [
            b"",
            b" ",
            b" a",
            b"a ",
            b"a\x00",
            b"a\nb",
            b"a\rb",
            b"a\tb",
            b"\x1b[2Jcam",
            b"\x7f",
            b"\xff\xfe",
            b"\xc0\xaf",
            b"\xed\xa0\x80",
            b"x" * 129,
            b"x" * 100_000,
            "\u6771".encode() * 129,
            "a\u202eb".encode(),
            "a\u200bb".encode(),
            "a\u2028b".encode(),
            "a\u00a0b".encode(),
            "\ufeffa".encode(),
            "\u0085".encode(),
            "\U000e0041".encode(),
            "\ufffe".encode(),
        ],
    )
    def test_names_that_could_break_a_log_a_label_or_a_terminal_are_rejected(self, bad: bytes) -> None:
        """Catches an ID that forges log lines, hides in a list, or costs a label of 100 kB."""
        frame = parse(key=bad)
        assert (reason(frame), frame.source_id) == ("bad_source_id", "")
        frame = parse(headers=(("source-id", bad),))
        assert (reason(frame), frame.source_id) == ("bad_source_id", "cam-1")  # the best that it has

    def test_the_error_for_a_missing_name_has_a_remedy(self) -> None:
        frame = parse(key=None)
        assert reason(frame) == "bad_source_id"
        assert isinstance(frame.verdict, Rejected)
        assert "record key" in frame.verdict.detail
        assert "source-id" in frame.verdict.detail

    def test_no_detail_quotes_the_input(self) -> None:
        """Catches log injection through the error message instead of the value."""
        for frame in (parse(key=b"\x1b[31mEVIL"), parse(b"\x81\xa4EVIL"), parse(headers=(("frame-id", b"EVIL\n"),))):
            assert isinstance(frame.verdict, Rejected)
            assert "EVIL" not in frame.verdict.detail
            assert frame.verdict.detail.isprintable()


class TestEnvelopes:
    def test_fields_override_headers_and_headers_override_the_key(self) -> None:
        headers: Headers = (("source-id", b"header"), ("frame-id", b"header"), ("captured-at-ms", b"1"))
        frame = parse(wire.encode_envelope(JPEG, source_id="field", frame_id=17, captured_at_ms=2), headers=headers)
        assert (frame.source_id, frame.frame_id, frame.captured_at_ms, frame.payload) == ("field", "17", 2, JPEG)
        frame = parse(msgpack.packb({"data": JPEG}), headers=headers)
        assert (frame.source_id, frame.frame_id, frame.captured_at_ms) == ("header", "header", 1)
        assert parse(msgpack.packb({"data": JPEG, "source_id": None})).source_id == "cam-1"

    @pytest.mark.parametrize("frame_id", [0, -(2**63), 2**64 - 1])
    def test_an_integer_frame_id_becomes_text(self, frame_id: int) -> None:
        assert parse(wire.encode_envelope(JPEG, source_id="a", frame_id=frame_id)).frame_id == str(frame_id)

    def test_a_rejected_envelope_keeps_the_source_that_it_named(self) -> None:
        """Catches dead letters of one source that are published under the name of another one."""
        frame = parse(msgpack.packb({"source_id": "cam-9", "data": 5}), key=b"cam-1")
        assert (reason(frame), frame.source_id, frame.payload) == ("bad_envelope", "cam-9", b"")

    @pytest.mark.parametrize(
        "content_type",
        [b"application/msgpack", b"application/vnd.msgpack", b"application/x-msgpack", b" Application/MsgPack ; v=1"],
    )
    def test_a_msgpack_content_type_forces_an_envelope(self, content_type: bytes) -> None:
        """Catches a guess that overrides a clear statement of the producer."""
        headers = (("content-type", content_type),)
        assert reason(parse(JPEG, headers=headers)) == "bad_envelope"
        assert parse(wire.encode_envelope(JPEG, source_id="a"), headers=headers).payload == JPEG

    @pytest.mark.parametrize("where", ["data", "source_id", "unknown", "key", "root"])
    @pytest.mark.parametrize("shape", ["deep arrays", "deep maps", "wide arrays", "wide maps", "false sizes"])
    def test_a_megabyte_bomb_costs_neither_time_nor_memory(self, shape: str, where: str) -> None:
        """Catches `msgpack.unpackb` on input: a byte of 0x80 becomes a dict of 64 bytes, a count a preallocation."""
        bomb = {
            "deep arrays": b"\x91" * 1_000_000,
            "deep maps": b"\x81" * 1_000_000,
            "wide arrays": b"\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000,
            "wide maps": b"\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000,
            "false sizes": b"\xdd\xff\xff\xff\xff" * 200_000,
        }[shape]
        name = b"" if where in ("root", "key") else bytes([0xA0 + len(where)]) + where.encode()
        value = (b"" if where == "root" else b"\x81") + name + bomb
        headers: Headers = (("content-type", b"application/msgpack"),)
        took = []
        for _ in range(3):  # the best of three counts, because the machine may be busy
            started = time.perf_counter()
            frame = parse(value, headers=headers)
            took.append(time.perf_counter() - started)
        tracemalloc.start()
        parse(value, headers=headers)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert reason(frame) == "bad_envelope"
        assert min(took) < 0.05
        assert peak < 2 * len(value)  # one copy in the unpacker's buffer


class TestForms:
    @pytest.mark.parametrize("kind", SIGNATURES)
    @pytest.mark.parametrize("following", range(256))
    def test_an_image_is_never_taken_for_an_envelope(self, kind: str, following: int) -> None:
        """Catches a check of only the first byte: a PNG begins with 0x89, as a msgpack map of nine fields does."""
        value = SIGNATURES[kind] + bytes([following]) * 30
        frame = parse(value)
        assert (frame.verdict, frame.payload) == (None, value)

    @pytest.mark.parametrize("first", range(256))
    def test_only_a_map_is_an_envelope_and_a_broken_one_is_never_an_image(self, first: int) -> None:
        """Catches a second attempt with the other form after the first one failed: damage would change the meaning."""
        value = bytes([first]) + b"\xc1" * 20
        is_map = 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)
        frame = parse(value)
        # 0x80 is the whole empty map: then bytes follow it. All are broken.
        assert reason(frame) == ("bad_envelope" if is_map else None)
        assert frame.payload == (b"" if is_map else value)

    @pytest.mark.parametrize("kind", SIGNATURES)
    def test_a_truncated_signature_is_classified_by_its_first_byte(self, kind: str) -> None:
        for length in range(1, len(SIGNATURES[kind])):
            value = SIGNATURES[kind][:length]
            assert reason(parse(value)) == ("bad_envelope" if kind == "png" else None)

    @pytest.mark.parametrize("fields", range(1, 60))
    def test_an_envelope_of_any_size_is_never_taken_for_an_image(self, fields: int) -> None:
        """Catches nine fields (0x89) that go to the PNG decoder."""
        extra = {f"x{n}": n for n in range(fields - 1)}
        frame = parse(msgpack.packb(extra | {"data": JPEG}))
        assert (frame.verdict, frame.payload) == (None, JPEG)

    def test_too_many_fields_are_rejected(self) -> None:
        extra = {f"x{n}": n for n in range(wire_frames.MAX_FIELDS)}
        assert reason(parse(msgpack.packb(extra | {"data": JPEG}))) == "bad_envelope"


def test_the_size_of_a_record_counts_all_its_parts() -> None:
    """Catches a limit that counts only values: records without a value may have a megabyte of headers each."""
    assert Record(None, None, (), None).size_bytes == 0
    assert Record(b"key", b"value", (), 5).size_bytes == 3 + 5
    names = [f"{number}" for number in range(1000)]
    held = sum(sys.getsizeof(each) for name in names for each in ((name, b"v"), name, b"v" * 2))
    assert Record(None, None, tuple((name, b"vv") for name in names), 5).size_bytes > 0.95 * held


def test_the_payload_of_an_envelope_counts_twice_in_the_size() -> None:
    """Catches a limit that counts only the record, although the image from it is a copy."""
    image = parse(JPEG, key=b"cam")
    assert image.size_bytes == image.record.size_bytes == len(JPEG) + 3
    envelope = parse(msgpack.packb({"data": JPEG}), key=b"cam")
    assert envelope.size_bytes == envelope.record.size_bytes + len(JPEG)
