"""Checks the topics: whether they exist, their partitions and their replication."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from consumer.config import Config
from consumer.tools.doctor.cluster import Group, Topic
from consumer.tools.doctor.findings import Finding, Reporter


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of a configuration, as the brokers describe them."""

    inputs: Sequence[Topic]
    output: Topic
    dead: Topic

    @property
    def all(self) -> list[Topic]:
        return [*self.inputs, self.output, self.dead]

    @property
    def described(self) -> list[Topic]:
        """The topics that could be described."""
        return [topic for topic in self.all if not topic.error]


def exist(topics: Topics, report: Reporter) -> Iterator[Finding]:
    """Report missing topics: they stop the program, or the brokers create them with default settings."""
    for topic in topics.all:
        if topic.missing:
            yield report.problem(f"there is no topic {topic.name}", "create it, or correct its name")
        elif topic.error and not topic.hidden:
            yield report.problem(f"topic {topic.name} cannot be described: {topic.error}")
        elif topic.hidden:
            yield report.skipped(f"this user may not describe {topic.name}: see rights")
    if described := topics.described:
        yield report.ok(", ".join(f"{each.name} ({each.partitions} partitions)" for each in described))


def partitions(
    config: Config, topics: Topics, group: Group | None, pods: int | None, report: Reporter
) -> Iterator[Finding]:
    """Compare the partitions of the input with the pods, and with those of the output."""
    inputs = [topic for topic in topics.inputs if not topic.error]
    if not inputs:
        yield report.skipped("no input topic could be described")
        return
    total = sum(topic.partitions for topic in inputs)
    members = len(group.members) if group is not None else 0
    many, by = (pods, "--pods") if pods is not None else (members, f"members of {config.kafka.group_id} now")
    if many > total:
        yield report.warning(
            f"{many} pods ({by}) share {total} input partitions: {many - total} of them receive no partition",
            f"run at most {total} pods, or add partitions (the frames of a source may then move to another partition)",
        )
    elif many:
        share = f"{total // many} or {total // many + 1}" if total % many else f"{total // many}"
        yield report.ok(f"{total} input partitions for {many} pods ({by}), {share} each")
    else:
        yield report.ok(f"{total} input partitions: at most {total} pods receive work")
    if not topics.output.error and (odd := [each for each in inputs if each.partitions != topics.output.partitions]):
        yield report.warning(
            f"{topics.output.name} has {topics.output.partitions} partitions, {odd[0].name} has {odd[0].partitions}: "
            "a reader cannot join results with frames partition by partition",
            "give both the same number; Sluice itself does not need it",
        )


def replication(topics: Topics, brokers: int, report: Reporter) -> Iterator[Finding]:
    """Check that acknowledged records survive the loss of a broker."""
    if not topics.described:
        yield report.skipped("no topic could be described")
        return
    worst = min(topics.described, key=lambda topic: topic.replicas)
    if worst.replicas < 2 and brokers > 1:
        yield report.warning(
            f"{worst.name} has one replica of each partition: if a broker is lost, its acknowledged records are lost",
            "raise its replication factor to 3, with min.insync.replicas 2",
        )
        return
    for topic in topics.described:
        in_sync = int((topic.settings or {}).get("min.insync.replicas", 1))
        if in_sync >= topic.replicas > 1:
            yield report.warning(
                f"{topic.name} has {topic.replicas} replicas and min.insync.replicas {in_sync}: nothing can be written "
                "while one broker is down",
                "set min.insync.replicas to one less than the replicas",
            )
            return
    yield report.ok(f"at least {worst.replicas} replicas of each partition, on {brokers} brokers")
