"""What a run reports: exits judged by the frontier they give, a report per epoch, and its display.

An exit that is better by itself may be worse for a scheduler, if it is right on the samples that the exits before it
have taken already. So what counts is the accuracy at a few budgets under searched thresholds, on samples that the
thresholds were not searched on.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from eenet._files import atomic_path
from eenet._progress import Bars, Update
from eenet.costs import ExitCosts, parse_budget
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler import SearchedThresholds
from eenet.scheduler._out_of_fold import folds_of, out_of_fold, pooled


@dataclass(frozen=True)
class Frontier:
    """Accuracy and realized cost on held-out samples at several budgets; costs and budgets are in `unit`."""

    budgets: tuple[float, ...]
    accuracies: tuple[float, ...]
    costs: tuple[float, ...]
    unit: str

    @property
    def mean(self) -> float:
        """The mean accuracy over the budgets: what checkpoints are selected by."""
        return float(np.mean(self.accuracies))


def two_fold_frontier(
    records: ExitRecords,
    costs: ExitCosts,
    budgets: int | Sequence[float] = 3,
    *,
    seed: int = 0,
) -> Frontier:
    """The frontier of each half of some records under thresholds searched on the other half, averaged.

    Three budgets lie at 25, 50 and 75 % of the way from the first to the last exit's cost; models whose heads cost
    differently are compared at budgets that are given, in the unit of the costs. Samples with equal outputs at all
    exits are in one half. The realized costs can differ from the budgets, since the thresholds were searched on other
    samples, and are larger where too many outputs are not finite, so that a budget cannot be met. Raises
    `InfeasibleBudgetError` for a budget below the first exit's cost.

    Parameters
    ----------
    records : ExitRecords
        Validation records with labels.
    costs : ExitCosts
        The costs of the exits.
    budgets : int or sequence of float
        How many budgets, evenly between the first and the last exit's cost, or the budgets themselves.
    seed : int
        Of the halves.

    Examples
    --------
    >>> from eenet.testing import toy_costs, toy_records
    >>> from eenet.training import two_fold_frontier
    >>> len(two_fold_frontier(toy_records(300), toy_costs(), [1.5, 2.5]).accuracies)
    2
    """
    if len(records) < 2:
        raise InvalidInputError(
            f"the validation data has {len(records)} sample, expected at least 2: thresholds are searched on one half "
            "and judged on the other"
        )
    costs.require_exits(records.num_exits)
    if isinstance(budgets, int):
        if budgets < 1:
            raise InvalidInputError(f"budgets is {budgets}, expected at least 1")
        limits: list[float] = np.linspace(costs[0], costs[-1], budgets + 2)[1:-1].tolist()
    else:
        limits = [float(budget) for budget in budgets]
        if limits and min(limits) < costs[0]:
            parse_budget(min(limits), costs)  # which refuses it, but for rounding
    if not limits:
        raise InvalidInputError("budgets is empty, expected at least one amount")
    halves = folds_of(records, seed, 2)
    points = pooled(
        halves, out_of_fold(SearchedThresholds(), records, costs, halves, limits, fallback=False, lift=True)
    )
    return Frontier(
        tuple(limits),
        tuple(point.accuracy for point in points),
        tuple(point.cost for point in points),
        costs.unit,
    )


_KEPT = 0.98  # of the running accuracy of the bar, per batch


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch. Accuracies are mean utilities, 0 to 1; `loss` is the joint loss, mean over its batches.

    `exit_losses`, `train_accuracies`, `accuracies` (validation) have one number for each of the K exits; `mean` is the
    mean of `accuracies`. `frontier` has the accuracy at each of `budgets`, `frontier_costs` the realized cost there,
    in the unit of the costs; `score` is the mean of `frontier`. `dead` says why
    of each exit that schedulers would leave out.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    exit_losses: tuple[float, ...]
    train_accuracies: tuple[float, ...]
    accuracies: tuple[float, ...]
    mean: float
    budgets: tuple[float, ...]
    frontier: tuple[float, ...]
    frontier_costs: tuple[float, ...]
    score: float
    seconds: float
    images_per_second: float
    dead: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping, read back by `from_dict`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochReport:
        """A report from what `to_dict` gave."""
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**options)

    def row(self) -> dict[str, float]:
        """One number per column; exits and budgets count from 0, and `dead` is left out."""
        cells: dict[str, float] = {}
        for key, value in asdict(replace(self, dead=())).items():
            if not isinstance(value, tuple):
                cells[key] = value
                continue
            for index, number in enumerate(value):
                cells[f"{key}_{index}"] = number
        return cells


@dataclass(frozen=True)
class TrainResult:
    """A finished run. The model holds the weights of `best`, the report of the epoch with the highest score;
    of equal ones that with the highest mean accuracy of the exits.

    `best_checkpoint` has these weights, `last_checkpoint` those of the last epoch and the optimizer's state;
    `stopped_early` says whether patience ran out; `costs` is what the frontier was measured with.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> from eenet.training import TrainConfig
    >>> model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    >>> batches = [(torch.randn(64, 4), torch.arange(64) % 3)]
    >>> config = TrainConfig(epochs=1, accelerator="cpu", progress=False, tensorboard=False)
    >>> result = eenet.train(model, batches, batches, config=config, out="run")
    >>> len(result.history), result.best_checkpoint.name
    (1, 'best.safetensors')
    """

    history: tuple[EpochReport, ...]
    best: EpochReport
    best_checkpoint: Path
    last_checkpoint: Path
    stopped_early: bool
    costs: ExitCosts


def write_history(path: Path, history: Sequence[EpochReport]) -> None:
    """Write the reports as CSV, the whole file again: it then always agrees with the checkpoint."""
    rows = [report.row() for report in history]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


class Display:
    """A progress bar on standard error, and one line for each epoch; silent unless `shown`."""

    def __init__(self, exit_names: Sequence[str], epochs: int, *, shown: bool) -> None:
        self._names = exit_names
        self._epochs = epochs
        self._shown = shown
        self._running: list[float] = []
        self._console = Console(stderr=True, highlight=False)
        self._bars = Bars(self._console, shown=shown)
        self._training: Update | None = None

    def __enter__(self) -> Display:
        self._bars.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.__exit__(None, None, None)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._shown:
            self._console.print(text, markup=False, soft_wrap=True)

    def task(self, what: str) -> Update:
        """A bar of its own; call it with what is done and of how much."""
        return self._bars.task(what)

    def epoch(self, epoch: int, batches: int) -> Callable[[Sequence[float]], None]:
        """The bar of the whole training, at one epoch; call it with each exit's accuracy on the batch that is done."""
        first, what = epoch * batches, f"epoch {epoch + 1}/{self._epochs}, batches"
        if self._training is None:
            self._training = self._bars.task(what, self._epochs * batches, first=first)
        update, done = self._training, itertools.count(first + 1)
        self._running = []

        def advance(accuracies: Sequence[float]) -> None:
            before = self._running or accuracies
            self._running = [_KEPT * old + (1 - _KEPT) * new for old, new in zip(before, accuracies, strict=True)]
            update(next(done), what=what, note=self._percent(self._running))

        return advance

    def report(self, report: EpochReport, *, best: bool) -> None:
        """Print one epoch's line."""
        self.say(
            f"epoch {report.epoch + 1}/{self._epochs}  loss {report.loss:.4f}  exits {self._percent(report.accuracies)}"
            f"  at {len(report.frontier)} budgets {self._percent(report.frontier, named=False)}"
            f"  mean {report.score:.2%}{' (best)' if best else ''}  {report.images_per_second:.0f} samples/s"
        )

    def _percent(self, values: Sequence[float], *, named: bool = True) -> str:
        names = self._names if named else [""] * len(values)
        return "  ".join(f"{name} {value:.1%}".strip() for name, value in zip(names, values, strict=True))
