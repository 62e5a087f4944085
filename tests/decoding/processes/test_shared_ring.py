"""Decoding in processes that write into the ring buffer: whole chunks at once, and a crash costs only its frame."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import images
from consumer.config import DecodeConfig
from consumer.decoding import Decoder
from consumer.decoding.pool import make_decoder
from consumer.decoding.processes import pool, process, protocol
from consumer.decoding.processes.memory import SharedMemory
from consumer.decoding.processes.pool import ProcessDecoder
from consumer.errors import ConfigError, EngineError
from consumer.types import Rejected
from decoding import POLICY, Open, Seen, decode_all

SLOTS = 16
CANARY = 171


@pytest.fixture
def ring() -> Iterator[SharedMemory]:
    memory = SharedMemory("test-ring", (2, SLOTS, POLICY.slot_bytes))
    memory.array[...] = CANARY
    yield memory
    memory.close()


@pytest.fixture
def shared(attacked: Open, ring: SharedMemory) -> Open:
    """`shared(processes=2, **options)`: vulnerable processes that write into `ring`."""
    return partial(attacked, ring=ring)


def expected(payloads: Sequence[bytes], **options: Any) -> list[Seen]:
    slots = np.zeros((len(payloads), POLICY.slot_bytes), np.uint8)
    return decode_all(Decoder(DecodeConfig(**options), POLICY), payloads, slots, range(len(payloads)))


def pictures(count: int) -> list[bytes]:
    return [images.jpeg(64, 48, seed) for seed in range(count)]


def test_outcomes_and_pixels_are_those_of_a_decoder_in_the_program(shared: Open, ring: SharedMemory) -> None:
    """Catches a canvas in the slot of another frame, one that exceeds its slot, and a truncated answer."""
    friendly = [images.progressive_jpeg(), images.cmyk_jpeg(), images.webp(640, 480), images.exif_rotated_jpeg(6)]
    hostile = [payload for payload, _ in images.hostile().values()]
    decoder = shared(max_pixels=8_000_000)
    for payloads in (friendly + hostile[:10], [*hostile[10:20], images.jpeg(3000, 2000)], [images.jpeg(1, 1)]):
        places = list(range(len(payloads) + 1, 1, -1))
        assert decode_all(decoder, payloads, ring.array[1], places) == expected(payloads, max_pixels=8_000_000)
        assert (ring.array[0] == CANARY).all()
        assert (ring.array[1, : places[-1]] == CANARY).all()


@pytest.mark.parametrize(("attack", "end"), [(b"ABORT", "signal 6"), (b"SEGV", "signal 11"), (b"LIE x", "an answer")])
def test_a_frame_that_ends_its_process_is_rejected_alone(
    attack: bytes, end: str, shared: Open, ring: SharedMemory
) -> None:
    """Catches a chunk that is lost with its process, and frames that get another frame's outcome in the repetition."""
    replaced: list[int] = []
    decoder = shared(on_replaced=lambda: replaced.append(1))
    payloads = pictures(8)
    sound = expected(payloads)
    payloads[2] = payloads[7] = attack
    outcomes = decode_all(decoder, payloads, ring.array[0], range(3, 11))
    for number in (2, 7):
        outcome = outcomes.pop(2 if number == 2 else 6)[0]
        assert isinstance(outcome, Rejected)
        assert outcome.reason == "decoder_crashed"
        assert end in outcome.detail
        sound.pop(2 if number == 2 else 6)
    assert outcomes == sound
    assert len(replaced) == 5  # once with the chunk, then twice for each of the two frames alone
    assert decode_all(decoder, pictures(8), ring.array[0], range(8)) == expected(pictures(8))


def test_a_process_that_is_killed_from_outside_costs_no_frame(shared: Open, ring: SharedMemory, tmp_path: Path) -> None:
    """Catches a rejection because of an OOM killer: good frames would go to the dead letters."""
    payloads = [*pictures(3), b"ONCE " + bytes(tmp_path / "flag"), *pictures(2)]
    outcomes = decode_all(shared(), payloads, ring.array[0], range(6))
    assert isinstance(outcomes[3][0], Rejected)
    assert outcomes[3][0].detail == "it went on"
    assert [*outcomes[:3], *outcomes[4:]] == expected([*pictures(3), *pictures(2)])


