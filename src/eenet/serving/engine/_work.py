"""Cohorts, which wait before a stage, and the work of running a stage on some of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eenet.runtime._loop import decide
from eenet.scheduler import DecisionState
from eenet.serving.engine._request import Request
from eenet.tasks import Task

if TYPE_CHECKING:
    from eenet.runtime import Live, StageBackend

Ints = NDArray[np.intp]


class Cohort:
    """Samples of one or more requests that wait before one stage and go by one policy.

    Sample i is row `rows[i]` of `live` and of the running samples of `route`, and number `places[i]` of its request
    `owners[i]`. Selecting from a cohort copies no tensor: that is left to the work. Live tensors merge only with those
    of the same `shape`. `queued` is when it came.
    """

    __slots__ = ("live", "owners", "places", "queued", "route", "rows", "shape")

    def __init__(
        self,
        live: Live,
        route: DecisionState,
        owners: list[Request],
        places: list[int],
        shape: Hashable,
        queued: float,
        rows: Ints | None = None,
    ) -> None:
        self.live = live
        self.route = route
        self.owners = owners
        self.places = places
        self.shape = shape
        self.queued = queued
        self.rows = rows

    def __len__(self) -> int:
        return len(self.owners)

    @property
    def open(self) -> bool:
        """Whether any of its requests still waits for an answer."""
        return any(owner.open for owner in self.owners)

    @property
    def oldest(self) -> Request:
        """The oldest of its requests that still waits; there must be one."""
        return min((owner for owner in self.owners if owner.open), key=lambda owner: owner.number)

    def select(self, positions: Sequence[int]) -> Cohort:
        """The cohort of the samples at these positions."""
        if len(positions) == len(self.owners):
            return self
        picked = np.asarray(positions, dtype=np.intp)
        return Cohort(
            self.live,
            self.route,
            [self.owners[i] for i in positions],
            [self.places[i] for i in positions],
            self.shape,
            self.queued,
            picked if self.rows is None else self.rows[picked],
        )

    def without_ended(self) -> Cohort:
        """The cohort of the samples whose requests still wait."""
        return self.select([i for i, owner in enumerate(self.owners) if owner.open])

    def by_request(self) -> list[Cohort]:
        """One cohort for each of its requests."""
        return [
            self.select([i for i, one in enumerate(self.owners) if one is owner])
            for owner in dict.fromkeys(self.owners)
        ]


class Work:
    """Running stage `stage` on cohorts merged into one batch of `samples`: made by the engine, done by a worker.

    `execute` computes and changes nothing in the engine, so it may run in another thread; the engine takes the results
    when it is told that the work is complete.
    """

    def __init__(self, stage: int, parts: Iterable[Cohort], num_exits: int) -> None:
        self.stage = stage
        # One policy's samples lie side by side, so that its decisions are made on one slice of the logits.
        self.parts = sorted(parts, key=lambda part: id(part.route.policy))
        self.samples = sum(map(len, self.parts))
        self.last = stage == num_exits - 1
        self.observe = any(part.route.policy.observes(stage) for part in self.parts)
        self.answers: list[tuple[list[Request], list[int], NDArray[np.float32]]] = []
        self.survivors: list[Cohort] = []

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
        for _, group in groupby(self.parts, key=lambda part: id(part.route.policy)):
            parts = list(group)
            count = sum(map(len, parts))
            self._decide(parts, start, count, onward, logits, backend, task)
            start += count

    def _decide(
        self,
        parts: list[Cohort],
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
        route = DecisionState.join([part.route if part.rows is None else part.route.take(part.rows) for part in parts])
        rows = None if count == self.samples else np.arange(start, start + count)
        leaving, staying, answers = decide(route, task, logits, rows)
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
        self.survivors.append(Cohort(live, route, owners, places, parts[0].shape, parts[0].queued))
