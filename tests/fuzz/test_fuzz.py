"""Malformed images and records by the thousand: each ends as a picture, a frame or a reason; none takes long or much.

The seeds are the same in every run. What ever failed lies in `kept`, byte by byte, and is repeated too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fuzz_child
import fuzz_images
import fuzz_records
import fuzzing
from fuzzing import KEPT, Kind, Report, fuzz, keep

IMAGES, RECORDS = 10_000, 100_000


@pytest.mark.parametrize(
    ("kind", "count", "must_see"),
    [
        ("strict", IMAGES, {"picture", "damaged", "bad_header", "too_many_pixels", "too_many_scans"}),
        ("lenient", IMAGES, {"picture", "damaged", "bad_header", "too_many_pixels", "too_many_scans"}),
        ("records", RECORDS, {"frame", "empty", "bad_envelope", "bad_source_id"}),
    ],
)
def test_whatever_comes_ends_as_an_outcome_in_bounded_time_and_memory(
    kind: Kind, count: int, must_see: set[str]
) -> None:
    """Catches a crash, a hang, an exception, memory by the claim of a header, and a reason outside the closed set."""
    report = fuzz(kind, 0, count)
    print(report)
    if report.failures:
        pytest.fail(f"{report.failures}\nkept as {keep(report)}", pytrace=False)
    assert report.outcomes.total() == count
    assert must_see <= report.outcomes.keys(), "the cases no longer reach what they should"
    assert max(report.outcomes.values()) < 0.8 * count, "nearly all cases end at the same place"


def test_what_once_failed_does_not_fail_again() -> None:
    """Catches the return of a bug that a fuzz run had found, also of one that cost time or memory alone."""
    pictures = [fuzz_child.decode_check(strict=True), fuzz_child.decode_check(strict=False)]
    cases = sorted(KEPT.iterdir())
    assert cases
    for path in cases:
        record = path.name.startswith("record-")
        case: Any = fuzzing.unpacked(path.read_bytes()) if record else path.read_bytes()
        for check in [fuzz_child.parse_check] if record else pictures:
            seconds, mib = fuzz_child.cost(partial(check, case))
            assert seconds < fuzz_child.MAX_SECONDS, path.name
            assert mib < fuzz_child.MAX_GROWTH_MIB, path.name


def test_a_costly_case_is_seen_where_kept_ones_are_repeated() -> None:
    """Catches a repetition that measures nothing."""
    seconds, mib = fuzz_child.cost(lambda: sum(b"x" * (96 * 2**20)))
    assert seconds > 0.05
    assert mib > 90


def test_a_seed_is_always_the_same_case() -> None:
    """Catches a generator that depends on hashing, order or time: its seeds would tell nobody anything."""
    first = [(fuzz_images.image(seed), fuzz_records.record(seed)) for seed in range(50)]
    assert first == [(fuzz_images.image(seed), fuzz_records.record(seed)) for seed in range(50)]
    assert len({payload for payload, _ in first}) > 45


class TestTheHarness:
    """It must see what it looks for: here are a crash, a hang, an exception, and a hoarder."""

    @pytest.fixture
    def broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        child = Path(fuzz_child.__file__).read_text()
        broken = child.replace("    case = make(seed)\n", "    case = make(seed)\n        misbehave(seed)\n")
        broken = broken.replace("def run(", f"{_MISBEHAVE}\n\ndef run(", 1)
        assert broken.count("misbehave(seed)") == 2
        (tmp_path / "fuzz_child.py").write_text(broken)
        monkeypatch.setattr(fuzzing, "__file__", str(tmp_path / "fuzzing.py"))
        monkeypatch.setattr(fuzzing, "_HANGS_S", 2.0)

    @pytest.mark.usefixtures("broken")
    def test_a_crash_a_hang_and_a_hoarder_are_told_by_their_seeds(self) -> None:
        report: Report = fuzz("records", 0, 40)
        assert set(report.failures) == {3, 7, 11, 30}
        assert "killed the process (-11)" in report.failures[3]
        assert "hung" in report.failures[7]
        assert "misbehave" in report.failures[7], "faulthandler says where"
        assert "grew the process" in report.failures[11]
        assert "took" in report.failures[30]

    def test_what_fails_is_kept_as_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fuzzing, "KEPT", tmp_path)
        (record,) = keep(Report("records", failures={5: "x"}))
        (image,) = keep(Report("strict", failures={5: "x"}))
        assert fuzzing.unpacked(record.read_bytes()) == fuzz_records.record(5)
        assert image.read_bytes() == fuzz_images.image(5)


_MISBEHAVE = """
def misbehave(seed):
    if seed == 3:
        import ctypes
        ctypes.string_at(0)
    if seed == 7:
        import threading
        threading.Event().wait()
    global MAX_SECONDS, hoard
    MAX_SECONDS = -1 if seed == 30 else 1.0
    if seed == 11:
        hoard = b"x" * (100 * 2**20)
"""
