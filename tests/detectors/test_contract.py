"""The contract of `consumer/detectors/base.py`, checked with every backend and every kind of model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from consumer.config import DetectorConfig
from consumer.detectors.base import Detector
from consumer.detectors.loader import load_detector
from consumer.types import Detections
from detector_frames import SIZES, detect, draw, fill, grey
from detector_models import LABELS, STATIC_SIZE, ModelShop

CONFIDENCE = 0.25
IMAGES = [draw(width, height, seed) for seed, (width, height) in enumerate(SIZES)]

# Name of the model -> image_size.
TINY = {
    "v8": 320,
    "26-end-to-end": 320,
    "v8-onnx-dynamic": 320,
    "v8-onnx-1": STATIC_SIZE,
    "v8-onnx-4": STATIC_SIZE,
    "v8-onnx-half": 320,
    "26-onnx-end-to-end": 320,
}
SIMULATED = "simulated://0ms@1,0ms@32"
SCRIPTED = f"{SIMULATED}?fault=slow:1ms@*/2&fault=oom>1024"


def configured(name: str, models: ModelShop, **options: object) -> DetectorConfig:
    model = name if name in {SIMULATED, SCRIPTED} else str(models(name))
    settings = {"image_size": TINY.get(name, 320), "confidence": CONFIDENCE, "device": "cpu", **options}
    return DetectorConfig(model=model, **settings)


@pytest.fixture(scope="module", params=[*TINY, SIMULATED, SCRIPTED])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def detector(name: str, models: ModelShop) -> Iterator[Detector]:
    loaded = load_detector(configured(name, models))
    yield loaded
    loaded.close()


def assert_same(actual: Detections, expected: Detections) -> None:
    """Assert equality except for the last digits: another batch size may use another convolution kernel."""
    assert actual.class_ids.tolist() == expected.class_ids.tolist()
    np.testing.assert_allclose(actual.scores, expected.scores, atol=2e-3)
    np.testing.assert_allclose(actual.boxes, expected.boxes, atol=0.5)


def alone(detector: Detector, image: np.ndarray) -> Detections:
    (result,) = detect(detector, [image])
    return result


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_as_many_results_as_frames_in_their_order(detector: Detector, n: int) -> None:
    """Catches: padding of a fixed batch that is returned as results, an empty call that crashes, results ordered by
    shape."""
    results = detect(detector, IMAGES[:n])
    assert len(results) == n
    for image, result in zip(IMAGES, results, strict=False):
        assert_same(result, alone(detector, image))


def test_a_result_does_not_depend_on_the_rest_of_the_batch(detector: Detector) -> None:
    """Catches: canvases padded to the largest of the batch, NMS across images, state that is kept between frames."""
    wanted, noisy, empty = IMAGES[0], IMAGES[5], grey(640, 480)
    reference = alone(detector, wanted)
    for batch in ([wanted, noisy], [noisy, wanted], [empty, noisy, wanted], [wanted] * 3, [noisy, wanted, empty]):
        for image, result in zip(batch, detect(detector, batch), strict=True):
            if image is wanted:
                assert_same(result, reference)


def test_canvases_of_different_shapes_may_come_in_one_call(detector: Detector) -> None:
    """Catches: a call that assumes one shape, and results in the order of the groups instead of the frames."""
    interleaved = [IMAGES[i] for i in (0, 3, 1, 3, 0, 2, 1, 0)]
    if detector.policy.rect:
        assert len({lb.canvas_shape for lb in fill(detector, interleaved)[1]}) > 2
    for image, result in zip(interleaved, detect(detector, interleaved), strict=True):
        assert_same(result, alone(detector, image))


def test_boxes_are_typed_sorted_and_inside_the_original_image(detector: Detector) -> None:
    """Catches: canvas pixels instead of image pixels, boxes that exceed the image, float64, an order by class."""
    for image, result in zip(IMAGES, detect(detector, IMAGES), strict=True):
        height, width = image.shape[:2]
        assert (result.boxes.dtype, result.scores.dtype, result.class_ids.dtype) == (np.float32, np.float32, np.int32)
        assert len(result) > 0
        assert (result.boxes >= 0).all()
        assert (result.boxes <= [width, height, width, height]).all()
        assert (result.boxes[:, :2] <= result.boxes[:, 2:]).all()
        assert (np.diff(result.scores) <= 0).all()
        assert ((result.scores > CONFIDENCE) & (result.scores <= 1)).all()


def test_results_survive_the_reuse_of_the_slots(detector: Detector) -> None:
    """Catches: a result that is a view of the ring buffer, or a device copy that still runs when `detect` returns."""
    slots, letterboxes = fill(detector, IMAGES[:3])
    results = detector.detect(slots, letterboxes)
    before = [(r.boxes.copy(), r.scores.copy(), r.class_ids.copy()) for r in results]
    slots[:] = 0
    detector.detect(slots, letterboxes)
    for result, (boxes, scores, class_ids) in zip(results, before, strict=True):
        np.testing.assert_array_equal(result.boxes, boxes)
        np.testing.assert_array_equal(result.scores, scores)
        np.testing.assert_array_equal(result.class_ids, class_ids)


def test_bytes_after_a_canvas_in_its_slot_are_ignored(detector: Detector) -> None:
    """Catches: the whole slot used as the canvas, so that an earlier, larger frame is visible."""
    slots, letterboxes = fill(detector, IMAGES[:2])
    first = detector.detect(slots, letterboxes)
    for slot, letterbox in zip(slots, letterboxes, strict=True):
        slot[letterbox.canvas_width * letterbox.canvas_height * 3 :] = 0
    for before, after in zip(first, detector.detect(slots, letterboxes), strict=True):
        np.testing.assert_array_equal(before.boxes, after.boxes)


def test_slots_that_do_not_match_their_letterboxes_are_refused(detector: Detector) -> None:
    """Catches: a wrong count or size that is answered with the pixels of another frame."""
    slots, letterboxes = fill(detector, IMAGES[:2])
    with pytest.raises(ValueError, match="slots: expected uint8"):
        detector.detect(slots[:1], letterboxes)
    with pytest.raises(ValueError, match="a slot holds 3000"):
        detector.detect(slots[:, :3000], letterboxes)


def test_preparing_the_memory_of_the_ring_does_not_change_it(detector: Detector) -> None:
    """Catches: a backend that writes to the memory, or makes it read-only, when it prepares it for the device."""
    memory = np.full((2, 3 * 64 * 64), 7, np.uint8)
    detector.pin(memory)
    assert (memory == 7).all()
    memory[:] = 1


def test_labels_name_every_class_of_the_model(detector: Detector, name: str) -> None:
    """Catches: names of COCO for a model with other classes, or numbers although the names are known."""
    assert dict(detector.info.labels) == ({0: "simulated"} if name.startswith("simulated") else LABELS)
    assert detector.info.digest.startswith("sha256:")
    assert detector.info.name == (name if name.startswith("simulated") else Path(detector.info.name).name)


def test_device_names_the_device_in_use(detector: Detector, name: str) -> None:
    """Catches: a benchmark of the simulation that can be mistaken for one of a real detector."""
    assert detector.device == ("simulated" if name.startswith("simulated") else "cpu")


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_detections_than_allowed_and_the_best_ones(name: str, models: ModelShop, limit: int) -> None:
    """Catches: a head without NMS that returns all its boxes, or a limit that is applied before sorting by score."""
    image = IMAGES[0]
    detector = load_detector(configured(name, models, max_detections=limit))
    everything = alone(load_detector(configured(name, models)), image)
    result = alone(detector, image)
    assert len(result) == min(limit, len(everything))
    np.testing.assert_allclose(result.scores, everything.scores[:limit], atol=2e-3)


def test_warming_up_changes_no_result(name: str, models: ModelShop) -> None:
    """Catches: a warm-up that leaves its batch size or its canvas behind."""
    detector = load_detector(configured(name, models))
    before = alone(detector, IMAGES[1])
    detector.warm_up(4)
    assert_same(alone(detector, IMAGES[1]), before)


def test_closing_twice_is_harmless(name: str, models: ModelShop) -> None:
    """Catches: a shutdown after a failure that fails itself and hides the first failure."""
    detector = load_detector(configured(name, models))
    detector.close()
    detector.close()


@pytest.mark.shared
def test_nothing_is_detected_in_a_grey_image(coco: Path) -> None:
    """Catches: preprocessing whose output a trained model takes for content (a missing scale, a wrong padding)."""
    detector = load_detector(DetectorConfig(model=str(coco), device="cpu"))
    results: Sequence[Detections] = detect(detector, [grey(768, 432), grey(100, 700)])
    assert [len(result) for result in results] == [0, 0]
