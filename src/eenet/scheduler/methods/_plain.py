"""Schedulers on the confidence scores of the early-exit literature, which need no fitting.

Each score is on a scale that does not saturate where the network is sure. Thresholds use nothing but the order, so the
policies are those of the papers, while samples whose probability rounds to 1 stay distinguishable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eenet.errors import InfeasibleBudgetError, InvalidInputError
from eenet.scheduler._assignments import Assignment, Calibration, ExponentialWeights, Plan
from eenet.scheduler._policy import ExitHistory, Floats, Score, probability
from eenet.scheduler._scheduler import Scheduler
from eenet.scheduler._thresholds import within
from eenet.tasks import LOG_ODDS_LIMIT, Evidence

_VOTE_STEP = 256.0  # above the whole range of the log odds, so that the count of exits always decides first
assert _VOTE_STEP > 2 * LOG_ODDS_LIMIT

TINY = float(np.exp(-LOG_ODDS_LIMIT))
"""What a probability of 0 counts as, where its logarithm is taken."""


@dataclass(frozen=True)
class MaxProbabilityScore(Score):
    """The largest class probability, as log odds (MSDNet: Huang et al., ICLR 2018)."""

    name = "max_prob"

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        return history.evidence[-1].log_odds

    def readable(self, threshold: float) -> float:
        """The probability."""
        return probability(threshold)


@dataclass(frozen=True)
class EntropyScore(Score):
    """The entropy of the class probabilities, low is sure, as -log (BranchyNet: Teerapittayanon et al., ICPR 2016)."""

    name = "entropy"

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        scores: Floats = -np.log(np.maximum(history.evidence[-1].entropy, 1e-40))
        return scores

    def readable(self, threshold: float) -> float:
        """The entropy divided by log C, at most which a sample exits."""
        return math.exp(-threshold)


@dataclass(frozen=True)
class PatienceScore(Score):
    """For how many exits in a row the prediction has been the same (PABEE: Zhou et al., NeurIPS 2020).

    The counts are few, so equal counts are ordered by max probability: any budget can be met without chance.
    """

    name = "patience"
    uses_history = True

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        evidence = history.evidence[-1]
        scores: Floats = evidence.streak * _VOTE_STEP + evidence.log_odds
        return scores


@dataclass(frozen=True)
class VotingScore(Score):
    """How many of the exits so far predict what this one predicts.

    Source: Sun et al., "Early Exiting with Ensemble Internal Classifiers" (arXiv 2105.13792, 2021), its voting. The
    paper answers with the class that has most votes; here the exit's own prediction stands, and votes for another class
    count against it. As for patience, equal counts are ordered by max probability.
    """

    name = "voting"
    uses_history = True

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        evidence = history.evidence[-1]
        scores: Floats = evidence.agreement * (len(history.evidence) * _VOTE_STEP) + evidence.log_odds
        return scores


@dataclass(frozen=True)
class MarginScore(Score):
    """The difference m between the two largest class probabilities, as -log(1 - m).

    Source: the score margin of Park et al., "Big/Little Deep Neural Network for Ultra Low Power Inference", CODES+ISSS
    2015.
    """

    name = "margin"
    whole_samples = True

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        scores: Floats = -np.log(np.maximum(margin_left(history.evidence[-1]), TINY))
        return scores

    def readable(self, threshold: float) -> float:
        """The difference of the two probabilities."""
        return -math.expm1(-threshold)


def margin_left(evidence: Evidence) -> Floats:
    """1 minus the difference of the two largest class probabilities, (n,), exact also where the largest rounds to 1."""
    others = evidence.probabilities.astype(np.float64)
    others[np.arange(len(others)), evidence.probabilities.argmax(axis=-1)] = 0.0
    left: Floats = others.sum(axis=-1) + others.max(axis=-1)
    return left


@dataclass(frozen=True)
class ConstantScore(Score):
    """The same for all samples: for policies that read no evidence."""

    name = "constant"

    def __call__(self, history: ExitHistory) -> Floats:
        """Scores (n,)."""
        return np.zeros(len(history.evidence[-1]))


class MaxProbability(Scheduler, method="max_prob"):
    """Max probability with a geometric exit distribution (MSDNet: Huang et al., ICLR 2018).

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs(), budget="60%")
    >>> bool(scheduler.replay(toy_records(seed=1)).mean_cost < 2)
    True
    """

    def __init__(self) -> None:
        super().__init__("max_prob", "geometric")


class Entropy(Scheduler, method="entropy"):
    """Entropy with a geometric exit distribution (BranchyNet: Teerapittayanon et al., ICPR 2016).

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.Entropy().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self) -> None:
        super().__init__("entropy", "geometric")


