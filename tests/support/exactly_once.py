"""What tests of `delivery: exactly_once` on real brokers share: frames, settings, and what a reader must have seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import images
from brokers import Broker
from sluice_process import Reader, Sluice

ENGINE = "simulated://5ms@1,20ms@16"
EXACTLY_ONCE: Mapping[str, Any] = {"delivery": "exactly_once", "batching__max_batch_size": 16}


def frames(count: int) -> list[tuple[str, bytes]]:
    """One source sends most of the frames, so that the others overtake it in every partition; some are damaged."""
    image = [images.jpeg(64, 48, seed) for seed in range(4)]
    return [
        ("cam-busy" if n % 3 else f"cam-{n % 7}", b"damaged" if n % 50 == 17 else image[n % 4]) for n in range(count)
    ]


def _id(message: Any) -> str:
    return dict(message.headers())["ce_id"].decode()


def check_once_and_in_order(results: Reader, letters: Reader, sent: list[tuple[str, bytes]]) -> None:
    damaged = sum(value == b"damaged" for _, value in sent)
    ids = [_id(message) for message in results.messages]
    dead = [_id(message) for message in letters.messages]
    assert len(ids) == len(set(ids)), f"repeated: {sorted({one for one in ids if ids.count(one) > 1})[:5]}"
    assert len(dead) == len(set(dead)), "a dead letter was repeated"
    assert (len(ids), len(dead)) == (len(sent) - damaged, damaged)
    for source in {key for key, _ in sent}:
        offsets = [r["input"]["offset"] for r in results.results() if r["source_id"] == source]
        assert offsets == sorted(offsets), f"{source} is out of order"


def settings_of(broker: Broker, protocol: str = "classic") -> dict[str, Any]:
    return {"group.protocol": "consumer"} if protocol == "consumer" else dict(broker.client_settings)


def metric(sluice: Sluice, name: str) -> float:
    """The value of `sluice_NAME` now; 0 where the program does not answer."""
    lines = sluice.get("/metrics")[1].splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"sluice_{name} ")), 0.0)
