"""Scores by the name they have in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from eenet.errors import FileFormatError
from eenet.scheduler._ensembles import BEEMScore, ZTWScore
from eenet.scheduler._gate import GateScore
from eenet.scheduler._learned import LearnedScore
from eenet.scheduler._policy import Score
from eenet.scheduler._scores import PLAIN_SCORES
from eenet.scheduler._stopping import StoppingScore
from eenet.scheduler._temperature import TemperatureScore

_READERS: dict[str, Callable[[Mapping[str, NDArray[Any]]], Score]] = {
    "learned": LearnedScore.from_arrays,
    "stopping": StoppingScore.from_arrays,
    "temperature": TemperatureScore.from_arrays,
    "gate": GateScore.from_arrays,
    "ztw": ZTWScore.from_arrays,
    "beem": BEEMScore.from_arrays,
}


def score_from_arrays(name: str, arrays: Mapping[str, NDArray[Any]]) -> Score:
    """The score of what its `to_arrays` gave; raises `FileFormatError` for a name that is not known."""
    if name in PLAIN_SCORES:
        return PLAIN_SCORES[name]
    if name not in _READERS:
        raise FileFormatError(f"score {name!r} is not known to this eenet; upgrade it, or fit the scheduler again")
    return _READERS[name](arrays)
