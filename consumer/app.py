"""Builds the objects of `sluice run` and runs the pipeline with them. This module is the composition root."""

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

if TYPE_CHECKING:  # not imported at run time, so that the command line starts fast
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

# How long the start waits for the topic configurations from the brokers. The program also works without an answer.
TOPIC_LIMITS_S = 5.0


def serve(config: Config, stop: Stop) -> None:
    """Run the pipeline on the calling thread until `stop` is set and all frames in flight are drained.

    Args:
        config: All options. `detector.model` is required.
        stop: Ends the pipeline, also while the model is loading.

    Raises:
        SluiceError: The process cannot continue. The class of the error defines the exit code.
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
        # The model is loaded before this process joins the group, so that a slow load cannot cost the membership.
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
    """Apply settings that concern the whole process. No import may change these."""
    from prometheus_client import disable_created_metrics

    from consumer.decoding import configure_opencv

    # With the default of 5 ms, one busy Python thread keeps the GIL for too long and starves the decode threads.
    sys.setswitchinterval(0.0001)
    # By default each counter has a second series with its creation time, which nothing here uses.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    configure_opencv()


def _consume(
    config: Config, worker: Worker, stop: Stop, *, health: Health, metrics: Metrics, traces: Traces | None
) -> None:
    """Join the group with a warm model, and run the loop until all frames in flight are drained."""
    from consumer.kafka.consumer import Source
    from consumer.observability.health import Watchdog
    from consumer.pipeline import Pipeline

    clock, wall_clock_ms = time.monotonic, _wall_clock_ms
    made = _delivery(config, worker.info, metrics, stop)
    if made is None:  # stopped before anything started
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
    gc.freeze()  # the garbage collector need not traverse objects that live as long as the process
    Watchdog(health).start()  # never closed, because it also ends a process whose clients hang on close
    try:
        pipeline.run(stop)
    finally:
        publisher.close(2.0)
    _log.info("drained")


def _traces(config: Config) -> Traces | None:
    """Return the exporter of spans, or None if traces are off."""
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
    """Build the producer, which the calling thread then owns, and the factory of the delivery that uses it.

    Returns:
        The producer and the factory. None if `stop` was set before the producer was ready for transactions.
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
