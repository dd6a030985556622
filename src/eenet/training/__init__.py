"""Joint training of all exits, and of the early exit heads alone; needs the extra "train"."""

import eenet._needs_torch  # noqa: F401
from eenet.training._checkpoint import OutOfSpaceError, load_checkpoint
from eenet.training._config import TrainConfig
from eenet.training._frontier import Frontier, two_fold_frontier
from eenet.training._report import EpochReport, TrainResult
from eenet.training._run import TrainingDivergedError
from eenet.training._tasks import ClassificationTask, SegmentationTask, TrainingTask
from eenet.training._train import reestimate_batch_norm, train, training_device

__all__ = [
    "ClassificationTask",
    "EpochReport",
    "Frontier",
    "OutOfSpaceError",
    "SegmentationTask",
    "TrainConfig",
    "TrainResult",
    "TrainingDivergedError",
    "TrainingTask",
    "load_checkpoint",
    "reestimate_batch_norm",
    "train",
    "training_device",
    "two_fold_frontier",
]
