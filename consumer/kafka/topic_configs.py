"""Reads topic configurations from the brokers. The user needs the permission DESCRIBE_CONFIGS on the topics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource

_Code = confluent_kafka.KafkaError
_ANSWER_S: Final = 5.0
_SIZES: Final = ("max.message.bytes", "segment.bytes")


class Described(NamedTuple):
    """The configuration of one topic, as far as it is known."""

    max_bytes: int | None = None  # of a batch; None if not known
    compacted: bool = False
    refused: bool = False  # whether this user lacks the permission to read it


Describe = Callable[[], Mapping[str, Described]]


def describe(settings: Mapping[str, Any], topics: Sequence[str]) -> dict[str, Described]:
    """Ask the brokers for the configurations of these topics. Blocks for seconds at most.

    Args:
        settings: librdkafka settings of the client.
        topics: The topics.

    Returns:
        The configuration by topic. If the brokers do not return that of a topic, its entry is empty.
    """
    # The client does not log, because the producer already logs when brokers are unavailable.
    client = AdminClient({**settings, "log_level": 0})
    resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
    answers = client.describe_configs(resources, request_timeout=_ANSWER_S)
    found = {}
    for resource, answer in answers.items():
        try:
            entries = answer.result(_ANSWER_S + 1)
        except KafkaException as error:
            code = error.args[0].code()
            refused = code in (_Code.TOPIC_AUTHORIZATION_FAILED, _Code.CLUSTER_AUTHORIZATION_FAILED)
            found[resource.name] = Described(refused=refused)
        else:
            # A batch must also fit in a segment.
            sizes = [int(entries[name].value) for name in _SIZES if name in entries and entries[name].value]
            policy = entries["cleanup.policy"].value if "cleanup.policy" in entries else ""
            found[resource.name] = Described(min(sizes, default=None), "compact" in str(policy))
    return found
