"""Which checks there are, in which order, and what a later one takes from an earlier one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from consumer.kafka.consumer_settings import consumer_settings
from consumer.kafka.producer_settings import producer_settings
from consumer.tools.clients import Connection
from consumer.tools.doctor import connectivity, frames, group, http_port, model, rights, settings, sizes, topics
from consumer.tools.doctor.cluster import Cluster, Group, Logs
from consumer.tools.doctor.connectivity import Connectivity
from consumer.tools.doctor.findings import Finding, Reporter
from consumer.tools.doctor.http_port import running_state
from consumer.tools.doctor.model import ModelProbe
from consumer.tools.doctor.runner import Check
from consumer.tools.doctor.sample import SampledFrame, sample
from consumer.tools.doctor.topics import Topics
from consumer.types import TopicPartition

_CONTACT_S = 10.0
_NO_ANSWER = "the brokers did not answer"
_NO_TOPIC = "no input topic could be described"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. `load_model` None: unless a Sluice runs here already."""

    offline: bool = False
    grace_s: float | None = None
    pods: int | None = None
    load_model: bool | None = None
    sample: int = 100


class Checklist:
    """The checks of one examination. They run in the order of `checks`, on one thread."""

    def __init__(self, there: Connection, options: Options) -> None:
        self._there = there
        self._config = there.config
        self._options = options
        self._running: str | None = None
        self._tried: ModelProbe | None = None
        self._contact: Connectivity | None = None
        self._reader: Cluster | None = None  # as the program's consumer sees it: input, group, offsets
        self._writer: Cluster | None = None  # as its producer does: output, dead letters, transactions
        self._topics: Topics | None = None
        self._group: Group | None = None
        self._sending: Group | None = None  # the same, as the producer sees it
        self._logs: Logs = {}
        self._seen: list[SampledFrame] = []

    def checks(self) -> list[Check]:
        """Those without a cluster first: they are quick, and a wrong model is no less wrong without brokers."""
        offline = [
            Check("http", self._http),
            Check("poll-interval", lambda report: settings.poll_interval(self._config, report)),
            Check("session", lambda report: settings.session(self._config, report)),
            Check("grace-period", lambda report: settings.grace_period(self._config, self._options.grace_s, report)),
            Check("model", self._model),
            Check("engine", self._engine),
        ]
        online = [
            Check("brokers", self._brokers),
            Check("features", self._features),
            Check("topics", self._find_topics),
            Check("partitions", self._partitions),
            Check("replication", self._replication),
            Check("rights", self._rights),
            *([Check("transactions", self._transactions)] if self._config.delivery == "exactly_once" else []),
            Check("frame-size", self._frame_size),
            Check("result-size", self._result_size),
            Check("dead-letter-size", self._dead_letter_size),
            Check("offsets", self._offsets),
            Check("partitioner", self._partitioner),
            Check("clocks", self._clocks),
        ]
        return offline if self._options.offline else [*offline, *online]

    # Without a cluster

    def _http(self, report: Reporter) -> Iterator[Finding]:
        self._running = running_state(self._config.http) if self._config.http.port else None
        yield from http_port.http_port(self._config.http, self._running, report)

    def _model(self, report: Reporter) -> Iterator[Finding]:
        wanted = self._options.load_model
        if wanted is False:
            yield report.skipped("--no-load-model")
        elif wanted is None and self._running is not None:
            yield report.skipped(
                "a running sluice has loaded it, and a second copy might take its memory (--load-model loads it)"
            )
        else:
            self._tried = model.probe_model(self._config)
            yield from model.model(self._config, self._tried, report)

    def _engine(self, report: Reporter) -> Iterator[Finding]:
        if self._tried is None:
            yield report.skipped("the model was not loaded")
        else:
            yield from model.engine(self._config, self._tried, report)

    # With one

    def _brokers(self, report: Reporter) -> Iterator[Finding]:
        """Twice where the program's two clients do not connect alike: each may fail alone."""
        there = self._there
        of_consumer = replace(report, about="the consumer (kafka.consumer): ") if there.apart else report
        self._contact, reached = yield from self._meet(there.consumer, of_consumer)
        if reached:
            self._reader = Cluster(there.bootstrap_servers, there.consumer)
        if there.apart:
            of_producer = replace(report, about="the producer (kafka.producer): ")
            _, reached = yield from self._meet(there.producer, of_producer)
        if reached:
            self._writer = Cluster(there.bootstrap_servers, there.producer)

    def _meet(self, settings: dict[str, Any], report: Reporter) -> Generator[Finding, None, tuple[Connectivity, bool]]:
        """Returns what came of it, and whether any broker can be asked."""
        servers = self._there.bootstrap_servers
        met = connectivity.reach(servers, settings, _CONTACT_S)
        silent = connectivity.silent(met, settings)
        yield from connectivity.brokers(servers, met, silent, report)
        return met, len(silent) < len(met.brokers)

    def _features(self, report: Reporter) -> Iterator[Finding]:
        protocol = str(self._consumer_settings.get("group.protocol", "classic"))
        apis = self._contact.apis if self._contact is not None else {}
        yield from connectivity.features(apis, protocol, self._config.delivery, report)

    def _find_topics(self, report: Reporter) -> Iterator[Finding]:
        if self._reader is None or self._writer is None:
            yield report.skipped(_NO_ANSWER)
            return
        config, group = self._config, self._config.kafka.group_id
        inputs = [self._reader.topic(name) for name in config.input.topics]
        output, dead = (self._writer.topic(name) for name in (config.output.topic, config.dead_letter.topic))
        self._topics = Topics(inputs, output, dead)
        places = [TopicPartition(topic.name, number) for topic in inputs for number in range(topic.partitions)]
        self._group = self._reader.group(group, places)
        if self._there.apart and config.delivery == "exactly_once":  # it sends the offsets
            self._sending = self._writer.group(group, [])
        self._logs = self._reader.logs(places)
        yield from topics.exist(self._topics, report)

    def _partitions(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from topics.partitions(self._config, self._topics, self._group, self._options.pods, report)

    def _replication(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None or self._contact is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from topics.replication(self._topics, len(self._contact.brokers), report)

    def _rights(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None or self._group is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from rights.rights(self._config, self._topics, self._group, report, sending=self._sending)

    def _transactions(self, report: Reporter) -> Iterator[Finding]:
        if self._writer is None:
            yield report.skipped(_NO_ANSWER)
            return
        own = self._config.kafka
        name = f"{own.transactional_id}-doctor" if own.transactional_id else f"sluice-{own.group_id}-doctor"
        yield from rights.transactions(self._config, name, self._writer.transaction_error(name), report)

    def _frame_size(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from sizes.frames(self._config, self._topics, self._consumer_settings, report)

    def _result_size(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None:
            yield report.skipped(_NO_ANSWER)
        else:
            info = self._tried.info if self._tried is not None else None
            yield from sizes.results(self._config, self._topics, producer_settings(self._config), info, report)

    def _dead_letter_size(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from sizes.dead_letters(self._topics, producer_settings(self._config), report)

    def _offsets(self, report: Reporter) -> Iterator[Finding]:
        if self._group is None:
            yield report.skipped(_NO_ANSWER)
        elif not self._logs:
            yield report.skipped(_NO_TOPIC)
        else:
            reset = str(self._consumer_settings["auto.offset.reset"])
            yield from group.offsets(self._group, self._logs, reset, report)

    def _partitioner(self, report: Reporter) -> Iterator[Finding]:
        if self._reader is None or self._topics is None:
            yield report.skipped(_NO_ANSWER)
        elif not self._logs:
            yield report.skipped(_NO_TOPIC)
        else:
            self._seen = sample(self._reader, self._logs, self._options.sample)
            counts = {topic.name: topic.partitions for topic in self._topics.inputs}
            yield from frames.partitioning(self._seen, counts, report)

    def _clocks(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from frames.clocks(self._seen, report)

    @property
    def _consumer_settings(self) -> dict[str, Any]:
        return consumer_settings(self._config)
