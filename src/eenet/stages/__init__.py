"""Any network, cut at named modules into stages whose interface is the tuple of live tensors."""

import eenet._needs_torch  # noqa: F401
from eenet.stages._binding import modes_kept as modes_kept
from eenet.stages._capture import feature_at as feature_at
from eenet.stages._example import Example as Example
from eenet.stages._example import arguments_of as arguments_of
from eenet.stages._network import without_batch as without_batch
from eenet.stages._split_points import SplitPoint as SplitPoint
from eenet.stages._split_points import seen_at_exits as seen_at_exits
from eenet.stages._split_points import split_points as split_points
from eenet.stages._stage import Dynamic as Dynamic
from eenet.stages._stage import LiveTensor as LiveTensor
from eenet.stages._stage import Stage as Stage
from eenet.stages._stage import Step as Step
from eenet.stages._stage import Variant as Variant
from eenet.stages._stage import walk as walk
from eenet.stages._staged import StagedModel as StagedModel
from eenet.stages._staged import cut as cut
from eenet.stages._staged import cut_for_heads as cut_for_heads

__all__ = ["Example", "LiveTensor", "SplitPoint", "Stage", "StagedModel", "cut", "split_points"]
