"""eenet: early exits that keep a budget.

Names are loaded when first used, so that `import eenet` is quick and a scheduler can be used without a network.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from eenet._version import __version__ as __version__

logging.getLogger("eenet").addHandler(logging.NullHandler())  # what it logs is shown where the program asks for it

_HOMES = {
    "AdaptiveModel": "eenet.runtime",
    "AdaptiveOutput": "eenet.runtime",
    "BudgetController": "eenet.control",
    "CallCascade": "eenet.runtime",
    "Decisions": "eenet.scheduler",
    "EENet": "eenet.scheduler",
    "EENetError": "eenet.errors",
    "Entropy": "eenet.scheduler",
    "ExitCosts": "eenet.costs",
    "ExitRecords": "eenet.records",
    "InfeasibleBudgetError": "eenet.errors",
    "MaxProbability": "eenet.scheduler",
    "MultiExitModel": "eenet.models",
    "OptimalStopping": "eenet.scheduler",
    "Patience": "eenet.scheduler",
    "Scheduler": "eenet.scheduler",
    "SearchedThresholds": "eenet.scheduler",
    "Source": "eenet.models",
    "StagedModel": "eenet.stages",
    "Static": "eenet.scheduler",
    "attach": "eenet.models",
    "benchmark": "eenet.benchmarking",
    "build_network": "eenet.models",
    "cascade": "eenet.models",
    "collect": "eenet.models",
    "cut": "eenet.stages",
    "describe": "eenet.models",
    "export": "eenet.bundle",
    "from_pretrained": "eenet.models",
    "load_costs": "eenet.costs",
    "load_scheduler": "eenet.scheduler",
    "profile": "eenet.profiling",
    "report": "eenet.reporting",
    "search": "eenet.evaluation",
    "train": "eenet.training",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from eenet.benchmarking import benchmark as benchmark
    from eenet.bundle import export as export
    from eenet.control import BudgetController as BudgetController
    from eenet.costs import ExitCosts as ExitCosts
    from eenet.costs import load_costs as load_costs
    from eenet.errors import EENetError as EENetError
    from eenet.errors import InfeasibleBudgetError as InfeasibleBudgetError
    from eenet.evaluation import search as search
    from eenet.models import MultiExitModel as MultiExitModel
    from eenet.models import Source as Source
    from eenet.models import attach as attach
    from eenet.models import build_network as build_network
    from eenet.models import cascade as cascade
    from eenet.models import collect as collect
    from eenet.models import describe as describe
    from eenet.models import from_pretrained as from_pretrained
    from eenet.profiling import profile as profile
    from eenet.records import ExitRecords as ExitRecords
    from eenet.reporting import report as report
    from eenet.runtime import AdaptiveModel as AdaptiveModel
    from eenet.runtime import AdaptiveOutput as AdaptiveOutput
    from eenet.runtime import CallCascade as CallCascade
    from eenet.scheduler import Decisions as Decisions
    from eenet.scheduler import EENet as EENet
    from eenet.scheduler import Entropy as Entropy
    from eenet.scheduler import MaxProbability as MaxProbability
    from eenet.scheduler import OptimalStopping as OptimalStopping
    from eenet.scheduler import Patience as Patience
    from eenet.scheduler import Scheduler as Scheduler
    from eenet.scheduler import SearchedThresholds as SearchedThresholds
    from eenet.scheduler import Static as Static
    from eenet.scheduler import load_scheduler as load_scheduler
    from eenet.stages import StagedModel as StagedModel
    from eenet.stages import cut as cut
    from eenet.training import train as train


_PACKAGES = {
    "benchmarking",
    "bundle",
    "capacity",
    "control",
    "costs",
    "errors",
    "evaluation",
    "experiments",
    "models",
    "networks",
    "optimize",
    "predict",
    "preprocessing",
    "profiling",
    "records",
    "reporting",
    "runtime",
    "scheduler",
    "serving",
    "stages",
    "tasks",
    "testing",
    "training",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"eenet.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'eenet' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
