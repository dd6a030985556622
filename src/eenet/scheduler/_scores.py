"""The confidence scores of the early-exit literature.

Each is taken on a scale that does not saturate where the network is sure. Order is all that thresholds use, so the
policies are those of the papers, while samples whose probability rounds to 1 keep apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.scheduler._policy import ExitHistory, Floats, Score
from eenet.tasks import LOG_ODDS_LIMIT, Evidence

_VOTE_STEP = 256.0  # above the whole range of the log odds, so that the count of exits always decides first
assert _VOTE_STEP > 2 * LOG_ODDS_LIMIT

TINY = float(np.exp(-LOG_ODDS_LIMIT))
"""What a probability of 0 counts as, where its logarithm is taken."""


@dataclass(frozen=True)
class MaxProbabilityScore:
    """The largest class probability, as log odds (MSDNet: Huang et al., ICLR 2018)."""

    name: str = "max_prob"
    uses_history: bool = False

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,)."""
        return trail.evidence[-1].log_odds

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing is fitted."""
        return {}


@dataclass(frozen=True)
class EntropyScore:
    """The entropy of the class probabilities, low is sure, as -log (BranchyNet: Teerapittayanon et al., ICPR 2016)."""

    name: str = "entropy"
    uses_history: bool = False

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,)."""
        scores: Floats = -np.log(np.maximum(trail.evidence[-1].entropy, 1e-40))
        return scores

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing is fitted."""
        return {}


@dataclass(frozen=True)
class PatienceScore:
    """For how many exits in a row the prediction has been the same (PABEE: Zhou et al., NeurIPS 2020).

    The counts are few, so equal counts are ordered by max probability: any budget can be met without dice.
    """

    name: str = "patience"
    uses_history: bool = True

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,)."""
        evidence = trail.evidence[-1]
        scores: Floats = evidence.streak * _VOTE_STEP + evidence.log_odds
        return scores

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing is fitted."""
        return {}


@dataclass(frozen=True)
class VotingScore:
    """How many of the exits so far predict what this one predicts.

    Source: Sun et al., "Early Exiting with Ensemble Internal Classifiers" (arXiv 2105.13792, 2021), its voting. The
    paper answers with the class that has most votes; here the exit's own prediction stands, and votes for another class
    count against it. As for patience, equal counts are ordered by max probability.
    """

    name: str = "voting"
    uses_history: bool = True

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,)."""
        evidence = trail.evidence[-1]
        scores: Floats = evidence.agreement * (len(trail.evidence) * _VOTE_STEP) + evidence.log_odds
        return scores

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing is fitted."""
        return {}


@dataclass(frozen=True)
class MarginScore:
    """The difference m between the two largest class probabilities, as -log(1 - m).

    Source: the score margin of Park et al., "Big/Little Deep Neural Network for Ultra Low Power Inference", CODES+ISSS
    2015.
    """

    name: str = "margin"
    uses_history: bool = False
    whole_samples: bool = True

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,)."""
        scores: Floats = -np.log(np.maximum(margin_left(trail.evidence[-1]), TINY))
        return scores

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing is fitted."""
        return {}


def margin_left(evidence: Evidence) -> Floats:
    """1 minus the difference of the two largest class probabilities, (n,), exact also where the largest rounds to 1."""
    others = evidence.probabilities.astype(np.float64)
    others[np.arange(len(others)), evidence.probabilities.argmax(axis=-1)] = 0.0
    left: Floats = others.sum(axis=-1) + others.max(axis=-1)
    return left


@dataclass(frozen=True)
class ConstantScore:
    """The same for everybody: for policies that look at no evidence."""

    name: str = "constant"
    uses_history: bool = False

    def __call__(self, trail: ExitHistory) -> Floats:
        """Scores (n,)."""
        return np.zeros(len(trail.evidence[-1]))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing is fitted."""
        return {}


PLAIN_SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        MaxProbabilityScore(),
        EntropyScore(),
        PatienceScore(),
        VotingScore(),
        MarginScore(),
        ConstantScore(),
    )
}
"""The scores that need no fitting, by name."""
