"""Tiny detectors with seeded random weights, so that every head and export is tested without a download.

Their class scores are spread around the usual threshold: each image gives dozens of boxes, in every class, of which
some are suppressed by others. That makes them a sharper test of pre- and post-processing than a trained model, whose
few confident boxes survive many a mistake.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detector_frames import draw

LABELS = {0: "car", 1: "truck", 2: "cyclist", 3: "pedestrian"}
STATIC_SIZE = 320


class ModelShop:
    """Builds each model once per test session, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Path] = {}

    def __call__(self, name: str) -> Path:
        if name not in self._made:
            self._made[name] = _RECIPES[name](self, self._folder / name)
        return self._made[name]


def save(model: Any, path: Path) -> Path:
    """Write a checkpoint as Ultralytics' trainer does."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": -1, "model": model, "train_args": {"imgsz": 640}, "version": "0", "date": ""}, path)
    return path


def export_onnx(checkpoint: Path, **options: Any) -> Path:
    """Ultralytics' own export, beside the checkpoint."""
    from ultralytics import YOLO

    with warnings.catch_warnings():  # torch's tracer has much to say about a model that it exports well
        warnings.simplefilter("ignore")
        return Path(YOLO(checkpoint).export(format="onnx", simplify=False, verbose=False, device="cpu", **options))


def build(yaml: str, *, seed: int = 7, share: float = 0.004) -> Any:
    """A detection model of `yaml`'s architecture, a few channels wide; in each class, about that share of the anchors
    of an image scores above 0.25."""
    import torch
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    torch.manual_seed(seed)
    settings = yaml_model_load(yaml)
    settings |= {"scales": {"n": [0.33, 0.125, 128]}, "scale": "n", "nc": len(LABELS)}
    model = DetectionModel(settings, verbose=False)
    model.names, model.task, model.args = dict(LABELS), "detect", {}
    pictures = np.stack([draw(320, 320, seed=100 + i) for i in range(8)])
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).flip(1).float() / 255
    with torch.no_grad():
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # average, so that one pass suffices
                module.reset_running_stats()
        model(batch)
        model.eval()
        _settle_head(model, batch, share)
    return model


def _settle_head(model: Any, batch: Any, share: float) -> None:
    """Give each class logits with a spread of 1, that share of them above 0.25, and boxes sides that are positive."""
    import torch

    head = model.model[-1]
    branches = {"one2many": (head.cv2, head.cv3)}
    if getattr(head, "one2one_cv3", None) is not None:
        branches["one2one"] = (head.one2one_cv2, head.one2one_cv3)
    output = model(batch)[1]
    for name, (box_layers, class_layers) in branches.items():
        raw = output.get(name, output)
        logits = raw["scores"].transpose(0, 1).flatten(1)  # (classes, all anchors)
        scale = 1 / logits.std(1)
        shift = torch.logit(torch.tensor(0.25)) - torch.quantile(logits * scale[:, None], 1 - share, dim=1)
        for layer in class_layers:
            layer[-1].weight.mul_(scale[:, None, None, None])
            layer[-1].bias.mul_(scale).add_(shift)
        for layer in box_layers:
            layer[-1].weight.mul_(0.5 / raw["boxes"].std())
            layer[-1].bias.fill_(4.0)


def _checkpoint(yaml: str) -> Callable[[ModelShop, Path], Path]:
    return lambda shop, folder: save(build(yaml), folder / "tiny.pt")


def _only_end_to_end(shop: ModelShop, folder: Path) -> Path:
    """A YOLO26 that was fused for use without NMS: its other head is gone."""
    model = copy.deepcopy(build("yolo26n.yaml"))
    model.end2end = True
    return save(model.fuse(verbose=False), folder / "tiny.pt")


def _export(source: str, **options: Any) -> Callable[[ModelShop, Path], Path]:
    def recipe(shop: ModelShop, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        copied = Path(shutil.copy(shop(source), folder / "tiny.pt"))
        return export_onnx(copied, **options)

    return recipe


def _half(shop: ModelShop, folder: Path) -> Path:
    """A model with float16 input and output, as Ultralytics exports on a GPU."""
    import onnx
    from onnxruntime.transformers import float16

    folder.mkdir(parents=True, exist_ok=True)
    model = float16.convert_float_to_float16(onnx.load(str(shop("v8-onnx-dynamic"))), keep_io_types=False)
    onnx.save(model, str(folder / "tiny.onnx"))
    return folder / "tiny.onnx"


def _without_metadata(shop: ModelShop, folder: Path) -> Path:
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(str(shop("v8-onnx-dynamic")))
    del model.metadata_props[:]
    onnx.save(model, str(folder / "tiny.onnx"))
    return folder / "tiny.onnx"


_RECIPES: dict[str, Callable[[ModelShop, Path], Path]] = {
    "v8": _checkpoint("yolov8n.yaml"),
    "26-both-heads": _checkpoint("yolo26n.yaml"),
    "26-end-to-end": _only_end_to_end,
    "v8-onnx-dynamic": _export("v8", dynamic=True),
    "v8-onnx-1": _export("v8", imgsz=STATIC_SIZE, batch=1),
    "v8-onnx-4": _export("v8", imgsz=STATIC_SIZE, batch=4),
    "v8-onnx-half": _half,
    "v8-onnx-bare": _without_metadata,
    "26-onnx-end-to-end": _export("26-both-heads", dynamic=True, nms=False),
    "26-onnx-nms": _export("26-both-heads", imgsz=STATIC_SIZE, batch=1),
}
