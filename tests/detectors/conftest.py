from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector_models import ModelShop

# Otherwise Ultralytics would probe the network at its import, and install packages that the tests do not need.
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelShop]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # to distribute a tiny model to several threads costs more than to run it
    yield ModelShop(tmp_path_factory.mktemp("models"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def coco() -> Path:
    """The real model, if it is available."""
    path = SHARED / "models" / "yolov8n-coco.pt"
    if not path.is_file():
        pytest.skip(f"the real model is not here: {path}")
    return path


@pytest.fixture(scope="session")
def videos() -> list[Path]:
    paths = sorted((SHARED / "videos").glob("*.mp4"))
    if not paths:
        pytest.skip(f"the real videos are not here: {SHARED / 'videos'}")
    return paths
