"""Runs the main loop. READ THIS FIRST: one iteration is poll, batch, decode and infer, publish, commit.

All of this code runs on the main thread. That thread owns the consumer, the producer and the offset tracker, so the
code needs no locks. The delivery guarantees depend on this order:

1. A frame is `received` by the tracker before it can be admitted. From then on it holds the watermark back.
2. An outcome is published only if its frame's epoch is current. If it is not, another consumer may own the partition.
3. A frame is `done` only when the brokers have acknowledged its outcome.
4. Only watermarks are committed, so no committed offset is ever ahead of an acknowledged outcome.

The `Delivery` decides how outcomes are published and offsets committed. With `exactly_once`, steps 3 and 4 are one
transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from consumer.concurrency import Deadline, Stop
from consumer.config import Config
from consumer.delivery.base import MakeDelivery, SourceLike
from consumer.delivery.circuit_breaker import RejectionBreaker
from consumer.delivery.offsets import Committable, OffsetTracker
from consumer.errors import DrainError, EngineError
from consumer.inference.base import WorkerLike
from consumer.kafka.rebalance_listener import RebalanceListener
from consumer.observability.health import Health, State
from consumer.observability.metrics import Metrics
from consumer.observability.tracing import Traces
from consumer.types import Acknowledged, BatchResult, Finished, Frame, TopicPartition

_log = structlog.get_logger(__name__)

# How long one iteration may block, by what it waits for.
IDLE_S = 0.2  # nothing is in flight: only a record, a rebalance or a signal can arrive
ACKNOWLEDGE_S = 0.02  # only acknowledgements are missing: they are not urgent
BUSY_S = 0.001  # a result may arrive at any moment, and it is published at the end of this wait
WAITING_S = 0.005  # frames wait until their batch is full or its delay has passed
FULL_S = 0.05  # no room for frames: wait for results only
# After the first result, how long to wait for further batches if the worker is full. Publishing the outcomes of several
# batches together takes a fraction of the requests. Other frames are queued at this point, so no latency suffers.
GATHER_S = 0.05
# After this long without room, reading pauses. Not earlier, because a pause drops what librdkafka has prefetched.
PATIENCE_S = 0.5
OBSERVE_EVERY_S = 1.0


class Pipeline(RebalanceListener):
    """The main loop over a Kafka consumer, a worker and a delivery.

    Args:
        config: All options.
        make_source: Builds the consumer. Its argument is this pipeline, which listens to rebalances.
        worker: A started worker.
        make_delivery: Builds the delivery from the consumer, the offset tracker and the rejection breaker.
        health: Receives the heartbeat and the state of the loop.
        metrics: Receives counts and durations.
        clock: Monotonic seconds.
        wall_clock_ms: Unix milliseconds.
        traces: The exporter of spans, if traces are on.
    """

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
        self._held_bytes = 0  # encoded bytes of the frames that were received, and are neither acknowledged nor dropped
        self._full_since: float | None = None  # since when there has been no room
        self._paused = False
        self._most_room = 0  # the largest room of the worker so far
        self._observe_at = 0.0
        self._stop = Stop(clock)

    def run(self, stop: Stop) -> None:
        """Run the loop until `stop` is set, then drain. Closes the consumer in every case.

        Args:
            stop: Ends the loop. `limits.drain_timeout_s` counts from the moment it was set.

        Raises:
            DrainError: Some frames were not acknowledged within the drain timeout.
            SluiceError: The loop cannot continue.
        """
        drained, self._stop = False, stop
        try:
            self._source.subscribe()
            self._health.beat()
            self._health.state = State.RUNNING
            while not stop.is_set():
                self.step()
            self._health.state = State.DRAINING
            # The iteration during which `stop` was set may have waited for brokers for many seconds of this time.
            self._drain(Deadline(self._limits.drain_timeout_s - (self._clock() - stop.at), self._clock))
            drained = True
        finally:
            self._health.state = State.DRAINING if drained else State.FAILED
            self._source.close(5.0)

    def step(self) -> None:
        """Run one iteration.

        Blocks up to `IDLE_S`. A transaction (with `exactly_once`), a rebalance or a recovery takes additional time.
        """
        if self._delivery.broken:
            self._recover()
            return
        if room := self._room():
            frames = self._source.poll(room, self._poll_timeout_s(), self._free_bytes())  # 1 poll
            self._admit(frames)  # 2 batch; decoding starts here
            results = self._worker.results()  # 3 infer: take the batches that the inference thread has finished
        else:
            results = self._worker.results(FULL_S, 0.0 if self._worker.room else GATHER_S)
        self._publish(results)  # 4 publish
        self._acknowledge(self._delivery.deliver())
        self._commit(self._offsets.committable())  # 5 commit
        self._watch_over()

    # The steps of an iteration

    def _room(self) -> int:
        """Return how many frames may be polled now, and pause or resume reading.

        With 0, the loop waits for results. Reading pauses after `PATIENCE_S` without room.
        """
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
            self._worker.drain(draining=True)  # a static batch would wait for frames that cannot arrive
            self._metrics.paused.set(1)
            self._admit(self._source.poll(0, 0.0))  # while paused, a poll returns no frames but keeps the membership
        return room

    def _free(self) -> int:
        """Return how many frames fit within all limits.

        While paused, half of each limit must be free first, because a resume fetches all prefetched records again.
        """
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
        # A rebalance inside the poll may have ended the epoch of frames that the same poll returned.
        ours = [frame for frame in frames if self._offsets.is_current(frame.receipt)]
        for frame in ours:
            self._offsets.received(frame.receipt)
            self._held_bytes += frame.size_bytes
        # Ends come after the frames: the end of a partition means that all frames below it were received.
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

    # Rebalances: these methods are called inside source.poll

    def assigned(self, epochs: dict[TopicPartition, int]) -> None:
        """Start the epochs of new partitions, whose frames arrive from now on."""
        began = self._clock()
        for partition, epoch in epochs.items():
            self._offsets.assign(partition, epoch)
        self._count_rebalance("assigned", len(epochs), began)

    def waiting(self) -> bool:
        """Renew the heartbeat during a wait for a coordinator, and return whether to continue the wait.

        The wait has its own time limit, so the loop is alive. After a stop, its result is not needed.
        """
        self._health.beat()
        return not self._stop.is_set()

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish the submitted frames of these partitions, publish and commit them, then forget the partitions.

        Frames that are not acknowledged within half of `limits.drain_timeout_s` are repeated by the next owner.
        """
        began = self._clock()
        try:
            self._discard(partitions, overtaken=False)
            deadline = Deadline(self._limits.drain_timeout_s / 2, self._clock)
            left = self._settle(partitions, deadline)
            if left:
                _log.warning("revoked before all was done; their new owner repeats them", frames=left)
            self._delivery.hand_over(self._offsets.watermarks(partitions), deadline.left_s)
        finally:
            # Even if this fails: one poll can serve more than one rebalance before it raises.
            self._forget(partitions)
        self._count_rebalance("revoked", len(partitions), began)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop all frames of these partitions, and commit nothing: other consumers own them already."""
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
        """Wait until every submitted frame of these partitions is acknowledged.

        If this process is no longer a group member, it does not wait. To rejoin, it must first lose these partitions.

        Returns:
            The number of frames that are still not acknowledged.
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
        """Drop all frames, and read again from the committed offsets, in new epochs.

        If that is not possible now, the next iteration tries again.
        """
        self._drop(self._offsets.partitions)
        self._delivery.recover()
        # Each wait in here has its own time limit, but their sum can exceed the limit of the watchdog.
        self._health.beat()
        if self._delivery.broken:
            self._source.pause()
            self._metrics.paused.set(1)  # until `_room` resumes
            self._admit(self._source.poll(0, ACKNOWLEDGE_S))  # keeps the membership, and serves rebalances
            self._publish(self._worker.results())
        self._watch_over()

    # Shutdown

    def _drain(self, deadline: Deadline) -> None:
        """Finish and commit the submitted frames, and the waiting frames that a submitted one has overtaken.

        All other waiting frames are left to the next owner of their partition.

        Raises:
            DrainError: Some of the frames were not acknowledged before the deadline.
        """
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

    # Heartbeat, hang detection, metrics

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
        self._health.beat()  # one poll may serve several rebalances, each with its own waits
        self._metrics.rebalanced(
            event, partitions=partitions, assigned=len(self._offsets.partitions), seconds=self._clock() - began
        )
