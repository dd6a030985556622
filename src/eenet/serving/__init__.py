"""Serving: the engine that batches by stage, its simulation, and the HTTP server."""

from eenet.serving._engine import Engine as Engine
from eenet.serving._engine import EngineOptions as EngineOptions
from eenet.serving._request import Outcome as Outcome
from eenet.serving._request import Request as Request
from eenet.serving._simulation import SimulatedTraffic as SimulatedTraffic
from eenet.serving._simulation import simulate as simulate
from eenet.serving._work import Cohort as Cohort
from eenet.serving._work import Work as Work
