"""A training run on two processes of one machine, for the test that starts it: python training_on_two.py OUT."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from training_toys import corner_model, loaders

from eenet.training import TrainConfig, train

CONFIG = TrainConfig(
    epochs=2,
    optimizer="adamw",
    learning_rate=0.02,
    accumulate=2,
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    tensorboard=False,
    progress=False,
)


def main(out: Path) -> None:
    """Train jointly, then the heads alone; says what each process ends with."""
    for frozen in (False, True):
        model = corner_model()
        result = train(model, *loaders(128), config=replace(CONFIG, freeze_backbone=frozen), out=out / str(frozen))
        total = sum(float(parameter.double().sum()) for parameter in model.parameters())
        print(f"\nFOUND {frozen} {result.history[-1].step} {result.best.score} {total}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
