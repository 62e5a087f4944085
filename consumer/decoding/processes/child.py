"""The decoding process: pictures from shared memory, their canvases back into it, and an answer. It knows no more.

It gets no environment, no file and no socket but its end of the pair, so that what is in the environment (passwords)
is not in its memory. It is not a sandbox: code that a picture smuggled in runs as the same user.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from consumer.decoding import Decoder, configure_opencv
from consumer.decoding.processes import protocol
from consumer.decoding.processes.protocol import Settings
from consumer.types import Letterbox

# A grey JPEG of 8x8: a process that cannot decode this one must not be the judge of others.
_SOUND: Final = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300100b0c0e0c0a100e0d0e1211101318281a181616183123251d283a33"
    "3d3c3933383740485c4e404457453738506d51575f626768673e4d71797064785c656763ffc0000b080008000801011100ffc40014"
    "000100000000000000000000000000000000ffc40014100100000000000000000000000000000000ffda0008010100003f003fffd9"
)
# Beyond the time limit that the program keeps: for a process whose program is gone.
_ORPHAN_GRACE_S: Final = 2.0
# After so long what is decided is said before the rest: slow pictures are a sign of life, not a hang.
_SAY_EVERY_S: Final = 0.5


def main() -> None:
    """`python -m consumer.decoding.processes.child SOCKET PAYLOADS CANVASES SETTINGS`: three descriptors and JSON."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    # A signal to the whole group is for the program: it drains, and needs its decoders for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ConnectionError):  # the program is gone, or has given this process up
        serve(channel, int(sys.argv[2]), int(sys.argv[3]), Settings.from_text(sys.argv[4]))


def serve(channel: socket.socket, payloads_fd: int, canvases_fd: int, settings: Settings) -> None:
    """Answer until the program has closed its end, which it also has when it was killed."""
    configure_opencv()
    decoder = Decoder(settings, settings.policy)
    payloads = mmap.mmap(payloads_fd, settings.payload_bytes, prot=mmap.PROT_READ)
    canvases = np.frombuffer(mmap.mmap(canvases_fd, settings.canvas_bytes), np.uint8)
    os.close(payloads_fd)
    os.close(canvases_fd)
    if not isinstance(sound := decoder.decode(_SOUND, np.empty(decoder.slot_bytes, np.uint8)), Letterbox):
        raise TypeError(f"the decoder does not decode a sound picture: {sound}")
    threading.Thread(target=_end_with_program, args=(channel.fileno(),), daemon=True).start()
    volunteer()
    _confine(settings.memory_bytes)
    channel.send(protocol.READY)
    answers: list[bytes] = []
    while message := channel.recv(protocol.MAX_MESSAGE):
        said_at = time.monotonic()
        for start, stop, slot in protocol.read_request(message):
            payload = payloads[start:stop]
            if settings.timeout_s:  # SIGALRM ends the process, also in native code
                signal.setitimer(signal.ITIMER_REAL, settings.timeout_s + _ORPHAN_GRACE_S)
            answers.append(_answer(decoder, payload, canvases[slot : slot + decoder.slot_bytes]))
            if settings.timeout_s:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if (now := time.monotonic()) - said_at > _SAY_EVERY_S:
                channel.send(b"".join(answers))
                answers, said_at = [], now
        if answers:
            channel.send(b"".join(answers))
            answers = []


def _end_with_program(channel: int) -> None:
    """When the program is gone, also from within a picture that hangs in native code (which runs without the lock)."""
    hang_up = select.poll()
    hang_up.register(channel, 0)  # POLLHUP comes unasked
    hang_up.poll()
    os._exit(0)


def _answer(decoder: Decoder, payload: bytes, slot: NDArray[np.uint8]) -> bytes:
    try:
        return protocol.answer(decoder.judge(payload, slot))
    except MemoryError:
        return protocol.answer(None)


def volunteer(score: Path = Path("/proc/self/oom_score_adj")) -> None:
    """Be the one that the kernel ends where the container's memory runs out, rather than the program.

    Raising the score is free to everyone. Where it cannot be written, the kernel chooses as it did before.
    """
    with contextlib.suppress(OSError):
        score.write_text("1000", encoding="ascii")  # the highest that there is


def _confine(memory_bytes: int) -> None:
    """No more memory than this on top (0: no limit), no core file (it would hold frames), no file written; silence.

    libpng tells stderr what it thinks of a file; what matters is in the answer.
    """
    if memory_bytes:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        address_space = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)


if __name__ == "__main__":
    main()
