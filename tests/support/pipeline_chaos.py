"""What may happen to a pipeline between two turns, decided by `Chance`, and a run in which nothing more happens."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from consumer.concurrency import Stop
from consumer.config import Config
from consumer.types import TopicPartition
from made_frames import P0, P1, P2
from pipeline_group import Chance
from pipeline_world import BAD, World

PARTITIONS = [P0, P1, P2]
DRAIN_S = 10.0
CONFIG = Config(
    batching={"max_batch_size": 4, "preferred_batch_sizes": [2]},  # type: ignore[arg-type]
    limits={  # type: ignore[arg-type]
        "drain_timeout_s": DRAIN_S,
        "max_in_flight_bytes": 2**20,
        "max_unacknowledged": 12,
        "stall_timeout_s": 60,
    },
)
_TURNS = 25

# Short ones shrink to something readable; long ones, of which each seed gives one, are where the trouble is.
ENTROPY = st.binary(max_size=80) | st.integers(0, 2**32 - 1).map(lambda seed: random.Random(seed).randbytes(200))


class Chaos(Stop):
    """Between two turns, it lets things happen."""

    def __init__(self, world: World, chance: Chance) -> None:
        super().__init__(world.clock)
        self.world, self.chance = world, chance
        self.turns_left = _TURNS - chance.of(_TURNS)
        self.failing = False
        for n in range(30):
            world.log.append(PARTITIONS[n % 3], f"{n % 3}-{n % 2}", b"good")
        world.source.rebalances.append((0, lambda: world.source.assign(PARTITIONS[:2])))
        world.service_s = lambda: chance.pick([0.001, 0.03, 2.0, 7.0, 90.0])
        world.delay_s = lambda: chance.pick([0.001, 0.01, 0.3, 3.0, 8.0])

    def is_set(self) -> bool:
        self.turns_left -= 1
        self.world.check()
        self.world.check_bounds()
        if self.turns_left < 0:
            self.set()
            return True
        for _ in range(self.chance.of(4)):
            self._happen()
        return False

    def _happen(self) -> None:
        world, chance, source = self.world, self.chance, self.world.source
        partition = chance.pick(PARTITIONS)
        at = chance.pick([0, 1, 3, 40])
        kinds = ["produce", "rebalance", "big", "lose", "commit", "time", "elsewhere", "fail", "break", "mark"]
        match chance.pick(kinds):
            case "produce":
                for _ in range(chance.pick([1, 5, 20])):
                    kind = chance.pick([b"good", BAD])
                    world.log.append(partition, f"{partition.partition}-{chance.of(3)}", kind, chance.pick([0, 2]))
            case "mark":
                world.log.mark(partition, chance.pick([1, 3]))
            case "big":
                world.log.append(partition, "big", bytes(chance.pick([2**18, 2**21])))
            case "rebalance":
                source.rebalances.append((at, lambda: self._toggle(partition)))
            case "lose":
                source.rebalances.append((at, lambda: self._lose(partition)))
            case "commit":
                source.commit_stored()
            case "time":
                world.clock.advance(chance.pick([0.01, 0.6, 5.0]))
            case "elsewhere":
                source.rebalances.append((at, lambda: self._elsewhere(partition)))
            case "fail":
                self.failing = world.publisher.fail = self.failing or chance.of(8) == 7
            case "break":
                world.worker.broken = world.worker.broken or chance.of(8) == 7

    def _toggle(self, partition: TopicPartition) -> None:
        source = self.world.source
        if partition not in source.owned:
            source.assign([partition])
        elif self.chance.of(2):  # there and back within one poll
            source.revoke([partition])
            source.assign([partition])
        else:
            source.revoke([partition])

    def _lose(self, partition: TopicPartition) -> None:
        if partition in self.world.source.owned:
            self.world.source.lose([partition])

    def _elsewhere(self, partition: TopicPartition) -> None:
        """The other owner of a partition has got further with it."""
        log = self.world.log
        if partition not in self.world.source.owned:
            log.resolve()
            start = log.committed.get(partition, 0)
            for offset in [o for o, _, _ in log.records[partition] if o >= start][: self.chance.of(9)]:
                log.acknowledge(partition, offset)
                log.committed[partition] = offset + 1


class Quiet(Stop):
    """Of a run in which nothing goes wrong; set when all is finished."""

    def __init__(self, world: World) -> None:
        super().__init__(world.clock)
        self.world = world
        self.turns = 0

    def is_set(self) -> bool:
        self.world.check()
        self.world.check_bounds()
        self.world.source.commit_stored()
        self.turns += 1
        if self.turns == 1:
            self.world.source.rebalances.append((0, lambda: self.world.source.assign(PARTITIONS)))
        assert self.turns < 5000, "it makes no progress"
        if self.turns > 1 and self.world.log.finished:
            self.set()
            return True
        return False
