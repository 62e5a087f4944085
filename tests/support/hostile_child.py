"""A decoding process that is open to attack: a payload that begins with one of these words has what it wants.

In place of a picture that exploits a hole in a native library, which nobody here has to hand.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from consumer.decoding import Decoder
from consumer.decoding.processes import child
from consumer.types import Letterbox, Rejected


def _hoard(_: bytes) -> None:
    hoard = []
    while True:
        hoard.append(np.ones(2**20))  # 8 MiB each


def _once(path: bytes) -> None:
    """Dies at the first look, as if someone else had killed it."""
    flag = Path(os.fsdecode(path))
    if not flag.exists():
        flag.touch()
        os.abort()


def _starve(_: bytes) -> None:
    """What numpy, libjpeg and OpenCV say where the machine gives no more."""
    raise MemoryError("no room for a picture")


def _say(what: bytes) -> Rejected:
    answers: dict[bytes, Callable[[], object]] = {
        b"environment": lambda: sorted(os.environ),
        b"files": lambda: [what for _, what in _open_files()],
        b"write": lambda: _error(lambda: Path("/tmp/sluice-from-a-decoder").write_bytes(b"x")),
    }
    return Rejected("decode", "damaged", str(answers[what]()))


def _error(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"


def _lie(answer: bytes) -> None:
    """Says what no sound decoder says, on the channel itself, and then what it should."""
    (channel,) = [number for number, what in _open_files() if what.startswith("socket:")]
    with socket.socket(fileno=os.dup(channel)) as talking:
        talking.send(answer)


def _open_files() -> list[tuple[int, str]]:
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [(int(link.name), str(link.readlink())) for link in links]


ATTACKS: dict[bytes, Callable[[bytes], Any]] = {
    b"ABORT": lambda _: os.abort(),
    b"KILL": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    b"SEGV": lambda _: ctypes.string_at(0),
    b"EXIT": lambda _: os._exit(0),
    b"HANG": lambda _: ctypes.CDLL(None).pause(),
    b"SLOW": lambda _: time.sleep(0.3),
    b"HOARD": _hoard,
    b"ONCE": _once,
    b"STARVE": _starve,
    b"SAY": _say,
    b"LIE": _lie,
}


class Exploitable(Decoder):
    def decode(self, payload: bytes, slot: Any) -> Letterbox | Rejected:
        word, _, rest = payload.partition(b" ")
        if word in ATTACKS:
            outcome = ATTACKS[word](rest)
            return outcome if isinstance(outcome, Rejected) else Rejected("decode", "damaged", "it went on")
        return super().decode(payload, slot)


if __name__ == "__main__":
    child.Decoder = Exploitable  # type: ignore[misc]
    child.main()
