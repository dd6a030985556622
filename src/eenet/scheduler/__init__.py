"""Exit schedulers: scores, assignments, baselines, and the one rule that decides who leaves."""

from eenet.scheduler._assignments import Assignment as Assignment
from eenet.scheduler._assignments import GeometricAssignment as GeometricAssignment
from eenet.scheduler._assignments import LearnedAssignment as LearnedAssignment
from eenet.scheduler._assignments import Plan as Plan
from eenet.scheduler._assignments import SearchedAssignment as SearchedAssignment
from eenet.scheduler._assignments import StaticAssignment as StaticAssignment
from eenet.scheduler._catalogue import SCHEDULERS as SCHEDULERS
from eenet.scheduler._catalogue import EENet as EENet
from eenet.scheduler._catalogue import Entropy as Entropy
from eenet.scheduler._catalogue import MaxProbability as MaxProbability
from eenet.scheduler._catalogue import Patience as Patience
from eenet.scheduler._catalogue import SearchedThresholds as SearchedThresholds
from eenet.scheduler._catalogue import Static as Static
from eenet.scheduler._decisions import Decisions as Decisions
from eenet.scheduler._decisions import replay as replay
from eenet.scheduler._learned import LearnedScore as LearnedScore
from eenet.scheduler._learned import LearningOptions as LearningOptions
from eenet.scheduler._policy import Route as Route
from eenet.scheduler._policy import Score as Score
from eenet.scheduler._policy import ThresholdPolicy as ThresholdPolicy
from eenet.scheduler._policy import Trail as Trail
from eenet.scheduler._scheduler import Scheduler as Scheduler
from eenet.scheduler._scheduler import load_scheduler as load_scheduler
from eenet.scheduler._thresholds import ScoreTable as ScoreTable
from eenet.scheduler._thresholds import Thresholds as Thresholds
