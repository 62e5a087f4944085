"""Render streets, train a small YOLO on them from scratch, and write the model of `sluice demo`.

    python demo-model/train.py --out consumer/tools/assets/demo.pt

The weights come from these pictures alone: nothing is downloaded, and no pretrained weights are loaded. A .json file
beside the model has its scores on held-out streets, and how it was made.
"""

import argparse
import copy
import hashlib
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataset import (
    HELD_OUT_SEED,
    TRAIN_SEED,
    augment,
    draw_set,
    held_out_set,
    load_set,
    make_batch,
)
from model_layers import MODEL
from scenes import CLASS_NAMES
from scoring import predict, score

IMAGE_SIZE = 640
SMALL, FULL = (448, 256), (640, 384)
"""Sizes (width, height) of training pictures; the full size is that of a letterboxed 640x360 frame."""


def train(rank: int, data: Path, options: argparse.Namespace) -> None:
    """Train in one of `options.threads` processes, each on its share of every batch.

    Processes, not threads: on a busy machine the threads of one process wait for each other at every layer, which
    took three times as long. Processes synchronise once a step, to average the gradients. Process 0 writes the model.
    """
    import torch
    from ultralytics.utils.torch_utils import ModelEMA

    torch.set_num_threads(1)
    # Gradients become denormal float32 numbers, with which the CPU is many times slower.
    torch.set_flush_denormal(True)
    cv2.setNumThreads(1)
    world = options.threads
    torch.distributed.init_process_group("gloo", init_method=options.rendezvous, rank=rank, world_size=world)
    torch.manual_seed(options.seed)
    shared, rng = np.random.default_rng(options.seed), np.random.default_rng([options.seed, rank])
    pictures = load_set(data)
    stages = [SMALL] * options.small_epochs + [FULL] * options.epochs
    model = make_model(options.start, len(stages))
    steps = len(pictures) // (options.batch * world)
    optimizer, plan = make_optimizer(model, options.rate, steps * len(stages))
    follow: Any = ModelEMA
    average = follow(model, decay=0.998, tau=400)
    for epoch, size in enumerate(stages):
        began, total = time.monotonic(), 0.0
        order = shared.permutation(len(pictures))[: steps * world * options.batch].reshape(steps, world, options.batch)
        for step in range(steps):
            batch = make_batch([augment(pictures[k], size, rng) for k in order[step, rank]])
            total += train_step(model, optimizer, batch, options) / steps
            plan.step()
            average.update(model)
        model.criterion.update()
        if rank == 0:
            seconds = time.monotonic() - began
            print(
                f"epoch {epoch + 1}/{len(stages)} at {size[0]}x{size[1]}: loss {total:.3f}, {seconds:.0f} s", flush=True
            )
            save(average.ema, options.out)


def make_model(start: Path | None, epochs: int) -> Any:
    """The network for training over `epochs`, with random weights or those of the model of an earlier run."""
    import torch
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG

    build: Any = DetectionModel
    model = build({**MODEL, "scale": "p"}, nc=len(CLASS_NAMES), verbose=False)
    model.names = dict(enumerate(CLASS_NAMES))
    model.args = copy.copy(DEFAULT_CFG)
    # Over this many epochs, the loss of Ultralytics shifts its weight from the one-to-many to the one-to-one head.
    model.args.epochs = epochs
    if start is not None:
        earlier = torch.load(start, map_location="cpu", weights_only=False)["model"]
        model.load_state_dict(earlier.float().state_dict())
    return model.to(memory_format=torch.channels_last).train()


def make_optimizer(model: Any, rate: float, steps: int) -> tuple[Any, Any]:
    """AdamW with weight decay on the kernels only, and its one-cycle schedule."""
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.06, final_div_factor=100)


def train_step(model: Any, optimizer: Any, batch: dict[str, Any], options: argparse.Namespace) -> float:
    """One step on one batch. Returns the loss per picture of this process."""
    import torch

    with torch.autocast("cpu", torch.bfloat16, enabled=not options.exact):
        predictions = model(batch["img"])
    loss = model.loss(batch, predictions)[0].sum() / options.batch
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    average_gradients(model, options.threads)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    return float(loss.detach())


