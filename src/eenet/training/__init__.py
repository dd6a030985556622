"""Joint training of all exits, and of the early exit heads alone; needs the extra "train"."""

import eenet._needs_torch  # noqa: F401
from eenet.errors import OutOfSpaceError as OutOfSpaceError
from eenet.training._checkpoint import load_checkpoint
from eenet.training._config import TrainConfig
from eenet.training._loss import ClassificationTask, SegmentationTask, TrainingTask
from eenet.training._report import EpochReport as EpochReport
from eenet.training._report import Frontier as Frontier
from eenet.training._report import TrainResult, two_fold_frontier
from eenet.training._run import TrainingDivergedError
from eenet.training._train import reestimate_batch_norm, train
from eenet.training._train import training_device as training_device

__all__ = [
    "ClassificationTask",
    "SegmentationTask",
    "TrainConfig",
    "TrainResult",
    "TrainingDivergedError",
    "TrainingTask",
    "load_checkpoint",
    "reestimate_batch_norm",
    "train",
    "two_fold_frontier",
]
