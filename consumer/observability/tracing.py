"""Exports traces: one span per sampled frame, and one span per batch. Off unless `traces.endpoint` is set.

The span of a frame starts when the Kafka consumer returned the frame, and ends when the brokers acknowledged its
outcome. It is a child of the producer's span (`traceparent`) and is linked to the span of its batch. The outcome has
the `traceparent` of the frame's span, so that readers can continue the trace.

The exporter sends spans on a thread of its own, from a bounded queue. If the collector is slow, spans are dropped, but
never frames. Everything else runs on the main thread.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from consumer.errors import ConfigError
from consumer.types import Acknowledged, BatchResult, Clock, Frame, Receipt, Rejected, Skipped

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext

_QUEUE: Final = 8192  # spans that wait for the collector; the oldest are dropped
_EXPORT_S: Final = 5  # the timeout of one request to the collector
_NS: Final = 1_000_000_000
_SAMPLED: Final = 1


class Traces:
    """The spans of frames from publication to acknowledgement.

    Args:
        provider: Creates and exports the spans.
        sample_ratio: The share of frames without a `traceparent` to sample. A frame with a `traceparent` is sampled if
            the span of its producer was.
        max_open: The maximum number of spans that wait for an acknowledgement. Above it the oldest ones are ended.
            Frames of a lost partition never get an acknowledgement.
        clock: Monotonic seconds.
        wall_clock_ms: Unix time in milliseconds.
    """

    def __init__(
        self, provider: TracerProvider, sample_ratio: float, *, max_open: int, clock: Clock, wall_clock_ms: Clock
    ) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context

        self._api = trace
        self._nowhere = Context()  # the empty context, in which a span starts a new trace
        self._provider = provider
        self._tracer = provider.get_tracer("sluice")
        self._sample_ratio = sample_ratio
        self._max_open = max_open
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._open: dict[Receipt, Span] = {}

    def begin(self, result: BatchResult) -> BatchResult:
        """Start the spans of a batch.

        Returns:
            The same result. Its sampled frames have the `traceparent` for their outcomes.
        """
        sampled = {index for index, frame in enumerate(result.batch.frames) if self._is_sampled(frame)}
        if not sampled:
            return result
        unix_ns = self._unix_ns()
        parents = [self._parent(frame) if index in sampled else None for index, frame in enumerate(result.batch.frames)]
        batch = self._batch_span(result, [parent for parent in parents if parent is not None], unix_ns)
        frames = tuple(
            self._frame_span(frame, parents[index], batch, result, unix_ns) if index in sampled else frame
            for index, frame in enumerate(result.batch.frames)
        )
        while len(self._open) > self._max_open:
            self._open.pop(next(iter(self._open))).end()
        return replace(result, batch=replace(result.batch, frames=frames))

    def end(self, acknowledged: Sequence[Acknowledged]) -> None:
        """End the spans of outcomes that the brokers acknowledged."""
        if not self._open:
            return
        now = self._clock()
        now_ns = self._unix_ns()(now)
        for done in acknowledged:
            span = self._open.pop(done.frame.receipt, None)
            if span is not None:
                span.set_attribute("sluice.outcome", _kind(done))
                span.set_attribute("sluice.acknowledge_ms", (now - done.published_at) * 1000)
                if isinstance(done.outcome, Rejected):
                    span.set_attribute("error.type", done.outcome.reason)
                span.end(now_ns)

    def close(self, timeout_s: float) -> bool:
        """End all open spans, and send all spans that are left.

        Args:
            timeout_s: The maximum time to wait for the collector, in seconds.

        Returns:
            False if the collector did not accept all spans in time.
        """
        for span in self._open.values():
            span.end()
        self._open.clear()
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        return not closing.is_alive()

    def _is_sampled(self, frame: Frame) -> bool:
        if frame.traceparent is not None:
            return bool(int(frame.traceparent[53:55], 16) & _SAMPLED)
        return random.random() < self._sample_ratio  # noqa: S311 - a sample is no secret

    def _batch_span(self, result: BatchResult, links: Sequence[SpanContext], unix_ns: Callable[[float], int]) -> Span:
        timings = result.timings
        span = self._tracer.start_span(
            "batch",
            context=self._nowhere,  # a new trace, because the frames of the batch belong to different traces
            links=[self._api.Link(context) for context in links],
            start_time=unix_ns(result.taken_at),
            attributes={
                "messaging.batch.message_count": len(result.batch.frames),
                "sluice.closed_by": result.batch.closed_by,
                "sluice.decode_wait_ms": timings.decode_wait_ms,
                "sluice.decode_ms": timings.decode_ms,
                "sluice.infer_ms": timings.infer_ms,
            },
        )
        span.end(unix_ns(result.taken_at + (timings.decode_wait_ms + timings.infer_ms) / 1000))
        return span

    def _frame_span(
        self,
        frame: Frame,
        parent: SpanContext | None,
        batch: Span,
        result: BatchResult,
        unix_ns: Callable[[float], int],
    ) -> Frame:
        (topic, partition), offset, _ = frame.receipt
        context = self._nowhere
        if parent is not None:
            context = self._api.set_span_in_context(self._api.NonRecordingSpan(parent), context)
        span = self._tracer.start_span(
            f"process {topic}",
            context=context,
            kind=self._api.SpanKind.CONSUMER,
            links=[self._api.Link(batch.get_span_context())],
            start_time=unix_ns(frame.received_at),
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(partition),
                "messaging.kafka.offset": offset,
                "sluice.source_id": frame.source_id,
                "sluice.frame_id": frame.frame_id,
                "sluice.queue_ms": max(0.0, (result.taken_at - frame.received_at) * 1000),
                "sluice.decode_wait_ms": result.timings.decode_wait_ms,
                "sluice.infer_ms": result.timings.infer_ms,
            },
        )
        self._open[frame.receipt] = span
        ours = span.get_span_context()
        return frame._replace(traceparent=f"00-{ours.trace_id:032x}-{ours.span_id:016x}-{ours.trace_flags:02x}")

    def _parent(self, frame: Frame) -> SpanContext | None:
        """Return the context of the producer's span. The parser has checked that the `traceparent` is valid."""
        if frame.traceparent is None:
            return None
        _, trace_id, span_id, flags = frame.traceparent.split("-")
        sampled = self._api.TraceFlags(int(flags, 16))
        return self._api.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=sampled)

    def _unix_ns(self) -> Callable[[float], int]:
        """Return a function that converts times of the injected clock to Unix nanoseconds, by the current offset."""
        offset_s = self._wall_clock_ms() / 1000 - self._clock()
        return lambda at: int((at + offset_s) * _NS)


