"""Checks the four permissions that the program needs, as the brokers report them. No operation is tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaError as Code

from consumer.config import Config
from consumer.tools.doctor.cluster import Group, Topic
from consumer.tools.doctor.findings import Finding, Reporter
from consumer.tools.doctor.topics import Topics


def rights(
    config: Config, topics: Topics, group: Group, report: Reporter, *, group_as_producer: Group | None = None
) -> Iterator[Finding]:
    """Report each missing permission, or that none is missing.

    Args:
        config: the configuration of the program.
        topics: the topics as the brokers describe them.
        group: the group as the consumer sees it.
        report: makes the findings.
        group_as_producer: the group as the producer sees it, if the producer is another user and commits the offsets
            (exactly_once).
    """
    reader, writer = _user(config, config.kafka.consumer), _user(config, config.kafka.producer)
    unknown, missing, absent = [], [], []
    wanted = [*((topic, "READ") for topic in topics.inputs), (topics.output, "WRITE"), (topics.dead, "WRITE")]
    for topic, right in wanted:
        if topic.missing or (topic.error and not topic.hidden):
            absent.append(topic.name)
            continue
        found = _has(topic, right)
        if found is None:
            unknown.append(f"topic {topic.name}")
        elif not found:
            missing.append((right, "topic", topic.name, reader if right == "READ" else writer))
    groups = [(group, reader)] + ([(group_as_producer, writer)] if group_as_producer is not None else [])
    for each, user in groups:
        if each.hidden or (each.rights is not None and "READ" not in each.rights):
            missing.append(("READ", "group", each.name, user))
        elif each.rights is None:
            unknown.append(f"group {each.name}")
    for right, kind, name, user in missing:
        yield report.problem(
            f"{right} on {kind} {name} is missing",
            f"grant it to {user}: kafka-acls.sh --add --allow-principal User:NAME --operation {right.capitalize()} "
            f"--{kind} {name}",
        )
    if unknown:
        yield report.skipped(f"the brokers do not report the rights on {', '.join(unknown)}")
    if absent:
        yield report.skipped(f"the rights are not known on what could not be described: {', '.join(absent)}")
    if not missing and not unknown and not absent:
        yield report.ok("READ on the input and the group, WRITE on the output and the dead letters")


def transactions(config: Config, tried_as: str, refusal: Code | None, report: Reporter) -> Iterator[Finding]:
    """Report the permission on transactional IDs, which cannot be queried: it was tried with an unused ID."""
    prefix = f"sluice-{config.kafka.group_id}-"
    if refusal is None:
        yield report.ok(f"transactions can be made (tried as {tried_as})")
    elif refusal.code() != Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
        yield report.problem(f"transactions cannot be made (tried as {tried_as}): {refusal.str()}")
    elif config.kafka.transactional_id:
        yield report.warning(
            f"WRITE on the transactional ID {tried_as} is missing. The program's own ID was not tried: "
            "that would end the transactions of a running program",
            f"check that the right is granted for {config.kafka.transactional_id}",
        )
    else:
        yield report.problem(
            f"WRITE on the transactional IDs that begin with {prefix} is missing",
            "kafka-acls.sh --add --allow-principal User:NAME --operation Write --resource-pattern-type prefixed "
            f"--transactional-id {prefix}",
        )


def _user(config: Config, settings: Mapping[str, Any]) -> str:
    return str({**config.kafka.shared, **settings}.get("sasl.username", "the user of this program"))


def _has(topic: Topic, right: str) -> bool | None:
    """None if the brokers do not report it."""
    if topic.hidden:
        return False  # READ and WRITE both include DESCRIBE
    return None if topic.rights is None else right in topic.rights
