"""The composition root: builds the objects of `sluice run` and runs the pipeline with them."""

from __future__ import annotations

import gc
import socket
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import structlog

from consumer import __version__
from consumer.config import Config
from consumer.errors import ConfigError

if TYPE_CHECKING:  # the command line starts fast
    from consumer.concurrency import Stop
    from consumer.delivery.base import MakeDelivery
    from consumer.inference import Worker
    from consumer.kafka.producer import Publisher
    from consumer.kafka.transactions import TransactionalPublisher
    from consumer.observability.health import Health
    from consumer.observability.metrics import Metrics
    from consumer.observability.tracing import Traces
    from consumer.types import ModelInfo

_log = structlog.get_logger(__name__)

# How long the start waits for what the brokers say of the topics. Without an answer the program works, too.
TOPIC_LIMITS_S = 5.0


def serve(config: Config, stop: Stop) -> None:
    """Run the pipeline on this thread until `stop` is set and all is drained.

    Raises a SluiceError, with its exit code, where it cannot go on.
    """
    if not config.detector.model:
        raise ConfigError("detector.model is required: the path of a .pt or .onnx file (see sluice config --explain)")
    from consumer.detectors.loader import load_detector
    from consumer.inference import Worker
    from consumer.observability.health import Health, HealthServer
    from consumer.observability.metrics import Metrics

    _set_up_process()
    traces = _traces(config)
    metrics = Metrics()
    metrics.decode_threads.set(config.decode.thread_count)
    health = Health(clock=time.monotonic, stall_timeout_s=config.limits.stall_timeout_s)
    server = HealthServer(config.http, health, metrics) if config.http.port else None
    worker = Worker(
        partial(load_detector, config.detector),
        config.batching,
        config.decode,
        clock=time.monotonic,
        wall_clock_ms=_wall_clock_ms,
        on_retry=metrics.engine_retries.inc,
        on_decoder_replaced=metrics.decoders_replaced.inc,
    )
    try:
        if server is not None:
            server.start()
        _log.info("loading model", model=config.detector.model)
        # The model is loaded before the group is joined, so that a slow load cannot cost the membership.
        if worker.start(stop):
            metrics.build.labels(__version__, worker.info.name, worker.device).set(1)
            _log.info("model ready", model=worker.info.name, digest=worker.info.digest, device=worker.device)
            _consume(config, worker, stop, health=health, metrics=metrics, traces=traces)
    finally:
        if traces is not None:
            traces.close(1.0)
        worker.close(2.0)
        if server is not None:
            server.close()


def _set_up_process() -> None:
    """Settings of the whole process, which no import may touch."""
    from prometheus_client import disable_created_metrics

    from consumer.decoding import configure_opencv

    # The default of 5 ms lets one busy Python thread starve the decode threads of the GIL.
    sys.setswitchinterval(0.0001)
    # Else there is a second series beside each counter, which nothing here reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    configure_opencv()


def _consume(
    config: Config, worker: Worker, stop: Stop, *, health: Health, metrics: Metrics, traces: Traces | None
) -> None:
    """Join the group and run the loop, with a model that is warm, until all is drained."""
    from consumer.kafka.consumer import Source
    from consumer.observability.health import Watchdog
    from consumer.pipeline import Pipeline

    clock, wall_clock_ms = time.monotonic, _wall_clock_ms
    made = _delivery(config, worker.info, metrics, stop)
    if made is None:  # told to stop, and nothing has begun
        return
    publisher, make_delivery = made
    pipeline = Pipeline(
        config,
        lambda listener: Source(
            config, listener, clock=clock, wall_clock_ms=wall_clock_ms, on_committed=metrics.committed
        ),
        worker,
        make_delivery,
        health=health,
        metrics=metrics,
        clock=clock,
        wall_clock_ms=wall_clock_ms,
        traces=traces,
    )
    gc.collect()
    gc.freeze()  # what lives as long as the process need not be looked at again
    Watchdog(health).start()  # never closed: it also ends a process whose clients hang while they close
    try:
        pipeline.run(stop)
    finally:
        publisher.close(2.0)
    _log.info("drained")


def _traces(config: Config) -> Traces | None:
    """The exporter of spans, where one is asked for."""
    if not config.traces.endpoint:
        return None
    from consumer.observability.tracing import open_traces

    return open_traces(
        config.traces.endpoint,
        config.traces.sample_ratio,
        version=__version__,
        instance=socket.gethostname(),
        max_batch_size=config.batching.max_batch_size,
        max_open=config.limits.max_unacknowledged,
        clock=time.monotonic,
        wall_clock_ms=_wall_clock_ms,
    )


def _delivery(
    config: Config, model: ModelInfo, metrics: Metrics, stop: Stop
) -> tuple[Publisher | TransactionalPublisher, MakeDelivery] | None:
    """The producer, which this thread owns from now on, and how the pipeline delivers with it.

    None where `stop` was set before the brokers let it begin.
    """
    from consumer.delivery.at_least_once import AtLeastOnce
    from consumer.delivery.exactly_once import ExactlyOnce
    from consumer.kafka.producer import Publisher
    from consumer.kafka.producer_settings import producer_settings
    from consumer.kafka.topic_limits import topic_limits
    from consumer.kafka.transactions import TransactionalPublisher

    clock, wall_clock_ms = time.monotonic, _wall_clock_ms
    limits = topic_limits(config, producer_settings(config), clock)
    limits.ask(TOPIC_LIMITS_S, stop)
    if config.delivery == "at_least_once":
        plain = Publisher(config, model, clock=clock, wall_clock_ms=wall_clock_ms, limits=limits)
        return plain, lambda source, _offsets, judge: AtLeastOnce(source, plain, judge)
    transactions = TransactionalPublisher(config, model, clock=clock, wall_clock_ms=wall_clock_ms, limits=limits)
    if not transactions.start(stop):
        return None
    return transactions, lambda source, offsets, judge: ExactlyOnce(
        source, transactions, offsets, judge, metrics=metrics, clock=clock
    )


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000
