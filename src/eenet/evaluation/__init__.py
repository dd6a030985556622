"""Comparing schedulers: bounds that know the labels, and held-out accuracy at equal realised cost."""

from eenet.evaluation._bounds import Bound as Bound
from eenet.evaluation._bounds import oracle as oracle
from eenet.evaluation._bounds import random_mixture as random_mixture
from eenet.evaluation._compare import BoundRow as BoundRow
from eenet.evaluation._compare import Comparison as Comparison
from eenet.evaluation._compare import Difference as Difference
from eenet.evaluation._compare import Row as Row
from eenet.evaluation._compare import compare as compare
