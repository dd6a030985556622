"""`benchmark`: plain networks, early exits, bundles and alternatives on the same samples, in turns."""

from eenet.benchmarking._benchmark import benchmark
from eenet.benchmarking._results import Benchmark
from eenet.benchmarking._results import BenchmarkRow as BenchmarkRow

__all__ = ["Benchmark", "benchmark"]
