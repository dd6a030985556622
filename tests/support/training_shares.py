"""What each of two processes reads in training, for the test that starts it: python training_shares.py OUT."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SubsetRandomSampler

import eenet
from eenet.training import TrainConfig, train

CONFIG = TrainConfig(
    epochs=2,
    learning_rate=0.05,
    schedule="constant",
    accumulate=2,
    loss_weights="adaptive",
    accelerator="cpu",
    tensorboard=False,
    progress=False,
)
HELD_OUT = 4


class Noted(Dataset[tuple[Tensor, Tensor]]):
    """44 samples, of which the last four are not trained on; notes which are read."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(44, 6, generator=generator)
        self.y = self.x[:, :3].argmax(1)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor]:
        self.read += index if isinstance(index, list) else [index]
        return self.x[index], self.y[index]


class ByEpoch(Sampler[list[int]]):
    """Batches in an order of the epoch, which is the next one unless `set_epoch` says another."""

    def __init__(self, samples: int, size: int) -> None:
        self.samples, self.size, self.epoch = samples, size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.samples // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(epoch)).tolist()
        yield from (order[i : i + self.size] for i in range(0, self.samples, self.size))


def samplers(data: Noted, size: int) -> dict[str, Any]:
    """Loaders by the way in which they choose samples; batches of 8 in one process are those of 4 in two."""
    kept = range(len(data) - HELD_OUT)
    return {
        "in order": DataLoader(data, size),
        "shuffled": DataLoader(data, size, shuffle=True),
        "subset": DataLoader(data, size, sampler=SubsetRandomSampler(kept)),
        "batches of a subset": DataLoader(data, batch_sampler=BatchSampler(SubsetRandomSampler(kept), size, False)),
        "by epoch": DataLoader(data, None, sampler=ByEpoch(len(data), size)),
        "by epoch, other process": DataLoader(data, None, sampler=ByEpoch(len(data), size), num_workers=1),
        "list": [(data.x[i : i + size], data.y[i : i + size]) for i in range(0, len(data), size)],
    }


def trained(out: Path, devices: int) -> dict[str, Any]:
    """Train with each loader; gives for each what was read, in order, and the report of the last epoch."""
    found = {}
    names = list(samplers(Noted(), 8))
    for name, seed in [*((name, 0) for name in names), ("shuffled", 5)]:
        data = Noted()
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
        model = eenet.attach(network, ["1"], example=data.x[:2])
        config = replace(CONFIG, seed=seed, devices=devices, strategy="ddp" if devices > 1 else "auto")
        validation = [(data.x, data.y)]
        key = f"{name} {seed}"
        report = train(model, samplers(data, 8 // devices)[name], validation, config=config, out=out / key).history[-1]
        found[key] = {"read": data.read, "loss": report.loss, "exits": report.exit_losses, "step": report.step}
    return found


def main(out: Path) -> None:
    """Write what this process read."""
    found = trained(out, 2)
    rank = torch.distributed.get_rank()
    (out / f"read{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
