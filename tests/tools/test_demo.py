"""`sluice demo`: its figures of scripted histories, its pictures, and complete runs on the embedded broker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

import render_clips
from consumer.errors import ConfigError
from consumer.tools import processes
from consumer.tools.assets import CLIPS
from consumer.tools.demo import audit, command, draw, overview, report, run, sources
from consumer.tools.demo.summary import DetectorUse, Outcome, RecordId, Summary, summarise
from consumer.tools.embedded import EmbeddedBroker, dies_with_parent
from scenes import CLASS_NAMES
from waiting import wait_until

FREE = "simulated://0ms@1,0ms@32"
DETECTOR = DetectorUse("demo.pt", "cpu", simulated=False, busy_share=0.25)
PROMISED = {
    "frames_in", "detections_out", "dead_letters", "skipped", "lost", "duplicates", "out_of_order",
    "frames_per_second", "latency_ms", "batch_sizes", "engine_busy_share",
    "model", "device", "simulated", "sources",
}  # fmt: skip


def seen(offset: int, source: str = "cam", partition: int = 0, **more: Any) -> Outcome:
    fields = {"captured_at_ms": 1000 + 100 * offset, "published_at_ms": 1020 + 100 * offset, "batch_size": 1}
    return Outcome(more.pop("kind", "detected"), source, RecordId(partition, offset), **{**fields, **more})


def judged(outcomes: list[Outcome], frames: int = 4, **more: Any) -> Summary:
    inputs = [RecordId(0, offset) for offset in range(frames)]
    options = {"acknowledged": frames, "committed": {0: frames}, "detector": DETECTOR, "sources": ["cam"], **more}
    return summarise(inputs, outcomes, **options)


def test_a_clean_history_has_no_problem() -> None:
    """Catches: a check that always finds a problem, which would make the tests below worthless."""
    summary = judged([seen(0), seen(1, kind="skipped"), seen(2, kind="dead_letter"), seen(3)])
    assert summary.problems == []
    assert (summary.detections_out, summary.skipped, summary.dead_letters) == (2, 1, 1)


@pytest.mark.parametrize(
    ("name", "outcomes", "more"),
    [
        ("lost", [seen(0), seen(1), seen(3)], {}),
        # The broker acknowledged a frame that the topic does not have.
        ("lost", [seen(0), seen(1), seen(2), seen(3)], {"acknowledged": 5}),
        ("duplicates", [seen(0), seen(1), seen(1), seen(2), seen(3)], {}),
        # A detection message and a dead letter for one frame are two outcomes.
        ("duplicates", [seen(0), seen(1), seen(2), seen(3), seen(2, kind="dead_letter")], {}),
        ("out_of_order", [seen(0), seen(2), seen(1), seen(3)], {}),
        ("out_of_order", [seen(0), seen(2, kind="skipped"), seen(1), seen(3)], {}),
        ("unexpected", [seen(0), seen(1), seen(2), seen(3), seen(9)], {}),
        ("uncommitted", [seen(0), seen(1), seen(2), seen(3)], {"committed": {0: 3}}),
    ],
)
def test_each_kind_of_fault_is_counted_as_that_kind(name: str, outcomes: list[Outcome], more: dict[str, Any]) -> None:
    """Catches: a check that misses one kind of fault, or counts it as another kind."""
    summary = judged(outcomes, **more)
    counts = {key: getattr(summary, key) for key in ("lost", "duplicates", "out_of_order", "unexpected", "uncommitted")}
    assert counts == dict.fromkeys(counts, 0) | {name: 1}
    assert len(summary.problems) == 1


def test_order_is_checked_per_source_and_per_topic() -> None:
    """Catches: an order across sources, or across results and dead letters, which are in different topics."""
    outcomes = [seen(1, "a"), seen(0, "b"), seen(3, "a"), seen(2, "a", kind="dead_letter")]
    assert judged(outcomes).out_of_order == 0


def test_repeats_count_once_in_the_figures() -> None:
    summary = judged([seen(0, labels=("car", "car")), seen(0, labels=("car", "car")), seen(1), seen(2), seen(3)])
    assert summary.objects == {"car": 2}


def test_figures_on_a_scripted_history() -> None:
    """Catches: batches counted once per frame, latency of the wrong outcomes, a rate over the wrong period."""
    outcomes = [
        *(seen(n, captured_at_ms=0, published_at_ms=100, batch_size=4) for n in range(4)),
        *(seen(n, captured_at_ms=900, published_at_ms=1000, batch_size=4) for n in range(4, 7)),  # one is missing
        seen(7, captured_at_ms=0, published_at_ms=2000, kind="skipped", batch_size=0),
    ]
    summary = judged(outcomes, frames=8)
    assert summary.batch_sizes == {4: 2}
    assert summary.latency_ms == {"p50": 100.0, "p95": 100.0, "p99": 100.0}
    assert summary.frames_per_second == pytest.approx(8 / 2.0)


def test_json_has_the_promised_fields() -> None:
    written = json.loads(json.dumps(judged([seen(n) for n in range(4)]).as_json()))
    assert written.keys() >= PROMISED
    assert written["batch_sizes"] == {"1": 4}
    assert written["latency_ms"].keys() == {"p50", "p95", "p99"}
    assert written["engine_busy_share"] == 0.25


def test_a_run_without_outcomes_has_figures_and_an_overview(tmp_path: Path) -> None:
    summary = judged([], frames=2)
    assert summary.lost == 2
    overview.write_pictures([], summary, tmp_path)
    assert cv2.imread(str(tmp_path / overview.NAME)) is not None
    assert report.table(summary) is not None


def shot(
    box: list[float], *, label: str = "car", source: str = "cam", width: int = 640, height: int = 360
) -> audit.DrawnFrame:
    encoded, jpeg = cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))
    assert encoded
    result = {
        "frame_id": "7", "captured_at_ms": 1000, "published_at_ms": 1040, "batch_size": 3, "timings_ms": {"infer": 9.0},
        "detections": [{"class_id": 0, "label": label, "score": 0.9, "box": box}],
    }  # fmt: skip
    return audit.DrawnFrame(source, 7, jpeg.tobytes(), result)


@pytest.mark.parametrize(("width", "height"), [(640, 360), (1920, 1080), (333, 777)])
def test_a_box_is_drawn_at_its_detection(width: int, height: int) -> None:
    """Catches: boxes at the scale of another size, swapped x and y, a footer that shifts the picture."""
    box = [0.3 * width, 0.4 * height, 0.6 * width, 0.8 * height]
    scale = draw.scale_of(width)
    picture = draw.annotate(shot(box, width=width, height=height))
    assert picture.shape == (height * scale + draw.FOOTER, width * scale, 3)
    x1, y1, x2, y2 = (round(edge * scale) for edge in box)
    colour = draw.colour_of(0)
    middle_x, middle_y = (x1 + x2) // 2, (y1 + y2) // 2
    for x, y in ((x1, middle_y), (x2, middle_y), (middle_x, y1), (middle_x, y2)):
        assert tuple(int(value) for value in picture[y, x]) == colour, (x, y)
    outside = picture[: height * scale].copy()
    outside[y1 - 30 : y2 + 30, x1 - 120 : x2 + 120] = 90  # the box and its label
    assert (outside == 90).all()


def test_labels_do_not_cover_each_other() -> None:
    picture = shot([100, 100, 140, 140])
    assert picture.result is not None
    one = dict(picture.result["detections"][0])
    crowd = audit.DrawnFrame("cam", 7, picture.jpeg, {**picture.result, "detections": [one] * 20})
    boxes = draw._Boxes(np.zeros((720, 1280, 3), np.uint8), 2)
    boxes.draw([one] * 20)
    assert 1 <= len(boxes.taken) <= 5
    assert draw.annotate(crowd).any()


def test_text_is_drawn_as_escaped_ascii() -> None:
    assert draw.plain("Fußgänger\n🚲\x1b[1m").isascii()
    assert draw.annotate(shot([10, 10, 50, 50], label="🚲自転車", source="Straße")).any()


def test_frames_without_a_detection_are_drawn_too() -> None:
    """Catches: a crash on a skipped frame, or on a dead letter that cannot be decoded."""
    skipped = {"frame_id": "0", "skipped": {"reason": "stale", "age_ms": 3.0}}
    assert draw.annotate(audit.DrawnFrame("cam", 0, shot([1, 1, 9, 9]).jpeg, skipped)).any()
    assert draw.annotate(audit.DrawnFrame("cam", 0, b"no image", None)).any()


def test_only_files_of_an_earlier_demo_are_removed(tmp_path: Path) -> None:
    """Catches: a demo that deletes all files of a folder that a user named by mistake."""
    (tmp_path / "precious.jpg").write_bytes(b"")
    (tmp_path / "old.jpg").write_bytes(b"")
    outside = tmp_path.parent / "outside.jpg"
    outside.write_bytes(b"")
    (tmp_path / ".sluice-demo").write_text("old.jpg\n../outside.jpg\nnever-there.jpg\n")
    command._prepare_folder(tmp_path)
    assert (tmp_path / "precious.jpg").exists()
    assert outside.exists()
    assert not (tmp_path / "old.jpg").exists()


def test_drawn_frames_exist_and_are_evenly_spread() -> None:
    plan = run.RunOptions("m", Path(), 1, 10, 1.0, pictures=4)
    assert plan.wanted(200) == {25, 75, 125, 175}
    assert plan.wanted(2) == {0, 1}
    assert plan.wanted(0) == set()


def test_cameras_have_different_names_and_share_the_frames(shared_videos: list[Path]) -> None:
    cameras = sources.video_cameras(shared_videos[:1], 3)
    names = [camera.name for camera in cameras]
    assert len(set(names)) == 3
    assert sources.shares(cameras, 10) == dict(zip(names, [4, 3, 3], strict=True))


def test_more_cameras_than_clips_start_at_different_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CLIPS", CLIPS[:1])
    cameras = sources.street_cameras(2)
    first, second = (next(iter(camera.open())).data for camera in cameras)
    assert first != second
    assert len({camera.name for camera in cameras}) == 2
    shared = sources.limited(cameras, 9)
    assert [len(list(camera.open())) for camera in shared] == [5, 4]


@pytest.mark.parametrize(
    "arguments",
    [{"model": "yolo26n.pt"}, {"video": [Path("/no/such.mp4")], "model": FREE}, {"setting": ["a=b"], "model": FREE}],
)
def test_wrong_options_are_reported_before_anything_starts(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Catches: an unwanted download, and a typing error that is reported only after a minute."""
    with pytest.raises(ConfigError):
        command.demo(out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_log_lines_are_readable_and_escaped() -> None:
    assert processes.readable_log_line('{"level": "info", "event": "hi", "a": 1, "timestamp": "x"}') == "info hi a=1"
    assert "\x1b" not in processes.readable_log_line("\x1b[2Jfree text")


class Demo:
    """`sluice demo` as a process of its own."""

    def __init__(self, out: Path, *arguments: str) -> None:
        self.out = out
        base = ["-m", "consumer", "demo", "--out", str(out), "--json", str(out / "demo.json"), "--no-open"]
        self.process = subprocess.Popen(
            dies_with_parent([sys.executable, *base, *arguments]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def children(self) -> dict[str, psutil.Process]:
        """The child processes, by "consumer" and "broker"."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            line = child.cmdline()
            if line[-2:] == ["consumer", "run"]:
                found["consumer"] = child
            elif "broker" in line:
                found["broker"] = child
        return found

    def started(self) -> dict[str, psutil.Process]:
        """Wait for both children."""
        return wait_until(lambda: len(both := self.children()) == 2 and both, 60, "broker and consumer to start")

    def wait_streaming(self) -> None:
        """Wait until the demo streams frames."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "streaming" in line:
                return
        pytest.fail("it never streamed")

    def end(self) -> str:
        """Wait until the demo has ended. Returns the rest of its output."""
        return self.process.communicate(timeout=120)[0]

    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads((self.out / "demo.json").read_text())
        return figures


@pytest.fixture
def start(tmp_path: Path, embedded_broker: EmbeddedBroker) -> Iterator[Any]:
    """Starts a demo, which starts a broker of its own. `embedded_broker` skips the test if no broker is installed."""
    demos: list[Demo] = []

    def begin(*arguments: str) -> Demo:
        demos.append(Demo(tmp_path, *arguments))
        return demos[-1]

    yield begin
    for demo in demos:
        if demo.process.poll() is None:
            demo.process.kill()
        demo.process.communicate()


def assert_gone(processes: dict[str, psutil.Process]) -> None:
    """Check that the processes have ended. After SIGKILL of the parent, the kernel needs a moment."""
    gone, alive = psutil.wait_procs(list(processes.values()), timeout=5)
    assert not alive
    assert len(gone) == 2


def test_a_complete_run_has_the_right_figures_and_pictures(start: Any) -> None:
    """Catches: wrong figures of a run without faults, missing pictures, child processes that remain."""
    demo = start("--model", FREE, "--frames", "45", "--fps", "15", "--pictures", "2")
    children = demo.started()
    printed = demo.end()
    assert demo.process.returncode == 0, printed
    figures = demo.figures()
    assert figures.keys() >= PROMISED
    assert (figures["frames_in"], figures["detections_out"]) == (45, 45)
    assert not any(figures[name] for name in ("dead_letters", "skipped", "lost", "duplicates", "out_of_order"))
    assert figures["objects"] == {"simulated": 45}
    assert figures["simulated"] is True
    assert "simulated" in printed
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["p99"]
    assert sum(int(size) * count for size, count in figures["batch_sizes"].items()) >= 45
    pictures = sorted(path.name for path in demo.out.glob("*.jpg"))
    assert len(pictures) == 7
    assert all(cv2.imread(str(demo.out / name)) is not None for name in pictures)
    assert_gone(children)


def test_a_consumer_that_is_killed_fails_the_demo(start: Any) -> None:
    """Catches: a demo that reports success although frames are lost."""
    demo = start("--model", "simulated://50ms@1,400ms@8", "--frames", "300", "--fps", "30")
    children = demo.started()
    port = children["consumer"].environ()["SLUICE_HTTP__PORT"]
    demo.wait_streaming()
    wait_until(lambda: outcomes(port) > 20, 60, "outcomes")
    children["consumer"].kill()
    printed = demo.end()
    assert demo.process.returncode == 1, printed
    assert "SIGKILL" in printed
    assert "consumer's log" in printed
    assert demo.figures()["lost"] > 0
    assert_gone(children)


def outcomes(port: str) -> float:
    """The outcome counter of the consumer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        counts = re.findall(r"^sluice_outcomes_total\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE)
    return sum(map(float, counts))


def test_a_consumer_that_cannot_start_is_reported_with_its_log(start: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a model")
    demo = start("--model", str(broken), "--frames", "3")
    printed = demo.end()
    assert demo.process.returncode == 1
    assert "broken.pt" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("how", ["terminate", "interrupt", "kill"])
def test_an_interrupted_demo_leaves_no_process_behind(start: Any, how: str) -> None:
    """Catches: a broker or a consumer that outlives the demo that started it."""
    demo = start("--model", FREE, "--frames", "100000", "--fps", "5")
    children = demo.started()
    demo.wait_streaming()
    {"terminate": demo.process.terminate, "kill": demo.process.kill, "interrupt": lambda: demo.process.send_signal(2)}[
        how
    ]()
    printed = demo.end()
    assert_gone(children)
    if how != "kill":
        assert demo.process.returncode == 130, printed
        assert "Traceback" not in printed


@pytest.mark.skipif(not command.MODEL.is_file(), reason="the demo model has not been trained yet")
def test_the_demo_model_finds_the_cars_through_the_whole_pipeline(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    """Catches: boxes at a wrong scale, colours in the wrong order, a model that does not fit the clips."""
    frames = 12
    plan = run.RunOptions(str(command.MODEL), tmp_path, 3, 3 * frames, 5.0, pictures=frames)
    ran = run.run(plan, Silent(), tmp_path / "log")
    assert not ran.problems
    assert len(ran.drawn) == 3 * frames
    found = drawn = 0
    for number, street in enumerate(render_clips.demo_streets()):
        for index, taken in enumerate(ran.drawn[number * frames : (number + 1) * frames]):
            assert taken.result is not None
            boxes = [d["box"] for d in taken.result["detections"] if d["label"] == "car"]
            for label in street.frame(index, render_clips.FPS)[1]:
                if CLASS_NAMES[label.class_id] == "car":
                    drawn += 1
                    found += any(overlap(label.box, box) >= 0.5 for box in boxes)
    print(f"found {found} of {drawn} cars")
    assert found / drawn >= 0.8


class Silent:
    """A progress display without output."""

    def step(self, text: str) -> None: ...
    def detail(self, text: str) -> None: ...
    def flow(self, sent: int, received: int, total: int, per_second: float) -> None: ...


def overlap(one: Any, other: Any) -> float:
    """Intersection over union of two boxes."""
    a, b = np.array(one), np.array(other)
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = float(sides.prod())
    return both / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - both)
