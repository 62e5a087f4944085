"""The decoding process: reads a picture from shared memory, writes its canvas there, answers, and knows nothing else.

It gets no environment, no file and no socket but its end of the pair, so that what is in the environment (passwords)
is not in its memory. It is not a sandbox: code that a picture smuggled in runs as the same user.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import numpy as np

from consumer.decoder import Decoder, configure_opencv
from consumer.isolation import protocol
from consumer.isolation.protocol import Settings
from consumer.types import Letterbox, Rejected

# A grey JPEG of 8x8: a process that cannot decode this one must not be the judge of others.
_SOUND: Final = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300100b0c0e0c0a100e0d0e1211101318281a181616183123251d283a33"
    "3d3c3933383740485c4e404457453738506d51575f626768673e4d71797064785c656763ffc0000b080008000801011100ffc40014"
    "000100000000000000000000000000000000ffc40014100100000000000000000000000000000000ffda0008010100003f003fffd9"
)
# Beyond the time limit that the program keeps: for a process whose program is gone.
_ORPHAN_GRACE_S: Final = 2.0


def main() -> None:
    """`python -m consumer.isolation.child SOCKET MEMORY SETTINGS`: two file descriptors and JSON."""
    channel, memory, settings = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    # A signal to the whole group is for the program: it drains, and needs its decoders for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(channel, memory, Settings.from_text(settings))


def serve(channel: socket.socket, memory: int, settings: Settings) -> None:
    """Answer until the program has closed its end, which it also has when it was killed."""
    configure_opencv()
    decoder = Decoder(settings.config, settings.policy)
    shared = mmap.mmap(memory, settings.max_bytes + decoder.slot_bytes)
    os.close(memory)
    slot = np.frombuffer(shared, np.uint8, decoder.slot_bytes, settings.max_bytes)
    if not isinstance(sound := decoder.decode(_SOUND, slot), Letterbox):
        raise TypeError(f"the decoder does not decode a sound picture: {sound}")
    volunteer()
    _confine(settings.memory_bytes)
    channel.send(protocol.READY)
    while message := channel.recv(protocol.MAX_ANSWER):
        payload = bytes(shared[: protocol.read_request(message)])
        signal.setitimer(signal.ITIMER_REAL, settings.timeout_s + _ORPHAN_GRACE_S)  # SIGALRM ends it, also in C
        outcome: Letterbox | Rejected | None
        try:
            outcome = decoder.decode(payload, slot)
        except MemoryError:
            outcome = None
        except Exception as error:  # noqa: BLE001 - as in a decoding thread: it would meet it again
            outcome = Rejected("decode", "damaged", f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.send(protocol.answer(outcome))


def volunteer(score: Path = Path("/proc/self/oom_score_adj")) -> None:
    """Be the one that the kernel ends where the container's memory runs out, rather than the program.

    Raising the score is free to everyone. Where it cannot be written, the kernel chooses as it did before.
    """
    with contextlib.suppress(OSError):
        score.write_text("1000", encoding="ascii")  # the highest that there is


def _confine(memory_bytes: int) -> None:
    """No more memory than this on top, no core file (it would hold frames), no file written; and silence.

    libpng tells stderr what it thinks of a file; what matters is in the answer.
    """
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
