"""Abstention: samples that no exit is sure of are handed back, so that fewer of the answers are wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from eenet.errors import InfeasibleBudgetError, InfeasibleError, InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler._fitted import Fitted, PlannedPolicy, PolicyTable
from eenet.scheduler._policy import RESOLUTION, Ensemble, Floats, Ints, Score
from eenet.scheduler._replay import Decisions, answers, replay
from eenet.tasks import Evidence

_MARGIN = 1e-3  # how far below the least sure sample the threshold lies where none but those not finite are handed back


@dataclass(frozen=True)
class Abstention:
    """What a user asks for: the share of the samples that may be handed back, and the error of the others."""

    share: float | None = None
    max_error: float | None = None

    @property
    def asked(self) -> dict[str, float | str]:
        """What is asked for, by name."""
        named = {"abstain": self.share, "max_error": self.max_error}
        return {name: float(value) for name, value in named.items() if value is not None}

    def require_possible(self, records: ExitRecords, guarantee: object, drop: float | None) -> None:
        """Raise `InvalidInputError` for what cannot be asked, or not together with these."""
        for name, value in (("abstain", self.share), ("max_error", self.max_error)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < 1):
                raise InvalidInputError(f"{name}={value!r}: expected a share between 0 and 1, such as 0.02")
        if self.asked and drop is not None:
            raise InvalidInputError(
                f"max_accuracy_drop={drop:g} with {' and '.join(self.asked)}: the drop is of a policy that answers all "
                "samples; give max_error and a budget in its place"
            )
        if self.max_error is not None:
            records.require_utility()
            if guarantee == "mean":
                raise InvalidInputError(
                    f"max_error={self.max_error:g} with guarantee='mean': an error of those that are answered is "
                    "promised with a probability only; give guarantee=0.95"
                )


NOTHING = Abstention()
"""No sample is handed back."""


class AbstainingFit(Fitted):
    """The policies of a fit that hand back the least sure of the samples that come to the last exit."""

    def __init__(self, fitted: Fitted, records: ExitRecords, asked: Abstention) -> None:
        self._base = fitted
        self._records = records
        self._asked = asked
        self.costs = fitted.costs
        self.points = fitted.points

    @cached_property
    def table(self) -> PolicyTable:
        """The policies of all budgets for which it can be done."""
        return possible(self, self._base.table.budgets)

    def plan(self, budget: float) -> PlannedPolicy:
        """The policy of the fit with a threshold below which it abstains; raises `InfeasibleError` without one."""
        plan = self._base.plan(budget)
        answered = replay(plan.policy, self._records, self.costs)
        odds = certainties(plan.policy.score, self._records)
        return abstained(plan, self._threshold(answered, odds), answered, odds)

    def _threshold(self, answered: Decisions, odds: Floats) -> float:
        """The one that keeps what is asked: for an error the lowest, for a share alone the highest."""
        last, samples = answered.exits == len(self.costs) - 1, len(odds)
        rows = np.flatnonzero(last)[np.argsort(odds[last], kind="stable")]
        counts, thresholds = abstaining(odds[rows])
        share, most = self._asked.share, self._asked.max_error
        allowed = counts <= (samples if share is None else share * samples * (1 + 1e-12))
        if most is None:
            if share is not None and not allowed[0]:
                raise InfeasibleError(
                    f"abstain={share:g}: {counts[0] / samples:.6g} of the samples have an output at the last exit that "
                    f"is not finite and must be handed back; the smallest that can be is {counts[0] / samples:.6g}"
                )
            return float(thresholds[np.flatnonzero(allowed)[-1]])
        assert answered.utility is not None, "require_possible was called"
        lost = 1 - answered.utility.astype(np.float64)
        saved = np.concatenate([[0.0], np.cumsum(lost[rows])])[counts]
        errors = (lost.sum() - saved) / np.maximum(samples - counts, 1)
        enough = (errors <= most * (1 + 1e-12)) & (counts < samples)
        if not enough.any():
            raise InfeasibleError(
                f"max_error={most:g} cannot be kept at this budget however many samples are handed back: the error of "
                f"those that are answered is at least {errors[counts < samples].min():.6g}; allow that, or a larger "
                "budget, since samples that exit early are not handed back"
            )
        chosen = int(enough.argmax())
        if not allowed[chosen]:
            smallest = counts[chosen] / samples
            raise InfeasibleError(
                f"abstain={share:g} is not enough for max_error={most:g} on the calibration records; the smallest that "
                f"is is abstain={math.ceil(smallest * 1e6) / 1e6:g}"
            )
        return float(thresholds[chosen])


def abstained(plan: PlannedPolicy, threshold: float, answered: Decisions, odds: Floats) -> PlannedPolicy:
    """The plan with a threshold below which it abstains, given what it decides without one."""
    kept = (answered.exits < len(answered.costs) - 1) | (odds >= threshold)
    known = answered.utility is not None and kept.any()
    accuracy = float(answered.utility[kept].mean(dtype=np.float64)) if known and answered.utility is not None else None
    policy = replace(plan.policy, abstains_below=threshold)
    return replace(plan, policy=policy, accuracy=accuracy, handed_back=float((~kept).mean()))


def possible(fitted: Fitted, budgets: Floats) -> PolicyTable:
    """The policies for those budgets for which there is one."""
    kept, plans = [], []
    refused: InfeasibleError | None = None
    for budget in budgets.tolist():
        try:
            plans.append(fitted.plan(budget))
        except InfeasibleError as error:  # noqa: PERF203 - most budgets have a policy, and a plan takes long
            refused = error
        else:
            kept.append(budget)
    if not plans:
        raise refused or InfeasibleBudgetError("there is no budget to plan", smallest=fitted.costs[-1])
    return PolicyTable.of(np.array(kept), plans, fitted.costs)


def certainties(score: Score, records: ExitRecords) -> Floats:
    """The log odds of the largest probability at the last exit, (N,), or of an ensemble's answer; -inf: not finite."""
    if isinstance(score, Ensemble):
        *_, last = answers(score, records)
        evidence = Evidence.from_logits(last)
    else:
        evidence = records.evidence(records.num_exits - 1, np.arange(len(records)))
    odds: Floats = np.where(evidence.finite, evidence.log_odds, -np.inf)
    return odds


def abstaining(ascending: Floats) -> tuple[Ints, Floats]:
    """The numbers of samples that can be handed back without splitting a tie, ascending, and their thresholds."""
    values = ascending[np.isfinite(ascending)]
    first = len(ascending) - len(values)
    if len(values) == 0:
        return np.array([first]), np.zeros(1)
    gaps = np.flatnonzero(np.diff(values) > RESOLUTION)
    between = (values[gaps] + values[gaps + 1]) / 2
    counts = np.concatenate([[0], gaps + 1, [len(values)]]) + first
    thresholds: Floats = np.concatenate([[values[0] - _MARGIN], between, [values[-1] + _MARGIN]])
    return counts.astype(np.intp), thresholds
