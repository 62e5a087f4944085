"""Checks whether the HTTP port is free, or whether a running `sluice run` answers on it."""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Iterator

from consumer.config import HttpConfig
from consumer.tools.doctor.findings import Finding, Reporter

_ANSWER_S = 3.0
_STATES = (b"starting", b"running", b"draining", b"failed")


def running_state(config: HttpConfig) -> str | None:
    """The state that a running `sluice run` reports at this address; None if none answers."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104 - compared, not bound
    client = http.client.HTTPConnection(host, config.port, timeout=_ANSWER_S)
    try:
        client.request("GET", "/healthz")
        body = client.getresponse().read(64).strip()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        client.close()
    return body.decode() if body in _STATES else None


def http_port(config: HttpConfig, state: str | None, report: Reporter) -> Iterator[Finding]:
    """Report whether the program can listen. `state`: what a running `sluice run` reports there, if any."""
    where = f"{config.host}:{config.port}"
    if not config.port:
        yield report.warning(
            "http.port is 0: probes and Prometheus cannot reach the program", "set http.port, 8080 for example"
        )
    elif state == "failed":
        yield report.warning(
            f"the sluice that answers at {where} has failed and is about to end", "see the last error in its log"
        )
    elif state is not None:
        yield report.ok(f"a running sluice answers at {where}; its state is {state}")
    elif (reason := _refusal(config)) is not None:
        yield report.problem(
            f"cannot listen on {where}: {reason}",
            "end the program that uses the port, or change http.host and http.port",
        )
    elif config.host in ("127.0.0.1", "localhost", "::1"):
        yield report.ok(
            f"{where} is free; it is reachable from this machine only, so in a pod set http.host to 0.0.0.0"
        )
    else:
        yield report.ok(f"{where} is free")


def _refusal(config: HttpConfig) -> str | None:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "another program uses the port"
            return error.strerror or str(error)
    return None
