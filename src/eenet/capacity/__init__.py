"""Simulation and planning of replicas."""

from eenet.capacity._plan import ReplicaPlan, StageTime, capacity, plan
from eenet.capacity._simulation import SimulatedTraffic, simulate, simulate_fleet

__all__ = ["ReplicaPlan", "SimulatedTraffic", "StageTime", "capacity", "plan", "simulate", "simulate_fleet"]
