"""Decoding in processes gives the same outcomes, and a frame that breaks its process harms no other frame."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import images
from consumer.config import DecodeConfig
from consumer.decoding import Decoder
from consumer.decoding.processes import child, process, protocol
from consumer.decoding.processes.pool import ProcessDecoder
from consumer.errors import EngineError
from consumer.types import REASONS, Letterbox, Rejected
from decoding import POLICY, Open, decode
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[3]
CHILD = Path(__file__).resolve().parents[2] / "support" / "hostile_child.py"
SETTINGS = protocol.Settings(
    strict=True,
    max_bytes=2**20,
    max_pixels=2**25,
    max_scans=16,
    timeout_s=1.0,
    memory_bytes=2**28,
    size=POLICY.size,
    stride=POLICY.stride,
    rect=POLICY.rect,
    payload_bytes=2**20,
    canvas_bytes=POLICY.slot_bytes,
)


def test_outcomes_and_pixels_are_those_of_a_decoder_in_the_program(opened: Open) -> None:
    """Catches a limit that does not reach the process, a canvas of the previous frame, and a truncated outcome."""
    friendly = [images.jpeg(), images.progressive_jpeg(), images.cmyk_jpeg(), images.png(depth=16, channels=4)]
    friendly += [images.webp(640, 480), images.exif_rotated_jpeg(6), images.jpeg(3000, 2000), images.jpeg(1, 1)]
    for strict in (True, False):
        isolated = opened(strict=strict, max_pixels=8_000_000)
        near = Decoder(DecodeConfig(strict=strict, max_pixels=8_000_000), POLICY)
        for payload in (*friendly, *(payload for payload, _ in images.hostile().values())):
            assert decode(isolated, payload) == decode(near, payload)


@pytest.mark.parametrize(
    ("attack", "reason", "detail"),
    [
        (b"ABORT", "decoder_crashed", "signal 6"),
        (b"SEGV", "decoder_crashed", "signal 11"),
        (b"EXIT", "decoder_crashed", "exit code 0"),
        (b"HANG", "decoder_timeout", r"decode\.timeout_s \(1 s\)"),
        (b"HOARD", "decoder_memory", r"decode\.memory_limit_bytes \(268435456\)"),
    ],
)
def test_a_frame_that_ends_its_process_is_rejected_alone(
    attack: bytes, reason: str, detail: str, attacked: Open
) -> None:
    """Catches a parent that dies with its decoder, waits for it without end or grows with it, and a leak."""
    replaced: list[int] = []
    patience_s = 1.0 if attack == b"HANG" else 30.0  # a busy machine is slow to fill memory, or to dump core
    decoder = attacked(on_replaced=lambda: replaced.append(1), timeout_s=patience_s)
    (before,) = decoder.pids
    sound = decode(decoder, images.jpeg())
    outcome, _ = decode(decoder, attack)
    assert isinstance(outcome, Rejected)
    assert (outcome.stage, outcome.reason) == ("decode", reason)
    assert re.search(detail, outcome.detail), outcome.detail
    assert decode(decoder, images.jpeg()) == sound
    (after,) = decoder.pids
    assert after != before
    assert not psutil.pid_exists(before)
    assert len(replaced) == 2  # it had a second attempt


def test_a_process_that_is_killed_from_outside_costs_no_frame(attacked: Open, tmp_path: Path) -> None:
    """Catches a rejection without a second attempt: an OOM killer would send good frames to the dead letters."""
    decoder = attacked()
    outcome, _ = decode(decoder, b"ONCE " + bytes(tmp_path / "flag"))
    assert isinstance(outcome, Rejected)
    assert outcome.detail == "it went on"


def test_frames_of_other_threads_survive_and_no_process_is_added(attacked: Open) -> None:
    """Catches a process that two threads use at the same time, and one that is replaced by two."""
    decoder = attacked(2, timeout_s=0.5)
    expected = [decode(Decoder(DecodeConfig(), POLICY), images.jpeg(64, 48, seed)) for seed in range(8)]
    bad = {5: b"ABORT", 17: b"SEGV", 30: b"HANG"}
    most = 0

    def one(n: int) -> tuple[Letterbox | Rejected, bytes]:
        nonlocal most
        most = max(most, len(decoder.pids))
        return decode(decoder, bad.get(n, images.jpeg(64, 48, n % 8)))

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(one, range(40)))
    for n, outcome in enumerate(outcomes):
        if n in bad:
            assert isinstance(outcome[0], Rejected)
        else:
            assert outcome == expected[n % 8]
    assert most <= 2
    assert len(decoder.pids) == 2


def said(kind: int, first: int, second: int, detail: bytes = b"", length: int | None = None) -> bytes:
    """Return an answer as a process would write it that was taken over."""
    return struct.pack("<BIIH", kind, first, second, len(detail) if length is None else length) + detail


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "exit|signal|closed"),
        (b"x", "an answer of 1 bytes"),
        (said(7, 0, 0), "kind 7"),
        (said(0, 0, 10), "must be positive, got 0x10"),
        (said(0, 2**31, 2**31), "a picture of 2147483648x2147483648"),
        (said(0, 8, 8, b"x"), "kind 0"),
        (said(2, 0, 0, b"x"), "kind 2"),
        (said(1, 250, 0), "kind 1"),
        (said(1, 1, 0, b"\x1b[2J"), "cannot be printed"),
        (said(1, 1, 0, b"x" * 900), "kind 1"),
        (said(1, 1, 0, b"x", length=2), "kind 1"),
        (said(0, 8, 8) + said(0, 8, 8), "an answer too many"),
    ],
)
def test_an_answer_that_no_correct_decoder_gives_is_refused(answer: bytes, why: str, attacked: Open) -> None:
    """Catches a parent that unpickles, allocates by, indexes with or prints the data of a hostile process."""
    decoder = attacked()
    outcome, _ = decode(decoder, b"LIE " + answer)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "decoder_crashed"
    assert re.search(why, outcome.detail), outcome.detail
    assert outcome.detail.isprintable()
    assert isinstance(decode(decoder, images.jpeg())[0], Letterbox)


def test_a_detail_of_several_lines_is_accepted() -> None:
    """Catches a healthy process that is killed, twice, because errors of OpenCV have line breaks."""
    judged = Rejected("decode", "damaged", "error: (-215)\n> in function 'resize'\r\n")
    (read,) = protocol.Reader(SETTINGS).read(protocol.answer(judged))
    assert isinstance(read, Rejected)
    assert (read.reason, read.detail.split()) == ("damaged", judged.detail.split())


@given(st.binary(max_size=400))
def test_any_answer_is_an_outcome_or_a_value_error(answer: bytes) -> None:
    try:
        outcomes = list(protocol.Reader(SETTINGS).read(answer))
    except ValueError:
        return
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            assert outcome.reason in REASONS
            assert outcome.detail.isprintable()
        elif outcome is not None:
            assert outcome.canvas_width * outcome.canvas_height * 3 <= POLICY.slot_bytes


def test_the_process_has_no_secret_and_writes_nowhere(attacked: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an inherited environment, an inherited connection to the brokers, and a process that leaves files."""
    monkeypatch.setenv("SLUICE_KAFKA__CLIENT", '{"sasl.password": "secret"}')
    keep = os.open(ROOT / "pyproject.toml", os.O_RDONLY)
    os.set_inheritable(keep, True)
    try:
        decoder = attacked()
        environment, _ = decode(decoder, b"SAY environment")
        files, _ = decode(decoder, b"SAY files")
        write, _ = decode(decoder, b"SAY write")
    finally:
        os.close(keep)
    assert isinstance(environment, Rejected)
    assert "SLUICE" not in environment.detail
    assert isinstance(files, Rejected)
    assert "pyproject" not in files.detail
    assert "socket:" in files.detail
    (pid,) = decoder.pids
    assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    assert isinstance(write, Rejected)
    assert write.detail == "OSError"
    Path("/tmp/sluice-from-a-decoder").unlink(missing_ok=True)


