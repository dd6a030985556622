"""The baselines' scores that are fitted to calibration records, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from eenet.records import ExitRecords
from eenet.scheduler._ensembles import BEEMScore, ZTWScore, fit_beem, fit_ztw
from eenet.scheduler._gate import GateScore, fit_gate
from eenet.scheduler._policy import Score
from eenet.scheduler._temperature import TemperatureScore, fit_temperatures

FITTED_SCORES: dict[str, Callable[[ExitRecords], Score]] = {
    "temperature": fit_temperatures,
    "ztw": fit_ztw,
    "beem": fit_beem,
    "gate": fit_gate,
}
"""What fits each."""

FITTED_SCORE_READERS: dict[str, Callable[[Mapping[str, NDArray[Any]]], Score]] = {
    "temperature": TemperatureScore.from_arrays,
    "ztw": ZTWScore.from_arrays,
    "beem": BEEMScore.from_arrays,
    "gate": GateScore.from_arrays,
}
"""What makes each again from its arrays."""

ENSEMBLE_SCORES = frozenset({"ztw", "beem"})
"""Those that answer in place of the exits."""
