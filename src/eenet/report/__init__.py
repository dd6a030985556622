"""Figures of what early exit costs and gives."""

from eenet.report._comparison import Gain as Gain
from eenet.report._comparison import write_comparison_figure as write_comparison_figure
from eenet.report._figure import Curve as Curve
from eenet.report._figure import Point as Point
from eenet.report._figure import require_matplotlib as require_matplotlib
from eenet.report._figure import write_cost_figure as write_cost_figure
