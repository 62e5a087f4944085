"""Which topic is behind a name: the IDs of the input topics (KIP-516), at each assignment and while frames are read.

A topic that is deleted and created again keeps its name and gets another ID. Its offsets name other records. The client
library does not tell. The brokers refuse its next fetch, which names the old ID, and `fetch.error.backoff.ms` (half a
second) later it reads on in the new topic, at the offset of the old one. So each commit carries the ID of the topic
that it is meant for, an assignment compares that ID, and a thread asks for the IDs several times in half a second.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from consumer.config import Config

_Code = confluent_kafka.KafkaError

ANSWER_S: Final = 5.0
_WATCH_EVERY_S: Final = 0.15
_AGREEING: Final = 8  # answers in a row, over a second
_NO_ID: Final = "A" * 22  # 16 bytes of zeros: brokers before 2.8 have no topic IDs
_PREFIX: Final = "topic-id:"
# The topic is not there at the moment, or this user may not know: there is nothing to compare.
_UNKNOWN: Final = {_Code.UNKNOWN_TOPIC_OR_PART, _Code.TOPIC_AUTHORIZATION_FAILED}


class Replaced(NamedTuple):
    """The topic has another ID than the one that its partitions were assigned with."""

    topic: str
    before: str
    now: str


class TopicIds:
    """Asks the brokers for topic IDs. `look_up` blocks; `watch` asks in a thread of its own until `close`."""

    def __init__(self, config: Config) -> None:
        # As the consumer connects. Quiet: the consumer logs what is wrong with the brokers.
        settings = {**config.kafka.shared, **config.kafka.consumer, "log_level": 0}
        settings.pop("debug", None)  # it would log all the same
        self._client = AdminClient(settings | {"bootstrap.servers": config.kafka.bootstrap_servers})
        self._cluster = ""
        self._expected: Mapping[str, str] = {}  # replaced as a whole, never changed: two threads read it
        self._replaced: Replaced | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="topic-ids", daemon=True)

    @property
    def replaced(self) -> Replaced | None:
        """The first topic that was seen with another ID than expected."""
        return self._replaced

    def look_up(self, topics: Collection[str]) -> dict[str, str]:
        """`<cluster ID>/<topic ID>` of these topics, without those that are not there or have none.

        Blocks for `ANSWER_S` at most, the first time for twice that.

        Raises:
            KafkaException: The brokers do not answer.
        """
        if not topics:
            return {}
        self._cluster = self._cluster or self._client.list_topics(timeout=ANSWER_S).cluster_id or ""
        found: dict[str, str] = {}
        asked = self._client.describe_topics(TopicCollection(sorted(topics)), request_timeout=ANSWER_S)
        for topic, answer in asked.items():
            try:
                topic_id = str(answer.result(ANSWER_S + 1).topic_id)
            except KafkaException as error:
                if error.args[0].code() not in _UNKNOWN:
                    raise
            except TimeoutError as error:
                raise KafkaException(_Code(_Code._TIMED_OUT, "no answer")) from error  # noqa: SLF001 - its own name
            else:
                if topic_id != _NO_ID:
                    found[topic] = f"{self._cluster}/{topic_id}"
        return found

    def look_up_settled(self, topic: str) -> str:
        """The ID of the topic on which the brokers agree, or the last answer after `ANSWER_S`; "" if it is not there.

        For some time after a topic was created again, a broker that is behind answers with the old ID.

        Raises:
            KafkaException: The brokers do not answer.
        """
        until = time.monotonic() + ANSWER_S
        answers: deque[str] = deque(maxlen=_AGREEING)
        while len(answers) < _AGREEING or len(set(answers)) > 1:
            answers.append(self.look_up([topic]).get(topic, ""))
            if time.monotonic() >= until:
                break
            self._stop.wait(_WATCH_EVERY_S)
        return answers[-1]

    def watch(self, ids: Mapping[str, str]) -> None:
        """Expect these IDs from now on, and say in `replaced` if a topic has another one."""
        self._expected = dict(ids)
        if ids and self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """Stop watching. Does not wait for an answer that is on its way."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(_WATCH_EVERY_S):
            expected = self._expected
            with contextlib.suppress(KafkaException):  # the brokers are away: no frames come either
                found = self.look_up(expected)
                if expected is self._expected:  # else the assignment has changed meanwhile
                    seen = [Replaced(topic, expected[topic], now) for topic, now in found.items()]
                    other = (each for each in seen if is_another(each.before, each.now))
                    self._replaced = self._replaced or next(other, None)


def is_another(before: str, now: str) -> bool:
    """Whether these are IDs of two topics of one cluster. Of two clusters, one topic may be the mirror of the other."""
    clusters = before.partition("/")[0], now.partition("/")[0]
    return bool(before and now) and before != now and clusters[0] == clusters[1]


def to_metadata(topic_id: str) -> str:
    """What a commit carries beside its offset: the topic that the offset is meant for."""
    return _PREFIX + topic_id if topic_id else ""


def from_metadata(metadata: str | None) -> str:
    """The topic ID in the metadata of a commit; "" if it is not one of ours or has none."""
    return metadata.removeprefix(_PREFIX) if metadata and metadata.startswith(_PREFIX) else ""
