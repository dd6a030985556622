"""Comparing schedulers: bounds that know the labels, and held-out accuracy at equal realised cost."""

from eenet.evaluation._bounds import Bound as Bound
from eenet.evaluation._bounds import oracle as oracle
from eenet.evaluation._bounds import random_mixture as random_mixture
from eenet.evaluation._cells import Cell as Cell
from eenet.evaluation._cells import Row as Row
from eenet.evaluation._compare import compare as compare
from eenet.evaluation._comparison import Gain as Gain
from eenet.evaluation._comparison import write_comparison_figure as write_comparison_figure
from eenet.evaluation._figure import Curve as Curve
from eenet.evaluation._figure import Point as Point
from eenet.evaluation._figure import require_matplotlib as require_matplotlib
from eenet.evaluation._figure import write_cost_figure as write_cost_figure
from eenet.evaluation._results import BoundRow as BoundRow
from eenet.evaluation._results import Comparison as Comparison
from eenet.evaluation._results import Difference as Difference
from eenet.evaluation._tables import write_csv as write_csv
