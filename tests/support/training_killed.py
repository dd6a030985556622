"""A training run in a process of its own, which kills itself at a given point: run by the tests of resuming.

python training_killed.py OUT WHERE: "never", "batch" (in the middle of the third epoch) or "checkpoint" (while that of
the third epoch is written, after the best weights).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset
from training_toys import Augmented, corner_model, images

from eenet.training import TrainConfig, TrainResult, train

SAMPLES, BATCH = 80, 16
CONFIG = TrainConfig(
    epochs=5,
    optimizer="adamw",
    learning_rate=0.01,
    head_learning_rate=0.02,
    schedule="cosine",
    warmup_epochs=1,
    accumulate=2,
    gradient_clip=5.0,
    gradient_scaling="equilibrium",
    loss_weights="adaptive",
    distillation_part=0.5,
    accelerator="cpu",
    progress=False,
)


class Deadly(Augmented):
    """Augmented images; reading one too many kills the process, as the system does when memory runs out."""

    deadly: int | None = None

    def __getitem__(self, index: int) -> Any:
        if self.read == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def run(out: Path, where: str = "never", *, resume: bool = True) -> tuple[dict[str, torch.Tensor], TrainResult]:
    """Train; gives the best weights."""
    data = Deadly(SAMPLES, seed=0)
    if where == "batch":
        data.deadly = 2 * SAMPLES + 40
    if where == "checkpoint":
        _kill_at_the_sync_number(6)  # a best and a last one in each of the first two epochs, then the third's last
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(data, BATCH, shuffle=True, generator=generator)
    model = corner_model()
    result = train(model, loader, DataLoader(TensorDataset(*images(64, 1)), 32), config=CONFIG, out=out, resume=resume)
    return dict(model.state_dict()), result


def _kill_at_the_sync_number(deadly: int) -> None:
    sync, seen = os.fsync, 0

    def counted(fd: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(fd)

    os.fsync = counted


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), sys.argv[2])
