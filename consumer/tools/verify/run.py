"""The steps of `sluice verify`. The result is sound because of their order.

    1. read the committed offsets of the group
    2. read the ends of the output topics
    3. determine the range of the input topics, and their ends
    4. read the input
    5. read the outputs, up to the ends of step 2
    6. if a record below the committed offset has no outcome: find out what may have been deleted or came later

Why this is sound while the group runs: Sluice commits an offset only after the brokers have acknowledged the outcomes
below it. So the outcomes below an offset of step 1 lie before the ends of step 2, and step 5 reads them. These ends
include records that are not committed: the offsets of a transaction can become visible before its last marker is
written, and a reader of committed records waits there. An outcome before an end of step 2 belongs to a record that
existed before step 3. So an outcome of an offset beyond the end of the input is invented.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from consumer.errors import ConfigError, KafkaError
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.doctor.cluster import Cluster
from consumer.tools.kafka.reader import TopicReader, TopicRecord
from consumer.tools.verify.brokers import Brokers, Stopped
from consumer.tools.verify.checker import Checker
from consumer.tools.verify.outcome_parser import OutcomeParser, source_of, written_ms
from consumer.tools.verify.request import Bound, Request
from consumer.tools.verify.types import OffsetRange, Position, Report, Role, Violation
from consumer.types import TopicPartition

# One byte each. A larger range is most likely a mistake, and would use up the memory of the machine.
MAX_OFFSETS: Final = 4 * 2**30

Offsets = Mapping[TopicPartition, int]
Progress = Callable[[str, int, int], None]  # what is read, offsets passed since the last call, offsets in total


@dataclass(slots=True)
class _OutcomePartition:
    """The offsets to read of one partition of an output topic.

    Attributes:
        chosen: the user asked for this start.
        cut: there were records before the start.
        first_ms: when the first record that was read was written.
    """

    role: Role
    start: int
    end: int
    chosen: bool
    cut: bool = False
    first_ms: int | None = None


@dataclass(slots=True)
class VerifyRun:
    """One run of `sluice verify`. `now_ms`: Unix milliseconds at its start."""

    request: Request
    brokers: Brokers
    cluster: Cluster
    now_ms: int
    progress: Progress
    _outputs: dict[TopicPartition, _OutcomePartition] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _outcomes_read: int = 0

    def __call__(self) -> Report:
        """Perform all steps.

        Raises:
            ConfigError: the range or the topics cannot be checked.
            KafkaError: the brokers do not answer, or a topic cannot be read.
            Stopped: the user ended the command.
        """
        request = self.request
        with (
            self.brokers.reader(request.isolation, skips_deleted=True) as reader,
            self.brokers.reader("read_committed", skips_deleted=False) as output_reader,
        ):
            inputs = [each for topic in request.inputs for each in _partitions(reader, topic)]
            committed = self.brokers.committed(request.group, inputs)  # 1
            self._find_outputs(output_reader)  # 2
            ranges = self._ranges(inputs, committed)  # 3
            checker = Checker(ranges, request.exactly_once, request.keep)
            self._read_input(reader, checker)  # 4
            self._check_ends(reader)
            for topic in request.roles.values():
                self._update_beginnings(topic, checker)
                self._read_outcomes(topic, output_reader, checker)  # 5
            judged_from = self._judged_from(ranges) if checker.cut and checker.has_open() else {}  # 6
            if checker.settle(judged_from):
                self._read_later_outcomes(output_reader, checker)
            result = checker.result()
            result.violations = [_with_source(each, reader) for each in result.violations]
            self._check_stop()
        if result.ignored["compacted_input"]:
            self._notes.append(
                "outcomes of offsets without a record are not judged: an input topic is compacted, or its "
                "cleanup.policy cannot be read (that needs DESCRIBE_CONFIGS)"
            )
        return Report(result, self._outcomes_read, self._notes)

    def _find_outputs(self, reader: TopicReader) -> None:
        """Determine the first offset to read and the end of each partition of the output topics."""
        roles = {each: role for role, topic in self.request.roles.items() for each in _partitions(reader, topic)}
        for topic in self.request.roles.values():
            if "compact" in (self._setting(topic, "cleanup.policy") or ""):
                raise ConfigError(
                    f"topic {printable(topic)} is compacted (cleanup.policy): it keeps only the newest outcome "
                    "of each source, so it does not show whether each record had one"
                )
        ends, oldest = self.brokers.ends(roles), self.brokers.beginnings(roles)
        wanted = self._resolve(self.request.outcomes_from, ends)
        for each, role in roles.items():
            first = wanted.get(each, 0)
            self._outputs[each] = _OutcomePartition(role, max(oldest[each], first), ends[each], first > oldest[each])

    def _ranges(self, inputs: list[TopicPartition], committed: Offsets) -> dict[TopicPartition, OffsetRange]:
        oldest = self.brokers.beginnings(inputs)
        log_ends = self.brokers.ends(inputs)
        readable = log_ends
        if self.request.isolation == "read_committed":
            readable = self.brokers.ends(inputs, committed=True)
        first, last = self._resolve(self.request.start, log_ends), self._resolve(self.request.end, log_ends)
        whole = {topic: self._setting(topic, "cleanup.policy") == "delete" for topic in self.request.inputs}
        ranges = {}
        for each in inputs:
            start = max(oldest[each], first.get(each, 0))
            end = max(start, min(readable[each], last.get(each, readable[each])))
            ranges[each] = OffsetRange(start, end, committed.get(each, -1), log_ends[each], whole[each.topic])
        total = sum(each.end - each.start for each in ranges.values())
        if total > MAX_OFFSETS:
            raise ConfigError(f"the range has {total:,} offsets, each takes a byte: narrow it with --from and --to")
        if total and all(each.committed < 0 for each in ranges.values()):
            raise ConfigError(
                f"group {printable(self.request.group)} has committed no offset of "
                f"{', '.join(map(printable, self.request.inputs))}, so nothing can be judged: check --group, "
                "or run this after the group has worked"
            )
        return ranges

    def _resolve(self, bound: Bound | None, ends: Offsets) -> dict[TopicPartition, int]:
        """The offset that a bound means in each partition. Empty if there is no bound."""
        if bound is None:
            return {}
        if not bound.is_time:
            return dict.fromkeys(ends, bound.value)
        found = self.brokers.at_time(ends, bound.value)
        return {each: ends[each] if offset < 0 else offset for each, offset in found.items()}

    def _read_input(self, reader: TopicReader, checker: Checker) -> None:
        total = sum(each.end - each.start for each in checker.ranges.values())
        for topic in self.request.inputs:
            ranges = {each.partition: (r.start, r.end) for each, r in checker.ranges.items() if each.topic == topic}
            for found in self._scan(reader, topic, ranges, "reading the input", total):
                checker.add_input(TopicPartition(topic, found.partition), found.offset)
        # Only after reading: an offset whose record was deleted meanwhile does not count as one without a record.
        for partition, offset in self.brokers.beginnings(checker.ranges).items():
            checker.deleted_below(partition, offset)

    def _scan(
        self, reader: TopicReader, topic: str, ranges: Mapping[int, tuple[int, int]], what: str, total: int
    ) -> Iterator[TopicRecord]:
        yield from reader.scan(topic, ranges, lambda passed: self.progress(what, passed, total))
        self._check_stop()

    def _check_stop(self) -> None:
        if self.brokers.stop.is_set():
            raise Stopped

    def _check_ends(self, reader: TopicReader) -> None:
        """Raise KafkaError if a broker reports an end before the records that it delivered.

        The result depends on exact ends. Some brokers report the offset of the last batch instead.
        """
        for partition, end in self.brokers.ends(reader.observed_ends).items():
            if end < reader.observed_ends[partition]:
                raise KafkaError(
                    f"the brokers report that {printable(str(partition))} ends at {end}, but they delivered records "
                    f"up to {reader.observed_ends[partition]}: without exact ends nothing can be judged"
                )

    def _update_beginnings(self, topic: str, checker: Checker) -> None:
        """Retention may have deleted more records since step 2."""
        outputs = {each: output for each, output in self._outputs.items() if each.topic == topic}
        for each, oldest in self.brokers.beginnings(outputs).items():
            output = outputs[each]
            output.start = max(output.start, oldest)
            if output.start > 0:
                output.cut = True
                checker.cut.add((output.role, each.partition))

    def _read_outcomes(self, topic: str, reader: TopicReader, checker: Checker) -> None:
        parser = OutcomeParser(self.request.group)
        total = sum(max(0, output.end - output.start) for output in self._outputs.values())
        ranges = {each.partition: (o.start, o.end) for each, o in self._outputs.items() if each.topic == topic}
        for partition, offset, record in self._scan(reader, topic, ranges, "reading the outcomes", total):
            self._outcomes_read += 1
            output = self._outputs[TopicPartition(topic, partition)]
            if output.first_ms is None:
                output.first_ms = written_ms(record)
            outcome = parser.parse(output.role, Position(topic, partition, offset), record)
            if isinstance(outcome, str):
                checker.ignore(outcome)
            else:
                checker.add_outcome(outcome)

    def _read_later_outcomes(self, reader: TopicReader, checker: Checker) -> None:
        """Read what was written since step 2. A record with an outcome there is not lost, but its commit was ahead."""
        for each, end in self.brokers.ends(self._outputs).items():
            output = self._outputs[each]
            output.start, output.end = output.end, max(output.end, end)
        for topic in self.request.roles.values():
            self._read_outcomes(topic, reader, checker)

    def _judged_from(self, ranges: Iterable[TopicPartition]) -> Offsets:
        """The first input offsets whose outcomes cannot have been deleted.

        A deleted outcome is older than the first one that its partition still holds. So the outcome of a record that is
        newer than that was not deleted.
        """
        since_ms = max(self._deleted_before_ms(each, output) for each, output in self._outputs.items() if output.cut)
        self._notes.append(
            "the beginning of an output topic is deleted or was left out: records without an outcome that are older "
            "than what is left are counted as unjudged"
        )
        ends = self.brokers.ends(ranges)
        found = self.brokers.at_time(ends, since_ms)
        return {each: ends[each] if offset < 0 else offset for each, offset in found.items()}

    def _deleted_before_ms(self, partition: TopicPartition, output: _OutcomePartition) -> int:
        """All records that are missing at the beginning of a partition were written before this time."""
        first_ms = self.now_ms if output.first_ms is None else output.first_ms
        kept_ms = self._setting(partition.topic, "retention.ms")
        by_time_alone = self._setting(partition.topic, "retention.bytes") == "-1"
        if output.chosen or kept_ms is None or int(kept_ms) < 0 or not by_time_alone:
            return first_ms
        return min(first_ms, self.now_ms - int(kept_ms))

    def _setting(self, topic: str, name: str) -> str | None:
        """A setting of a topic. None if this user may not read it."""
        settings = self.cluster.topic(topic).settings
        return None if settings is None else settings.get(name)


def _partitions(reader: TopicReader, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in reader.partitions(topic)]


def _with_source(violation: Violation, reader: TopicReader) -> Violation:
    """Add the source of a record that has no outcome, from the input topic."""
    if violation.kind != "missing":
        return violation
    topic, partition, offset = violation.input.rsplit("/", 2)
    record = reader.record_at(topic, int(partition), int(offset))
    at = TopicPartition(topic, int(partition))
    return replace(violation, source=None if record is None else source_of(record, at, int(offset)))


def open_run(
    connection: clients.Connection, request: Request, *, now_ms: int, stop: threading.Event, progress: Progress
) -> VerifyRun:
    """Prepare a run on the brokers of a connection. Raises ConfigError if the Kafka client refuses its settings."""
    brokers = Brokers(connection.bootstrap_servers, connection.consumer, stop)
    cluster = Cluster(connection.bootstrap_servers, connection.consumer)
    return VerifyRun(request, brokers, cluster, now_ms, progress)