def test_more_than_the_shared_memory_holds_is_sent_in_parts(
    shared: Open, ring: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches payloads that overwrite each other, or that are written after the end of the memory."""
    monkeypatch.setattr(pool, "_PAYLOAD_BYTES", 1)
    payloads = pictures(10)
    for room in (max(map(len, payloads)), sum(map(len, payloads[:3]))):
        decoder = shared(max_bytes=room)
        assert decode_all(decoder, payloads, ring.array[0], range(10)) == expected(payloads)
        too_large = [*payloads[:2], b"\xff\xd8" + bytes(room), payloads[2]]
        outcome = decode_all(decoder, too_large, ring.array[0], range(4))[2][0]
        assert isinstance(outcome, Rejected)
        assert outcome.reason == "too_large"


def test_more_frames_than_one_request_may_have_are_sent_in_parts(
    shared: Open, ring: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_FRAMES", 3)
    assert decode_all(shared(), pictures(10), ring.array[0], range(10)) == expected(pictures(10))


def test_answers_of_the_greatest_length_fit_into_one_message() -> None:
    """Catches a message that the kernel truncates: a correct process would be killed for it."""
    longest = protocol.answer(Rejected("decode", "damaged", "x" * 1000))
    assert len(longest) * protocol.MAX_FRAMES <= protocol.MAX_MESSAGE
    assert len(protocol.request([2**63] * 3 * protocol.MAX_FRAMES)) <= protocol.MAX_MESSAGE


def test_outcomes_of_slow_images_are_sent_before_all_are_done(shared: Open, ring: SharedMemory) -> None:
    """Catches a chunk of slow images that the watchdog takes for a hang."""
    came = [time.monotonic() for _ in shared().decode_into([b"SLOW"] * 6, ring.array[0], range(6))]
    assert came[-1] - came[0] > 0.5


def test_a_lack_of_memory_is_the_fault_of_the_machine(shared: Open, ring: SharedMemory) -> None:
    """Catches good frames in the dead letters because a pod is too small. Without isolation nothing limits them."""
    decoder = shared()
    with pytest.raises(MemoryError, match="no memory for a frame"):
        decode_all(decoder, [*pictures(2), b"STARVE", *pictures(2)], ring.array[0], range(5))
    assert decode_all(decoder, pictures(2), ring.array[0], range(2)) == expected(pictures(2))


def test_an_abandoned_request_does_not_answer_the_next_one(shared: Open, ring: SharedMemory) -> None:
    """Catches a process that still writes into reused slots, and outcomes that are shifted."""
    decoder = shared()
    given_up = decoder.decode_into([b"SLOW"] * 6, ring.array[0], range(6))
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]
    assert decode_all(decoder, pictures(8), ring.array[0], range(8)) == expected(pictures(8))


def test_a_process_that_is_killed_again_and_again_is_the_machines_fault(shared: Open, ring: SharedMemory) -> None:
    """Catches good frames in the dead letters because an OOM killer kills the decoders."""
    decoder = shared()
    with pytest.raises(EngineError, match="no memory left"):
        decode_all(decoder, [*pictures(2), b"KILL"], ring.array[0], range(3))
    assert decode_all(decoder, pictures(2), ring.array[0], range(2)) == expected(pictures(2))


def test_no_descriptor_stays_open(shared: Open, ring: SharedMemory) -> None:
    """Catches a leak at each replacement, a descriptor that keeps the ring's memory, and a false alarm at the end."""
    replaced: list[int] = []
    decoder = shared(on_replaced=lambda: replaced.append(1))
    gc.disable()  # so that an object that only the collector can free is detected: it would keep 16 MiB per process
    try:
        before = open_files()
        decode_all(decoder, [b"ABORT", b"SEGV"], ring.array[0], range(2))
        assert open_files() == before
    finally:
        gc.enable()
    decoder.close()
    assert ring.fd == -1
    told = len(replaced)
    with pytest.raises(EngineError, match="closed"):
        decode_all(decoder, pictures(1), ring.array[0], range(1))
    assert len(replaced) == told


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_slots_that_the_processes_do_not_have_are_refused(shared: Open, ring: SharedMemory) -> None:
    """Catches a canvas that is written to the wrong place in the ring buffer, or after it."""
    decoder = shared()
    with pytest.raises(ValueError, match="not in the memory"):
        decode_all(decoder, pictures(1), np.zeros((1, POLICY.slot_bytes), np.uint8), [0])
    with pytest.raises(ValueError, match="not in the memory"):
        ring.offset(ring.array[:, ::2])
    assert decode_all(decoder, pictures(1), ring.array[0], [0]) == expected(pictures(1))


def test_no_process_can_take_the_memory_away(ring: SharedMemory) -> None:
    """Catches a hostile process that ends the parent: access to memory that was removed raises SIGBUS."""
    for size in (0, ring.array.nbytes + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(ring.fd, size)


class TestMakeDecoder:
    def make(self, **options: Any) -> tuple[Any, NDArray[np.uint8]]:
        return make_decoder(DecodeConfig(threads=1, **options), POLICY, (1, 2, POLICY.slot_bytes), on_replaced=int)

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            ({}, ProcessDecoder),
            ({"workers": "threads"}, Decoder),
            ({"workers": "processes"}, ProcessDecoder),
            ({"isolation": "process"}, ProcessDecoder),
        ],
    )
    def test_every_decoder_decodes_into_the_memory_made_with_it(self, options: dict[str, str], kind: type) -> None:
        decoder, memory = self.make(**options)
        try:
            assert type(decoder) is kind
            assert not memory.any()
            assert decode_all(decoder, pictures(2), memory[0], range(2)) == expected(pictures(2))
        finally:
            decoder.close()

    def test_threads_decode_if_no_process_can_be_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches a new version that does not start on a machine on which the old one did."""
        monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
        assert type(self.make()[0]) is Decoder
        with pytest.raises(EngineError, match=r"decode\.workers: processes cannot be had here.*it ended with 3"):
            self.make(workers="processes")

    def test_systems_other_than_linux_decode_in_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "memfd_create")
        assert type(self.make()[0]) is Decoder
        for options in ({"workers": "processes"}, {"isolation": "process"}):
            with pytest.raises(ConfigError, match="need Linux"):
                self.make(**options)
