"""What all systems say of all samples, and their times in turns."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._timing import Clock, in_turns, timed
from eenet.benchmarking._samples import Array, Samples
from eenet.benchmarking._systems import Progress, System, logits_of
from eenet.errors import InvalidInputError
from eenet.tasks import Segmentation

Floats = NDArray[np.float64]

WARM_UP = 3  # calls of each system at each batch size
LEAST = 5  # batches that are timed, for the errors
_REPEATS = 3  # turns in a row on one batch, where there is time for
_ENOUGH = 60  # turns


@dataclass(frozen=True, eq=False)
class Answers:
    """What each of S systems said of N samples.

    `utility` (S, L) is what an answer is worth, 1 for right, of the L samples with labels: of images those with a
    labeled pixel; None without labels. `agreement` (S, N) with the first system. `exits[s]` (N,) where the system has
    exits; `handed` (S,) the share that was handed back.
    """

    utility: Floats | None
    agreement: Floats
    exits: list[Array | None]
    handed: Floats
    trained: list[bool]

    def difference(self, one: int, other: int) -> tuple[float, float] | None:
        """The mean accuracy of system `one` minus that of `other` on the same samples, and its standard error."""
        if self.utility is None or not (self.trained[one] and self.trained[other]):
            return None
        return mean_and_error(self.utility[one] - self.utility[other])


def mean_and_error(values: Floats) -> tuple[float, float]:
    """The mean of independent values, and its standard error."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def answers_of(entries: list[System], samples: Samples, size: int, report: Progress) -> Answers:
    """Every system on every sample, in batches."""
    count = len(samples)
    utility = None if samples.labels is None else np.zeros((len(entries), count))
    agreement = np.zeros((len(entries), count))
    exits: list[list[Array]] = [[] for _ in entries]
    handed = np.zeros(len(entries))
    task = next((one.task for one in entries if one.task is not None), None)
    shape: tuple[int, ...] = ()
    for start in range(0, count, size):
        inputs = samples.batch(start, size)
        rows = slice(start, min(start + size, count))
        said: list[Array] = []
        for n, system in enumerate(entries):
            logits, left, back = _answer(system, inputs, rows.stop - rows.start)
            shape = shape or logits.shape[1:]
            if logits.shape[1:] != shape:
                raise InvalidInputError(
                    f"system {system.title!r} gives logits {logits.shape[1:]} for a sample, {entries[0].title!r} gives "
                    f"{shape}; compare systems of the same classes"
                )
            said.append(logits.argmax(axis=1))
            if utility is not None and samples.labels is not None:
                utility[n, rows] = utility_of(task, said[n], samples.labels[rows], shape)
            if back is not None:
                none = back.astype(np.bool_)
                said[n][none] = -1
                handed[n] += none.sum()
                if utility is not None:
                    utility[n, rows] *= ~none  # NaN, where no pixel is labeled, stays
            if left is not None:
                exits[n].append(left)
            agreement[n, rows] = (said[n] == said[0]).reshape(len(logits), -1).mean(axis=1)
        report("answering all samples", rows.stop / count)
    if utility is not None:
        utility = utility[:, ~np.isnan(utility[0])]
        if not utility.size:
            raise InvalidInputError("no image has a labeled pixel; give label maps of classes, or no labels")
    joined = [np.concatenate(parts) if parts else None for parts in exits]
    return Answers(utility, agreement, joined, handed / count, [not one.untrained for one in entries])


def _answer(system: System, inputs: Any, size: int) -> tuple[Array, Array | None, Array | None]:
    prepared = None
    try:
        prepared = system.prepare(inputs)
        logits, exits, handed = logits_of(system.answer(prepared))
    except system.failures as error:
        why = None if prepared is None or isinstance(error, InvalidInputError) else system.not_taken(prepared)
        reason = why or (str(error) or type(error).__name__).splitlines()[0]
        shapes = [tuple(array.shape) for array in (*inputs[0], *inputs[1].values())]
        raise InvalidInputError(
            f"system {system.title!r} cannot answer a batch of the data, inputs of shape "
            f"{', '.join(map(str, shapes))}: {reason}"
        ) from error
    if len(logits) != size:
        raise InvalidInputError(f"system {system.title!r} gives {len(logits)} answers for {size} samples")
    return logits, exits, handed


def utility_of(task: Any, said: Array, labels: Array, shape: tuple[int, ...]) -> Array:
    """What each answer is worth: 1 for right, 0 for wrong; for images what the task says."""
    if len(shape) == 3:
        task = task if isinstance(task, Segmentation) else Segmentation()
        return np.asarray(task.utility_of(task.pixel_counts(said, labels, shape[0])), dtype=np.float64)
    if labels.shape != said.shape or labels.dtype.kind not in "iu":
        raise InvalidInputError(
            f"labels are {labels.dtype} of shape {labels.shape} for a batch, expected a class number for each sample"
        )
    if labels.min() < 0 or labels.max() >= shape[0]:
        bad = labels[(labels < 0) | (labels >= shape[0])][0]
        raise InvalidInputError(
            f"a label is {bad}, but the systems have {shape[0]} classes: expected 0 to {shape[0] - 1}, as "
            "classes count from 0"
        )
    return np.asarray(said == labels, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Times:
    """Seconds (turns, S) of each call; `batches` (turns,) says on which batch, on each `repeats` turns in a row."""

    wall: Floats
    cpu: Floats
    batches: NDArray[np.intp]
    repeats: int
    stopped: bool

    def typical(self, seconds: Floats) -> Floats:
        """For each batch the medians over its turns: (batches, S)."""
        return np.array([np.median(seconds[self.batches == batch], axis=0) for batch in np.unique(self.batches)])


def times_of(
    entries: list[System], samples: Samples, size: int, seconds: float, seed: int, report: Progress
) -> Times | None:
    """All systems in turns, each turn on one batch; None where it was stopped before there were enough turns."""
    order = np.random.default_rng(seed).permutation(len(samples) // size)
    state = {"batch": int(order[0]), "turn": 0}
    turns: list[list[Clock]] = [[] for _ in entries]

    def clock(n: int) -> Clock:
        prepared = entries[n].prepare(samples.batch(state["batch"] * size, size))
        spent = timed(partial(entries[n].answer, prepared), wait=entries[n].wait)
        turns[n].append(spent)
        return spent

    stopped, repeats = False, 1
    try:
        for _ in range(WARM_UP):
            for n in range(len(entries)):
                clock(n)
        # The shortest: the first call is slower than all others, and what disturbs a machine only makes it longer.
        expected = seconds / sum(min(wall for wall, _ in times) for times in turns)
        for times in turns:
            times.clear()
        repeats = _REPEATS if expected >= _ENOUGH else 1
        begun = time.perf_counter()

        def advance() -> None:
            state["turn"] += 1
            state["batch"] = int(order[state["turn"] // repeats % len(order)])
            report(f"batch {size}: measuring times", min(1.0, (time.perf_counter() - begun) / max(seconds, 1e-9)))

        in_turns(
            [partial(clock, n) for n in range(len(entries))],
            seconds=seconds,
            least=LEAST * repeats,
            warm_up=0,
            seed=seed,
            progress=advance,
        )
    except KeyboardInterrupt:
        stopped = True
        if state["turn"] < LEAST * repeats:
            return None
    table = np.array([times[: state["turn"]] for times in turns])
    batches = order[np.arange(state["turn"]) // repeats % len(order)]
    return Times(table[..., 0].T, table[..., 1].T, batches, repeats, stopped)
