"""Answers of all systems to all samples, then their times in turns."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._progress import by_itself
from eenet._timing import machine
from eenet.benchmarking._measure import WARM_UP, Answers, Times, answers_of, mean_and_error, times_of
from eenet.benchmarking._onnx_file import OnnxFile
from eenet.benchmarking._results import Benchmark, BenchmarkRow
from eenet.benchmarking._samples import Array, samples_of
from eenet.benchmarking._systems import Progress, System, systems_of
from eenet.benchmarking._verdict import verdict
from eenet.costs import is_time
from eenet.errors import InvalidInputError
from eenet.runtime import CallCascade

Floats = NDArray[np.float64]
_DRAWS = 500  # of the bootstrap of a speed
_TINY = 1e-9  # seconds: the clock of the processor may not have moved


def benchmark(
    systems: Mapping[str, Any],
    data: Any,
    labels: Any = None,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    seconds: float = 10.0,
    threads: int | None = None,
    max_accuracy_drop: float = 0.01,
    untrained: Collection[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Benchmark:
    """Run several systems on the same samples, in turns, and say whether early exit is worth it.

    All systems answer all samples once, which gives accuracies and exits. Then, for each batch size, they are timed
    batch by batch in a random order, so that a machine that slows down meanwhile does so to all of them. What brings a
    batch onto a system's device is not timed.

    Parameters
    ----------
    systems
        What is compared, by name; the first is what the others are compared with. Each is a torch module (a network
        without exits), an `AdaptiveModel`, `(model, scheduler)` or `(model, scheduler, ["40%", "60%"])` for several
        budgets, a bundle, its folder or `(bundle, budgets)`, a `CallCascade`, an `.onnx` file, or a function from
        inputs to logits. `(model, 0)`, with a bundle or an `AdaptiveModel` too, is exit 0 alone, for all samples.
        Where the first has exits, its plain network goes before it. A bundle brings the plain network that it
        carries, in fp32 and where it has that in int8, and is also run with its exits off. Where the stages of an
        `AdaptiveModel` were optimized, its plain network is optimized in the same way: that is the first where its
        plain network was, and otherwise goes before the system.
    data
        Arrays or tensors, `(inputs, labels)`, a mapping of inputs by name which may hold "labels", or the batches of a
        loader. All of it is held in memory.
    labels
        (N,) class numbers, or (N, H, W) where each pixel has a class, unless they are in the data. Without any, answers
        are compared with those of the first system.
    batch_sizes
        The samples in a call.
    seconds
        About how long each batch size is timed.
    threads
        How many threads PyTorch, and what is loaded from a path, may use; by default their own choice. A bundle that is
        loaded already keeps its number, and a note says where numbers differ.
    max_accuracy_drop
        The loss of accuracy, against the first system, at which a faster system is still called worth it.
    untrained
        Names of systems with random weights: their times count, their answers do not.
    seed
        Of the order of turns.
    progress
        Called with what is being done and the share of it that is done.

    Returns
    -------
    Benchmark
        Print it: its last lines answer in words. Stopped by Ctrl-C while it measures times, it gives what was measured
        until then, and says so in its notes.

    Raises
    ------
    InvalidInputError
        For systems that give different numbers of classes, or cannot run on the data; the message names the system.

    Examples
    --------
    >>> import numpy as np, eenet
    >>> weights = np.random.default_rng(0).normal(size=(8, 3))
    >>> x = np.random.default_rng(1).normal(size=(64, 8))
    >>> systems = {"whole": lambda x: x @ weights, "half": lambda x: x[:, :4] @ weights[:4]}
    >>> result = eenet.benchmark(systems, x, (x @ weights).argmax(axis=1), batch_sizes=[8], seconds=0.1)
    >>> result.rows[0].system, result.rows[0].accuracy
    ('whole', 1.0)
    """
    samples = samples_of(data, labels)
    sizes = _sizes(batch_sizes, len(samples))
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(by_itself("running", 1, given=progress))
        report: Progress = progress or (lambda what, done: show(done, what=what))
        if "torch" in sys.modules:
            stack.enter_context(_torch_settings(threads))
        entries = systems_of(systems, tensors=samples.tensors, threads=threads, untrained=untrained)
        for module in {id(one.module): one.module for one in entries if one.module is not None}.values():
            from eenet.models import inferring

            stack.enter_context(inferring(module))
        found = machine(next((one.device for one in entries if one.device != "cpu"), "cpu"))
        answers = answers_of(entries, samples, max(sizes), report)
        rows: list[BenchmarkRow] = []
        stopped = False
        notes: list[str] = []
        words: list[str] = []
        for size in sizes:
            timing = times_of(entries, samples, size, seconds, seed, report)
            if timing is None:
                if not rows:
                    raise KeyboardInterrupt
                stopped = True
                notes.append(f"Stopped before batch size {size} was measured.")
                break
            made = _rows(entries, answers, timing, size)
            rows += made
            by_cpu, unsure, noise = _clock(made) if all(one.device == "cpu" for one in entries) else (False, {}, [])
            words.append(
                verdict(
                    made,
                    answers.difference,
                    max_accuracy_drop,
                    len(samples) if answers.utility is None else answers.utility.shape[1],
                    trained=answers.trained,
                    by_cpu=by_cpu,
                    unsure=unsure,
                )
            )
            notes += (
                noise + _unlike_the_plan(made, entries) + _above_the_plan(made, entries, by_cpu, unsure) + _few(made)
            )
            if timing.stopped:
                stopped = True
                notes.append(f"Stopped after {len(timing.batches)} turns at batch size {size}.")
                break
    return Benchmark(
        rows=tuple(rows),
        verdict="\n".join(words),
        notes=(*_notes(entries, answers, sizes, seconds, threads), *dict.fromkeys(notes)),
        samples=len(samples),
        labeled=samples.labels is not None,
        machine=found,
        stopped=stopped,
    )


def _sizes(batch_sizes: Sequence[int], samples: int) -> list[int]:
    sizes = [batch_sizes] if isinstance(batch_sizes, int) else list(batch_sizes)
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise InvalidInputError(f"batch_sizes are {batch_sizes!r}, expected whole numbers from 1")
    if max(sizes) > samples:
        raise InvalidInputError(
            f"batch size {max(sizes)} is more than the {samples} samples there are; give more, or a smaller batch size"
        )
    return sorted(set(sizes))


@contextlib.contextmanager
def _torch_settings(threads: int | None) -> Iterator[None]:
    """PyTorch without gradients and with this many threads."""
    import torch

    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def _rows(entries: list[System], answers: Answers, timing: Times, size: int) -> list[BenchmarkRow]:
    wall, cpu = timing.typical(timing.wall), timing.typical(timing.cpu)
    position = np.searchsorted(np.unique(timing.batches), timing.batches)
    spreads = [
        np.subtract(*np.quantile(seconds / np.maximum(typical[position], _TINY), [0.75, 0.25], axis=0))
        for seconds, typical in ((timing.wall, wall), (timing.cpu, cpu))
    ]
    repeated = timing.repeats > 1
    speed, speed_error = _speeds(wall)
    cpu_speed, cpu_speed_error = _speeds(cpu)
    rows = []
    for n, system in enumerate(entries):
        ms = 1000 * wall[:, n].mean() / size
        p50, p95, p99 = 1000 * np.quantile(timing.wall[:, n], [0.5, 0.95, 0.99])
        row = BenchmarkRow(
            system=system.name,
            budget=system.budget,
            early_exit=answers.exits[n] is not None,
            batch_size=size,
            calls=len(timing.wall),
            p50_ms=float(p50),
            p95_ms=float(p95),
            p99_ms=float(p99),
            ms_per_sample=float(ms),
            spread=float(spreads[0][n]) if repeated else None,
            cpu_spread=float(spreads[1][n]) if repeated else None,
            samples_per_second=float(1000 / ms),
            cpu_ms_per_sample=float(1000 * cpu[:, n].mean() / size),
            speed=float(speed[n]),
            speed_error=float(speed_error[n]),
            cpu_speed=float(cpu_speed[n]),
            cpu_speed_error=float(cpu_speed_error[n]),
            agreement=float(answers.agreement[n].mean()) if answers.trained[n] and answers.trained[0] else None,
            handed_back=float(answers.handed[n]),
            weight_bytes=system.weight_bytes,
        )
        rows.append(_with_costs(_with_accuracy(row, answers, n), system, answers.exits[n]))
    return rows


def _speeds(times: Floats) -> tuple[Floats, Floats]:
    """How many times as fast as the first each system is, of times (batches, S), and the errors by a bootstrap."""
    means = times.mean(axis=0)
    draws = np.random.default_rng(0).integers(len(times), size=(_DRAWS, len(times)))
    drawn = times[draws].mean(axis=1)
    error: Floats = (drawn[:, :1] / np.maximum(drawn, _TINY)).std(axis=0)
    return means[0] / np.maximum(means, _TINY), error


def _with_accuracy(row: BenchmarkRow, answers: Answers, n: int) -> BenchmarkRow:
    if answers.utility is None or not answers.trained[n]:
        return row
    accuracy, error = mean_and_error(answers.utility[n])
    difference, its_error = answers.difference(n, 0) or (None, None)
    return replace(row, accuracy=accuracy, accuracy_error=error, difference=difference, difference_error=its_error)


def _with_costs(row: BenchmarkRow, system: System, exits: Array | None) -> BenchmarkRow:
    """With exit shares, and where there is a scheduler what it planned against what the exits cost."""
    if exits is None:
        return row
    counts = np.bincount(exits.astype(np.intp), minlength=system.exits or 0)
    row = replace(row, exit_shares=tuple((counts / len(exits)).tolist()))
    scheduler = system.scheduler
    if scheduler is None:
        return row
    costs, planned = scheduler.costs, scheduler.planned_cost
    measured = {"ms": row.ms_per_sample, "cpu_ms": row.cpu_ms_per_sample}.get(costs.unit)
    comparable = measured is not None and costs.batch_size in (None, row.batch_size)
    return replace(
        row,
        unit=costs.unit,
        cost_limit=scheduler.budget,
        plain_cost=costs.plain,
        planned_cost=planned,
        realized_cost=float(costs.values[exits.astype(np.intp)].mean()),
        measured_over_planned=measured / planned if comparable and measured is not None else None,
    )


# Notes

_USELESS = 0.5  # a larger spread of CPU times leaves nothing to judge by
_OTHER = 1.5  # how far a measured time may be from the planned one, as a factor
_ABOVE = 1.1  # a larger share of the first system's time than planned, as a factor, has a note
_FEW = 10  # calls
_NOISY, _UNCERTAIN = 0.25, 0.1  # a larger spread has a note, and so has a larger relative error of a speed


def _disturbed(row: BenchmarkRow) -> float:
    """By what share wall times of the same work vary, where that is more than CPU times explain; else 0."""
    error, in_cpu = row.speed_error / row.speed, row.cpu_speed_error / row.cpu_speed
    spread = row.spread or 0.0
    return max(spread if spread > _NOISY else 0.0, error if error > _UNCERTAIN and error > 2 * in_cpu else 0.0)


def _clock(rows: list[BenchmarkRow]) -> tuple[bool, dict[int, str], list[str]]:
    """Whether to judge by CPU time, the systems that cannot be judged by that clock and why, and what to say of it.

    Other programs disturb wall times. CPU time does not run meanwhile, but that of threads that wait for each other is
    disturbed too. The clock by which more systems can be judged is taken, and the first must be one of them.
    """
    disturbed = {n: _disturbed(row) for n, row in enumerate(rows) if _disturbed(row) > 0}
    if not disturbed:
        return False, {}, []
    useless = {n: row.cpu_spread for n, row in enumerate(rows) if row.cpu_spread is not None}
    useless = {n: spread for n, spread in useless.items() if spread > _USELESS}
    by_cpu = 0 in disturbed or (0 not in useless and len(useless) < len(disturbed))
    what, found = ("even CPU", useless) if by_cpu else ("wall", disturbed)
    unsure = {
        n: f"{what} times of the same work vary by {spread:.0%} (measure longer, or on a quieter machine)"
        for n, spread in found.items()
    }
    worst = max(disturbed, key=lambda n: disturbed[n])
    goes = "So the answer goes by CPU time" if by_cpu else "The answer goes by the systems that are not disturbed"
    return (
        by_cpu,
        unsure,
        [
            f"Batch {rows[0].batch_size}: wall times of the same work vary by {disturbed[worst]:.0%} "
            f"({rows[worst].title}): other programs disturb the measurement. {goes}; measure again on a quieter "
            "machine."
        ],
    )


def _unlike_the_plan(rows: list[BenchmarkRow], entries: list[System]) -> list[str]:
    """What is to be said where the costs that budgets are in are not those of this machine and moment."""
    ratios = [row.measured_over_planned for row in rows if row.measured_over_planned is not None]
    if not ratios or 1 / _OTHER < min(ratios) <= max(ratios) < _OTHER:
        return []
    calls = [one.name for one in entries if isinstance(one.call, CallCascade)]
    fixed = (
        f" {', '.join(calls)}: a member that takes a fixed time for a call takes it for few open samples too. Give as "
        "its cost what a call takes over the samples that reach it in these batches, and fit again; or larger batches."
        if calls
        else ""
    )
    return [
        f"Batch {rows[0].batch_size}: measured times are {min(ratios):.3g} to {max(ratios):.3g} times those planned. "
        "Either the costs were measured on another machine or runtime, or at another load: measure them again (eenet "
        "profile) and fit again. Or samples of one batch leave at different exits, and a stage takes longer for each "
        "of the few that go on: measure the costs at this batch size (eenet.profile with batch_size, eenet profile "
        "--batch-sizes, or a bundle) and fit again." + fixed
    ]


def _references(entries: list[System]) -> list[int]:
    """For each system the number of the one with which its planned share is compared: mostly the first.

    Where that is an optimized plain network, a system that was not optimized is compared with the network as it is.
    """
    found = []
    for entry in entries:
        network = getattr(entry.origin, "plain", None) if entry.exits is not None and entry.fast is None else None
        alike = (
            n for n, one in enumerate(entries) if one.exits is None and network is not None and one.module is network
        )
        found.append(next(alike, 0))
    return found


def _above_the_plan(
    rows: list[BenchmarkRow], entries: list[System], by_cpu: bool, unsure: Mapping[int, str]
) -> list[str]:
    """Where a system takes a larger share of the reference's time than the share of the plain network planned."""
    said: list[str] = []
    sizes: set[int | None] = set()
    references = _references(entries)
    speeds = [(row.cpu_speed, row.cpu_speed_error) if by_cpu else (row.speed, row.speed_error) for row in rows]
    for n, row in enumerate(rows):
        first = rows[references[n]]
        scheduler = entries[n].scheduler
        if (
            scheduler is None
            or first.early_exit
            or {0, references[n], n} & set(unsure)
            or row.planned_cost is None
            or row.plain_cost is None
        ):
            continue
        planned, took = row.planned_cost / row.plain_cost, speeds[references[n]][0] / speeds[n][0]
        error = took * math.hypot(*(speeds[k][1] / speeds[k][0] for k in (n, references[n])))
        if is_time(row.unit or "") and took > _ABOVE * planned and took - planned > 2 * error:
            said.append(f"{row.title} takes {took:.0%} of the time of {first.title}, planned was {planned:.0%}")
            sizes.add(scheduler.costs.batch_size)
    if not said:
        return []
    size = rows[0].batch_size
    known = sorted(one for one in sizes if one is not None)
    if None in sizes:
        why = "the costs do not say at which batch size they were measured, and may be of another one, or of another"
    elif known == [size]:
        why = "the costs were measured at this batch size, and may be of another"
    else:
        why = f"the costs were measured at batch size {' and '.join(map(str, known))}, and may also be of another"
    return [
        f"Batch {size}: {'; '.join(said)} of the plain network: {why} runtime or load, or be without what decisions "
        "take. Measure them again as it will run, or give a lower budget."
    ]


