"""Selection and suppression compared with torchvision and Ultralytics, on generated model outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from consumer.config import DetectorConfig
from consumer.detectors import postprocess
from consumer.detectors.postprocess import Rows, suppress, to_detections, to_original
from consumer.types import Letterbox, LetterboxPolicy


def in_numpy(prediction: np.ndarray, config: DetectorConfig) -> list[Rows]:
    return postprocess.select(prediction, config)


def in_torch(prediction: np.ndarray, config: DetectorConfig) -> list[Rows]:
    from consumer.detectors import postprocess_torch

    return postprocess_torch.select(torch.from_numpy(prediction), config)


both = pytest.mark.parametrize("select", [in_numpy, in_torch])
Select = Callable[[np.ndarray, DetectorConfig], list[Rows]]


def candidates(images: int, classes: int, anchors: int, seed: int = 0) -> np.ndarray:
    """Return clustered boxes, many of which suppress each other, with scores on both sides of the threshold."""
    random = np.random.default_rng(seed)
    centres = random.uniform(50, 590, (images, 2, 12))[:, :, random.integers(0, 12, anchors)]
    boxes = np.concatenate([centres, np.full((images, 2, anchors), 60.0)], 1)
    boxes += random.normal(0, 6, boxes.shape)
    scores = random.beta(0.5, 6, (images, classes, anchors))
    return np.concatenate([boxes, scores], 1).astype(np.float32)


def ultralytics(prediction: np.ndarray, config: DetectorConfig) -> list[Rows]:
    import torchvision  # noqa: F401 - Ultralytics uses its NMS if it was imported
    from ultralytics.utils.nms import non_max_suppression

    found: Any = non_max_suppression(
        torch.from_numpy(prediction.copy()), config.confidence, config.iou, max_det=config.max_detections
    )
    return [rows.numpy() for rows in found]


@both
@pytest.mark.parametrize(
    ("images", "classes", "anchors", "confidence"),
    [(1, 1, 300, 0.1), (3, 4, 300, 0.25), (32, 80, 120, 0.25), (3, 80, 3000, 0.01)],
    ids=["one class", "few", "32 images of 80 classes", "more than are pooled"],
)
def test_selection_equals_ultralytics(
    select: Select, images: int, classes: int, anchors: int, confidence: float
) -> None:
    """Catches: offsets so large that float32 merges boxes, and competition between images or classes."""
    config = DetectorConfig(confidence=confidence, iou=0.6)
    prediction = candidates(images, classes, anchors)
    expected = ultralytics(prediction, config)
    assert sum(map(len, expected)) > 10
    for actual, wanted in zip(select(prediction, config), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)


@both
def test_far_images_of_a_batch_are_suppressed_as_exactly_as_the_first(select: Select) -> None:
    """Catches: one offset of (image * classes + class) * 7680, for which float32 has a spacing of 2 pixels at the
    end."""
    one = candidates(1, 80, 120)
    first, *_, last = select(np.repeat(one, 32, axis=0), DetectorConfig(confidence=0.25))
    np.testing.assert_array_equal(first, last)


@both
@pytest.mark.parametrize("pairs", [1, 4], ids=["pooled", "more than are pooled"])
def test_the_last_of_many_images_is_suppressed_as_exactly_as_the_first(select: Select, pairs: int) -> None:
    """Catches: a thousand images in one row, for which float32 has a spacing of half a pixel at the end."""
    columns = [(5 + 50 * n, y, 10, 10, score) for n in range(pairs) for y, score in ((5, 0.9), (6.77, 0.8))]
    one = np.array(columns, np.float32).T[None]  # half a pixel moves the IoU of a pair from 0.70 to 0.67
    for rows in select(np.repeat(one, 1024, axis=0), DetectorConfig(iou=0.68)):
        assert len(rows) == pairs


@both
@pytest.mark.parametrize("final", [False, True], ids=["candidates", "final boxes"])
@pytest.mark.parametrize("place", [0, 7, slice(None)], ids=["first", "another", "all"])
def test_a_nan_score_does_not_give_an_empty_result(select: Select, final: bool, place: Any) -> None:
    """Catches: a model that overflows in half precision, and an empty, committed detection for every frame."""
    prediction = np.zeros((3, 20, 6) if final else (3, 84, 20), np.float32)
    prediction[1][(place, 4) if final else (11, place)] = np.nan
    first, broken, last = select(prediction, DetectorConfig())
    assert (len(first), len(last)) == (0, 0)
    assert np.isnan(broken[:, 4]).tolist() == [True]


def test_an_infinite_box_does_not_become_the_edge_of_the_image() -> None:
    letterbox = Letterbox.fit(640, 480, LetterboxPolicy(size=640))
    moved = to_original(np.array([[10, 10, np.inf, 20]], np.float32), letterbox)
    assert np.isnan(moved[0, 2])
    assert np.isfinite(moved[0, [0, 1, 3]]).all()


@both
def test_final_boxes_are_only_filtered(select: Select) -> None:
    """Catches: NMS after a head that has done it, `>=` at the threshold, more boxes than allowed."""
    boxes = np.array([[10, 10, 50, 50]] * 5, np.float32)
    scores = np.array([[0.9], [0.8], [0.7], [0.25], [0.1]], np.float32)
    prediction = np.concatenate([boxes, scores, np.zeros((5, 1), np.float32)], 1)[None].repeat(2, axis=0)
    for rows in select(prediction, DetectorConfig(confidence=0.25)):
        np.testing.assert_allclose(rows[:, 4], [0.9, 0.8, 0.7])
    assert [len(rows) for rows in select(prediction, DetectorConfig(confidence=0.25, max_detections=2))] == [2, 2]


@both
def test_nothing_above_the_threshold_is_an_empty_result(select: Select) -> None:
    """Catches: an empty selection that loses its six columns, or an image that loses its place."""
    prediction = candidates(3, 4, 50)
    prediction[1, 4:] = 0
    counts = [len(rows) for rows in select(prediction, DetectorConfig(confidence=0.25))]
    assert counts[1] == 0
    assert counts[0] > 0
    assert counts[2] > 0
    assert [rows.shape for rows in select(prediction, DetectorConfig(confidence=1))] == [(0, 6)] * 3


@both
def test_only_the_best_of_too_many_candidates_are_used(select: Select, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a limit on candidates that keeps the first ones instead of the best."""
    from consumer.detectors import postprocess_torch

    monkeypatch.setattr(postprocess, "MAX_CANDIDATES", 5)
    monkeypatch.setattr(postprocess_torch, "MAX_CANDIDATES", 5)
    prediction = candidates(1, 1, 50)
    prediction[0, :2] = np.arange(50) * 1000  # nothing overlaps
    (rows,) = select(prediction, DetectorConfig(confidence=0.001))
    np.testing.assert_allclose(rows[:, 4], np.sort(prediction[0, 4])[::-1][:5])


