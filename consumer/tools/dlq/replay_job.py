"""What a person asked `sluice dlq replay` for: look first, ask, send, and say what became of it."""

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
from consumer.tools.dlq.lookup import NewestRows
from consumer.tools.dlq.replay import MetadataNotKept, ReplayCounts, Replayer
from consumer.tools.dlq.replay_writer import AtLeastOnceWriter, ReplayWriter, TransactionalWriter
from consumer.tools.dlq.terminal import SHOWN, print_status, terminal_width, tolerate_closed_pipe, warn_unknown_reasons
from consumer.tools.kafka.reader import reader
from consumer.tools.signals import stop_on_signals


@dataclass(frozen=True, slots=True)
class ReplayJob:
    """One replay of the topic `letters`. `group`: under this name it is remembered what was replayed."""

    there: Connection
    letters: str
    selection: Selection
    group: str
    limit: int | None
    batch: int
    at_least_once: bool
    as_json: bool
    stop: threading.Event

    def show(self) -> None:
        """Say what would be sent, and which letters."""
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
        """Say what would be sent, and ask. Ctrl-C at the question ends the program at once, as it should."""
        if not self._run(self.group, dry=True, preview=True) or self.stop.is_set():
            return False
        signal.signal(signal.SIGINT, signal.default_int_handler)
        answer = typer.confirm("Send them?", err=True)
        stop_on_signals(self.stop)
        return answer

    def send(self) -> None:
        """Send, and say what was sent.

        Raises KafkaError where nobody could know later what was replayed.
        """
        try:
            self._run(self.group)
        except MetadataNotKept:
            if not self.at_least_once:
                raise KafkaError(
                    "this broker forgets the metadata of committed offsets, so nobody could know what was replayed "
                    "before; nothing was sent. With --at-least-once each set of filters has its own memory"
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
        """How many were sent, or would be. What became of each is said also where it fails."""
        with reader(self.there.bootstrap_servers, self.there.settings, group) as client:
            job = Replayer(
                client,
                self.letters,
                self.selection,
                make_writer=None if dry else lambda: self._writer(client),
                limit=self.limit,
                batch=self.batch,
                stop=self.stop,
                metadata_is_kept=metadata_is_kept,
                on_letter=on_letter,
            )
            try:
                job.run()
            except SluiceError:
                self._report(job.counts, group, dry=dry, preview=preview)
                raise
        self._report(job.counts, group, dry=dry, preview=preview)
        warn_unknown_reasons(self.selection.filter, job.counts.seen_reasons)
        return job.counts.replayed

    def _writer(self, client: Consumer) -> ReplayWriter:
        servers, settings = self.there.bootstrap_servers, self.there.settings
        if self.at_least_once:
            return AtLeastOnceWriter(servers, settings, client)
        return TransactionalWriter(servers, settings, f"{self.group}/{self.letters}", client)

    def _report(self, counts: ReplayCounts, group: str, *, dry: bool, preview: bool) -> None:
        with tolerate_closed_pipe():
            if preview or not self.as_json:
                print(*formatting.replay_summary(counts, dry=dry), sep="\n", file=sys.stderr if preview else sys.stdout)
                return
            left = {status: counts.left[status] for status in formatting.LEFT_STATUSES}
            body = {"dry_run": dry, "group": group, "replayed": counts.replayed, "ended": counts.ended}
            print(formatting.as_json({**body, "to": dict(counts.to), "reasons": dict(counts.reasons), "left": left}))
