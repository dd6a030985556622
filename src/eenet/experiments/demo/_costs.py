"""The cost tables of the demo: what each exit costs at several batch sizes, and in a batch whose samples part ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eenet.costs import ExitCosts
from eenet.models import MultiExitModel
from eenet.profiling import StageProfile, measure
from eenet.scheduler import Scheduler

_TURNS = 10


def profile_in_turns(
    model: MultiExitModel, example: Any, *, batch_sizes: Sequence[int], scheduler: Scheduler, seconds: float
) -> StageProfile:
    """Profile every batch size in short turns, about `seconds` each in all, and take each number from its fastest turn.

    Exits and batch sizes are going to be compared, so none may be measured while another program takes the processor's
    time, and others not: what disturbs a turn only ever makes it slower.
    """
    return fastest(
        [
            measure(model, example, batch_sizes=batch_sizes, scheduler=scheduler, seconds=seconds / _TURNS)
            for _ in range(_TURNS)
        ]
    )


def fastest(turns: Sequence[StageProfile]) -> StageProfile:
    """The smallest of each number over several profiles; the spread is the usual one within a profile."""
    first = turns[0]
    return StageProfile(
        first.batch_sizes,
        {unit: np.min([turn.tables[unit] for turn in turns], axis=0) for unit in first.tables},
        {unit: np.median([turn.spreads[unit] for turn in turns], axis=0) for unit in first.tables},
        np.min([turn.parts_ms for turn in turns], axis=0),
        first.device,
        first.includes,
    )


def disturbance(profile: StageProfile) -> float:
    """The largest relative spread of the wall times."""
    return float(profile.spreads["ms"].max())


def by_processor_time(profile: StageProfile) -> StageProfile:
    """The profile with wall times that are processor times times one factor, which leaves the dearest as it was.

    Where other programs want the processor too, a long stage is interrupted and a short one is not, so their wall times
    do not compare; processor time does not run while another program has the processor.
    """
    wall, cpu = profile.tables["ms"], profile.tables["cpu_ms"]
    return StageProfile(
        profile.batch_sizes,
        {**profile.tables, "ms": cpu * (wall[-1, -1] / cpu[-1, -1])},
        {**profile.spreads, "ms": profile.spreads["cpu_ms"]},
        profile.parts_ms,
        profile.device,
        profile.includes,
    )


def shared_costs(profile: StageProfile, batch_size: int, survivors: int) -> ExitCosts:
    """What a sample that leaves at each exit adds to the time of its batch, in ms.

    A stage takes a fixed time and a time for each sample in it: a line through its times at `survivors` and at
    `batch_size` samples. When samples leave, the fixed part stays, as long as one sample goes on, so the batch pays it
    and leaving saves only the rest. The mean of these costs over the samples of a batch is then the batch's time
    divided by its size, and the cost of the last exit is the same as in the profile.
    """
    at = profile.costs("ms", batch_size)
    full = np.diff(at.values, prepend=0.0) * batch_size
    fewer = np.diff(profile.costs("ms", survivors).values, prepend=0.0) * survivors
    each = (full - fewer) / (batch_size - survivors)
    # Noise could make the line's start negative, or its slope; at least half of a full batch's time is the samples'.
    each = np.clip(each, 0.5 * full / batch_size, full / batch_size)
    fixed = full - batch_size * each
    return ExitCosts(
        fixed.sum() / batch_size + each.cumsum(),
        "ms",
        batch_size=batch_size,
        spread=at.spread,
        device=at.device,
        includes=(*at.includes, "the fixed part of all stages"),
    )