# (width, height) of common cameras, some in portrait format.
CAMERAS = [
    (352, 288), (640, 360), (640, 480), (704, 576), (768, 432), (800, 600), (854, 480), (960, 540), (1024, 768),
    (1280, 720), (1280, 960), (1366, 768), (1440, 1080), (1920, 1080), (1920, 1200), (2048, 1536), (2560, 1440),
    (2592, 1944), (2688, 1520), (3072, 2048), (3840, 2160), (4000, 3000), (1080, 1920), (720, 1280), (480, 640),
]  # fmt: skip

# With whole pixels and a coarse grid of scores, equal overlaps, equal scores and empty boxes are likely.
_boxes = st.integers(0, 40).flatmap(lambda n: arrays.arrays(np.int16, (n, 4), elements=st.integers(0, 12)))


@given(corners=_boxes, data=st.data())
@settings(max_examples=200, deadline=None)
def test_suppression_equals_torchvision(corners: np.ndarray, data: st.DataObject) -> None:
    """Catches: another order of equal scores, `>=` for `>`, a threshold compared in float32, boxes without area."""
    import torchvision

    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1).astype(np.float32)
    levels = st.sampled_from([0.25, 0.5, 0.75])
    scores = np.array(data.draw(st.lists(levels, min_size=len(boxes), max_size=len(boxes))), np.float32)
    iou = data.draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 1.0]))
    expected = torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).tolist()
    assert suppress(boxes, scores, iou, 1000).tolist() == expected
    assert suppress(boxes, scores, iou, 3).tolist() == expected[:3]


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    size=st.sampled_from([320, 640, 1280]),
    rect=st.booleans(),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_boxes_are_mapped_back_by_their_own_letterbox(
    width: int, height: int, size: int, rect: bool, data: st.DataObject
) -> None:
    """Catches: one gain for both axes, a padding of half a pixel, clipping to the canvas instead of the image."""
    from ultralytics.utils.ops import scale_boxes

    lb = Letterbox.fit(width, height, LetterboxPolicy(size, 32, rect))
    boxes = data.draw(arrays.arrays(np.float32, (5, 4), elements=st.floats(-100, 1400, width=32)))
    gains, pads = (lb.scaled_height / height, lb.scaled_width / width), (lb.pad_x, lb.pad_y)
    expected = scale_boxes(lb.canvas_shape, torch.from_numpy(boxes.copy()), (height, width), (gains, pads))
    np.testing.assert_allclose(to_original(boxes, lb), expected.numpy(), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("size", [320, 640, 1280])
@pytest.mark.parametrize("rect", [True, False])
def test_boxes_of_camera_images_are_mapped_back_as_in_predict(size: int, rect: bool) -> None:
    """Catches: a letterbox that differs from the one which Ultralytics derives from the sizes."""
    from ultralytics.utils.ops import scale_boxes

    boxes = np.random.default_rng(0).uniform(0, size, (20, 4)).astype(np.float32)
    for width, height in CAMERAS:
        lb = Letterbox.fit(width, height, LetterboxPolicy(size, 32, rect))
        expected = scale_boxes(lb.canvas_shape, torch.from_numpy(boxes.copy()), (height, width)).numpy()
        np.testing.assert_allclose(to_original(boxes, lb), expected, rtol=1e-5, err_msg=f"{width}x{height}")


def test_a_result_is_sorted_and_keeps_nothing_of_the_output() -> None:
    """Catches: reliance on the order of a head that guarantees none, and views of memory that the detector reuses."""
    rows = np.array([[0, 0, 10, 10, 0.3, 1], [5, 5, 20, 20, 0.9, 2]], np.float32)
    result = to_detections(rows, Letterbox.fit(640, 640, LetterboxPolicy()))
    rows[:] = 0
    np.testing.assert_allclose(result.scores, [0.9, 0.3])
    assert result.class_ids.tolist() == [2, 1]
    np.testing.assert_allclose(result.boxes, [[5, 5, 20, 20], [0, 0, 10, 10]])
