"""Queues and batching by stage, without HTTP."""

from eenet.serving.engine._engine import Engine
from eenet.serving.engine._model import Controller, Model, ServedModel
from eenet.serving.engine._options import EngineOptions, Limits, RefusedError
from eenet.serving.engine._policies import FixedBudget
from eenet.serving.engine._request import Outcome, Request
from eenet.serving.engine._service import BatchingDelay, LocalService

__all__ = [
    "BatchingDelay",
    "Controller",
    "Engine",
    "EngineOptions",
    "FixedBudget",
    "Limits",
    "LocalService",
    "Model",
    "Outcome",
    "RefusedError",
    "Request",
    "ServedModel",
]
