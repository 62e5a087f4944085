"""Defines the command line, with one function for each command, and turns errors into exit codes."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer

from consumer import __version__
from consumer.config import load_config, options, resolved
from consumer.errors import ConfigError, SluiceError
from consumer.observability.logging import printable, set_up_logging
from consumer.tools.bench import bench
from consumer.tools.demo import demo
from consumer.tools.dlq import app as dlq
from consumer.tools.doctor import doctor
from consumer.tools.produce import produce
from consumer.tools.tail import tail
from consumer.tools.verify import verify

_log = structlog.get_logger(__name__)

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
    """Run the consumer until SIGTERM or SIGINT, then drain and exit 0. A second signal ends it immediately."""
    from consumer.app import serve
    from consumer.concurrency import Stop
    from consumer.signals import stop_on_signals

    settings = load_config(config)
    set_up_logging(settings.log)
    stop = Stop(time.monotonic)
    stop_on_signals(stop)
    try:
        serve(settings, stop)
    except ConfigError:
        raise  # `main` prints it as plain text instead of a log line, as for any other command
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


def main() -> None:
    """Run the `sluice` script. This is its entry point.

    Raises:
        SystemExit: The command has ended. After a SluiceError, the exit code is the one of its class.
    """
    try:
        app(standalone_mode=True)
    except SluiceError as error:
        lines = map(printable, str(error).split("\n"))  # a ConfigError has one line for each wrong option
        sys.stderr.write("sluice: " + "\n".join(lines) + "\n")
        raise SystemExit(error.exit_code) from None


def _leave(code: int) -> NoReturn:
    """End the process immediately.

    Everything that must be closed is already closed, and a native thread that hangs must not block the exit.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
