"""Configuration: environment overrides file overrides default, every mistake is named, and no secret is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumer.cli import main
from consumer.config import MASK, OWN_SETTINGS, Config, load_config, options, resolved
from consumer.errors import ConfigError

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLUICE_"):
            monkeypatch.delenv(name)


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def refusal(path: Path | None = None, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, sections)
    return str(caught.value)


class TestPrecedence:
    def test_environment_overrides_file_and_file_overrides_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "sluice.yaml", {"batching": {"max_batch_size": 16, "max_queue_delay_ms": 5}})
        monkeypatch.setenv("SLUICE_BATCHING__MAX_BATCH_SIZE", "64")
        batching = load_config(path).batching
        assert (batching.max_batch_size, batching.max_queue_delay_ms, batching.policy) == (64, 5, "dynamic")

    def test_one_variable_leaves_the_rest_of_its_section_as_in_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Catches a section that is replaced as a whole."""
        path = write(tmp_path / "a.yaml", {"kafka": {"group_id": "mine", "client": {"client.rack": "r1"}}})
        monkeypatch.setenv("SLUICE_KAFKA__BOOTSTRAP_SERVERS", "broker:1")
        kafka = load_config(path).kafka
        assert (kafka.group_id, kafka.bootstrap_servers, kafka.client) == ("mine", "broker:1", {"client.rack": "r1"})

    def test_overrides_rank_between_environment_and_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "a.yaml", {"http": {"port": 1, "host": "file"}})
        monkeypatch.setenv("SLUICE_HTTP__HOST", "environment")
        http = load_config(path, {"http": {"port": 2, "host": "override"}}).http
        assert (http.port, http.host) == (2, "environment")

    def test_the_file_may_be_named_by_the_environment_and_be_toml(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "sluice.toml"
        path.write_text('[kafka.client]\n"client.rack" = "r1"\n[input]\ntopics = ["a", "b"]\n')
        monkeypatch.setenv("SLUICE_CONFIG", str(path))
        config = load_config()
        assert (config.input.topics, config.kafka.client) == (["a", "b"], {"client.rack": "r1"})

    def test_an_empty_file_is_all_defaults(self, tmp_path: Path) -> None:
        assert load_config(write(tmp_path / "a.yaml", {})) == Config()


# For each option a value that differs from its default. If there is no value here, one is derived from the default.
OTHER: dict[str, Any] = {
    "kafka.client": {"client.rack": "r1"},
    "kafka.consumer": {"fetch.wait.max.ms": 7},
    "kafka.producer": {"linger.ms": 7},
    "input.topics": ["a", "b"],
    "output.format": "json",
    "delivery": "at_least_once",
    "batching.policy": "static",
    "batching.preferred_batch_sizes": [8, 16],
    "batching.max_frame_age_ms": 5.0,
    "decode.threads": 3,
    "decode.isolation": "process",
    "decode.workers": "threads",
    "detector.backend": "onnx",
    "detector.sha256": "0" * 64,
    "detector.image_size": 320,
    "log.level": "debug",
    "log.format": "json",
    "kafka.bootstrap_servers": "broker:1",
    "http.host": "::",
}


class TestEveryOption:
    @pytest.mark.parametrize("option", list(options()), ids=lambda option: option[0])
    def test_can_be_set_by_its_environment_variable(
        self, option: tuple[str, str, Any, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Catches an option that is documented with a variable which nothing reads."""
        path, variable, default, meaning = option
        value = OTHER.get(path)
        if path == "kafka.secrets":
            value = TestSecretFiles.secret(tmp_path, SECRET)
        if value is None:
            value = not default if isinstance(default, bool) else default / 2 if isinstance(default, float) else None
        if value is None:
            value = default + 1 if isinstance(default, int) else f"{default}-2"
        monkeypatch.setenv(variable, json.dumps(value) if isinstance(value, list | dict) else str(value))
        found: Any = load_config()
        for name in path.split("."):
            found = getattr(found, name)
        assert found == value
        assert len(meaning) > 10


class TestMistakesAreNamed:
    def test_an_unknown_option(self, tmp_path: Path) -> None:
        said = refusal(write(tmp_path / "a.yaml", {"batching": {"max_bach_size": 1}, "kafak": {}}))
        assert "unknown option batching.max_bach_size" in said
        assert "unknown option kafak" in said

    @pytest.mark.parametrize(
        "variable",
        ["SLUICE_BATCHING__MAX_BACH_SIZE", "SLUICE_BATCHING_MAX_BATCH_SIZE", "SLUICE_HTTP_PORT", "SLUICE_MODEL"],
    )
    def test_an_unknown_variable(self, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches a typing error that leaves the default in force."""
        monkeypatch.setenv(variable, "1")
        assert variable in refusal()

    def test_every_wrong_value_at_once_with_what_was_given(self) -> None:
        said = refusal(batching={"max_batch_size": 0}, detector={"confidence": 1.5, "device": 7}, http={"port": "x"})
        assert "batching.max_batch_size" in said
        assert "(got 0)" in said
        assert "detector.confidence" in said
        assert "(got 1.5)" in said
        assert "http.port" in said
        assert "(got 'x')" in said

    @pytest.mark.parametrize("value", ["8,16", "[8,"])
    def test_a_list_in_the_environment_that_is_not_json(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLUICE_BATCHING__PREFERRED_BATCH_SIZES", value)
        said = refusal()
        assert "batching" in said
        assert "JSON" in said

    @pytest.mark.parametrize("text", ["a: [", "- 1", "just text", "\xff\xfe"])
    def test_a_file_that_is_no_configuration(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes(text.encode("latin-1"))
        assert str(path) in refusal(path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        assert "No such file" in refusal(tmp_path / "nothing.yaml")

    @pytest.mark.parametrize(
        ("sections", "words"),
        [
            ({"output": {"topic": "frames"}}, "output.topic: 'frames' is an input topic"),
            ({"dead_letter": {"topic": "frames"}}, "dead_letter.topic: 'frames' is an input topic"),
            (
                {"output": {"topic": "same"}, "dead_letter": {"topic": "same"}},
                "dead_letter.topic: 'same' is the output",
            ),
            ({"input": {"topics": []}}, "input.topics"),
            ({"input": {"topics": ["a b"]}}, "input.topics"),
            ({"delivery": "at_most_once"}, "delivery"),
            (
                {"delivery": "exactly_once", "kafka": {"client": {"isolation.level": "read_uncommitted"}}},
                "isolation.level must be read_committed",
            ),
            ({"kafka": {"transactional_id": "two words"}}, "kafka.transactional_id"),
            ({"batching": {"preferred_batch_sizes": [64]}}, "preferred_batch_sizes: 64"),
            ({"kafka": {"bootstrap_servers": " "}}, "kafka.bootstrap_servers"),
            ({"kafka": {"client": "not a map"}}, "kafka.client"),
            ({"detector": {"image_size": 100}}, "detector.image_size"),
            ({"decode": {"threads": 0}}, "decode.threads"),
            ({"decode": {"isolation": "process", "workers": "threads"}}, "isolation: process needs workers: processes"),
            ({"decode": {"isolation": "process", "timeout_s": 21}}, "decode.timeout_s: 21 is more than a third"),
        ],
    )
    def test_options_that_contradict_each_other(self, sections: dict[str, Any], words: str) -> None:
        """Catches a loop through the program's own output, and options without effect."""
        assert words in refusal(**sections)

    @pytest.mark.parametrize(
        ("transaction_ms", "poll_ms"), [(285_001, None), ("285001", 300_000), (40_000, 50_000), (15_001, 30_000)]
    )
    def test_a_transaction_that_a_consumer_cannot_wait_for(
        self, transaction_ms: int | str, poll_ms: int | None
    ) -> None:
        """Catches a pod that takes over the partitions of a dead one and loses them while it waits for the end of
        its transaction."""
        settings = {"transaction.timeout.ms": transaction_ms}
        polls = {} if poll_ms is None else {"max.poll.interval.ms": poll_ms}
        said = refusal(delivery="exactly_once", kafka={"producer": settings, "consumer": polls})
        assert f"transaction.timeout.ms ({transaction_ms})" in said
        assert f"max.poll.interval.ms ({poll_ms or 300_000})" in said
        assert f"max.poll.interval.ms to {int(transaction_ms) + 15_000} or more" in said

    @pytest.mark.parametrize(
        ("delivery", "transaction_ms", "poll_ms"),
        [
            ("exactly_once", 285_000, None),
            ("exactly_once", 40_000, "55000"),
            ("exactly_once", None, 2_000),  # the default timeout of Sluice; a wait that is interrupted starts again
            ("at_least_once", 900_000, None),
        ],
    )
    def test_no_transaction_that_a_consumer_can_wait_for(
        self, delivery: str, transaction_ms: int | None, poll_ms: int | str | None
    ) -> None:
        """Catches a refusal of settings that work."""
        settings = {} if transaction_ms is None else {"transaction.timeout.ms": transaction_ms}
        polls = {} if poll_ms is None else {"max.poll.interval.ms": poll_ms}
        assert Config(delivery=delivery, kafka={"producer": settings, "consumer": polls})  # type: ignore[arg-type]

    def test_a_timeout_that_is_no_number(self) -> None:
        """Catches a traceback, and a message that does not name the setting."""
        said = refusal(delivery="exactly_once", kafka={"producer": {"transaction.timeout.ms": "40 s"}})
        assert "transaction.timeout.ms is '40 s'; expected a number of milliseconds" in said

    @pytest.mark.parametrize("name", OWN_SETTINGS)
    @pytest.mark.parametrize("section", ["client", "consumer", "producer"])
    def test_a_client_setting_on_which_a_guarantee_depends(self, name: str, section: str) -> None:
        """Catches enable.auto.offset.store from a copied file, which commits frames that were never processed."""
        said = refusal(kafka={section: {name: "true"}})
        assert f"{name!r} is not free" in said
        assert OWN_SETTINGS[name] in said


class TestKubernetes:
    def test_variables_of_kubernetes_services_are_not_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Catches a pod that exits with 2 because a Service has the name "sluice" or "sluice-metrics"."""
        for service in ("SLUICE", "SLUICE_METRICS", "SLUICE_HTTP"):
            for suffix, value in {
                "_SERVICE_HOST": "10.0.0.1",
                "_SERVICE_PORT": "8080",
                "_SERVICE_PORT_HTTP": "8080",
                "_PORT": "tcp://10.0.0.1:8080",
                "_PORT_8080_TCP": "tcp://10.0.0.1:8080",
                "_PORT_8080_TCP_PROTO": "tcp",
                "_PORT_8080_TCP_PORT": "8080",
                "_PORT_8080_TCP_ADDR": "10.0.0.1",
            }.items():
                monkeypatch.setenv(service + suffix, value)
        assert load_config() == Config()


class TestSecrets:
    NAMES = (
        "sasl.password",
        "ssl.key.password",
        "ssl.keystore.password",
        "ssl.key.pem",
        "ssl.certificate.pem",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "sasl.oauthbearer.assertion.private.key.pem",
    )

    @pytest.mark.parametrize("name", NAMES)
    def test_are_masked_in_the_printed_configuration(self, name: str) -> None:
        config = Config(kafka={"client": {name: SECRET, "client.rack": "r1"}})  # type: ignore[arg-type]
        assert config.kafka.client[name] == SECRET
        assert resolved(config)["kafka"]["client"] == {name: MASK, "client.rack": "r1"}

    @pytest.mark.parametrize("client", [{"sasl.password": [SECRET]}, f"sasl.password={SECRET}", [SECRET]])
    def test_are_not_in_error_messages(self, client: Any) -> None:
        assert SECRET not in refusal(kafka={"client": client})

    @pytest.mark.parametrize(
        "value", [f'"{SECRET}', f"a: {SECRET}", f"@{SECRET}", f"*{SECRET}", f"!{SECRET} x", f"%{SECRET}\x07"]
    )
    def test_are_not_in_error_messages_about_a_file_that_cannot_be_read(self, value: str, tmp_path: Path) -> None:
        """Catches errors of the YAML library, which quote the line, or the name of an alias or tag."""
        for name in ("sluice.yaml", "sluice.toml"):
            file = tmp_path / name
            file.write_text(f"kafka:\n  client:\n    sasl.password: {value}\n")
            with pytest.raises(ConfigError, match=r"is not valid (YAML|TOML): .*") as caught:
                load_config(file)
            assert SECRET not in str(caught.value)

    def test_of_the_wrong_type_are_not_shown(self) -> None:
        said = refusal(kafka={"client": {name: [SECRET] for name in self.NAMES}}, http={"port": "token-" + SECRET})
        assert SECRET not in said
        assert all(name in said for name in self.NAMES)

    def test_are_not_in_error_messages_about_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLUICE_KAFKA__CLIENT", f'{{"sasl.password": "{SECRET}"')
        assert SECRET not in refusal()

    def test_may_have_an_environment_variable_of_their_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLUICE_KAFKA__CLIENT__sasl.password", SECRET)
        assert load_config().kafka.client == {"sasl.password": SECRET}


class TestSecretFiles:
    """`kafka.secrets`: librdkafka has no setting that reads a password from a file."""

    def test_hold_the_value_without_one_newline(self, tmp_path: Path) -> None:
        """Catches `strip`, which removes a space that belongs to a password, and a newline that becomes part of it."""
        for text, value in (("a b ", "a b "), ("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), ("pä", "pä")):
            kafka = load_config(overrides={"kafka": {"secrets": self.secret(tmp_path, text)}}).kafka
            assert kafka.shared == {"sasl.password": value}
            assert kafka.client == {}

    def test_are_combined_with_the_other_settings(self, tmp_path: Path) -> None:
        client = {"sasl.username": "sluice"}
        kafka = load_config(overrides={"kafka": {"client": client, "secrets": self.secret(tmp_path, SECRET)}}).kafka
        assert kafka.shared == {"sasl.username": "sluice", "sasl.password": SECRET}

    def test_are_printed_as_paths_and_never_as_contents(self, tmp_path: Path) -> None:
        config = load_config(overrides={"kafka": {"secrets": self.secret(tmp_path, SECRET)}})
        assert resolved(config)["kafka"]["secrets"] == {"sasl.password": str(tmp_path / "secret")}
        assert SECRET not in repr(config) + str(resolved(config)) + config.model_dump_json()

    @pytest.mark.parametrize("name", ["sasl.password", "client.rack"])
    def test_are_not_the_secret_itself(self, name: str) -> None:
        """Catches a password, written in place of a path, that the error message prints."""
        said = refusal(kafka={"secrets": {name: SECRET}})
        assert f"secrets: {name}: expected the absolute path of a file" in said
        assert SECRET not in said

    @pytest.mark.parametrize("name", ["sasl.password", "client.rack"])
    @pytest.mark.parametrize(
        "text", ["/{}", "//{}", "/../{}", "/{}/+ab=", "/no-such-folder/{}", "/{}\0", "/{}" + "x" * 5000, "/tmp/{}/y"]
    )
    def test_that_may_be_the_secret_itself_are_not_shown(self, text: str, name: str) -> None:
        """Catches a password that begins with a slash, as base64 may, in the error for a missing file."""
        said = refusal(kafka={"secrets": {name: text.format(SECRET)}})
        assert f"secrets: {name}: cannot read the file: " in said
        assert SECRET not in said

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "No such file"),
            (b"", "is empty"),
            (b"\n", "is empty"),
            (b"\xff\xfe", "is not UTF-8"),
            (b"a\0b", "NUL"),
            (b"x" * 70_000, "more than 65536 bytes"),
        ],
    )
    def test_that_cannot_be_used_are_named_with_the_reason(
        self, content: bytes | None, words: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "secret"
        if content is not None:
            file.write_bytes(content)
        said = refusal(kafka={"secrets": {"sasl.password": str(file)}})
        assert words in said
        assert "sasl.password" in said
        assert str(file) in said

    def test_that_are_folders_are_refused(self, tmp_path: Path) -> None:
        assert "Is a directory" in refusal(kafka={"secrets": {"sasl.password": str(tmp_path)}})

    @pytest.mark.parametrize("section", ["client", "consumer", "producer"])
    def test_are_not_set_a_second_time(self, section: str, tmp_path: Path) -> None:
        """Catches an old password that silently overrides the file."""
        secrets = self.secret(tmp_path, SECRET)
        assert f"in kafka.{section} too" in refusal(kafka={"secrets": secrets, section: {"sasl.password": "old"}})

    @pytest.mark.parametrize("name", OWN_SETTINGS)
    def test_cannot_replace_settings_on_which_a_guarantee_depends(self, name: str, tmp_path: Path) -> None:
        secrets = self.secret(tmp_path, "true", name)
        assert f"{name!r} is not free" in refusal(kafka={"secrets": secrets})

    @staticmethod
    def secret(folder: Path, text: str, name: str = "sasl.password") -> dict[str, str]:
        (folder / "secret").write_bytes(text.encode())
        return {name: str(folder / "secret")}


class TestTheProgram:
    @pytest.mark.parametrize(
        ("environment", "words"),
        [
            ({"SLUICE_CONFIG": "/no/file"}, "cannot read the configuration /no/file"),
            ({"SLUICE_BATCHING__MAX_BATCH_SIZE": "many"}, "batching.max_batch_size"),
            ({"SLUICE_NONSENSE": "1"}, "SLUICE_NONSENSE"),
        ],
    )
    def test_exits_with_2_and_one_message(
        self,
        environment: dict[str, str],
        words: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Catches a traceback instead of a sentence, and an exit code of a crash."""
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["sluice", "config"])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr().err
        assert caught.value.code == 2
        assert said.startswith("sluice: ")
        assert words in said

    def test_is_the_same_from_a_shell(self) -> None:
        """Without a model, which newcomers forget first."""
        command = [sys.executable, "-m", "consumer", "run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("sluice: detector.model is required")
