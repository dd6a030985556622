"""The work of running one stage on the batches that wait before it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eenet.runtime._loop import decide
from eenet.scheduler import DecisionState
from eenet.serving.engine._request import Batch, Request
from eenet.tasks import Task

if TYPE_CHECKING:
    from eenet.runtime import Live, StageBackend

Ints = NDArray[np.intp]


class Work:
    """Running stage `stage` on batches merged into one batch of `samples`: made by the engine, done by a worker.

    `execute` computes and changes nothing in the engine, so it may run in another thread; the engine takes the results
    when it is told that the work is complete.
    """

    def __init__(self, stage: int, parts: Iterable[Batch], num_exits: int) -> None:
        self.stage = stage
        # One policy's samples lie side by side, so that its decisions are made on one slice of the logits.
        self.parts = sorted(parts, key=lambda part: id(part.state.policy))
        self.samples = sum(map(len, self.parts))
        self.last = stage == num_exits - 1
        self.observe = any(part.state.policy.observes(stage) for part in self.parts)
        self.answers: list[tuple[list[Request], list[int], NDArray[np.float32]]] = []
        self.survivors: list[Batch] = []

    @property
    def requests(self) -> list[Request]:
        """The requests that have samples in it, each once."""
        return list(dict.fromkeys(owner for part in self.parts for owner in part.owners))

    def execute(self, backend: StageBackend, task: Task) -> None:
        """Gather the live tensors, run the stage, let samples leave, and compact the survivors."""
        k = self.stage
        lives = [part.live if part.rows is None else backend.take(k, part.live, part.rows) for part in self.parts]
        live = lives[0] if len(lives) == 1 else backend.join(k, lives)
        onward, logits = backend.run(k, live, observe=self.observe)
        start = 0
        for _, group in groupby(self.parts, key=lambda part: id(part.state.policy)):
            parts = list(group)
            count = sum(map(len, parts))
            self._decide(parts, start, count, onward, logits, backend, task)
            start += count

    def _decide(
        self,
        parts: list[Batch],
        start: int,
        count: int,
        onward: Live,
        logits: NDArray[np.float32] | None,
        backend: StageBackend,
        task: Task,
    ) -> None:
        """The decisions of one policy on the samples from `start` on."""
        owners = [owner for part in parts for owner in part.owners]
        places = [place for part in parts for place in part.places]
        # Joined also when there is one part only: what the parts hold must stay as it was, in case of a second try.
        state = DecisionState.join([part.state if part.rows is None else part.state.take(part.rows) for part in parts])
        rows = None if count == self.samples else np.arange(start, start + count)
        leaving, staying, answers = decide(state, task, logits, rows)
        if len(leaving):
            left = leaving.tolist()
            self.answers.append(([owners[i] for i in left], [places[i] for i in left], answers))
        if staying is not None and len(staying) == 0:
            return
        if staying is not None:
            stay = staying.tolist()
            owners, places = [owners[i] for i in stay], [places[i] for i in stay]
        if staying is None and count == self.samples:
            live = onward
        else:
            live = backend.take(self.stage + 1, onward, start + (np.arange(count) if staying is None else staying))
        self.survivors.append(Batch(live, state, owners, places, parts[0].shape, parts[0].queued))
