"""What makes training faster: cached features, the channels-last layout, bfloat16; in images per second.

ResNet-56 for 32 x 32 images with two early exits, on random images in memory, so that reading data costs nothing and
all that is compared is training. The ways take turns: in each round the features are cached again, the heads train on
them for some epochs, then everything trains jointly for one epoch in each way. Evaluation is not counted. Aim: heads on
cached features at least 5 times as fast as joint training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import eenet
from eenet._timing import describe_machine, machine
from eenet.cli._console import progress
from eenet.networks import CifarResNet
from eenet.training import TrainConfig, train

AIM = 5.0
HEAD_EPOCHS = 3
HEADS = "heads alone"
WAYS: dict[str, dict[str, Any]] = {
    HEADS: {"epochs": HEAD_EPOCHS, "freeze_backbone": True},
    "joint": {},
    "joint, channels last": {},
    "joint, bf16": {"precision": "bf16"},
    "joint, bf16, channels last": {"precision": "bf16"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, and write JSON where asked; fails below the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="training images in an epoch")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="threads for torch (default: torch's own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"machine": machine(), "images": options.images, "batch_size": options.batch_size}
    print(describe_machine(found["machine"]))
    found |= measure(options.images, options.batch_size, options.rounds)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["ratio"] >= AIM else 1


def measure(images: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Images per second of each way, each epoch by itself, and the time that caching takes."""
    torch.manual_seed(0)
    model = eenet.attach(
        CifarResNet([9, 9, 9]), exits=["layers.0", "layers.1"], num_classes=10, example=torch.randn(2, 3, 32, 32)
    )
    loader = DataLoader(_random_images(images), batch_size, shuffle=True)
    validation = DataLoader(_random_images(2 * batch_size), batch_size)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    caching: list[float] = []
    with progress() as bars, tempfile.TemporaryDirectory() as folder:
        update, runs = bars.task("runs", rounds * len(WAYS)), 0
        for _ in range(rounds):
            for way, options in WAYS.items():
                layout = torch.channels_last if "channels last" in way else torch.contiguous_format
                model.to(memory_format=layout)  # type: ignore[call-overload]
                config = TrainConfig(
                    **({"epochs": 1} | options),
                    learning_rate=0.01,
                    accelerator="cpu",
                    tensorboard=False,
                    progress=False,
                )
                start = time.perf_counter()
                result = train(model, loader, validation, config=config, out=Path(folder) / str(runs))
                seconds = time.perf_counter() - start
                rates[way] += [report.images_per_second for report in result.history]
                if way == HEADS:
                    caching.append(seconds - sum(report.seconds for report in result.history))
                runs += 1
                update(runs)
    ratio = statistics.median(rates[HEADS]) / statistics.median(rates["joint"])
    return {"images_per_second": rates, "overhead_seconds": caching, "ratio": ratio}


def show(found: dict[str, Any]) -> None:
    """Print one row per way to train."""
    print(f"{'training':<28}{'images/s':>10}{'lowest':>10}{'highest':>10}{'of joint':>10}")
    joint = statistics.median(found["images_per_second"]["joint"])
    for way, rates in found["images_per_second"].items():
        median = statistics.median(rates)
        print(f"{way:<28}{median:>10.0f}{min(rates):>10.0f}{max(rates):>10.0f}{median / joint:>10.2f}")
    print(f"heads / joint: {found['ratio']:.1f} (aim: at least {AIM:g})")
    overhead = statistics.median(found["overhead_seconds"])
    print(f"caching, evaluation and checkpoints of a run of the heads: {overhead:.1f} s")


def _random_images(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(count)
    return TensorDataset(
        torch.randn(count, 3, 32, 32, generator=generator), torch.randint(0, 10, (count,), generator=generator)
    )


if __name__ == "__main__":
    sys.exit(main())
