"""The command line: builds the objects, sets the signal handlers, turns errors into exit codes."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import time
from collections.abc import MutableMapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import structlog
import typer

from consumer import __version__
from consumer.config import Config, LogConfig, load_config, options, resolved
from consumer.errors import ConfigError, SluiceError
from consumer.repeats import Repeats
from consumer.tools import clients
from consumer.tools.bench import bench
from consumer.tools.demo import demo
from consumer.tools.dlq import app as dlq
from consumer.tools.doctor import doctor
from consumer.tools.produce import produce
from consumer.tools.tail import tail
from consumer.tools.verify import verify

if TYPE_CHECKING:  # the command line starts fast
    from consumer.deadline import Stop
    from consumer.delivery import MakeDelivery
    from consumer.health import Health
    from consumer.metrics import Metrics
    from consumer.publisher import Publisher, TransactionalPublisher
    from consumer.traces import Traces
    from consumer.types import ModelInfo
    from consumer.worker import Worker

_log = structlog.get_logger(__name__)

# How long the start waits for what the brokers say of the topics. Without an answer the program works, too.
TOPIC_LIMITS_S = 5.0

app = typer.Typer(
    name="sluice",
    help="A Kafka consumer group that turns camera frames into detections on a GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML or TOML file. Default: $SLUICE_CONFIG, else none.")
]


@app.command()
def run(config: ConfigPath = None) -> None:
    """Run the consumer until SIGTERM or SIGINT, then drain and exit 0. A second signal ends it at once."""
    from consumer.deadline import Stop
    from consumer.signals import stop_on_signals

    settings = load_config(config)
    set_up_logging(settings.log)
    stop = Stop(time.monotonic)
    stop_on_signals(stop)
    try:
        serve(settings, stop)
    except ConfigError:
        raise  # said plainly, like any other wrong option
    except SluiceError as error:
        _log.critical(str(error), error=type(error).__name__, exit_code=error.exit_code, restart_helps=error.retriable)
        _leave(error.exit_code)
    _leave(0)


@app.command("config")
def show_config(
    config: ConfigPath = None,
    *,
    explain: Annotated[bool, typer.Option(help="List every option with its meaning instead.")] = False,
) -> None:
    """Print the configuration that `run` would use, with secrets masked."""
    import yaml

    if explain:
        for path, variable, default, meaning in options():
            typer.echo(f"{path}  [{variable}]  default: {default!r}\n    {meaning}")
        return
    typer.echo(yaml.safe_dump(resolved(load_config(config)), sort_keys=False, allow_unicode=True), nl=False)


app.command()(bench)
app.command()(demo)
app.command()(doctor)
app.command()(produce)
app.command()(tail)
app.command()(verify)
app.add_typer(dlq, name="dlq")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def serve(config: Config, stop: Stop) -> None:
    """Run the pipeline on this thread until `stop` is set and all is drained.

    Raises a SluiceError, with its exit code, where it cannot go on.
    """
    if not config.detector.model:
        raise ConfigError("detector.model is required: the path of a .pt or .onnx file (see sluice config --explain)")
    from consumer.detectors.loader import load_detector
    from consumer.health import Health, HealthServer
    from consumer.metrics import Metrics
    from consumer.worker import Worker

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

    from consumer.decoder import configure_opencv

    # The default of 5 ms lets one busy Python thread starve the decode threads of the GIL.
    sys.setswitchinterval(0.0001)
    # Else there is a second series beside each counter, which nothing here reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    configure_opencv()


def _consume(
    config: Config, worker: Worker, stop: Stop, *, health: Health, metrics: Metrics, traces: Traces | None
) -> None:
    """Join the group and run the loop, with a model that is warm, until all is drained."""
    from consumer.health import Watchdog
    from consumer.pipeline import Pipeline
    from consumer.source import Source

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
    from consumer.traces import open_traces

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
    from consumer.delivery import AtLeastOnce, ExactlyOnce
    from consumer.publisher import Publisher, TransactionalPublisher, producer_settings, topic_limits

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


def set_up_logging(config: LogConfig) -> None:
    """One line per event on stderr, from structlog and from `logging` (librdkafka, Ultralytics) alike."""
    as_json = config.format == "json" or (config.format == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _escape,
    ]
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.addFilter(Repeats())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer], foreign_pre_chain=shared
        )
    )
    logging.basicConfig(handlers=[handler], level=config.level.upper(), force=True)


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Nothing that came from elsewhere steers a terminal or forges a line: brokers and libraries log texts too."""
    for name, value in event.items():
        if isinstance(value, str) and name != "exception":  # a traceback has lines; JSON escapes them
            event[name] = clients.printable(value)
    return event


def main() -> None:
    """Entry point of the `sluice` script. Exits with the code of the error's class."""
    try:
        app(standalone_mode=True)
    except SluiceError as error:
        lines = map(clients.printable, str(error).split("\n"))  # a wrong configuration has one for each option
        sys.stderr.write("sluice: " + "\n".join(lines) + "\n")
        raise SystemExit(error.exit_code) from None


def _leave(code: int) -> NoReturn:
    """End the process at once: all that must be closed is closed, and a native thread that hangs may not hold it."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    main()