def score(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_if_memory_runs_out_the_kernel_kills_a_decoder_not_the_parent(attacked: Open) -> None:
    """Catches a container limit that ends the parent because of one frame. Covers replaced processes too."""
    before = score("self")
    decoder = attacked(2)
    decode(decoder, b"ABORT")
    assert [score(pid) for pid in decoder.pids] == [1000, 1000]
    assert score("self") == before


def test_a_decoder_that_cannot_change_its_oom_score_still_decodes(tmp_path: Path) -> None:
    child.volunteer(tmp_path / "no" / "such" / "file")
    child.volunteer(tmp_path)


def test_signals_for_the_program_do_not_end_its_decoders(opened: Open) -> None:
    """Catches a Ctrl-C that rejects the frames which the drain should finish."""
    decoder = opened()
    (pid,) = decoder.pids
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert isinstance(decode(decoder, images.jpeg())[0], Letterbox)
    assert decoder.pids == [pid]


def test_a_decoder_that_cannot_start_ends_the_program_and_rejects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches frames in the dead letters because of a broken installation."""
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(
        EngineError, match=r"cannot start: it ended with 3; see stderr, or set decode\.workers: threads"
    ):
        ProcessDecoder(DecodeConfig(), POLICY, None, processes=2)
    assert not [p for p in psutil.Process().children() if "SystemExit(3)" in " ".join(p.cmdline())]


def test_a_machine_without_room_for_another_process_rejects_no_frame(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches good frames in the dead letters, as damaged, if the machine has no process or memory left."""
    decoder = opened()
    with monkeypatch.context() as patched:
        patched.setattr(process, "COMMAND", ("/no/such/program",))  # fork and exec fail in the same way: OSError
        os.kill(decoder.pids[0], signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(EngineError, match="cannot be started"):
                decode(decoder, images.jpeg())
    assert isinstance(decode(decoder, images.jpeg())[0], Letterbox)


_PROGRAM = """
import sys, threading
import numpy as np
from consumer.config import DecodeConfig
from consumer.decoding.processes import process
from consumer.decoding.processes.memory import SharedMemory
from consumer.decoding.processes.pool import ProcessDecoder
from consumer.types import LetterboxPolicy
process.COMMAND = (sys.executable, sys.argv[1])
ring = SharedMemory("ring", (1, 4, 320 * 320 * 3)) if sys.argv[2] == "ring" else None
decoder = ProcessDecoder(DecodeConfig(timeout_s=1), LetterboxPolicy(320), ring, processes=2)
slots = np.zeros((4, 320 * 320 * 3), np.uint8) if ring is None else ring.array[0]
threading.Thread(target=lambda: list(decoder.decode_into([b"HANG"], slots, [0])), daemon=True).start()
print(*decoder.pids, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("memory", ["isolated", "ring"])
def test_nothing_is_left_of_a_program_that_was_killed(memory: str) -> None:
    """Catches orphans, one of them hung in native code, and shared memory that outlives all processes."""
    shared = set(Path("/dev/shm").iterdir())
    command = [sys.executable, "-c", _PROGRAM, str(CHILD), memory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(psutil.pid_exists, pids))
        program.kill()
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), 20, "the decoding processes to end")
    assert set(Path("/dev/shm").iterdir()) <= shared


def test_closing_in_mid_frame_ends_the_waiting_thread(attacked: Open) -> None:
    """Catches a shutdown that waits for the time limit of a frame, and a process that starts after it."""
    decoder = attacked(timeout_s=60)
    failed: list[BaseException] = []

    def hang() -> None:
        try:
            decode(decoder, b"HANG")
        except EngineError as error:
            failed.append(error)

    (pid,) = decoder.pids
    thread = threading.Thread(target=hang)
    thread.start()
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING, 10, "the process to hang")
    decoder.close()
    thread.join(10)
    assert not thread.is_alive()
    assert failed
    assert decoder.pids == []
