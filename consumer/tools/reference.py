"""Generates `docs/reference.md` from the declarations of options, metrics and exit codes.

    python -m consumer.tools.reference > docs/reference.md

A test compares the file with this output, so that the page stays up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from consumer import errors
from consumer.config import OWN_SETTINGS, options
from consumer.observability.metrics import Metrics


def reference() -> str:
    """The whole page in Markdown."""
    return "\n".join([*_options(), *_own_settings(), *_metrics(), *_exit_codes()]) + "\n"


def _options() -> Iterator[str]:
    yield "# Reference"
    yield ""
    yield "Written by `python -m consumer.tools.reference` from the code; do not edit."
    yield ""
    yield "## Options"
    yield ""
    yield "In a YAML or TOML file (`sluice run -c FILE`, or `$SLUICE_CONFIG`) as sections, or as environment variables,"
    yield "which beat the file. Lists and maps in the environment are JSON."
    yield ""
    yield "| option | environment | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for path, variable, default, meaning in options():
        shown = "unset" if default is None else json.dumps(default)
        yield f"| `{path}` | `{variable}` | `{shown}` | {meaning} |"
    yield ""


def _own_settings() -> Iterator[str]:
    yield "## librdkafka settings that are not free"
    yield ""
    yield "`kafka.client`, `kafka.consumer` and `kafka.producer` take any librdkafka setting but these:"
    yield ""
    yield "| setting | why, or what to set instead |"
    yield "| --- | --- |"
    for name, why in OWN_SETTINGS.items():
        yield f"| `{name}` | {why} |"
    yield ""


def _metrics() -> Iterator[str]:
    yield "## Metrics"
    yield ""
    yield "On `/metrics`, in base units. Histograms have `_bucket`, `_sum` and `_count`."
    yield ""
    yield "| metric | type | unit | labels | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    metrics = Metrics()
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(metrics.labels.get(name, ()))
        yield f"| `{name}` | {family.type} | {_unit(name)} | {labels} | {family.documentation} |"
    yield ""


def _unit(name: str) -> str:
    """The unit at the end of a metric name, as is the convention of Prometheus. Counts and flags have none."""
    last = name.removesuffix("_total").rpartition("_")[2]
    return last if last in {"seconds", "bytes", "frames", "records", "partitions", "threads"} else ""


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes"
    yield ""
    yield "| code | restart helps | meaning |"
    yield "| --- | --- | --- |"
    yield "| 0 | - | Drained after SIGTERM or SIGINT: what was submitted is published, and committed if it was taken. |"
    yield "| 130, 143 | yes | A second SIGINT or SIGTERM ended it at once: frames in flight are repeated. |"
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.SluiceError)]
    for error in sorted(found, key=lambda e: e.exit_code):
        meaning = (error.__doc__ or "").strip().splitlines()[0]
        meaning = "Any other error; please report it." if error is errors.SluiceError else meaning
        yield f"| {error.exit_code} | {'yes' if error.retriable else 'no'} | {error.__name__}: {meaning} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