def _of_other_runtimes(entries: list[System]) -> list[str]:
    """Where a part of a difference may be that between one graph and stages, or between two runtimes."""
    stages_only = dict.fromkeys(
        one.name
        for one in entries
        if one.exits is not None and one.module is None and one.origin and not one.origin.manifest.data.get("plain")
    )
    notes = [
        f"{name} carries no plain network (eenet.export keeps it up to 16 MiB), so {name}, exits off, stands in for "
        "it: its stages one after another. The network as one graph may be faster than that, and early exit then looks "
        "better here than it is. Give it as the first system, an .onnx file: plain=network.onnx."
        for name in stages_only
    ]
    if any(one.module is not None for one in entries) and any(isinstance(one.call, OnnxFile) for one in entries):
        notes.append(
            "Some systems run in PyTorch and some in ONNX Runtime, so a part of the difference is that of the runtimes."
            " The bundle of a model (eenet.export) runs its exits in ONNX Runtime, and makes the comparison fair."
        )
    return notes


def _of_threads(entries: list[System], threads: int | None) -> list[str]:
    """Where systems run with different numbers of threads, as far as that is known."""
    numbers: dict[str, int | None] = {}
    for one in entries:
        backend: Any = getattr(one.origin, "backend", None)
        if hasattr(backend, "threads"):  # what was loaded keeps its number; PyTorch has one for the whole process
            numbers[one.title] = backend.threads
        elif one.module is not None or isinstance(one.call, OnnxFile):
            numbers[one.title] = threads
    if len(set(numbers.values())) > 1:
        each = "; ".join(f"{title}: {number or 'its own choice'}" for title, number in numbers.items())
        return [
            f"Numbers of threads differ, and a part of the difference of times may be theirs ({each}). Give threads=1, "
            "and bundles by their folders, or loaded with threads=1."
        ]
    if threads is None and len({one.module is None for one in entries}) > 1:
        return ["Each system chose its own number of threads; threads=1 makes them comparable."]
    return []


