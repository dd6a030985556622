"""The budget in traffic: a controller that paces, applies quotas and watches for drift."""

from eenet.control._controller import BudgetController
from eenet.control._pacing import Alternation as Alternation
from eenet.control._pacing import DriftReport
from eenet.control._pacing import Pacer as Pacer

__all__ = ["BudgetController", "DriftReport"]