def open_traces(
    endpoint: str,
    sample_ratio: float,
    *,
    version: str,
    instance: str,
    max_batch_size: int,
    max_open: int,
    clock: Clock,
    wall_clock_ms: Clock,
) -> Traces:
    """Create the traces of this process, exported by OTLP over HTTP.

    Args:
        endpoint: The URL of the collector.
        sample_ratio: See `Traces`.
        version: The version of Sluice, a resource attribute.
        instance: The name of this process, a resource attribute.
        max_batch_size: The maximum number of frames per batch, which limits the links of a span.
        max_open: See `Traces`.
        clock: Monotonic seconds.
        wall_clock_ms: Unix time in milliseconds.

    Raises:
        ConfigError: The endpoint is not an HTTP URL, or the extra `traces` is not installed.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"traces.endpoint is {endpoint!r}: expected an address such as http://collector:4318/v1/traces"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    except ImportError as error:
        raise ConfigError(
            f"traces.endpoint needs the extra `traces` (pip install '.[traces]', in Sluice's folder): {error}"
        ) from None
    resource: Any = Resource.create(
        {"service.name": "sluice", "service.version": version, "service.instance.id": instance}
    )
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # spans are created only for sampled frames
        resource=resource,
        span_limits=SpanLimits(max_links=max_batch_size),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_QUEUE, schedule_delay_millis=1000))
    return Traces(provider, sample_ratio, max_open=max_open, clock=clock, wall_clock_ms=wall_clock_ms)


def _kind(done: Acknowledged) -> str:
    if isinstance(done.outcome, Rejected):
        return "rejected"
    return "skipped" if isinstance(done.outcome, Skipped) else "detected"