class Patience(Scheduler, method="patience"):
    """Agreement of successive exits, ties by max probability (PABEE: Zhou et al., NeurIPS 2020).

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.Patience().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self) -> None:
        super().__init__("patience", "geometric")


class Voting(Scheduler, method="voting"):
    """Agreement of the exits so far with this one, ties by max probability (Sun et al., arXiv 2105.13792).

    Examples
    --------
    >>> from eenet.scheduler import Voting
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = Voting().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self) -> None:
        super().__init__("voting", "geometric")


class Margin(Scheduler, method="margin"):
    """The margin between the two largest probabilities (Park et al., CODES+ISSS 2015), geometric distribution.

    Examples
    --------
    >>> from eenet.scheduler import Margin
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = Margin().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self) -> None:
        super().__init__("margin", "geometric")


class EERO(Scheduler, method="eero"):
    """Max probability with exit shares by exponential weights (Valade et al., arXiv 2402.03779). Needs labels.

    Parameters
    ----------
    betas : tuple of float
        A small beta trusts the error rates of the exits, a large one spreads the samples evenly; of several, the one
        with the highest calibration accuracy is taken.

    Examples
    --------
    >>> from eenet.scheduler import EERO
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = EERO().fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self, betas: tuple[float, ...] = ExponentialWeights.betas) -> None:
        self.betas = betas
        super().__init__("max_prob", "exponential")

    def _assignment(self) -> Assignment:
        return ExponentialWeights(tuple(self.betas))


class SearchedThresholds(Scheduler, method="searched"):
    """The thresholds on a score with the highest calibration accuracy under the budget. Needs labels.

    Parameters
    ----------
    score : str
        A name of a score, such as "max_prob", "entropy" or "learned".
    seed : int
        Of the fit of a score that is fitted.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.SearchedThresholds("entropy").fit(toy_records(400), toy_costs(), budget=2.0, fallback=False)
    >>> scheduler.calibration_cost <= 2.0
    True
    """

    def __init__(self, score: str = "max_prob", *, seed: int = 0) -> None:
        super().__init__(score, "searched", seed=seed)

    @property
    def name(self) -> str:
        """The class and its score."""
        return f"SearchedThresholds({self.score})"


class Static(Scheduler):
    """All samples exit at one exit.

    Parameters
    ----------
    exit_index : int
        The exit, from 0; -1 is refused: name the exit.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> eenet.Static(1).fit(toy_records(), toy_costs()).replay(toy_records()).exit_shares
    array([0., 1., 0.])
    """

    _default_budget = True
    _may_fall_back = False

    def __init__(self, exit_index: int) -> None:
        self.exit_index = exit_index
        super().__init__("constant")

    @property
    def name(self) -> str:
        """The class and its exit."""
        return f"Static({self.exit_index})"

    def _assignment(self) -> Assignment:
        return _OneExit(self.exit_index)


@dataclass(frozen=True)
class _OneExit(Assignment):
    """All samples exit at one exit; goes with the score "constant", which holds no sample back."""

    exit_index: Any
    table_points = 1
    unspent = None

    def fit(self, calibration: Calibration, budget: float) -> Plan:
        """The plan; raises `InfeasibleBudgetError` when the exit costs more than the budget."""
        k, costs = self.exit_index, calibration.costs
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or not 0 <= k < len(costs):
            raise InvalidInputError(f"Static({k!r}): expected the number of an exit, 0 to {len(costs) - 1}")
        table = calibration.table
        thresholds = table.for_shares(np.eye(len(costs))[k])
        cost = table.mean_cost(thresholds)  # above costs[k] where evidence is not finite
        if cost > within(budget):
            raise InfeasibleBudgetError(
                f"Static({k}) costs {cost:.6g} {costs.unit} per sample, the budget is {budget:.6g}; the smallest "
                f"feasible budget is {cost:.6g} {costs.unit}",
                smallest=cost,
            )
        return Plan(thresholds, cost)
