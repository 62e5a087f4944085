"""Judges what the brokers say of the topics: are they there, how many partitions have they, how safe are they?"""

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
    def there(self) -> list[Topic]:
        """Those that could be described."""
        return [topic for topic in self.all if not topic.error]


def exist(topics: Topics, report: Reporter) -> Iterator[Finding]:
    """A missing topic stops the program; where the brokers make topics by themselves, it gets their default shape."""
    for topic in topics.all:
        if topic.missing:
            yield report.problem(f"there is no topic {topic.name}", "create it, or correct its name")
        elif topic.error and not topic.hidden:
            yield report.problem(f"topic {topic.name} cannot be described: {topic.error}")
        elif topic.hidden:
            yield report.skipped(f"this user may not even describe {topic.name}: see rights")
    if there := topics.there:
        yield report.ok(", ".join(f"{each.name} ({each.partitions} partitions)" for each in there))


def partitions(
    config: Config, topics: Topics, group: Group | None, pods: int | None, report: Reporter
) -> Iterator[Finding]:
    """Partitions of the input share the work; those of the output let readers join it with the input."""
    inputs = [topic for topic in topics.inputs if not topic.error]
    if not inputs:
        yield report.skipped("no input topic could be described")
        return
    total = sum(topic.partitions for topic in inputs)
    members = len(group.members) if group is not None else 0
    many, by = (pods, "--pods") if pods is not None else (members, f"members of {config.kafka.group_id} now")
    if many > total:
        yield report.warning(
            f"{many} pods ({by}) share {total} input partitions: {many - total} of them have nothing to do",
            f"run {total} pods at most, or add partitions (frames of one source then move to another partition once)",
        )
    elif many:
        share = f"{total // many} or {total // many + 1}" if total % many else f"{total // many}"
        yield report.ok(f"{total} input partitions for {many} pods ({by}), {share} each")
    else:
        yield report.ok(f"{total} input partitions: at most as many pods can work at once")
    if not topics.output.error and (odd := [each for each in inputs if each.partitions != topics.output.partitions]):
        yield report.warning(
            f"{topics.output.name} has {topics.output.partitions} partitions, {odd[0].name} has {odd[0].partitions}: "
            "a reader cannot join results with frames partition by partition",
            "give both the same number; it does no harm to Sluice itself",
        )


def replication(topics: Topics, brokers: int, report: Reporter) -> Iterator[Finding]:
    """What is acknowledged is only as safe as its copies."""
    if not topics.there:
        yield report.skipped("no topic could be described")
        return
    worst = min(topics.there, key=lambda topic: topic.replicas)
    if worst.replicas < 2 and brokers > 1:
        yield report.warning(
            f"{worst.name} has one copy of each partition: a broker that is lost takes acknowledged records with it",
            "raise its replication factor to 3, with min.insync.replicas 2",
        )
        return
    for topic in topics.there:
        in_sync = int((topic.settings or {}).get("min.insync.replicas", 1))
        if in_sync >= topic.replicas > 1:
            yield report.warning(
                f"{topic.name} has {topic.replicas} copies and min.insync.replicas {in_sync}: nothing can be written "
                "while one broker is away",
                "set min.insync.replicas to one less than the copies",
            )
            return
    yield report.ok(f"{worst.replicas} copies of each partition at least, on {brokers} brokers")
