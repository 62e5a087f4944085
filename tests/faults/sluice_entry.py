"""`python -m sluice_entry run`: the program as `python -m consumer run`, with what only tests may switch on.

SLUICE_TEST_DIE_AT=publish:40   SIGKILL of the own process at the 40th passage of that stage
SLUICE_TEST_BUG=NAME            one of the seeded bugs of `bugs.py`

Nothing of this is in the program: it is patched from here, before its entry point is called.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from consumer.cli import main
from consumer.decoding import Decoder
from consumer.decoding.processes.process import Process
from consumer.detectors.simulated import SimulatedDetector
from consumer.kafka.consumer import Source
from consumer.kafka.producer import Publisher
from consumer.kafka.transactions import TransactionalPublisher
from consumer.pipeline import Pipeline

DIE_AT = "SLUICE_TEST_DIE_AT"
LAST_WORDS = "killing this process in {stage}"  # said before it dies, so that the rig knows where it did
BUG = "SLUICE_TEST_BUG"

# stage: whose method, which, and whether the process dies before the call or behind it. A call behind which there is
# nothing (an empty poll) is no passage.
STAGES: dict[str, tuple[type, str, bool]] = {
    "poll": (Source, "poll", False),  # frames are received, and nothing else has happened
    "decode": (Process, "_send", False),  # a decoding process has its frames, and has not answered
    "decode_threads": (Decoder, "decode", True),  # the same where threads of this process decode
    "infer": (SimulatedDetector, "detect", True),
    "infer_end": (SimulatedDetector, "detect", False),
    "publish": (Publisher, "publish", False),  # the outcome is in librdkafka's queue
    "acknowledge": (Publisher, "poll", False),  # the brokers have it, and the offsets are not stored
    "store": (Source, "store", False),  # stored, and not committed yet
    "commit": (Source, "commit", False),  # the last commit of a drain has been answered
    "begin": (TransactionalPublisher, "transact", True),  # outcomes are held, and no transaction is open
    "transaction": (TransactionalPublisher, "_call", False),  # the offsets are in it, or it has just been committed
}
# What no member passes by itself: see `death_faults.py`.
RARE_STAGES: dict[str, tuple[type, str, bool]] = {
    "revoked": (Pipeline, "revoked", True),  # nothing of these partitions is settled yet
    "settle": (Pipeline, "_settle", True),  # frames that were not submitted are dropped, the others wait
    "settle_end": (Pipeline, "_settle", False),  # every outcome is acknowledged, and its offset not stored
    "revoked_end": (Pipeline, "revoked", False),  # settled and stored, and the partitions are not unassigned yet
    "look_up": (Source, "_start_offsets", True),
    "look_up_end": (Source, "_start_offsets", False),  # where to start is known, and nothing is assigned
    "rewind": (Source, "rewind", True),
    "rewind_end": (Source, "rewind", False),  # the positions are back, and nothing is read anew
    "close": (Source, "close", True),  # the last offsets are committed, and the group is not left
    "close_end": (Source, "close", False),
}
AT_LEAST_ONCE, EXACTLY_ONCE = {"store", "commit"}, {"begin", "transaction"}  # stages of one delivery alone


def die_at(stage: str, passage: int) -> None:
    """From now on, the process kills itself at that passage of that stage."""
    owner, name, before = (STAGES | RARE_STAGES)[stage]
    passages = itertools.count(1)
    whole: Callable[..., Any] = getattr(owner, name)

    def die() -> None:
        if next(passages) == passage:
            print(LAST_WORDS.format(stage=stage), file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def mortal(*arguments: Any, **named: Any) -> Any:
        if before:
            die()
        result = whole(*arguments, **named)
        if not before and (stage in RARE_STAGES or result is None or result):
            die()
        return result

    setattr(owner, name, mortal)


if __name__ == "__main__":
    if where := os.environ.get(DIE_AT):
        stage, _, number = where.partition(":")
        die_at(stage, int(number))
    if bug := os.environ.get(BUG):
        import bugs  # the seeded bugs import what they break

        bugs.plant(bug)
    main()
