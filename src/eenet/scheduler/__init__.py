"""Exit schedulers: which sample exits where, so that accuracy is high and the mean cost stays within a budget."""

from eenet.scheduler._fitted import FrontierPoint, PolicyTable
from eenet.scheduler._policy import (
    SCORES,
    Decisions,
    DecisionState,
    Ensemble,
    ExitHistory,
    Score,
    ThresholdPolicy,
    replay,
)
from eenet.scheduler._scheduler import SCHEDULERS, Scheduler, load_scheduler
from eenet.scheduler.methods._eenet import EENet
from eenet.scheduler.methods._stopping import OptimalStopping

# SCHEDULERS has the learned ones first.
# isort: split
from eenet.scheduler.methods._ensembles import BEEM, ZTW
from eenet.scheduler.methods._gate import LearnedGate
from eenet.scheduler.methods._plain import (
    EERO,
    Entropy,
    Margin,
    MaxProbability,
    Patience,
    SearchedThresholds,
    Static,
    Voting,
)
from eenet.scheduler.methods._temperature import TemperatureScaled

__all__ = [
    "BEEM",
    "EERO",
    "SCHEDULERS",
    "SCORES",
    "ZTW",
    "DecisionState",
    "Decisions",
    "EENet",
    "Ensemble",
    "Entropy",
    "ExitHistory",
    "FrontierPoint",
    "LearnedGate",
    "Margin",
    "MaxProbability",
    "OptimalStopping",
    "Patience",
    "PolicyTable",
    "Scheduler",
    "Score",
    "SearchedThresholds",
    "Static",
    "TemperatureScaled",
    "ThresholdPolicy",
    "Voting",
    "load_scheduler",
    "replay",
]
