"""The cost tables of the demo: what each exit costs at several batch sizes, and in a batch whose samples part ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.costs import ExitCosts
from eenet.models import MultiExitModel
from eenet.profiling import StageProfile, measure
from eenet.scheduler import Scheduler

_TURNS = 8


def profile_in_turns(
    model: MultiExitModel, example: Any, *, batch_sizes: Sequence[int], scheduler: Scheduler, seconds: float
) -> list[StageProfile]:
    """Profile every batch size in short turns, about `seconds` each in all: the sizes are going to be compared."""
    return [
        measure(model, example, batch_sizes=batch_sizes, scheduler=scheduler, seconds=seconds / _TURNS)
        for _ in range(_TURNS)
    ]


def typical(turns: Sequence[StageProfile]) -> StageProfile:
    """The medians over the turns."""
    first = turns[0]
    return StageProfile(
        first.batch_sizes,
        {unit: np.median([turn.tables[unit] for turn in turns], axis=0) for unit in first.tables},
        {unit: np.median([turn.spreads[unit] for turn in turns], axis=0) for unit in first.tables},
        np.median([turn.parts_ms for turn in turns], axis=0),
        first.device,
        first.includes,
    )


def shared_costs(turns: Sequence[StageProfile], batch_size: int, survivors: int) -> ExitCosts:
    """What a sample that leaves at each exit adds to the time of its batch, in ms.

    A stage takes a fixed time and a time for each sample in it: a line through its times at `survivors` and at
    `batch_size` samples. When samples leave, the fixed part stays, as long as one sample goes on, so the batch pays it
    and leaving saves only the rest. The mean of these costs over the samples of a batch is then the batch's time
    divided by its size, and the cost of the last exit is the same as in the profile.

    How large the fixed part is, is read from processor time and compared within each turn: another program that runs
    meanwhile takes wall time from one batch size and not from the other.
    """
    shares = [1 - _slope(turn, batch_size, survivors) for turn in turns]
    # Noise could make the line's start negative, or its slope; at least half of a full batch's time is the samples'.
    fixed_share = np.clip(np.median(shares, axis=0), 0.0, 0.5)
    at = typical(turns).costs("ms", batch_size)
    stages = np.diff(at.values, prepend=0.0)
    return ExitCosts(
        (stages * fixed_share).sum() + (stages * (1 - fixed_share)).cumsum(),
        "ms",
        batch_size=batch_size,
        spread=at.spread,
        device=at.device,
        includes=(*at.includes, "the fixed part of all stages"),
    )


def _slope(turn: StageProfile, batch_size: int, survivors: int) -> NDArray[np.float64]:
    """The part of each stage's time in a full batch that goes with the number of its samples, (K,)."""
    table = turn.tables["cpu_ms"]
    full, fewer = (np.diff(table[turn.batch_sizes.index(n)] * n, prepend=0.0) for n in (batch_size, survivors))
    slope: NDArray[np.float64] = (full - fewer) / full * batch_size / (batch_size - survivors)
    return slope
