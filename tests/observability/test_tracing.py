"""Traces: what a collector receives, what a reader can continue, and what they cost if they are off."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import images
from brokers import Broker
from consumer.config import Config
from consumer.errors import ConfigError
from consumer.observability.tracing import Traces, open_traces
from consumer.types import Acknowledged, BatchResult, Frame, Rejected
from made_frames import P0, VirtualClock, detected, frame, result
from pipeline_runs import until, world
from sluice_process import Topics, produce, reading, running
from waiting import wait_until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


class Bench:
    def __init__(self, sample_ratio: float = 0.0, max_open: int = 100) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.clock = VirtualClock()
        self.traces = Traces(
            provider, sample_ratio, max_open=max_open, clock=self.clock, wall_clock_ms=self.clock.unix_ms
        )

    def run(self, *frames: Frame) -> BatchResult:
        """Pass one batch from the detector to its acknowledgement."""
        begun = self.traces.begin(result(list(frames), taken_at=self.clock.now))
        self.traces.end([Acknowledged(each, detected(), self.clock.now) for each in begun.batch.frames])
        return begun

    def spans(self, name: str) -> list[Any]:
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(name)]


def traced(offset: int, traceparent: str | None, **more: Any) -> Frame:
    return frame(offset, **more)._replace(traceparent=traceparent)


def handed_on(span: Any) -> str:
    context = span.context
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


class TestAFrame:
    def test_is_a_child_of_its_producers_span(self) -> None:
        bench = Bench()
        bench.run(traced(7, SAMPLED))
        (span,) = bench.spans("process")
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == SPAN
        assert span.attributes["messaging.kafka.offset"] == 7

    def test_lasts_from_the_consumer_to_the_acknowledgement_with_stages(self) -> None:
        bench = Bench()
        one = traced(0, SAMPLED, at=bench.clock.now - 0.5)
        began = bench.traces.begin(result([one], taken_at=bench.clock.now - 0.25))
        published_at = bench.clock.now
        bench.clock.advance(2)
        bench.traces.end([Acknowledged(began.batch.frames[0], detected(), published_at)])
        (span,) = bench.spans("process")
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(2.5, abs=0.01)
        assert span.end_time / 1e6 == pytest.approx(bench.clock.unix_ms(), abs=2)
        assert span.attributes["sluice.queue_ms"] == pytest.approx(250)
        assert span.attributes["sluice.acknowledge_ms"] == pytest.approx(2000)
        assert span.attributes["sluice.outcome"] == "detected"

    def test_that_becomes_a_dead_letter_has_the_reason(self) -> None:
        bench = Bench()
        began = bench.traces.begin(result([traced(0, SAMPLED)], taken_at=bench.clock.now))
        refused = Rejected("decode", "damaged", "")
        bench.traces.end([Acknowledged(began.batch.frames[0], refused, bench.clock.now)])
        (span,) = bench.spans("process")
        assert (span.attributes["sluice.outcome"], span.attributes["error.type"]) == ("rejected", "damaged")

    def test_passes_its_own_span_to_readers(self) -> None:
        """Catches a reader's span that is a sibling of the frame's span instead of its child."""
        bench = Bench()
        begun = bench.run(traced(0, SAMPLED))
        (span,) = bench.spans("process")
        assert begun.batch.frames[0].traceparent == handed_on(span)
        assert handed_on(span).startswith(f"00-{TRACE}-")

    @pytest.mark.parametrize("traceparent", [UNSAMPLED, None])
    def test_that_is_not_sampled_is_not_changed(self, traceparent: str | None) -> None:
        """Catches a trace that the producer did not want, and a broken chain if a frame is not recorded."""
        bench = Bench(sample_ratio=0.0)
        given = result([traced(0, traceparent)], taken_at=bench.clock.now)
        assert bench.traces.begin(given) is given
        assert not bench.exporter.get_finished_spans()

    def test_without_a_traceparent_is_sampled_by_the_configured_ratio(self) -> None:
        bench = Bench(sample_ratio=0.25)
        bench.run(*(traced(n, None) for n in range(2000)))
        assert 350 < len(bench.spans("process")) < 650
        assert len({span.context.trace_id for span in bench.spans("process")}) == len(bench.spans("process"))


class TestABatch:
    def test_is_one_span_and_is_linked_with_those_of_its_frames(self) -> None:
        bench = Bench()
        other = SAMPLED.replace(TRACE, TRACE[::-1])
        bench.run(traced(0, SAMPLED), traced(1, None), traced(2, other), traced(3, UNSAMPLED))
        (batch,) = bench.spans("batch")
        assert {f"{link.context.trace_id:032x}" for link in batch.links} == {TRACE, TRACE[::-1]}
        assert {f"{link.context.span_id:016x}" for link in batch.links} == {SPAN}
        assert batch.attributes["messaging.batch.message_count"] == 4
        assert batch.parent is None
        frames = bench.spans("process")
        assert len(frames) == 2
        assert {link.context.span_id for span in frames for link in span.links} == {batch.context.span_id}

    def test_takes_as_long_as_the_detector(self) -> None:
        bench = Bench()
        bench.run(traced(0, SAMPLED))
        (batch,) = bench.spans("batch")
        assert (batch.end_time - batch.start_time) / 1e6 == pytest.approx(1.0, abs=0.01)  # infer_ms of made_frames


class TestBounds:
    def test_frames_that_are_never_acknowledged_do_not_pile_up(self) -> None:
        """Catches a span per frame of every partition that was ever lost."""
        bench = Bench(max_open=10)
        for n in range(50):
            bench.traces.begin(result([traced(n, SAMPLED)], taken_at=bench.clock.now))
        assert len(bench.traces._open) == 10

    def test_nothing_is_imported_while_tracing_is_off(self) -> None:
        """Catches a slower start and more memory for everyone without a collector."""
        code = "import sys, consumer.pipeline; print([m for m in sys.modules if m.startswith('opentelemetry')])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
        assert Config().traces.endpoint == ""

    def test_a_collector_that_does_not_answer_delays_nothing(self) -> None:
        """Catches an exporter on the main thread, and a drain that waits for the collector."""
        hung = threading.Event()

        class Hung(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hung.wait(30)

        with collector(Hung) as endpoint:
            traces = opened(endpoint)
            slowest_s = 0.0
            for n in range(100):  # 10,100 spans, of which the queue holds 8,192
                before = time.monotonic()
                begun = traces.begin(result([traced(100 * n + m, SAMPLED) for m in range(100)], taken_at=before))
                traces.end([Acknowledged(each, detected(), before) for each in begun.batch.frames])
                slowest_s = max(slowest_s, time.monotonic() - before)
            assert traces.close(0.5) is False
            assert slowest_s < 3, "a collector is given 5 s to answer"
            hung.set()


class collector:  # noqa: N801 - used as a function
    """`with collector(Handler) as endpoint`"""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def opened(endpoint: str) -> Traces:
    return open_traces(
        endpoint,
        1.0,
        version="1",
        instance="test",
        max_batch_size=32,
        max_open=1000,
        clock=time.monotonic,
        wall_clock_ms=lambda: time.time_ns() // 1_000_000,
    )


@pytest.fixture
def received() -> Iterator[SimpleNamespace]:
    """A collector: `endpoint`, and the `spans` that it received, each with its resource."""
    got = SimpleNamespace(spans=[], endpoint="")

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for each in request.resource_spans:
                resource = {item.key: item.value.string_value for item in each.resource.attributes}
                got.spans += [(resource, span) for scope in each.scope_spans for span in scope.spans]
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """No-op: not worth a line."""

    with collector(Receiver) as got.endpoint:
        yield got


def test_an_invalid_endpoint_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigError, match="collector:4318"):
        opened("collector:4318")


def test_a_collector_receives_spans_by_otlp(received: SimpleNamespace) -> None:
    traces = opened(received.endpoint)
    begun = traces.begin(result([traced(0, SAMPLED), traced(1, None)], taken_at=time.monotonic()))
    traces.end([Acknowledged(each, detected(), time.monotonic()) for each in begun.batch.frames])
    assert traces.close(10)
    assert sorted(span.name for _, span in received.spans) == ["batch", "process frames", "process frames"]
    assert {resource["service.name"] for resource, _ in received.spans} == {"sluice"}
    assert TRACE in {span.trace_id.hex() for _, span in received.spans}


def test_the_loop_publishes_the_span_and_ends_it_on_acknowledgement() -> None:
    """Catches a pipeline that publishes the frames from before, or does not report the acknowledgement."""
    bench, made = Bench(sample_ratio=1.0), world(4)
    made.pipeline._traces = bench.traces
    until(made, lambda: made.source.stored.get(P0) == 4)
    published = {item.traceparent for item, _ in made.publisher.published}
    spans = bench.spans("process")
    assert published == {handed_on(span) for span in spans}
    assert len(spans) == 4
    assert not bench.traces._open


def test_the_real_program_continues_the_trace_of_the_producer(broker: Broker, received: SimpleNamespace) -> None:
    topics = Topics.on(broker, partitions=1)
    options = {"traces__endpoint": received.endpoint, "traces__sample_ratio": 0.0}
    with (
        running(broker, topics, "simulated://1ms@1", **options) as sluice,
        reading(broker, topics.detections) as reader,
    ):
        produce(broker, topics.frames, [("cam-1", images.jpeg(64, 48))], headers={"traceparent": SAMPLED})
        produce(broker, topics.frames, [("cam-1", images.jpeg(64, 48))])
        reader.read(2, 60, alive=lambda: sluice.running)
        wait_until(lambda: len(received.spans) == 2, 20, "a batch and a frame at the collector")
        assert sluice.terminate() == 0, sluice.log
    traceparent, none = (dict(message.headers()).get("traceparent") for message in reader.messages)
    ours = next(span for _, span in received.spans if span.name.startswith("process"))
    assert traceparent.decode()[:52] == f"00-{TRACE}-{ours.span_id.hex()}"
    assert int(traceparent[53:], 16) & 1, "sampled, so that the reader's span is, too"
    assert ours.parent_span_id.hex() == SPAN
    assert none is None
