"""What reaching each exit costs, and what a budget is."""

from eenet.costs._budget import Budget, parse_budget
from eenet.costs._budget import budget_and_whole as budget_and_whole
from eenet.costs._budget import is_time as is_time
from eenet.costs._exit_costs import IN_RUNS as IN_RUNS
from eenet.costs._exit_costs import LAST as LAST
from eenet.costs._exit_costs import ExitCosts
from eenet.costs._exit_costs import Runs as Runs
from eenet.costs._exit_costs import costs_of_runs as costs_of_runs
from eenet.costs._measured import costs_at as costs_at
from eenet.costs._measured import load_costs

__all__ = ["Budget", "ExitCosts", "load_costs", "parse_budget"]
