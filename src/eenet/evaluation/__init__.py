"""Comparing schedulers and systems: bounds that know the labels, held-out accuracy at equal realized cost, a search."""

from eenet.evaluation._compare import compare
from eenet.evaluation._comparison import Comparison
from eenet.evaluation._evaluate import Evaluation, evaluate
from eenet.evaluation._figures import Curve as Curve
from eenet.evaluation._figures import Point as Point
from eenet.evaluation._figures import write_cost_figure as write_cost_figure
from eenet.evaluation._figures import write_panels as write_panels
from eenet.evaluation._oracle import Bound, oracle, random_mixture
from eenet.evaluation._search import search
from eenet.evaluation._search_result import SearchResult, System

__all__ = [
    "Bound",
    "Comparison",
    "Evaluation",
    "SearchResult",
    "System",
    "compare",
    "evaluate",
    "oracle",
    "random_mixture",
    "search",
]
