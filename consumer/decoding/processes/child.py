"""Runs in a decoding process: decodes images from shared memory into shared memory, and sends the outcomes.

The process gets no variable of the parent's environment, no file, and no socket except its end of the socket pair. So
secrets from the environment are not in its memory. It is not a sandbox: code injected by an image runs as the same
user.
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

# A grey JPEG of 8x8 pixels. A process that cannot decode it must not reject other images.
_SOUND: Final = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300100b0c0e0c0a100e0d0e1211101318281a181616183123251d283a33"
    "3d3c3933383740485c4e404457453738506d51575f626768673e4d71797064785c656763ffc0000b080008000801011100ffc40014"
    "000100000000000000000000000000000000ffc40014100100000000000000000000000000000000ffda0008010100003f003fffd9"
)
# Added to the time limit, which the parent enforces. It matters only for a process whose parent is gone.
_ORPHAN_GRACE_S: Final = 2.0
# The maximum time before the answers so far are sent: slow images are progress, not a hang.
_SAY_EVERY_S: Final = 0.5


def main() -> None:
    """Run `python -m consumer.decoding.processes.child SOCKET PAYLOADS CANVASES SETTINGS`.

    The first three arguments are file descriptors; SETTINGS is JSON.
    """
    channel = socket.socket(fileno=int(sys.argv[1]))
    # A signal to the process group is for the parent. While it drains, it still needs the decoding processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ConnectionError):  # the parent is gone, or has given this process up
        serve(channel, int(sys.argv[2]), int(sys.argv[3]), Settings.from_text(sys.argv[4]))


def serve(channel: socket.socket, payloads_fd: int, canvases_fd: int, settings: Settings) -> None:
    """Answer requests until the parent closes its end of the socket, or is killed.

    Args:
        channel: This process's end of the socket pair.
        payloads_fd: The descriptor of the memory with the encoded images.
        canvases_fd: The descriptor of the memory for the canvases.
        settings: The limits and the canvas layout.

    Raises:
        TypeError: The decoder cannot decode a valid image.
    """
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
            if settings.timeout_s:  # SIGALRM ends the process, even in native code
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
    """End this process when the parent is gone, even if an image hangs in native code (which runs without the lock)."""
    hang_up = select.poll()
    hang_up.register(channel, 0)  # POLLHUP is always reported
    hang_up.poll()
    os._exit(0)


def _answer(decoder: Decoder, payload: bytes, slot: NDArray[np.uint8]) -> bytes:
    try:
        return protocol.answer(decoder.judge(payload, slot))
    except MemoryError:
        return protocol.answer(None)


def volunteer(score: Path = Path("/proc/self/oom_score_adj")) -> None:
    """Raise the OOM score: if the container runs out of memory, the kernel kills this process, not the parent.

    Every process may raise its own score. If the file cannot be written, the score stays as it is.
    """
    with contextlib.suppress(OSError):
        score.write_text("1000", encoding="ascii")  # the maximum


def _confine(memory_bytes: int) -> None:
    """Limit this process: additional memory (0: no limit), no core file, no writes to files, no stderr.

    A core file would contain frames. libpng prints to stderr, but the answer has all that matters.
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
