"""Records that the Python client cannot write: header names of any bytes, by the C functions of its own library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import confluent_kafka

from brokers import Broker

# Tags of rd_kafka_producev's arguments, from librdkafka's rdkafka.h.
_END, _TOPIC, _VALUE, _KEY, _FLAGS, _HEADER = 0, 1, 4, 5, 7, 9
_COPY = 2
_TIMEOUT_MS = 10_000


def produce_raw(broker: Broker, topic: str, key: bytes, value: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Write one record and wait until it is acknowledged. A header name may be any bytes but NUL."""
    library = ctypes.CDLL(str(_library()))
    for function in (library.rd_kafka_conf_new, library.rd_kafka_new):
        function.restype = ctypes.c_void_p
    problem = ctypes.create_string_buffer(512)
    settings = ctypes.c_void_p(library.rd_kafka_conf_new())
    for name, setting in (
        (b"bootstrap.servers", broker.bootstrap_servers.encode()),
        (b"partitioner", b"murmur2_random"),
    ):
        assert library.rd_kafka_conf_set(settings, name, setting, problem, len(problem)) == 0, problem.value
    client = ctypes.c_void_p(library.rd_kafka_new(0, settings, problem, len(problem)))
    assert client.value, problem.value
    arguments: list[object] = [_TOPIC, topic.encode(), _FLAGS, _COPY]
    for tag, content in ((_VALUE, value), (_KEY, key)):
        arguments += [tag, content, ctypes.c_size_t(len(content))]
    for name, content in headers:
        arguments += [_HEADER, name, content, ctypes.c_ssize_t(len(content))]
    try:
        assert library.rd_kafka_producev(client, *arguments, _END) == 0
        assert library.rd_kafka_flush(client, _TIMEOUT_MS) == 0, "not acknowledged"
    finally:
        library.rd_kafka_destroy(client)


def _library() -> Path:
    """The librdkafka that comes in confluent-kafka's wheel."""
    (found,) = Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka*.so*")
    return found
