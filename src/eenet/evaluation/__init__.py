"""Comparing schedulers: bounds that know the labels, and held-out accuracy at equal realized cost."""

from eenet.evaluation._cells import Row
from eenet.evaluation._compare import compare
from eenet.evaluation._comparison import Comparison, Difference
from eenet.evaluation._figures import Curve, Point, write_cost_figure
from eenet.evaluation._oracle import Bound, oracle, random_mixture

__all__ = [
    "Bound",
    "Comparison",
    "Curve",
    "Difference",
    "Point",
    "Row",
    "compare",
    "oracle",
    "random_mixture",
    "write_cost_figure",
]
