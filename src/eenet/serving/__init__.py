"""Serving: the engine that batches by stage, its simulation, and the HTTP server."""

from eenet.serving._controller import FixedBudget as FixedBudget
from eenet.serving._driver import Driver as Driver
from eenet.serving._engine import Engine as Engine
from eenet.serving._engine import EngineOptions as EngineOptions
from eenet.serving._fleet import simulate_fleet as simulate_fleet
from eenet.serving._limits import Limits as Limits
from eenet.serving._limits import RefusedError as RefusedError
from eenet.serving._plan import Plan as Plan
from eenet.serving._plan import StageTime as StageTime
from eenet.serving._plan import capacity as capacity
from eenet.serving._plan import plan as plan
from eenet.serving._ray_options import RayOptions as RayOptions
from eenet.serving._ray_options import StageScaling as StageScaling
from eenet.serving._request import Outcome as Outcome
from eenet.serving._request import Request as Request
from eenet.serving._servable import Controller as Controller
from eenet.serving._servable import Servable as Servable
from eenet.serving._servable import ServedModel as ServedModel
from eenet.serving._server import ServerOptions as ServerOptions
from eenet.serving._server import make_server as make_server
from eenet.serving._simulation import SimulatedTraffic as SimulatedTraffic
from eenet.serving._simulation import simulate as simulate
from eenet.serving._work import Cohort as Cohort
from eenet.serving._work import Work as Work
