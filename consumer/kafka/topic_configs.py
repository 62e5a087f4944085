"""What the brokers say of topics, for users who have DESCRIBE_CONFIGS on them."""

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
    """What the brokers say of one topic. `refused`: this user may not ask."""

    max_bytes: int | None = None
    compacted: bool = False
    refused: bool = False


Describe = Callable[[], Mapping[str, Described]]


def describe(settings: Mapping[str, Any], topics: Sequence[str]) -> dict[str, Described]:
    """Ask the brokers, for seconds at most. Topics that they say nothing of have empty answers."""
    # It does not log: the producer says the same of brokers that are away.
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
            # A batch must fit in a segment too.
            sizes = [int(entries[name].value) for name in _SIZES if name in entries and entries[name].value]
            policy = entries["cleanup.policy"].value if "cleanup.policy" in entries else ""
            found[resource.name] = Described(min(sizes, default=None), "compact" in str(policy))
    return found
