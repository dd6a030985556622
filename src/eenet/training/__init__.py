"""Joint training of all exits, and of the early exit heads alone; needs the extra "train"."""

import eenet._needs_torch  # noqa: F401
from eenet.training._batch_norm import reestimate_batch_norm as reestimate_batch_norm
from eenet.training._checkpoint import load_checkpoint as load_checkpoint
from eenet.training._config import TrainConfig as TrainConfig
from eenet.training._errors import OutOfSpaceError as OutOfSpaceError
from eenet.training._errors import TrainingDivergedError as TrainingDivergedError
from eenet.training._frontier import Frontier as Frontier
from eenet.training._frontier import frontier as frontier
from eenet.training._frontier import two_fold_frontier as two_fold_frontier
from eenet.training._report import EpochReport as EpochReport
from eenet.training._report import TrainResult as TrainResult
from eenet.training._segmentation import SegmentationTask as SegmentationTask
from eenet.training._task import ClassificationTask as ClassificationTask
from eenet.training._task import TrainingTask as TrainingTask
from eenet.training._train import train as train
from eenet.training._train import training_device as training_device
from eenet.training._weights import WEIGHTINGS as WEIGHTINGS
