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
from consumer.tools.dlq import formatting as text
from consumer.tools.dlq.dead_letters import Letter, Selection, digest_of
from consumer.tools.dlq.lookup import Newest
from consumer.tools.dlq.replay import Forgetful, Replay, Tally
from consumer.tools.dlq.replay_writer import AtLeastOnce, Outbox, Transactions
from consumer.tools.dlq.terminal import SHOWN, hint, pipe, say, width
from consumer.tools.kafka.reader import reader
from consumer.tools.signals import stop_on_signals


@dataclass(frozen=True, slots=True)
class Errand:
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
        rows = Newest(SHOWN)
        count = self._run(
            self.group,
            dry=True,
            on_letter=lambda each: rows.add(each.rejected_at_ms, (each.partition, each.offset), text.row_of(each)),
        )
        shown = rows.rows()
        with pipe():
            if shown and not self.as_json:
                print(*text.table(shown, width()), sep="\n")
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
        except Forgetful:
            if not self.at_least_once:
                raise KafkaError(
                    "this broker forgets the metadata of committed offsets, so nobody could know what was replayed "
                    "before; nothing was sent. With --at-least-once each set of filters has its own memory"
                ) from None
            say("this broker forgets the metadata of committed offsets: overlapping filters will repeat")
            self._run(f"{self.group}-{digest_of(self.selection)}", remembers=True)

    def _run(
        self,
        group: str,
        *,
        dry: bool = False,
        preview: bool = False,
        remembers: bool = False,
        on_letter: Callable[[Letter], None] = lambda _: None,
    ) -> int:
        """How many were sent, or would be. What became of each is said also where it fails."""
        with reader(self.there.bootstrap_servers, self.there.settings, group) as client:
            job = Replay(
                client,
                self.letters,
                self.selection,
                make_outbox=None if dry else lambda: self._outbox(client),
                limit=self.limit,
                batch=self.batch,
                stop=self.stop,
                remembers=remembers,
                on_letter=on_letter,
            )
            try:
                job.run()
            except SluiceError:
                self._report(job.tally, group, dry=dry, preview=preview)
                raise
        self._report(job.tally, group, dry=dry, preview=preview)
        hint(self.selection.filter, job.tally.seen_reasons)
        return job.tally.replayed

    def _outbox(self, client: Consumer) -> Outbox:
        servers, settings = self.there.bootstrap_servers, self.there.settings
        if self.at_least_once:
            return AtLeastOnce(servers, settings, client)
        return Transactions(servers, settings, f"{self.group}/{self.letters}", client)

    def _report(self, tally: Tally, group: str, *, dry: bool, preview: bool) -> None:
        with pipe():
            if preview or not self.as_json:
                print(*text.outcome(tally, dry=dry), sep="\n", file=sys.stderr if preview else sys.stdout)
                return
            left = {fate: tally.left[fate] for fate in text.FATES}
            body = {"dry_run": dry, "group": group, "replayed": tally.replayed, "ended": tally.ended}
            print(text.as_json({**body, "to": dict(tally.to), "reasons": dict(tally.reasons), "left": left}))
