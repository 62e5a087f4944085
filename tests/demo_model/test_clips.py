"""The committed clips: they show the streets that the renderer renders."""

from __future__ import annotations

import cv2
import pytest

import render_clips
from consumer.tools.assets import CLIPS


@pytest.mark.parametrize("number", range(len(CLIPS)))
def test_a_clip_shows_its_street(number: int) -> None:
    """Catches a changed renderer without new clips: the tests compare detections in them with its labels."""
    capture = cv2.VideoCapture(str(CLIPS[number]))
    try:
        assert capture.get(cv2.CAP_PROP_FPS) == render_clips.FPS
        assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == render_clips.FRAMES
        success, picture = capture.read()
    finally:
        capture.release()
    street = render_clips.demo_streets()[number]
    assert success
    assert CLIPS[number].stem == f"street-{street.time_of_day}"
    assert cv2.PSNR(picture, street.frame(0, render_clips.FPS)[0]) > 30
