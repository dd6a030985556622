"""The budget in traffic: a controller that paces, applies quotas and watches for drift."""

from eenet.control._controller import BudgetController as BudgetController
from eenet.control._drift import DriftReport as DriftReport
from eenet.control._pacing import Alternation as Alternation
from eenet.control._pacing import Pacer as Pacer
