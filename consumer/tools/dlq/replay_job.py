"""Runs one call of `sluice dlq replay`: preview, confirmation, replay and report."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import typer
from confluent_kafka import Consumer

from consumer.errors import KafkaError, SluiceError
from consumer.tools.clients import Connection
from consumer.tools.dlq import formatting
from consumer.tools.dlq.dead_letters import DeadLetterRecord, Selection, digest_of
from consumer.tools.dlq.lookup import NewestRows, open_dead_letters
from consumer.tools.dlq.replay import MetadataNotKept, ReplayCounts, Replayer
from consumer.tools.dlq.replay_writer import AtLeastOnceWriter, ReplayWriter, TransactionalWriter
from consumer.tools.dlq.terminal import SHOWN, print_status, terminal_width, tolerate_closed_pipe, warn_unknown_reasons
from consumer.tools.signals import stop_on_signals


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """One call of `sluice dlq replay`.

    Attributes:
        connection: the brokers, and how to connect.
        topic: the dead-letter topic.
        selection: what to send, and to which topic.
        group: the consumer group that records what was replayed.
        limit: end after so many dead letters.
        batch: dead letters per transaction.
        at_least_once: write without transactions.
        as_json: print one JSON object instead of lines.
        stop: ends the replay.
    """

    connection: Connection
    topic: str
    selection: Selection
    group: str
    limit: int | None
    batch: int
    at_least_once: bool
    as_json: bool
    stop: threading.Event

    def show(self) -> None:
        """Print what would be sent, with a table of the dead letters."""
        rows = NewestRows(SHOWN)
        count = self._run(
            self.group,
            dry=True,
            on_letter=lambda each: rows.add(
                each.rejected_at_ms, (each.partition, each.offset), formatting.row_of(each)
            ),
        )
        shown = rows.rows()
        with tolerate_closed_pipe():
            if shown and not self.as_json:
                print(*formatting.table(shown, terminal_width()), sep="\n")
                if len(shown) < count:
                    print(f"shown: the newest {len(shown)}")

    def confirmed(self) -> bool:
        """Print what would be sent, and ask. Ctrl-C at the question ends the program at once."""
        if not self._run(self.group, dry=True, preview=True) or self.stop.is_set():
            return False
        signal.signal(signal.SIGINT, signal.default_int_handler)
        answer = typer.confirm("Send them?", err=True)
        stop_on_signals(self.stop)
        return answer

    def send(self) -> None:
        """Replay, and print what was sent.

        Raises:
            KafkaError: the brokers cannot be reached, or they do not keep a record of what was replayed.
        """
        try:
            self._run(self.group)
        except MetadataNotKept:
            if not self.at_least_once:
                raise KafkaError(
                    "this broker forgets the metadata of committed offsets, so replayed dead letters could not be "
                    "recorded; nothing was sent. With --at-least-once each set of filters has its own record"
                ) from None
            print_status("this broker forgets the metadata of committed offsets: overlapping filters will repeat")
            self._run(f"{self.group}-{digest_of(self.selection)}", metadata_is_kept=True)

    def _run(
        self,
        group: str,
        *,
        dry: bool = False,
        preview: bool = False,
        metadata_is_kept: bool = False,
        on_letter: Callable[[DeadLetterRecord], None] = lambda _: None,
    ) -> int:
        """Replay and print the report, also if the replay fails. Returns how many were sent, or would be sent."""
        with open_dead_letters(self.connection, self.stop, group) as reader:
            replayer = Replayer(
                reader,
                self.topic,
                self.selection,
                make_writer=None if dry else lambda: self._make_writer(reader.client),
                limit=self.limit,
                batch=self.batch,
                stop=self.stop,
                metadata_is_kept=metadata_is_kept,
                on_letter=on_letter,
            )
            try:
                replayer.run()
            except SluiceError:
                self._report(replayer.counts, group, dry=dry, preview=preview)
                raise
        self._report(replayer.counts, group, dry=dry, preview=preview)
        warn_unknown_reasons(self.selection.filter, replayer.counts.seen_reasons)
        return replayer.counts.replayed

    def _make_writer(self, client: Consumer) -> ReplayWriter:
        servers, settings = self.connection.bootstrap_servers, self.connection.settings
        if self.at_least_once:
            return AtLeastOnceWriter(servers, settings, client)
        return TransactionalWriter(servers, settings, f"{self.group}/{self.topic}", client)

    def _report(self, counts: ReplayCounts, group: str, *, dry: bool, preview: bool) -> None:
        with tolerate_closed_pipe():
            if preview or not self.as_json:
                print(*formatting.replay_summary(counts, dry=dry), sep="\n", file=sys.stderr if preview else sys.stdout)
                return
            left = {status: counts.left[status] for status in formatting.LEFT_STATUSES}
            body = {"dry_run": dry, "group": group, "replayed": counts.replayed, "ended": counts.ended}
            print(formatting.as_json({**body, "to": dict(counts.to), "reasons": dict(counts.reasons), "left": left}))
