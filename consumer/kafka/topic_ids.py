"""Detects input topics that were deleted and created again, by their topic IDs (KIP-516).

This topic keeps its name, but gets another ID, and its offsets refer to other records. The client library does not
report this. The brokers refuse its next fetch, which contains the old ID. After `fetch.error.backoff.ms` (half a
second) the client continues in the new topic, at the offset of the old one.

So each commit carries the ID of its topic, and each assignment compares this ID with the current one. In addition, a
thread asks for the IDs several times in half a second.
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
_AGREEING: Final = 8  # number of equal answers in a row, over more than a second
_NO_ID: Final = "A" * 22  # 16 bytes of zeros: brokers before 2.8 have no topic IDs
_PREFIX: Final = "topic-id:"
# The topic does not exist now, or this user has no permission for it, so there is no ID to compare.
_UNKNOWN: Final = {_Code.UNKNOWN_TOPIC_OR_PART, _Code.TOPIC_AUTHORIZATION_FAILED}


class Replaced(NamedTuple):
    """A topic whose current ID differs from the ID at the assignment of its partitions."""

    topic: str
    before: str
    now: str


class TopicIds:
    """Asks the brokers for topic IDs. `look_up` blocks. `watch` asks on a separate thread until `close`.

    Args:
        config: The client connects with the settings of the consumer.
    """

    def __init__(self, config: Config) -> None:
        # The client does not log, because the consumer already logs problems with the brokers.
        settings = {**config.kafka.shared, **config.kafka.consumer, "log_level": 0}
        settings.pop("debug", None)  # it would log in spite of the log level
        self._client = AdminClient(settings | {"bootstrap.servers": config.kafka.bootstrap_servers})
        self._cluster = ""
        self._expected: Mapping[str, str] = {}  # two threads read it, so it is replaced as a whole and never modified
        self._replaced: Replaced | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="topic-ids", daemon=True)

    @property
    def replaced(self) -> Replaced | None:
        """The first topic whose ID was found to differ from the expected one. None if there is none."""
        return self._replaced

    def look_up(self, topics: Collection[str]) -> dict[str, str]:
        """Ask the brokers for the IDs of these topics. Blocks up to `ANSWER_S`; up to twice that the first time.

        Returns:
            `<cluster ID>/<topic ID>` by topic, without topics that do not exist or have no ID.

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
        """Ask for the ID of the topic until the brokers agree.

        For some time after a topic was created again, a broker with outdated metadata answers with the old ID.

        Returns:
            The ID on which the brokers agree, or the last answer after `ANSWER_S`; "" if the topic does not exist.

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
        """Expect these IDs from now on. If a topic has another ID, `replaced` is set.

        Args:
            ids: The expected ID of each topic. Replaces the IDs of an earlier call.
        """
        self._expected = dict(ids)
        if ids and self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """Stop watching. Does not wait for a request in flight."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(_WATCH_EVERY_S):
            expected = self._expected
            with contextlib.suppress(KafkaException):  # if the brokers are unavailable, no frames arrive either
                found = self.look_up(expected)
                if expected is self._expected:  # otherwise the assignment has changed meanwhile
                    seen = [Replaced(topic, expected[topic], now) for topic, now in found.items()]
                    other = (each for each in seen if is_another(each.before, each.now))
                    self._replaced = self._replaced or next(other, None)


def is_another(before: str, now: str) -> bool:
    """Return whether these IDs belong to two different topics of one cluster.

    IDs of two clusters are not compared, because one topic may be the mirror of the other.
    """
    clusters = before.partition("/")[0], now.partition("/")[0]
    return bool(before and now) and before != now and clusters[0] == clusters[1]


def to_metadata(topic_id: str) -> str:
    """Return the metadata of a commit, which names the topic that the offset belongs to."""
    return _PREFIX + topic_id if topic_id else ""


def from_metadata(metadata: str | None) -> str:
    """Return the topic ID in the metadata of a commit; "" if the metadata is not from Sluice or has no ID."""
    return metadata.removeprefix(_PREFIX) if metadata and metadata.startswith(_PREFIX) else ""
