"""Exit schedulers: which sample exits where, so that accuracy is high and the mean cost stays within a budget."""

from eenet.scheduler._fallback import dead_exits
from eenet.scheduler._fitted import FrontierPoint as FrontierPoint
from eenet.scheduler._fitted import PolicyTable as PolicyTable
from eenet.scheduler._loading import load_scheduler
from eenet.scheduler._policy import SCORES as SCORES
from eenet.scheduler._policy import DecisionState, ExitHistory, Score, ThresholdPolicy
from eenet.scheduler._policy import Ensemble as Ensemble
from eenet.scheduler._replay import Decisions
from eenet.scheduler._replay import replay as replay
from eenet.scheduler._reports import Fallback as Fallback
from eenet.scheduler._scheduler import SCHEDULERS, Scheduler
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
    "ZTW",
    "DecisionState",
    "Decisions",
    "EENet",
    "Entropy",
    "ExitHistory",
    "LearnedGate",
    "Margin",
    "MaxProbability",
    "OptimalStopping",
    "Patience",
    "Scheduler",
    "Score",
    "SearchedThresholds",
    "Static",
    "TemperatureScaled",
    "ThresholdPolicy",
    "Voting",
    "dead_exits",
    "load_scheduler",
]
