"""Simulation and planning of replicas."""

from eenet.capacity._fleet import simulate_fleet as simulate_fleet
from eenet.capacity._plan import Plan as Plan
from eenet.capacity._plan import StageTime as StageTime
from eenet.capacity._plan import capacity as capacity
from eenet.capacity._plan import plan as plan
from eenet.capacity._simulation import SimulatedTraffic as SimulatedTraffic
from eenet.capacity._simulation import simulate as simulate
