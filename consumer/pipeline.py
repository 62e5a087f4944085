"""READ FIRST: the loop. One turn is poll, batch, decode and infer, publish, commit.

Everything here runs on the main thread, which owns the consumer, the producer and the offset tracker, so none of it
needs a lock. The order that the promises stand on:

1. A frame is `received` by the tracker before it can be admitted: from then on it holds the watermark back.
2. An outcome is published only while its frame's epoch is current: another consumer may own the partition by now.
3. A frame is `done` only once the brokers have acknowledged its outcome.
4. Only watermarks go to the commit, so no committed offset is ever ahead of an acknowledged outcome.

How outcomes are published and offsets committed is the delivery's: with `exactly_once`, 3 and 4 are one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from consumer.concurrency import Deadline, Stop
from consumer.config import Config
from consumer.delivery.base import MakeDelivery, SourceLike
from consumer.delivery.circuit_breaker import RejectionBreaker
from consumer.delivery.offsets import Committable, OffsetTracker
from consumer.errors import DrainError, EngineError
from consumer.kafka.rebalance_listener import RebalanceListener
from consumer.observability.health import Health, State
from consumer.observability.metrics import Metrics
from consumer.observability.tracing import Traces
from consumer.types import Acknowledged, BatchResult, DeviceMemory, Finished, Frame, TopicPartition

_log = structlog.get_logger(__name__)

# How long one turn may block, by what it waits for.
IDLE_S = 0.2  # nothing is anywhere: only a record, a rebalance or a signal can come
ACKNOWLEDGE_S = 0.02  # only acknowledgements are awaited: they are not urgent
BUSY_S = 0.001  # a result may come at any moment, and it is published at the end of this wait
WAITING_S = 0.005  # frames wait for their batch to fill or its delay to pass
FULL_S = 0.05  # no room for frames: block on the results alone
# And then for batches behind it, where the worker is full and no other limit is met: written together, the outcomes of
# several cost a fraction of the requests, and others wait by then, so that this shows in nobody's latency.
GATHER_S = 0.05
# With no room for so long, reading pauses. A shorter wait does not: a pause drops what librdkafka had prefetched.
PATIENCE_S = 0.5
OBSERVE_EVERY_S = 1.0


class WorkerLike(Protocol):
    """What the pipeline asks of `worker.Worker`."""

    @property
    def room(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def expecting(self) -> bool: ...
    @property
    def busy_since(self) -> float | None: ...
    @property
    def device(self) -> str: ...
    @property
    def device_memory(self) -> DeviceMemory | None: ...
    def admit(self, frames: Sequence[Frame]) -> None: ...
    def results(self, timeout_s: float = 0.0, gather_s: float = 0.0) -> list[BatchResult]: ...
    def discard(self, partitions: Sequence[TopicPartition], *, overtaken: bool) -> list[Frame]: ...
    def drain(self, *, draining: bool) -> None: ...


class Pipeline(RebalanceListener):
    """The main loop over a source, a worker and a publisher. `run` returns once `stop` is set and all is drained."""

    def __init__(
        self,
        config: Config,
        make_source: Callable[[RebalanceListener], SourceLike],
        worker: WorkerLike,
        make_delivery: MakeDelivery,
        *,
        health: Health,
        metrics: Metrics,
        clock: Callable[[], float],
        wall_clock_ms: Callable[[], int],
        traces: Traces | None = None,
    ) -> None:
        self._limits = config.limits
        self._source = make_source(self)
        self._worker = worker
        self._offsets = OffsetTracker()
        breaker = RejectionBreaker(config.dead_letter.max_consecutive, clock)
        self._delivery = make_delivery(self._source, self._offsets, breaker.judge)
        self._health = health
        self._metrics = metrics
        self._traces = traces
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._held_bytes = 0  # encoded bytes of the frames that were received and are not finished
        self._full_since: float | None = None
        self._paused = False
        self._most_room = 0
        self._observe_at = 0.0
        self._stop = Stop(clock)

    def run(self, stop: Stop) -> None:
        """Loop until `stop` is set, then drain. Raises what made it impossible to go on, after closing the source."""
        drained, self._stop = False, stop
        try:
            self._source.subscribe()
            self._health.beat()
            self._health.state = State.RUNNING
            while not stop.is_set():
                self.step()
            self._health.state = State.DRAINING
            # The turn in which the stop came may have waited for brokers for many seconds of it.
            self._drain(Deadline(self._limits.drain_timeout_s - (self._clock() - stop.at), self._clock))
            drained = True
        finally:
            self._health.state = State.DRAINING if drained else State.FAILED
            self._source.close(5.0)

    def step(self) -> None:
        """One turn. Blocks for `IDLE_S` at most, and for a transaction where those are asked for."""
        if self._delivery.broken:
            self._recover()
            return
        if room := self._room():
            frames = self._source.poll(room, self._poll_timeout_s(), self._free_bytes())  # 1 poll
            self._admit(frames)  # 2 batch; decoding starts here
            results = self._worker.results()  # 3 infer: what the inference thread has finished
        else:
            results = self._worker.results(FULL_S, 0.0 if self._worker.room else GATHER_S)
        self._publish(results)  # 4 publish
        self._acknowledge(self._delivery.deliver())
        self._commit(self._offsets.committable())  # 5 commit
        self._watch_over()

    # The steps

    def _room(self) -> int:
        """Frames that may be polled now. 0 means: wait for results; after `PATIENCE_S` of that, reading pauses."""
        room = self._free()
        now = self._clock()
        if room:
            if self._full_since is not None:
                self._worker.drain(draining=False)
            self._full_since = None
            self._paused = False
            self._source.resume()
            self._metrics.paused.set(0)
        elif self._full_since is None:
            self._full_since = now
        elif now - self._full_since > PATIENCE_S:
            self._paused = True
            self._source.pause()
            self._worker.drain(draining=True)  # a static batch would wait for frames that cannot come
            self._metrics.paused.set(1)
            self._admit(self._source.poll(0, 0.0))  # paused, it brings no frames but keeps the membership
        return room

    def _free(self) -> int:
        """Frames within all limits. While paused, half of each must be free: a resume fetches everything anew."""
        room = self._worker.room
        self._most_room = max(self._most_room, room)
        share = 0.5 if self._paused else 1.0
        full = (
            self._free_bytes(share) <= 0
            or self._delivery.outstanding >= self._limits.max_unacknowledged * share
            or (self._paused and room < self._most_room * share)
        )
        return 0 if full else room

    def _free_bytes(self, share: float = 1.0) -> float:
        return self._limits.max_in_flight_bytes * share - self._held_bytes - self._delivery.buffered_bytes

    def _poll_timeout_s(self) -> float:
        if self._worker.in_flight:
            return BUSY_S if self._worker.expecting else WAITING_S
        return ACKNOWLEDGE_S if self._delivery.outstanding else IDLE_S

    def _admit(self, frames: Sequence[Frame]) -> None:
        # A rebalance inside the poll may have ended the epoch of frames that it returned.
        ours = [frame for frame in frames if self._offsets.is_current(frame.receipt)]
        for frame in ours:
            self._offsets.received(frame.receipt)
            self._held_bytes += frame.size_bytes
        # After the frames: the end of a partition says that all of them were received.
        for end in self._source.ends():
            self._offsets.read_to(end)
        if ours:
            self._metrics.received.inc(len(ours))
            self._worker.admit(ours)

    def _publish(self, results: Sequence[BatchResult]) -> None:
        if not results:
            return
        began = self._clock()
        finished: list[Finished] = []
        for result in results:
            self._metrics.batch(result)
            traced = result if self._traces is None else self._traces.begin(result)
            summary = traced.summary
            for frame, outcome in zip(traced.batch.frames, traced.outcomes, strict=True):
                if self._offsets.is_current(frame.receipt):
                    finished.append(Finished(frame, outcome, summary))
                else:
                    self._held_bytes -= frame.size_bytes
                    self._metrics.stale_outcomes.inc()
        self._delivery.publish(finished)
        self._metrics.published(self._clock() - began)

    def _acknowledge(self, acknowledged: Sequence[Acknowledged]) -> None:
        for frame, _, _ in acknowledged:
            self._offsets.done(frame.receipt)
            self._held_bytes -= frame.size_bytes
        if acknowledged:
            self._metrics.acknowledged(acknowledged, now_s=self._clock(), now_ms=self._wall_clock_ms())
            if self._traces is not None:
                self._traces.end(acknowledged)

    def _commit(self, risen: Sequence[Committable]) -> None:
        if risen:
            self._delivery.commit(risen)
            self._metrics.stored.inc(len(risen))

    # Rebalances: called inside source.poll

    def assigned(self, epochs: dict[TopicPartition, int]) -> None:
        """New partitions: frames of them come from now on."""
        began = self._clock()
        for partition, epoch in epochs.items():
            self._offsets.assign(partition, epoch)
        self._count_rebalance("assigned", len(epochs), began)

    def waiting(self) -> bool:
        """Such a wait has its own limit, so the loop is alive; after a stop it serves nobody."""
        self._health.beat()
        return not self._stop.is_set()

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish what was submitted of these partitions, publish it, commit it, and forget them."""
        began = self._clock()
        try:
            self._discard(partitions, overtaken=False)
            deadline = Deadline(self._limits.drain_timeout_s / 2, self._clock)
            left = self._settle(partitions, deadline)
            if left:
                _log.warning("revoked before all was done; their new owner repeats them", frames=left)
            self._delivery.hand_over(self._offsets.watermarks(partitions), deadline.left_s)
        finally:
            # Also where settling fails: one poll can bring more than one rebalance before it raises.
            self._forget(partitions)
        self._count_rebalance("revoked", len(partitions), began)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Someone else owns them already: drop everything, commit nothing."""
        began = self._clock()
        self._drop(partitions)
        self._count_rebalance("lost", len(partitions), began)

    def _discard(self, partitions: Sequence[TopicPartition], *, overtaken: bool) -> None:
        for frame in self._worker.discard(partitions, overtaken=overtaken):
            self._offsets.abandon(frame.receipt)
            self._held_bytes -= frame.size_bytes

    def _drop(self, partitions: Sequence[TopicPartition]) -> None:
        self._discard(partitions, overtaken=True)
        self._forget(partitions)

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self._offsets.revoke(partition)
        for frame in self._delivery.forget(partitions):
            self._held_bytes -= frame.size_bytes

    def _settle(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> int:
        """Wait until every submitted frame of these partitions is acknowledged. Returns how many are not in time.

        Outside the group it does not wait: the way back into it begins with the loss of these partitions.
        """
        self._worker.drain(draining=True)
        try:
            while (left := self._offsets.outstanding(partitions)) and deadline.left_s and not self._delivery.broken:
                self._health.beat()
                waiting = bool(self._worker.in_flight)
                self._publish(self._worker.results(min(FULL_S, deadline.left_s) if waiting else 0.0))
                self._acknowledge(self._delivery.deliver(0.0 if waiting else ACKNOWLEDGE_S, deadline.left_s))
                self._commit(self._offsets.committable())
                if self._delivery.expelled:
                    return self._offsets.outstanding(partitions)
        finally:
            self._worker.drain(draining=False)
        return left

    # After a failed transaction

    def _recover(self) -> None:
        """Drop all, and read again from what the group has committed, in new epochs; or try it in the next turn."""
        self._drop(self._offsets.partitions)
        self._delivery.recover()
        # Each of the waits here has its own limit, but together they can pass that of the watchdog.
        self._health.beat()
        if self._delivery.broken:
            self._source.pause()
            self._metrics.paused.set(1)  # until `_room` resumes
            self._admit(self._source.poll(0, ACKNOWLEDGE_S))  # for the membership; it may bring and take partitions
            self._publish(self._worker.results())
        self._watch_over()

    # Shutdown

    def _drain(self, deadline: Deadline) -> None:
        """Finish what was submitted, and what that has overtaken; commit it. The rest is left to the next consumer."""
        partitions = self._offsets.partitions
        self._discard(partitions, overtaken=False)
        left = self._settle(partitions, deadline)
        self._delivery.finish(self._offsets.watermarks(partitions), deadline.left_s)
        if left:
            why = f"within limits.drain_timeout_s ({self._limits.drain_timeout_s:g} s)"
            if self._delivery.broken:
                why = "because a transaction failed"
            elif self._delivery.expelled:
                why = "because this process is no member of its group any more"
            raise DrainError(f"{left} frames were not done {why}; they were not committed and will be repeated")

    # Watching over it

    def _watch_over(self) -> None:
        now = self._clock()
        self._health.beat()
        busy_since = self._worker.busy_since
        if busy_since is not None and now - busy_since > self._limits.stall_timeout_s:
            raise EngineError(
                f"the engine has not returned for {now - busy_since:.0f} s (limits.stall_timeout_s); "
                "its batch was not committed and will be repeated"
            )
        if now >= self._observe_at:
            self._observe_at = now + OBSERVE_EVERY_S
            self._metrics.in_flight.set(self._offsets.outstanding())
            self._metrics.in_flight_bytes.set(self._held_bytes + self._delivery.buffered_bytes)
            self._metrics.lag(self._source.lag())
            self._metrics.device(self._worker.device, self._worker.device_memory)

    def _count_rebalance(self, event: str, partitions: int, began: float) -> None:
        self._health.beat()  # a poll may bring several, each with its own waits
        self._metrics.rebalanced(
            event, partitions=partitions, assigned=len(self._offsets.partitions), seconds=self._clock() - began
        )
