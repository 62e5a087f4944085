"""Tests which errors end the consumer, with advice in the message, and which are temporary."""

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


class TestAnError:
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
    def test_that_is_permanent_ends_the_process_with_advice(
        self, bench: Bench, code: int, advice: str, as_message: bool
    ) -> None:
        """Catches a consumer that logs "not authorised" indefinitely and appears healthy."""
        trouble: Any = FakeMessage(P0, 0, error=failed(code))
        if not as_message:

            def trouble() -> None:
                bench.client.settings["error_cb"](failed(code))

        with pytest.raises(RefusedError, match=advice):
            bench.play(FakeMessage(P0, 0), trouble)

    def test_that_is_temporary_is_logged_and_the_burst_continues(self, bench: Bench) -> None:
        passing = failed(_Code._ALL_BROKERS_DOWN)
        got = bench.play(
            FakeMessage(P0, 0),
            FakeMessage(P0, 0, error=failed(_Code._TRANSPORT)),
            lambda: bench.client.settings["error_cb"](passing),
            FakeMessage(P0, 1),
        )
        assert offsets(got) == [0, 1]

    def test_of_tls_is_permanent_only_for_an_untrusted_certificate(self, bench: Bench) -> None:
        """Catches a pod that retries indefinitely with the wrong CA, and one that ends when a broker restarts."""
        says = bench.client.settings["error_cb"]
        cut = confluent_kafka.KafkaError(_Code._SSL, "SSL handshake failed: Disconnected")
        assert offsets(bench.play(lambda: says(cut), FakeMessage(P0, 0))) == [0]
        strange = confluent_kafka.KafkaError(_Code._SSL, "SSL handshake failed: certificate verify failed: broker")
        with pytest.raises(RefusedError, match=r"check ssl\.ca\.location"):
            bench.play(lambda: says(strange))

    def test_that_is_fatal_to_the_client_ends_the_process(self, bench: Bench) -> None:
        with pytest.raises(KafkaError, match="restart this process") as caught:
            bench.play(FakeMessage(P0, 0, error=failed(_Code._FATAL, fatal=True)))
        assert caught.value.retriable

    def test_that_killed_the_client_ends_the_process_without_a_fatal_flag(self, bench: Bench) -> None:
        """Catches a fenced consumer that stays idle and ready: the real client's last error has fatal() False."""
        with pytest.raises(KafkaError, match="the consumer died"):
            bench.play(FakeMessage(P0, 0, error=failed(_Code._FATAL, fatal=False)))

    def test_that_killed_the_client_for_a_known_cause_has_advice(self, bench: Bench) -> None:
        """Only the text of the library contains the cause. Catches a pod that restarts repeatedly without a reason."""
        text = f"Fatal consumer error: {_Code(_Code.FENCED_INSTANCE_ID).str()}"
        with pytest.raises(RefusedError, match=r"same group\.instance\.id"):
            bench.play(FakeMessage(P0, 0, error=failed(_Code._FATAL, text, fatal=True)))

    def test_offsets_that_go_back_end_the_process_with_a_message(self, bench: Bench) -> None:
        """Catches a topic that was created again during the run: its frames would be mistaken for old ones."""
        with pytest.raises(KafkaError, match="went back from 8 to 3"):
            bench.play(FakeMessage(P0, 7), FakeMessage(P0, 3))

    def test_deleted_frames_end_the_process_with_advice(self, bench: Bench) -> None:
        """Catches silently skipping records that were deleted before they were read."""
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
