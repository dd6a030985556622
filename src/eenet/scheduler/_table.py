"""A table of policies over budgets: what is known of a fitted scheduler without its calibration records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import FileFormatError, InfeasibleBudgetError
from eenet.scheduler._policy import Floats, Score, ThresholdPolicy
from eenet.scheduler._score_files import score_from_arrays
from eenet.scheduler._thresholds import within


@dataclass(frozen=True)
class FrontierPoint:
    """One budget, the mean cost per sample planned for it, and the accuracy on the calibration records, if labelled."""

    budget: float
    planned_cost: float
    accuracy: float | None


@dataclass(frozen=True)
class PolicyTable:
    """Policies for rising budgets, G of them; planned costs never fall.

    `budgets`, `planned_costs` and `accuracies` are (G,); an accuracy is NaN where the records had no labels. `shares`
    (G, K) says what part of the `samples` calibration samples left at each exit; None in files that do not say.
    """

    budgets: Floats
    planned_costs: Floats
    accuracies: Floats
    policies: tuple[ThresholdPolicy, ...]
    unit: str
    shares: Floats | None = None
    samples: int = 0

    def __len__(self) -> int:
        return len(self.policies)

    def index(self, budget: float) -> int:
        """The row for a budget: the largest that is not above it; raises `InfeasibleBudgetError` below the first."""
        row = int(np.searchsorted(self.budgets, within(budget), side="right")) - 1
        if row < 0:
            smallest = float(self.budgets[0])
            raise InfeasibleBudgetError(
                f"budget {budget:.6g} {self.unit} is below the smallest of the scheduler's table; the smallest "
                f"feasible budget is {smallest:.6g} {self.unit}",
                smallest=smallest,
            )
        return row

    @property
    def points(self) -> tuple[FrontierPoint, ...]:
        """The rows without their policies."""
        rows = zip(self.budgets.tolist(), self.planned_costs.tolist(), self.accuracies.tolist(), strict=True)
        return tuple(FrontierPoint(b, c, None if np.isnan(a) else a) for b, c, a in rows)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, to be saved; an array that is the same in every row is kept once."""
        arrays: dict[str, NDArray[Any]] = {
            "budgets": self.budgets,
            "planned_costs": self.planned_costs,
            "accuracies": self.accuracies,
            "thresholds": np.stack([p.thresholds for p in self.policies]),
            "enabled": np.stack([p.enabled for p in self.policies]).astype(np.uint8),
        }
        if self.shares is not None:
            arrays |= {"shares": self.shares, "samples": np.array([self.samples], dtype=np.int64)}
        rows, distinct = _distinct([p.score for p in self.policies])
        arrays["score_rows"] = rows
        fitted = [score.to_arrays() for score in distinct]
        for name in fitted[0]:
            values = [arrays_of_one[name] for arrays_of_one in fitted]
            if all(np.array_equal(values[0], other) for other in values[1:]):
                arrays[f"score.{name}"] = values[0]
            else:
                arrays[f"scores.{name}"] = np.stack(values)
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], *, score: str, num_classes: int, unit: str, exits: int
    ) -> PolicyTable:
        """The table of what `to_arrays` gave."""
        try:
            columns = [arrays[name].astype(np.float64) for name in ("budgets", "planned_costs", "accuracies")]
            thresholds, enabled = arrays["thresholds"], arrays["enabled"].astype(np.bool_)
            rows = arrays["score_rows"]
        except KeyError as error:
            raise FileFormatError(f"a table of policies needs {error.args[0]!r}; found {sorted(arrays)}") from error
        shape = (len(rows), exits - 1)
        if (
            not thresholds.shape == enabled.shape == shape
            or any(c.shape != shape[:1] for c in columns)
            or not len(rows)
        ):
            raise FileFormatError(
                f"a table of {len(rows)} policies for {exits} exits has thresholds of shape {thresholds.shape}; save "
                "the scheduler again"
            )
        shares = arrays.get("shares")
        counted = arrays.get("samples", np.zeros(1, dtype=np.int64)).reshape(-1)
        if shares is not None and (shares.shape != (len(rows), exits) or len(counted) != 1):
            raise FileFormatError(
                f"a table of {len(rows)} policies for {exits} exits has shares of shape {shares.shape}; save the "
                "scheduler again"
            )
        shared = {name.removeprefix("score."): a for name, a in arrays.items() if name.startswith("score.")}
        stacked = {name.removeprefix("scores."): a for name, a in arrays.items() if name.startswith("scores.")}
        count = int(rows.max()) + 1
        if rows.min() < 0 or any(len(a) < count for a in stacked.values()):
            raise FileFormatError("the rows of a table of policies point to scores that it lacks; save it again")
        scores = [score_from_arrays(score, shared | {n: a[i] for n, a in stacked.items()}) for i in range(count)]
        policies = tuple(
            ThresholdPolicy(scores[row], thresholds[i], enabled[i], num_classes) for i, row in enumerate(rows.tolist())
        )
        return cls(columns[0], columns[1], columns[2], policies, unit, shares, int(counted[0]))


def _distinct(scores: Sequence[Score]) -> tuple[NDArray[np.int64], list[Score]]:
    """Which of the distinct objects each is, and those."""
    seen: dict[int, int] = {}
    found: list[Score] = []
    rows = []
    for score in scores:
        if id(score) not in seen:
            seen[id(score)] = len(found)
            found.append(score)
        rows.append(seen[id(score)])
    return np.array(rows, dtype=np.int64), found
