"""The frames of the rig, and what it reads of their outcomes, against the program's own decoder and encoders."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

import images
import pictures
from consumer.config import DecodeConfig
from consumer.decoding import Decoder
from consumer.messages import (
    ResultEncoder,
    decode_result,
    encode_dead_letter,
    encode_envelope,
    parse_frame,
    read_dead_letter,
)
from consumer.types import Detected, Detections, LetterboxPolicy, ModelInfo, Record, Rejected, Skipped
from history import Content, InputId
from made_frames import frame
from readback import content_of_letter, content_of_result

TIMINGS = {"queue": 1.0, "decode_wait": 1.0, "infer": 1.0}


def test_no_two_frames_near_each_other_have_one_content() -> None:
    """Catches: two frames of a batch whose outcomes may be exchanged unseen."""
    near = [pictures.expected(pictures.frame(number)) for number in range(600)]
    assert len({each.frame for each in near}) == 600
    sizes = [each.size for each in near if each.kind == "detected"]
    assert len(set(sizes)) == len(sizes) == 588
    assert len({(each.reason) for each in near if each.kind == "rejected"}) == 3


def test_the_decoder_agrees_with_what_is_expected_of_each_frame() -> None:
    """Catches: an expectation that follows the program where the program is wrong, or that blames a sound one."""
    decoder = Decoder(DecodeConfig(), LetterboxPolicy(64))
    slot = np.empty(decoder.slot_bytes, np.uint8)
    for value in [*map(pictures.frame, range(1500)), b"", images.jpeg(320, 200), b"\xff\xd8\xff broken"]:
        outcome, expected = decoder.decode(value, slot), pictures.expected(value)
        if isinstance(outcome, Rejected):
            assert (expected.kind, expected.reason) == ("rejected", outcome.reason)
        else:
            assert (expected.kind, expected.size) == ("detected", (outcome.width, outcome.height))


def test_a_result_is_read_as_it_was_written() -> None:
    found = Detections(np.array([[1, 2, 3, 4.5]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32))
    encoder = ResultEncoder(format="msgpack", model=ModelInfo("m", "d"), source="/test")

    def read(outcome: Detected | Skipped) -> Content:
        message = encoder.encode(frame(7), outcome, batch_size=1, timings_ms=TIMINGS, published_at_ms=1)
        return content_of_result(decode_result(message.value or b""))

    of = InputId(0, 7)
    assert read(Detected(found, 64, 48)) == Content("detected", size=(64, 48), boxes=((1, 2, 3, 4.5),), of=of)
    assert read(Skipped("stale", 5.0)) == Content("skipped", "stale", of=of)


def test_a_dead_letter_names_its_frame_also_where_it_was_cut() -> None:
    whole = frame(7, payload=bytes(range(256)) * 40)
    whole = whole._replace(record=whole.record._replace(timestamp_ms=5))
    digest = hashlib.sha256(whole.payload).hexdigest()
    wanted = Content("rejected", "damaged", frame=digest, of=InputId(0, 7), written_ms=5)
    rejected = Rejected("decode", "damaged", "cut off")
    for limit in (20_000, 8_000):
        message = encode_dead_letter(whole, rejected, source="/test", max_bytes=limit, now_ms=1)
        letter = read_dead_letter(Record(message.key, message.value, tuple(message.headers), message.timestamp_ms))
        assert letter is not None
        assert content_of_letter(letter.record, message.value, dict(message.headers)) == wanted
    another = b"another frame"
    headers = dict(encode_dead_letter(whole, rejected, source="/test", max_bytes=20_000, now_ms=1).headers)
    swapped = content_of_letter(whole.record, another, headers)
    assert swapped == dataclasses.replace(wanted, frame=hashlib.sha256(another).hexdigest())


def test_an_envelope_is_expected_to_have_the_result_of_its_picture() -> None:
    """As the program reads it. Padding behind the picture changes the record, and not its result."""
    value = encode_envelope(pictures.frame(3).ljust(20_000, b"-"), source_id="cam-1")
    of_picture, of_envelope = pictures.expected(pictures.frame(3)), pictures.expected(value)
    assert of_envelope == dataclasses.replace(of_picture, frame=hashlib.sha256(value).hexdigest())
    read = parse_frame(Record(b"cam-1", value, (), 5), frame(7).receipt, 0.0)
    assert (read.verdict, read.payload[:10]) == (None, pictures.frame(3)[:10])
