"""docs/reference/compatibility.md: what works with what, found by trying; this file run as a program rewrites it."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import eenet
from eenet.bundle import LoadedBundle
from eenet.scheduler import SCHEDULERS, Scheduler
from eenet.tasks import Segmentation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "compatibility.md"
COSTS = eenet.ExitCosts([1.0, 2.0, 3.0])

INTRODUCTION = """# What works with what

Each cell was tried on a small network with three exits: *yes* means that the fit succeeds, and for the last two columns
that every sample takes the exit of the replay. Written by `python tests/support/matrix_page.py`; a test says when it is
out of date.

"""

NOTES = """
- *no labels*: the calibration records need none.
- *segmentation*: records of a network that gives every pixel a class.
- *guarantee*: `guarantee=0.95` on a budget; *accuracy promise*: `max_accuracy_drop`; *abstention*: `abstain=0.05`.
- *controller*: `BudgetController` holds a budget in traffic, in `AdaptiveModel` and in the server.
- *PyTorch*: `AdaptiveModel`; *ONNX*: a bundle, which is also what `eenet serve`, `eenet predict` and Ray run.
- Methods that change predictions answer with an ensemble of the exits so far.

Back ends by what they are for:

| back end | runs on | optimized stages | needs PyTorch |
|---|---|---|---|
| `AdaptiveModel` | CPU, CUDA | frozen, channels last, CUDA graphs, AOTInductor | yes |
| bundle, `backend="onnx"` | CPU, the providers of ONNX Runtime | by ONNX Runtime | no |
| bundle, `backend="torch"`, `"aoti"` | CPU | as `AdaptiveModel` | yes |
| server, Ray | CPU | those of the bundle | as the bundle |
"""


@cache
def _network() -> tuple[Any, Any, Any, Any]:
    """A model with three exits, its inputs, their records with labels, and those of a segmentation network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
        x = torch.randn(600, 8)
        labels = (x[:, :4] + 0.5 * torch.randn(600, 4)).argmax(1)
        model = eenet.attach(network, exits=["1", "3"], example=x[:2])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        model.train()
        for _ in range(40):
            optimizer.zero_grad()
            model(x[:300], labels=labels[:300])["loss"].backward()
            optimizer.step()
        model.eval()
        records = eenet.collect(model, [(x[300:], labels[300:])])
        pixels = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).eval()
        images = torch.randn(300, 1, 8, 8)
        of_pixels = eenet.attach(pixels, exits=["1"], example=images[:2], task=Segmentation())
        classes = torch.randint(3, (300, 8, 8))
        return model, x[300:], records, eenet.collect(of_pixels.eval(), [(images, classes)])


def _works(attempt: Callable[[], bool]) -> str:
    """Whether an attempt succeeds; what the library refuses is a no."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "yes" if attempt() else "no"
        except eenet.EENetError:
            return "no"


def _row(name: str, make: Callable[[], Scheduler], bundle: Any) -> list[str]:
    model, x, records, pixels = _network()
    unlabeled = eenet.ExitRecords.from_probabilities(records.probabilities)

    def fits(of: Any = records, costs: eenet.ExitCosts = COSTS, budget: Any = 2.2, **options: Any) -> bool:
        make().fit(of, costs, budget, fallback=False, **options)
        return True

    def as_replayed(run: Callable[[Scheduler], Any]) -> bool:
        scheduler = make().fit(records, COSTS, 2.2, fallback=False)
        return bool((np.asarray(run(scheduler)) == scheduler.replay(records).exits).all())

    def controlled() -> bool:
        eenet.BudgetController(make().fit(records, COSTS, fallback=False), 2.2)
        return True

    scheduler = make()
    return [
        f"`{type(scheduler).__name__}`",
        f"`{name}`",
        _works(lambda: fits(unlabeled)),
        _works(lambda: fits(pixels, eenet.ExitCosts([1.0, 2.0]), 1.5)),
        _works(lambda: fits(guarantee=0.95, budget=2.8)),
        _works(lambda: fits(budget=None, max_accuracy_drop=0.2, guarantee=0.9)),
        _works(lambda: fits(abstain=0.05)),
        _works(controlled),
        "yes" if scheduler.changes_predictions else "no",
        _works(lambda: as_replayed(lambda one: eenet.AdaptiveModel(model, one)(x).exits)),
        _works(lambda: as_replayed(lambda one: LoadedBundle(bundle.manifest, bundle.backend, one)(x.numpy()).exits)),
    ]


def page() -> str:
    """The page as it should be."""
    model, x, records, _ = _network()
    head = [
        "scheduler",
        "name",
        "no labels",
        "segmentation",
        "guarantee",
        "accuracy promise",
        "abstention",
        "controller",
    ]
    head += ["changes predictions", "PyTorch", "ONNX"]
    lines = [head, ["---"] * len(head)]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = eenet.MaxProbability().fit(records, COSTS, 2.2)
        bundle = eenet.export(model, scheduler, Path(folder) / "bundle", example=x[:50], measure=False, threads=1)
        lines += [_row(name, make, bundle) for name, make in SCHEDULERS.items()]
    return INTRODUCTION + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + NOTES


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
