"""The way of a batch through the stages of a backend: numpy in and out, the same decisions as everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from eenet.runtime._backend import Array, StageBackend
from eenet.scheduler import DecisionState, ThresholdPolicy
from eenet.tasks import Evidence, Task


@dataclass(frozen=True)
class Answers:
    """Answers in the order of the input.

    `logits` (N, C), or (N, C, H, W) where each pixel has a class, of the exit each sample left at, or of the ensemble
    where the scheduler changes predictions; `exits` (N,) from 0, int64.
    """

    logits: NDArray[np.float32]
    exits: NDArray[np.int64]


def walk(
    backend: StageBackend, policy: ThresholdPolicy, task: Task, inputs: Mapping[str, Array] | Array
) -> Answers | None:
    """Run a batch under a policy; None for an empty batch, which no stage is run for."""
    live = backend.enter(inputs)
    samples = backend.size(0, live)
    if samples == 0:
        return None
    route = DecisionState(policy, samples)
    answers: NDArray[np.float32] | None = None
    last = backend.num_exits - 1
    for k in range(backend.num_exits):
        live, logits = backend.run(k, live, observe=policy.observes(k))
        running = route.running
        if k == last:
            leaving, staying = np.arange(len(running)), running[:0]
            route.finish(partial(_evidence, task, logits, route))
        elif logits is None:
            route.skip()
            continue
        else:
            left, stay = route.observe(task.evidence(task.shown(logits), route.earlier))
            if stay is None:
                continue
            leaving, staying = left, stay
        assert logits is not None, "the last exit always gives logits"
        if len(leaving) == samples:  # everybody left at one exit: nothing to put in order
            answers = logits if route.left is None else route.left
            break
        if answers is None:
            answers = np.empty((samples, *logits.shape[1:]), dtype=logits.dtype)
        answers[running[leaving]] = logits[leaving] if route.left is None else route.left
        if len(staying) == 0:
            break
        live = backend.take(k + 1, live, staying)
    assert answers is not None, "every sample leaves at an exit"
    return Answers(answers, route.exits.astype(np.int64))


def _evidence(task: Task, logits: NDArray[np.float32] | None, route: DecisionState) -> Evidence:
    assert logits is not None, "the last exit always gives logits"
    return task.evidence(task.shown(logits), route.earlier)