def _few(rows: list[BenchmarkRow]) -> list[str]:
    """What is to be said where there were too few calls for percentiles and errors."""
    calls = rows[0].calls
    if calls >= _FEW:
        return []
    return [
        f"Batch {rows[0].batch_size}: {calls} calls of each are too few for percentiles and errors to be trusted; "
        "measure longer: --seconds, or seconds=."
    ]


def _notes(entries: list[System], answers: Answers, sizes: list[int], seconds: float, threads: int | None) -> list[str]:
    notes = [
        f"Latencies are of calls with one batch. Each turn runs all systems on one batch in a random order, about "
        f"{seconds:g} s for each batch size after {WARM_UP} calls of warm-up; the spread is the middle half of the "
        "times of one batch over their median. Times per sample are of medians for each batch; ± is one standard error."
    ]
    notes += _of_threads(entries, threads)
    for system in entries:
        fallback = getattr(system.scheduler, "fallback", None)
        if fallback is not None:
            notes.append(f"{system.title}: the scheduler fell back to a simpler policy: {fallback}")
    planned = [one.scheduler.costs for one in entries if one.scheduler is not None]
    if any(costs.plain is not None for costs in planned):
        notes.append("Percentages of budgets are of the plain network's cost when the costs were measured.")
    other = [c for c in planned if c.unit in ("ms", "cpu_ms") and c.batch_size not in (None, *sizes)]
    if other:
        notes.append(
            f"The costs were measured at batch size {other[0].batch_size}: measured time against planned is shown at "
            "that batch size alone."
        )
    notes += _of_other_runtimes(entries)
    notes += [one.note for one in entries if one.note]
    untrained = [one.title for one in entries if one.untrained]
    if untrained:
        notes.append(f"Random weights, so only times count: {', '.join(untrained)}.")
    if answers.utility is not None and answers.utility.shape[1] < answers.agreement.shape[1]:
        missing = answers.agreement.shape[1] - answers.utility.shape[1]
        notes.append(f"{missing} images have no labeled pixel and do not count in the accuracy.")
    if answers.handed.any():
        notes.append("A sample that is handed back (abstention) counts as not right in the accuracy.")
    return notes
