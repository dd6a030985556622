"""The schedulers by name: EENet and the methods it is compared with."""

from __future__ import annotations

from collections.abc import Callable

from eenet.scheduler._assignments import GeometricAssignment, LearnedAssignment, SearchedAssignment, StaticAssignment
from eenet.scheduler._budgeted import ExponentialWeightsAssignment, SharedAssignment
from eenet.scheduler._induction import StoppingMethod, StoppingOptions
from eenet.scheduler._learned import LearningOptions
from eenet.scheduler._scheduler import Scheduler


def EENet(*, seed: int = 0, options: LearningOptions | None = None) -> Scheduler:  # noqa: N802 - the method's name
    """EENet: learned exit scores and a learned exit assignment (Ilhan et al., WACV 2024). Needs labels."""
    options = options or LearningOptions()
    return Scheduler("learned", LearnedAssignment(options), name="EENet", seed=seed, options=options)


def OptimalStopping(*, seed: int = 0, options: StoppingOptions | None = None) -> Scheduler:  # noqa: N802
    """Optimal stopping: go on where the gain, estimated by backward induction, is worth its cost. Needs labels.

    Source: least-squares backward induction, Longstaff and Schwartz, Review of Financial Studies 14 (2001).
    """
    return Scheduler.from_method(StoppingMethod(options or StoppingOptions()), name="OptimalStopping", seed=seed)


def MaxProbability() -> Scheduler:  # noqa: N802
    """Max probability with a geometric exit distribution (MSDNet: Huang et al., ICLR 2018)."""
    return Scheduler("max_prob", GeometricAssignment(), name="MaxProbability")


def Entropy() -> Scheduler:  # noqa: N802
    """Entropy with a geometric exit distribution (BranchyNet: Teerapittayanon et al., ICPR 2016)."""
    return Scheduler("entropy", GeometricAssignment(), name="Entropy")


def Patience() -> Scheduler:  # noqa: N802
    """Agreement of successive exits, ties by max probability (PABEE: Zhou et al., NeurIPS 2020)."""
    return Scheduler("patience", GeometricAssignment(), name="Patience")


def Voting() -> Scheduler:  # noqa: N802
    """Agreement of the exits so far with this one, ties by max probability (Sun et al., arXiv 2105.13792)."""
    return Scheduler("voting", GeometricAssignment(), name="Voting")


def Margin() -> Scheduler:  # noqa: N802
    """The margin between the two largest probabilities (Park et al., CODES+ISSS 2015), geometric distribution."""
    return Scheduler("margin", GeometricAssignment(), name="Margin")


def TemperatureScaled() -> Scheduler:  # noqa: N802
    """Max probability calibrated exit by exit, with one threshold (Pacheco et al., ICC 2021). Needs labels."""
    return Scheduler("temperature", SharedAssignment(), name="TemperatureScaled")


def ZTW() -> Scheduler:  # noqa: N802
    """The exits so far multiplied to a learned ensemble, one threshold (Wolczyk et al., NeurIPS 2021). Needs labels.

    It changes predictions: a sample is answered by the ensemble, not by the exit it leaves at.
    """
    return Scheduler("ztw", SharedAssignment(), name="ZTW")


def BEEM() -> Scheduler:  # noqa: N802
    """Exits as experts, whose weighted confidences add up (Bajpai and Hanawal, ICLR 2025). Needs labels.

    It changes predictions: a sample is answered by the experts so far, not by the exit it leaves at alone.
    """
    return Scheduler("beem", GeometricAssignment(), name="BEEM")


def EERO() -> Scheduler:  # noqa: N802
    """Max probability with exit shares by exponential weights (Valade et al., arXiv 2402.03779). Needs labels."""
    return Scheduler("max_prob", ExponentialWeightsAssignment(), name="EERO")


def LearnedGate() -> Scheduler:  # noqa: N802
    """A learned gate at each exit, in the manner of JEI-DNN (Regol et al., ICLR 2024) on frozen exits. Needs labels."""
    return Scheduler("gate", GeometricAssignment(), name="LearnedGate")


def SearchedThresholds(score: str = "max_prob", *, seed: int = 0) -> Scheduler:  # noqa: N802
    """The thresholds on a score with the highest calibration accuracy under the budget. Needs labels."""
    return Scheduler(score, SearchedAssignment(), name=f"SearchedThresholds({score})", seed=seed)


def Static(exit_index: int) -> Scheduler:  # noqa: N802
    """Everybody leaves at one exit, counted from 0; -1 is not taken: name the exit."""
    return Scheduler("constant", StaticAssignment(exit_index), name=f"Static({exit_index})")


SCHEDULERS: dict[str, Callable[..., Scheduler]] = {
    "eenet": EENet,
    "stopping": OptimalStopping,
    "max_prob": MaxProbability,
    "entropy": Entropy,
    "patience": Patience,
    "voting": Voting,
    "margin": Margin,
    "temperature": TemperatureScaled,
    "ztw": ZTW,
    "beem": BEEM,
    "eero": EERO,
    "gate": LearnedGate,
    "searched": SearchedThresholds,
}
"""The makers of schedulers that take a budget, by the name the command line uses."""

WHOLE_SAMPLES = frozenset({"margin", "temperature", "ztw", "beem", "gate"})
"""Those that read the class probabilities of whole samples, and refuse evidence pooled over the parts of each."""
