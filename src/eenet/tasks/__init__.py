"""What an exit's output means: the evidence a scheduler sees of it and the utility of stopping there."""

from eenet.tasks._evidence import LOG_ODDS_LIMIT as LOG_ODDS_LIMIT
from eenet.tasks._evidence import POOLED as POOLED
from eenet.tasks._evidence import Evidence as Evidence
from eenet.tasks._evidence import softmax as softmax
from eenet.tasks._task import Classification as Classification
from eenet.tasks._task import Segmentation as Segmentation
from eenet.tasks._task import Task as Task
from eenet.tasks._task import describe_task as describe_task
from eenet.tasks._task import mean_iou as mean_iou
from eenet.tasks._task import task_from as task_from
