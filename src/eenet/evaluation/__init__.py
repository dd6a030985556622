"""Comparing schedulers: bounds that know the labels, and held-out accuracy at equal realised cost."""

from eenet.evaluation._bounds import Bound as Bound
from eenet.evaluation._bounds import oracle as oracle
from eenet.evaluation._bounds import random_mixture as random_mixture
from eenet.evaluation._cells import Cell as Cell
from eenet.evaluation._cells import Row as Row
from eenet.evaluation._compare import compare as compare
from eenet.evaluation._results import BoundRow as BoundRow
from eenet.evaluation._results import Comparison as Comparison
from eenet.evaluation._results import Difference as Difference
from eenet.evaluation._tables import write_csv as write_csv
