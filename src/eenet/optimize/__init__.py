"""Faster variants of the stages, chosen by measuring: frozen, compiled, recorded."""

from eenet.optimize._compiled import compiled as compiled
from eenet.optimize._frozen import batch_of as batch_of
from eenet.optimize._frozen import eager as eager
from eenet.optimize._frozen import frozen as frozen
from eenet.optimize._optimize import Optimization as Optimization
from eenet.optimize._optimize import StageTimes as StageTimes
from eenet.optimize._optimize import example_of as example_of
from eenet.optimize._optimize import optimize as optimize
from eenet.optimize._optimize import stage_times as stage_times
from eenet.optimize._recorded import buckets as buckets
from eenet.optimize._recorded import recorded as recorded
from eenet.stages import Variant as Variant

__all__ = ["Optimization"]
