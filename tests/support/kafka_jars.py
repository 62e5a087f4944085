"""Apache Kafka's jars from Maven, copied once into `tests/integration/jars/`."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

KAFKA = Path(__file__).resolve().parent.parent / "integration"
POM = KAFKA / "pom.xml"
JARS = KAFKA / "jars"
_OLDEST_JAVA = 17
_MAVEN_TIMEOUT_SECONDS = 280


class KafkaUnavailableError(RuntimeError):
    """This machine cannot run Apache Kafka. The message says why, and what would help."""


def classpath() -> str:
    """The class path of a broker; Maven runs only where the copied jars are not those of the pom.

    Raises `KafkaUnavailableError` without a Java that is new enough, or without the jars and a way to them.
    """
    _check_java()
    JARS.mkdir(exist_ok=True)
    stamp = JARS / ".stamp"
    wanted = hashlib.sha256(POM.read_bytes()).hexdigest()
    with (JARS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs in one checkout: the second waits, and finds the stamp
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            _copy_jars()
            stamp.write_text(wanted)
    return str(JARS / "*")


def java() -> str:
    path = shutil.which("java")
    if path is None:
        raise KafkaUnavailableError(
            "there is no java on the PATH; tests/integration/install.sh installs one, or says how"
        )
    return path


def _check_java() -> None:
    shown = subprocess.run([java(), "-version"], capture_output=True, text=True, timeout=30, check=False)
    version = re.search(r'version "(\d+)', shown.stderr + shown.stdout)
    if version is None:
        raise KafkaUnavailableError(f"cannot tell the version of java from {(shown.stderr + shown.stdout)!r}")
    if int(version[1]) < _OLDEST_JAVA:
        raise KafkaUnavailableError(
            f"java is version {version[1]}; Apache Kafka's broker needs {_OLDEST_JAVA} or newer"
        )


def _copy_jars() -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailableError(
            f"{JARS} holds no jars for this pom and there is no mvn on the PATH to fetch them; "
            "tests/integration/install.sh installs one, or says how"
        )
    for old in JARS.glob("*.jar"):
        old.unlink()
    command = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    try:
        done = subprocess.run(
            [*command, f"-DoutputDirectory={JARS}"],
            capture_output=True, text=True, timeout=_MAVEN_TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise KafkaUnavailableError(f"Maven did not get the jars within {_MAVEN_TIMEOUT_SECONDS} s") from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise KafkaUnavailableError(f"Maven did not get the jars (status {done.returncode}):\n{said}")