def average_gradients(model: Any, world: int) -> None:
    """Replace the gradients of every process by their mean over all processes."""
    import torch

    kept = [p for p in model.parameters() if p.grad is not None]
    flat = torch.cat([p.grad.reshape(-1) for p in kept]) / world
    torch.distributed.all_reduce(flat)
    parts = torch.split(flat, [p.numel() for p in kept])
    for parameter, mean in zip(kept, parts, strict=True):
        parameter.grad.copy_(mean.reshape(parameter.shape))


def save(model: Any, path: Path) -> None:
    """Write the averaged weights as a half-precision Ultralytics checkpoint without optimizer or training state."""
    import torch
    import ultralytics

    kept = copy.deepcopy(model)
    kept.criterion, kept.args = None, {"task": "detect", "imgsz": IMAGE_SIZE}
    kept = kept.half().to(memory_format=torch.contiguous_format)
    for parameter in kept.parameters():
        parameter.requires_grad = False
    torch.save(
        {
            "epoch": -1,
            "model": kept,
            "ema": None,
            "optimizer": None,
            "train_args": {"task": "detect", "imgsz": IMAGE_SIZE},
            "version": ultralytics.__version__,
            "license": "AGPL-3.0-or-later",
        },
        path,
    )


def write_card(model: Path, arguments: Sequence[str], options: argparse.Namespace) -> None:
    """Score the model, and write the .json beside it: architecture, origin, scores."""
    import torch
    import ultralytics

    pictures, truth = held_out_set(options.held_out, 4)
    precision = score(predict(model, pictures, IMAGE_SIZE), truth)
    card = {
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "architecture": "YOLO26, end-to-end head, depth 0.50, width 0.125",
        "image_size": IMAGE_SIZE,
        "classes": list(CLASS_NAMES),
        "licence": "AGPL-3.0-or-later",
        "train": {"first_seed": TRAIN_SEED, "streets": options.streets, "pictures_each": options.pictures},
        "held_out": {"first_seed": HELD_OUT_SEED, "streets": options.held_out, "pictures_each": 4},
        "map50_held_out": {name: round(value, 4) for name, value in precision.items()},
        "command": shlex.join(["python", "demo-model/train.py", *arguments]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ultralytics": ultralytics.__version__,
            "opencv": cv2.__version__,
            "numpy": np.__version__,
        },
    }
    model.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card["map50_held_out"]))


def use_offline() -> None:
    """Keep Ultralytics from downloading, installing, reporting or writing outside a temporary folder."""
    os.environ.update(
        YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_CONFIG_DIR=tempfile.mkdtemp(prefix="sluice-yolo-")
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python demo-model/train.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the model; the .json is written beside it")
    parser.add_argument("--streets", type=int, default=360, help="streets to train on")
    parser.add_argument("--pictures", type=int, default=7, help="pictures of each street")
    parser.add_argument("--small-epochs", type=int, default=8, help="epochs at 448x256, first")
    parser.add_argument("--epochs", type=int, default=14, help="epochs at 640x384")
    parser.add_argument("--batch", type=int, default=8, help="pictures per step and process")
    parser.add_argument("--rate", type=float, default=0.003, help="highest learning rate")
    parser.add_argument("--start", type=Path, help="continue from the model of an earlier run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--exact", action="store_true", help="float32 instead of bfloat16 in the forward pass")
    parser.add_argument("--data", type=Path, help="folder that keeps the pictures for later runs (default: temporary)")
    parser.add_argument("--held-out", type=int, default=20, help="streets for scoring, four pictures each")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    use_offline()
    import torch

    with tempfile.TemporaryDirectory(prefix="sluice-demo-") as scratch:
        data = options.data or Path(scratch)
        if not (data / "train").exists():
            draw_set(data / "train", TRAIN_SEED, options.streets, options.pictures, options.threads)
        options.rendezvous = f"file://{scratch}/rendezvous"
        spawn: Any = torch.multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(train, (data / "train", options), nprocs=options.threads)
    write_card(options.out, given, options)


if __name__ == "__main__":
    main()
