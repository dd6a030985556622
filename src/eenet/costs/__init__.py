"""What reaching each exit costs, and what a budget is."""

from eenet.costs._budget import Budget as Budget
from eenet.costs._budget import parse_budget as parse_budget
from eenet.costs._costs import ExitCosts as ExitCosts
