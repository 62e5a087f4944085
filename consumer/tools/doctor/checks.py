"""The list of checks, their order, and the data that later checks take from earlier ones."""

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

_BOOTSTRAP_TIMEOUT_S = 10.0
_NO_ANSWER = "the brokers did not answer"
_NO_TOPIC = "no input topic could be described"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line. `load_model` None: load it unless a running `sluice run` answers."""

    offline: bool = False
    grace_s: float | None = None
    pods: int | None = None
    load_model: bool | None = None
    sample: int = 100


class Checklist:
    """The checks of one run. They run in the order of `checks`, on one thread."""

    def __init__(self, connection: Connection, options: Options) -> None:
        self._connection = connection
        self._config = connection.config
        self._options = options
        self._running_state: str | None = None
        self._probe: ModelProbe | None = None
        self._connectivity: Connectivity | None = None
        self._consumer_view: Cluster | None = None  # as the consumer: input, group, offsets
        self._producer_view: Cluster | None = None  # as the producer: output, dead letters, transactions
        self._topics: Topics | None = None
        self._group: Group | None = None
        self._group_as_producer: Group | None = None  # the group as its producer sees it
        self._logs: Logs = {}
        self._frames_sampled: list[SampledFrame] = []

    def checks(self) -> list[Check]:
        """The checks that need no cluster come first: they are quick, and they find problems without brokers."""
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

    # Checks that need no cluster

    def _http(self, report: Reporter) -> Iterator[Finding]:
        self._running_state = running_state(self._config.http) if self._config.http.port else None
        yield from http_port.http_port(self._config.http, self._running_state, report)

    def _model(self, report: Reporter) -> Iterator[Finding]:
        wanted = self._options.load_model
        if wanted is False:
            yield report.skipped("--no-load-model")
        elif wanted is None and self._running_state is not None:
            yield report.skipped(
                "a running sluice has loaded it, and a second copy may not fit into memory (--load-model loads it)"
            )
        else:
            self._probe = model.probe_model(self._config)
            yield from model.model(self._config, self._probe, report)

    def _engine(self, report: Reporter) -> Iterator[Finding]:
        if self._probe is None:
            yield report.skipped("the model was not loaded")
        else:
            yield from model.engine(self._config, self._probe, report)

    # Checks that need the cluster

    def _brokers(self, report: Reporter) -> Iterator[Finding]:
        """Check consumer and producer separately if they connect differently."""
        consumer_report = (
            replace(report, about="the consumer (kafka.consumer): ") if self._connection.clients_differ else report
        )
        self._connectivity, reached = yield from self._connect(self._connection.consumer, consumer_report)
        if reached:
            self._consumer_view = Cluster(self._connection.bootstrap_servers, self._connection.consumer)
        if self._connection.clients_differ:
            producer_report = replace(report, about="the producer (kafka.producer): ")
            _, reached = yield from self._connect(self._connection.producer, producer_report)
        if reached:
            self._producer_view = Cluster(self._connection.bootstrap_servers, self._connection.producer)

    def _connect(
        self, settings: dict[str, Any], report: Reporter
    ) -> Generator[Finding, None, tuple[Connectivity, bool]]:
        """Returns the connectivity, and whether any broker answers queries."""
        servers = self._connection.bootstrap_servers
        found = connectivity.connect(servers, settings, _BOOTSTRAP_TIMEOUT_S)
        unreachable = connectivity.unreachable_brokers(found, settings)
        yield from connectivity.brokers(servers, found, unreachable, report)
        return found, len(unreachable) < len(found.brokers)

    def _features(self, report: Reporter) -> Iterator[Finding]:
        protocol = str(self._consumer_settings.get("group.protocol", "classic"))
        apis = self._connectivity.apis if self._connectivity is not None else {}
        yield from connectivity.features(apis, protocol, self._config.delivery, report)

    def _find_topics(self, report: Reporter) -> Iterator[Finding]:
        if self._consumer_view is None or self._producer_view is None:
            yield report.skipped(_NO_ANSWER)
            return
        config, group = self._config, self._config.kafka.group_id
        inputs = [self._consumer_view.topic(name) for name in config.input.topics]
        output, dead = (self._producer_view.topic(name) for name in (config.output.topic, config.dead_letter.topic))
        self._topics = Topics(inputs, output, dead)
        places = [TopicPartition(topic.name, number) for topic in inputs for number in range(topic.partitions)]
        self._group = self._consumer_view.group(group, places)
        if self._connection.clients_differ and config.delivery == "exactly_once":  # its producer sends the offsets
            self._group_as_producer = self._producer_view.group(group, [])
        self._logs = self._consumer_view.logs(places)
        yield from topics.exist(self._topics, report)

    def _partitions(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from topics.partitions(self._config, self._topics, self._group, self._options.pods, report)

    def _replication(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None or self._connectivity is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from topics.replication(self._topics, len(self._connectivity.brokers), report)

    def _rights(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None or self._group is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from rights.rights(
                self._config, self._topics, self._group, report, group_as_producer=self._group_as_producer
            )

    def _transactions(self, report: Reporter) -> Iterator[Finding]:
        if self._producer_view is None:
            yield report.skipped(_NO_ANSWER)
            return
        own = self._config.kafka
        name = f"{own.transactional_id}-doctor" if own.transactional_id else f"sluice-{own.group_id}-doctor"
        yield from rights.transactions(self._config, name, self._producer_view.transaction_error(name), report)

    def _frame_size(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from sizes.frames(self._config, self._topics, self._consumer_settings, report)

    def _result_size(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None:
            yield report.skipped(_NO_ANSWER)
        else:
            info = self._probe.info if self._probe is not None else None
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
        if self._consumer_view is None or self._topics is None:
            yield report.skipped(_NO_ANSWER)
        elif not self._logs:
            yield report.skipped(_NO_TOPIC)
        else:
            self._frames_sampled = sample(self._consumer_view, self._logs, self._options.sample)
            counts = {topic.name: topic.partitions for topic in self._topics.inputs}
            yield from frames.partitioning(self._frames_sampled, counts, report)

    def _clocks(self, report: Reporter) -> Iterator[Finding]:
        if self._topics is None:
            yield report.skipped(_NO_ANSWER)
        else:
            yield from frames.clocks(self._frames_sampled, report)

    @property
    def _consumer_settings(self) -> dict[str, Any]:
        return consumer_settings(self._config)
