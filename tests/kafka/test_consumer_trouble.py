"""What ends the source, with a message for a person, and what passes."""

from __future__ import annotations

import threading
from typing import Any

import confluent_kafka
import pytest

from consumer.errors import KafkaError, OwnershipError, RefusedError
from fake_kafka import FakeMessage, failed
from made_frames import P0, offsets
from source_runs import Bench

pytestmark = pytest.mark.usefixtures("fake_consumer")

_Code = confluent_kafka.KafkaError


class TestTrouble:
    @pytest.mark.parametrize(
        ("code", "advice"),
        [
            (_Code.TOPIC_AUTHORIZATION_FAILED, "READ on every input topic: frames"),
            (_Code.GROUP_AUTHORIZATION_FAILED, "READ on the consumer group sluice"),
            (_Code.FENCED_INSTANCE_ID, "same group.instance.id"),
            (_Code._AUTHENTICATION, "SASL and TLS"),
        ],
    )
    @pytest.mark.parametrize("as_message", [True, False])
    def test_that_no_retry_mends_ends_with_advice(self, bench: Bench, code: int, advice: str, as_message: bool) -> None:
        """Catches a consumer that logs "not authorised" for ever and looks healthy."""
        trouble: Any = FakeMessage(P0, 0, error=failed(code))
        if not as_message:

            def trouble() -> None:
                bench.client.settings["error_cb"](failed(code))

        with pytest.raises(RefusedError, match=advice):
            bench.play(FakeMessage(P0, 0), trouble)

    def test_that_passes_is_logged_and_the_burst_goes_on(self, bench: Bench) -> None:
        passing = failed(_Code._ALL_BROKERS_DOWN)
        got = bench.play(
            FakeMessage(P0, 0),
            FakeMessage(P0, 0, error=failed(_Code._TRANSPORT)),
            lambda: bench.client.settings["error_cb"](passing),
            FakeMessage(P0, 1),
        )
        assert offsets(got) == [0, 1]

    def test_of_tls_ends_where_the_certificate_is_not_trusted_and_passes_where_a_handshake_was_cut(
        self, bench: Bench
    ) -> None:
        """Catches a pod that tries for ever with the wrong authority, and one that ends when a broker restarts."""
        says = bench.client.settings["error_cb"]
        cut = confluent_kafka.KafkaError(_Code._SSL, "SSL handshake failed: Disconnected")
        assert offsets(bench.play(lambda: says(cut), FakeMessage(P0, 0))) == [0]
        strange = confluent_kafka.KafkaError(_Code._SSL, "SSL handshake failed: certificate verify failed: broker")
        with pytest.raises(RefusedError, match=r"check ssl\.ca\.location"):
            bench.play(lambda: says(strange))

    def test_that_is_fatal_to_the_client_ends(self, bench: Bench) -> None:
        with pytest.raises(KafkaError, match="restart this process") as caught:
            bench.play(FakeMessage(P0, 0, error=failed(_Code._FATAL, fatal=True)))
        assert caught.value.retriable

    def test_that_killed_the_client_ends_even_if_it_does_not_say_fatal(self, bench: Bench) -> None:
        """Catches a fenced consumer that idles for ever, ready: the real client's last error has fatal() False."""
        with pytest.raises(KafkaError, match="the consumer died"):
            bench.play(FakeMessage(P0, 0, error=failed(_Code._FATAL, fatal=False)))

    def test_that_died_for_a_cause_we_know_says_what_to_do(self, bench: Bench) -> None:
        """The library gives the cause in its text alone. Catches a pod that restarts for ever without a reason."""
        text = f"Fatal consumer error: {_Code(_Code.FENCED_INSTANCE_ID).str()}"
        with pytest.raises(RefusedError, match=r"same group\.instance\.id"):
            bench.play(FakeMessage(P0, 0, error=failed(_Code._FATAL, text, fatal=True)))

    def test_offsets_that_go_back_end_it_with_a_message(self, bench: Bench) -> None:
        """Catches a topic that was made anew under a running consumer: its frames would be taken for old ones."""
        with pytest.raises(KafkaError, match="went back from 8 to 3"):
            bench.play(FakeMessage(P0, 7), FakeMessage(P0, 3))

    def test_deleted_frames_end_it_with_what_a_person_can_do(self, bench: Bench) -> None:
        """Catches skipping, in silence, what was deleted before it was read."""
        with pytest.raises(RefusedError, match="reset the offsets"):
            bench.play(FakeMessage(P0, 0, error=failed(_Code._AUTO_OFFSET_RESET)))

    def test_a_second_thread_is_refused(self, bench: Bench) -> None:
        raised: list[BaseException] = []

        def use() -> None:
            for call in (
                lambda: bench.source.poll(1, 0),
                bench.source.pause,
                bench.source.resume,
                lambda: bench.source.store([]),
                lambda: bench.source.commit([]),
                bench.source.lag,
                lambda: bench.source.close(1),
            ):
                try:
                    call()
                except OwnershipError as error:
                    raised.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join(10)
        assert len(raised) == 7
