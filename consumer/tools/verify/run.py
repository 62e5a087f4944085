"""The steps of `sluice verify`, in the order on which its verdict stands.

    1. the committed offsets of the group
    2. the ends of the output topics
    3. the range of the input topics, and their ends
    4. read the input
    5. read the outputs, up to the ends of step 2
    6. if a record below the committed offset has no outcome: what of it may be deleted, and what came later

Why this is sound while the group runs: Sluice commits an offset only after the brokers have acknowledged the outcomes
below it. So the outcomes below an offset of step 1 lie before the ends of step 2, and step 5 sees them. These ends
count all written records, not only the committed ones: a transaction's offsets can become visible before the last of
its markers is written, and a reader of committed records waits at that place. An outcome before an end of step 2 was
made of a record that was there before step 3, so one beyond the end of the input is invented.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from consumer.errors import ConfigError, KafkaError
from consumer.observability.logging import printable
from consumer.tools import clients
from consumer.tools.doctor.cluster import Cluster
from consumer.tools.verify.brokers import Brokers, Reader
from consumer.tools.verify.checker import Checker
from consumer.tools.verify.outcome_parser import OutcomeParser, source_of, written_ms
from consumer.tools.verify.request import Bound, Request
from consumer.tools.verify.types import OffsetRange, Position, Report, Role, Violation
from consumer.types import Record, TopicPartition

# One byte each. More is a sign of a wrong range, and would take the machine's memory without a word.
MOST_OFFSETS: Final = 4 * 2**30

Offsets = Mapping[TopicPartition, int]
Progress = Callable[[str, int, int], None]  # what is read, offsets passed since the last call, offsets in all


@dataclass(slots=True)
class _OutcomePartition:
    """One partition of outcomes: what is read of it. `first_ms`: when its first record that was read was written.

    `chosen`: the user asked for this start. `cut`: there were records before it.
    """

    role: Role
    start: int
    end: int
    chosen: bool
    cut: bool = False
    first_ms: int | None = None


@dataclass(slots=True)
class VerifyRun:
    """One check. `now_ms`: Unix milliseconds at its start."""

    request: Request
    brokers: Brokers
    cluster: Cluster
    now_ms: int
    progress: Progress
    _logs: dict[TopicPartition, _OutcomePartition] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _read: int = 0

    def __call__(self) -> Report:
        """Raises ConfigError for a range or topics that cannot be judged, KafkaError, and Stopped."""
        request = self.request
        with (
            self.brokers.reader(request.isolation, skips_deleted=True) as reader,
            self.brokers.reader("read_committed", skips_deleted=False) as outputs,
        ):
            inputs = [each for topic in request.inputs for each in reader.partitions(topic)]
            committed = self.brokers.committed(request.group, inputs)  # 1
            self._find_logs(outputs)  # 2
            spans = self._spans(inputs, committed)  # 3
            checker = Checker(spans, request.exactly_once, request.keep)
            self._read_input(reader, checker)  # 4
            self._check_ends(reader)
            for topic in request.roles.values():
                self._find_beginnings(topic, checker)
                self._read_outcomes(topic, outputs, checker)  # 5
            judged_from = self._judged_from(spans) if checker.cut and checker.has_open() else {}  # 6
            if checker.settle(judged_from):
                self._read_later_outcomes(outputs, checker)
            verdict = checker.verdict()
            verdict.violations = [_with_source(each, reader) for each in verdict.violations]
        if verdict.ignored["compacted_input"]:
            self._notes.append(
                "outcomes of offsets without a record are not judged: an input topic is compacted, or its "
                "cleanup.policy cannot be read (that needs DESCRIBE_CONFIGS)"
            )
        return Report(verdict, self._read, self._notes)

    def _find_logs(self, outputs: Reader) -> None:
        """The partitions of outcomes, where their reading begins, and their ends."""
        of = {each: role for role, topic in self.request.roles.items() for each in outputs.partitions(topic)}
        for topic in self.request.roles.values():
            if "compact" in (self._setting(topic, "cleanup.policy") or ""):
                raise ConfigError(
                    f"topic {printable(topic)} is compacted (cleanup.policy): it keeps only the newest outcome "
                    "of each source, so it cannot tell whether each record had one"
                )
        ends, oldest = self.brokers.ends(of), self.brokers.beginnings(of)
        wanted = self._resolve(self.request.outcomes_from, ends)
        self._logs = {
            each: _OutcomePartition(
                role, max(oldest[each], wanted.get(each, 0)), ends[each], wanted.get(each, 0) > oldest[each]
            )
            for each, role in of.items()
        }

    def _spans(self, inputs: list[TopicPartition], committed: Offsets) -> dict[TopicPartition, OffsetRange]:
        oldest = self.brokers.beginnings(inputs)
        log_ends = self.brokers.ends(inputs)
        readable = log_ends
        if self.request.isolation == "read_committed":
            readable = self.brokers.ends(inputs, committed=True)
        first, last = self._resolve(self.request.start, log_ends), self._resolve(self.request.end, log_ends)
        whole = {topic: self._setting(topic, "cleanup.policy") == "delete" for topic in self.request.inputs}
        spans = {}
        for each in inputs:
            start = max(oldest[each], first.get(each, 0))
            end = max(start, min(readable[each], last.get(each, readable[each])))
            spans[each] = OffsetRange(start, end, committed.get(each, -1), log_ends[each], whole[each.topic])
        offsets = sum(span.end - span.start for span in spans.values())
        if offsets > MOST_OFFSETS:
            raise ConfigError(f"the range has {offsets:,} offsets, each takes a byte: narrow it with --from and --to")
        if offsets and all(span.committed < 0 for span in spans.values()):
            raise ConfigError(
                f"group {printable(self.request.group)} has committed no offset of "
                f"{', '.join(map(printable, self.request.inputs))}, so nothing can be judged: check --group, "
                "or run this when the group has worked"
            )
        return spans

    def _resolve(self, bound: Bound | None, ends: Offsets) -> dict[TopicPartition, int]:
        """The offset that a bound means in each partition; none of them where there is no bound."""
        if bound is None:
            return {}
        if not bound.is_time:
            return dict.fromkeys(ends, bound.value)
        found = self.brokers.at_time(ends, bound.value)
        return {each: ends[each] if offset < 0 else offset for each, offset in found.items()}

    def _read_input(self, reader: Reader, checker: Checker) -> None:
        total = sum(span.end - span.start for span in checker.spans.values())
        for topic in self.request.inputs:
            spans = {each.partition: (s.start, s.end) for each, s in checker.spans.items() if each.topic == topic}
            reader.scan(
                topic,
                spans,
                lambda partition, offset, _: checker.add_input(partition, offset),
                lambda passed: self.progress("reading the input", passed, total),
            )
        # Only now: what retention deleted while this read is not taken for a record that never was.
        for partition, offset in self.brokers.beginnings(checker.spans).items():
            checker.deleted_below(partition, offset)

    def _check_ends(self, reader: Reader) -> None:
        """The verdict stands on ends: a broker that gives the beginning of the last batch instead makes it wrong."""
        for partition, end in self.brokers.ends(reader.seen_ends).items():
            if end < reader.seen_ends[partition]:
                raise KafkaError(
                    f"the brokers say that {printable(str(partition))} ends at {end}, and have told of records "
                    f"up to {reader.seen_ends[partition]}: if they do not tell ends exactly, nothing can be judged"
                )

    def _find_beginnings(self, topic: str, checker: Checker) -> None:
        """Retention may have deleted more since step 2."""
        logs = {each: log for each, log in self._logs.items() if each.topic == topic}
        for each, oldest in self.brokers.beginnings(logs).items():
            log = logs[each]
            log.start = max(log.start, oldest)
            if log.start > 0:
                log.cut = True
                checker.cut.add((log.role, each.partition))

    def _read_outcomes(self, topic: str, outputs: Reader, checker: Checker) -> None:
        known = OutcomeParser(self.request.group)
        total = sum(max(0, log.end - log.start) for log in self._logs.values())
        spans = {each.partition: (log.start, log.end) for each, log in self._logs.items() if each.topic == topic}

        def take(partition: TopicPartition, offset: int, record: Record) -> None:
            self._read += 1
            log = self._logs[partition]
            if log.first_ms is None:
                log.first_ms = written_ms(record)
            outcome = known.read(log.role, Position(*partition, offset), record)
            if isinstance(outcome, str):
                checker.ignore(outcome)
            else:
                checker.add_outcome(outcome)

        outputs.scan(topic, spans, take, lambda passed: self.progress("reading the outcomes", passed, total))

    def _read_later_outcomes(self, outputs: Reader, checker: Checker) -> None:
        """What was written since step 2: a record whose outcome is there is not lost, but its commit was ahead."""
        for each, end in self.brokers.ends(self._logs).items():
            log = self._logs[each]
            log.start, log.end = log.end, max(log.end, end)
        for topic in self.request.roles.values():
            self._read_outcomes(topic, outputs, checker)

    def _judged_from(self, spans: Iterable[TopicPartition]) -> Offsets:
        """From these records on, an outcome that is not there was not deleted.

        A deleted outcome is older than the first one that is left in its partition. So the outcome of a record that is
        younger than that is not deleted.
        """
        since_ms = max(self._deleted_before_ms(each, log) for each, log in self._logs.items() if log.cut)
        self._notes.append(
            "the beginning of an output topic is deleted or was left out: records without an outcome that are older "
            "than what is left are counted as unjudged"
        )
        ends = self.brokers.ends(spans)
        found = self.brokers.at_time(ends, since_ms)
        return {each: ends[each] if offset < 0 else offset for each, offset in found.items()}

    def _deleted_before_ms(self, partition: TopicPartition, log: _OutcomePartition) -> int:
        """All that is missing at the beginning of a partition was written before this time."""
        first_ms = self.now_ms if log.first_ms is None else log.first_ms
        kept_ms = self._setting(partition.topic, "retention.ms")
        by_time_alone = self._setting(partition.topic, "retention.bytes") == "-1"
        if log.chosen or kept_ms is None or int(kept_ms) < 0 or not by_time_alone:
            return first_ms
        return min(first_ms, self.now_ms - int(kept_ms))

    def _setting(self, topic: str, name: str) -> str | None:
        """A setting of a topic; None where this user may not read it."""
        settings = self.cluster.topic(topic).settings
        return None if settings is None else settings.get(name)


def _with_source(violation: Violation, reader: Reader) -> Violation:
    """A record that has no outcome has its source in the input alone."""
    if violation.kind != "missing":
        return violation
    topic, partition, offset = violation.input.rsplit("/", 2)
    at = TopicPartition(topic, int(partition))
    record = reader.record_at(at, int(offset))
    return replace(violation, source=None if record is None else source_of(record, at, int(offset)))


def open_run(
    there: clients.Connection, request: Request, *, now_ms: int, stop: threading.Event, progress: Progress
) -> VerifyRun:
    """A check on the brokers of a connection. Raises ConfigError where the Kafka client refuses its settings."""
    brokers = Brokers(there.bootstrap_servers, there.consumer, stop)
    return VerifyRun(request, brokers, Cluster(there.bootstrap_servers, there.consumer), now_ms, progress)
