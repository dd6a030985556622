"""What answers cost: tables for budgets from a profile, and policies run for real in turns with the plain network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet._timing import TRUSTED_SPREAD, in_turns, timed, waiting_for
from eenet.benchmarking._measure import utility_of
from eenet.benchmarking._systems import logits_of
from eenet.models import MultiExitModel, unpack
from eenet.profiling import StageProfile
from eenet.records import ExitRecords
from eenet.runtime import AdaptiveModel
from eenet.scheduler import Scheduler

Floats = NDArray[np.float64]

SINGLE = 50  # samples that are run one at a time


def undisturbed(profile: StageProfile) -> tuple[StageProfile, list[str]]:
    """The profile; where other programs disturbed it, with wall times in the proportions of processor time.

    Where other programs want the processor too, a long stage is interrupted and a short one is not, so their wall times
    do not compare; processor time does not run while another program has the processor. The most expensive exit keeps
    its wall time. The note says so.
    """
    spread = float(profile.spreads["ms"].max())
    if spread <= TRUSTED_SPREAD or profile.device.get("device") != "cpu":
        return profile, []
    scale = profile.tables["ms"][-1, -1] / profile.tables["cpu_ms"][-1, -1]

    def scaled(measured: Mapping[str, Floats]) -> dict[str, Floats]:
        return {unit: measured["cpu_ms"] * scale if unit == "ms" else table for unit, table in measured.items()}

    runs = dict(profile.runs)
    if runs:
        runs["ms"] = tuple(
            tuple((samples, tuple(scale * time for time in took)) for samples, took in of_size)
            for of_size in runs["cpu_ms"]
        )
    kept = replace(
        profile,
        tables=scaled(profile.tables),
        spreads={**profile.spreads, "ms": profile.spreads["cpu_ms"]},
        plain=scaled(profile.plain),
        percentiles=scaled(profile.percentiles),
        runs=runs,
    )
    return kept, [
        f"Other programs disturbed the measurement of the costs: wall times varied by {spread:.0%}. The proportions of "
        "the cost table are therefore those of processor time; on a quiet machine they are those of wall time."
    ]


def measure_policies(
    model: MultiExitModel,
    policies: Mapping[tuple[str, str], Scheduler],
    test: ExitRecords,
    batches: Callable[[int], Iterable[Any]],
    *,
    batch_size: int,
    rounds: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """JSON-ready rows: the plain network, then each policy by (method, budget), on the same batches of the test part.

    A row has the accuracy of its answers and, for `batch_size` and for 1, the `ms` per sample (medians over the rounds
    of each batch), their `spread` (half the range of the rounds, relative) and how many `times` as fast as the plain
    network. `replay_differs` counts samples that exited elsewhere than in a replay of the records.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    keys: list[tuple[str, str] | None] = [None, *policies]
    runs: list[Callable[..., Any]] = [model.eval().backbone]
    runs += [AdaptiveModel(model, scheduler) for scheduler in policies.values()]
    # One sample at a time is slow, so only some; where the batch size is 1, those are all that is needed.
    inputs = {
        size: [_on(device, *unpack(batch)) for batch in islice(batches(size), SINGLE if size == 1 else None)]
        for size in sorted({1, batch_size})
    }
    total = rounds * len(runs) * sum(map(len, inputs.values()))
    done = 0

    def advance() -> None:
        nonlocal done
        done += len(runs)
        progress(done, total)

    times: dict[int, Floats] = {}
    outputs: dict[int, list[list[Any]]] = {}
    for size, calls in inputs.items():
        times[size], outputs[size] = _in_turns(runs, calls, device, rounds, seed, advance)
    samples = {size: sum(len(labels) for *_, labels in calls) for size, calls in inputs.items()}
    rows = []
    for n, key in enumerate(keys):
        answers = {size: [logits_of(output) for output in outputs[size][n]] for size in inputs}
        worth = np.concatenate(
            [
                utility_of(model.task, logits.argmax(axis=1), labels.numpy(), logits.shape[1:])
                for (logits, *_), (*_, labels) in zip(answers[batch_size], inputs[batch_size], strict=True)
            ]
        )
        labeled = ~np.isnan(worth)
        row: dict[str, Any] = {
            "method": "plain" if key is None else key[0],
            "budget": None if key is None else key[1],
            "accuracy": float(worth[labeled].mean()),
            "time": {str(size): _times(times[size][n], times[size][0], samples[size]) for size in inputs},
        }
        if key is not None:
            scheduler = policies[key]
            exits = {size: np.concatenate([left for _, left, _ in answers[size]]) for size in inputs}
            # The records are of the labeled samples alone.
            replayed = np.full(len(labeled), -1)
            replayed[labeled] = scheduler.replay(test).exits
            at = exits[batch_size]
            row |= {
                "planned_cost": scheduler.planned_cost,
                "calibration_cost": scheduler.calibration_cost,
                "test_cost": float(scheduler.costs.values[at].mean()),
                "exit_shares": (np.bincount(at, minlength=model.num_exits) / len(at)).tolist(),
                "replay_differs": sum(_differing(taken, replayed) for taken in exits.values()),
            }
            if key[0] != "exit":
                row["limit"] = scheduler.budget
        rows.append(row)
    return {"batch_size": batch_size, "samples": samples[batch_size], "rounds": rounds, "rows": rows}


def _in_turns(
    runs: list[Callable[..., Any]],
    calls: list[Any],
    device: torch.device,
    rounds: int,
    seed: int,
    advance: Callable[[], None],
) -> tuple[Floats, list[list[Any]]]:
    """Milliseconds (runs, rounds, batches), and the outputs of each run in the first round.

    The order is drawn again for each batch: a machine that slows down or speeds up meanwhile does so to all runs.
    """
    wall = np.zeros((len(runs), rounds, len(calls)))
    outputs: list[list[Any]] = [[] for _ in runs]
    wait = waiting_for(device)

    def call(n: int, b: int, *, keep: bool) -> None:
        args, kwargs, _ = calls[b]
        output = runs[n](*args, **kwargs)
        if keep:
            outputs[n].append(output)

    with torch.inference_mode():
        for n in range(len(runs)):
            call(n, 0, keep=False)  # a warm-up
        for r in range(rounds):
            for b in range(len(calls)):
                clocks = [partial(timed, partial(call, n, b, keep=r == 0), wait=wait) for n in range(len(runs))]
                order = (seed * rounds + r) * len(calls) + b
                timing = in_turns(clocks, seconds=0, least=1, warm_up=0, seed=order)
                wall[:, r, b] = 1000 * timing.wall[0]
                advance()
    return wall, outputs


def _on(device: torch.device, args: Any, kwargs: Any, labels: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """A batch with its inputs on a device."""

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    return tuple(moved(value) for value in args), {name: moved(value) for name, value in kwargs.items()}, labels


def _times(wall: Floats, plain: Floats, samples: int) -> dict[str, Any]:
    """Of (rounds, batches) milliseconds of a run and of the plain network."""
    typical, reference = (float(np.median(one, axis=0).sum()) for one in (wall, plain))
    rounds = wall.sum(axis=1)
    return {
        "ms": typical / samples,
        "spread": float((rounds.max() - rounds.min()) / 2 / typical),
        "times": reference / typical,
        "rounds": (plain.sum(axis=1) / rounds).tolist(),
    }


def _differing(exits: NDArray[np.intp], replayed: NDArray[np.intp]) -> int:
    """How many of the first samples exited elsewhere than replayed, where that is known: -1 is not."""
    known = replayed[: len(exits)]
    return int(((exits != known) & (known >= 0)).sum())
