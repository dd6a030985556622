"""Queues and batching by stage, without HTTP."""

from eenet.serving.engine._engine import Engine
from eenet.serving.engine._metrics import WIDTH as WIDTH
from eenet.serving.engine._metrics import Recent as Recent
from eenet.serving.engine._model import Controller as Controller
from eenet.serving.engine._model import FixedBudget, ServedModel
from eenet.serving.engine._model import Model as Model
from eenet.serving.engine._request import EngineOptions, Limits, Outcome, RefusedError, Request
from eenet.serving.engine._service import BatchingDelay as BatchingDelay
from eenet.serving.engine._service import LocalService

__all__ = [
    "Engine",
    "EngineOptions",
    "FixedBudget",
    "Limits",
    "LocalService",
    "Outcome",
    "RefusedError",
    "Request",
    "ServedModel",
]
