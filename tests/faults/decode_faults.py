"""Harm to the decoding processes, which are children of the members, while frames are decoded.

A correct program loses nothing, and rejects no good frame unless it failed twice (`decoder_crashed`, or with isolation
`decoder_timeout` and `decoder_memory`). A member whose decoders are killed twice over the same frame may end with exit
code 6.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consumer.errors import EngineError
from fleet import Member
from loads import Photos
from scenario import Harm, World
from size_faults import metric

_REPLACED = "sluice_decoders_replaced_total"
_CHILD = b"consumer.decoding.processes.child"
_ISOLATED: dict[str, Any] = {"decode.isolation": "process", "decode.timeout_s": 1.5}


def decoders(member: Member) -> list[int]:
    """The process IDs of its decoders."""
    pid = member.sluice.pid
    children: list[int] = []
    for each in Path(f"/proc/{pid}/task").glob("*/children"):  # each thread has its own
        with contextlib.suppress(OSError):
            children += map(int, each.read_text().split())
    return [child for child in children if _CHILD in _command(child)]


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _one_of(world: World) -> tuple[Member, int]:
    """A member and one of its decoders."""
    member = world.any_member()
    world.expect(lambda: decoders(member), 20, "the member to have decoders")
    return member, world.chance.choice(decoders(member))


def kill_decoders(world: World) -> None:
    """SIGKILL of one decoder after the other, as from a kernel that is short of memory."""
    struck: set[int] = set()
    replaced = 0.0
    for _ in range(6):
        member, decoder = _one_of(world)
        before = metric(member, _REPLACED)
        with contextlib.suppress(ProcessLookupError):
            os.kill(decoder, signal.SIGKILL)
            struck.add(decoder)
        world.last(0.3, 1.5)
        replaced += max(0.0, metric(member, _REPLACED) - before)
    assert struck, "no decoder was killed"
    assert replaced or world.history.exits, f"no member noticed that {len(struck)} decoders were killed"


def stop_decoder(world: World) -> None:
    """SIGSTOP of a decoder for seconds: frames wait in it."""
    _, decoder = _one_of(world)
    os.kill(decoder, signal.SIGSTOP)
    world.expect(lambda: _state(decoder) in {"T", ""}, 5, "the decoder to stop")
    world.last(2.0, 6.0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(decoder, signal.SIGCONT)


def stop_isolated_decoder(world: World) -> None:
    """SIGSTOP of a decoder whose time is limited: it is killed, and its frame is decoded in a fresh one."""
    member, decoder = _one_of(world)
    before = metric(member, _REPLACED)
    os.kill(decoder, signal.SIGSTOP)
    world.expect(lambda: metric(member, _REPLACED) > before, 20, "the decoder that does not answer to be replaced")
    assert _state(decoder) in {"Z", ""}, "another decoder than the stopped one was replaced"


def starve_decoders(world: World) -> None:
    """All decoders of a member get no more memory: what they are asked next fails. Fresh ones have memory again."""
    member, _ = _one_of(world)
    before = metric(member, _REPLACED)
    for decoder in decoders(member):
        pages = int(Path(f"/proc/{decoder}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize()
        resource.prlimit(decoder, resource.RLIMIT_AS, (limit, limit))
    world.expect(lambda: metric(member, _REPLACED) > before, 20, "a decoder without memory to be replaced")


def _state(pid: int) -> str:
    """As `ps` shows it; "" for a process that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def _harm(name: str, inflict: Callable[[World], None], **more: Any) -> Harm:
    exits, rejects = (EngineError.exit_code,), ("decoder_crashed", "decoder_timeout", "decoder_memory")
    return Harm(f"decoder{name}", inflict, feeder=Photos, exits=exits, rejects=rejects, **more)


HARMS = (
    _harm("s-killed", kill_decoders, deaths=1, rate=40),
    _harm("-stopped", stop_decoder, rate=40),
    _harm("-stopped-isolated", stop_isolated_decoder, rate=40, options=_ISOLATED),
    _harm("s-starved", starve_decoders, rate=40, options=_ISOLATED),
)
