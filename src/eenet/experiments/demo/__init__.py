"""The demo: a multi-exit network trained, measured, scheduled and run on real digits, in one command."""

from eenet.experiments.demo._costs import by_processor_time as by_processor_time
from eenet.experiments.demo._costs import fastest as fastest
from eenet.experiments.demo._costs import shared_costs as shared_costs
from eenet.experiments.demo._data import digit_images as digit_images
from eenet.experiments.demo._data import load_digits as load_digits
from eenet.experiments.demo._data import load_part as load_part
from eenet.experiments.demo._data import split as split
from eenet.experiments.demo._data import split_indices as split_indices
from eenet.experiments.demo._model import build as build
from eenet.experiments.demo._model import example_input as example_input
from eenet.experiments.demo._model import load_model as load_model
from eenet.experiments.demo._model import save_model as save_model
from eenet.experiments.demo._run import run_demo as run_demo
from eenet.experiments.demo._settings import DemoSettings as DemoSettings
from eenet.experiments.demo._settings import NetworkSettings as NetworkSettings
from eenet.experiments.demo._settings import TrainingSettings as TrainingSettings
from eenet.experiments.demo._settings import quick as quick
from eenet.experiments.demo._settings import standard as standard
from eenet.experiments.demo._timing import time_in_turns as time_in_turns
from eenet.experiments.demo._training import joint_loss as joint_loss
