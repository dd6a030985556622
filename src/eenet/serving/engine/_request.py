"""What the engine takes in: requests within limits, the batches that their samples form, and the work of a stage."""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import EENetError, InvalidInputError
from eenet.runtime._loop import decide
from eenet.scheduler import DecisionState, ThresholdPolicy
from eenet.tasks import Task

if TYPE_CHECKING:
    from eenet.runtime import Live, StageBackend


SCORED = 4
"""Samples of a request whose scores are kept."""


@dataclass(frozen=True)
class Limits:
    """Limits on what one request may cost the server.

    Parameters
    ----------
    max_body, max_json : int
        The largest body, in bytes, of any content type and of JSON, which takes longer to read.
    max_uploads : int
        Bytes of all bodies that are being received at the same time.
    max_samples : int
        Samples of a request.
    max_pixels, max_aspect : int, float
        Pixels of an image, and the ratio of its longer side to its shorter one.
    max_text : int
        Characters of a text.
    max_head : int
        Bytes of the head of a request.
    head_timeout, body_timeout : float
        Seconds after which an incomplete head or body is given up.
    timeout : float
        Seconds until an answer, where the client names no limit of its own.

    Examples
    --------
    >>> from eenet.serving.engine import Limits
    >>> Limits(max_samples=16).max_json
    4194304
    """

    max_body: int = 32 * 1024 * 1024
    max_json: int = 4 * 1024 * 1024
    max_uploads: int = 256 * 1024 * 1024
    max_samples: int = 256
    max_pixels: int = 16_000_000
    max_aspect: float = 50.0
    max_text: int = 20_000
    max_head: int = 64 * 1024
    head_timeout: float = 10.0
    body_timeout: float = 10.0
    timeout: float = 30.0


@dataclass(frozen=True)
class EngineOptions:
    """How the engine forms batches.

    Parameters
    ----------
    max_batch : int
        Samples in a batch.
    max_wait : float
        Seconds that a request waits for others while no stage runs.
    max_delay : float
        The batching delay at the deep stages, in seconds: samples that have waited there for longer go first, in a full
        batch or not, so that none waits forever on a saturated machine. `LocalService` learns a shorter delay where a
        call of a stage costs little beyond its samples (`BatchingDelay`).
    max_samples : int
        Samples that may be inside at the same time.
    merge : bool
        Whether samples of several requests are merged before each stage. If not, a batch goes through its stages
        alone, as without an engine.

    Raises
    ------
    InvalidInputError
        For a value out of range.

    Examples
    --------
    >>> from eenet.serving.engine import EngineOptions
    >>> EngineOptions(max_batch=32).max_wait
    0.002
    """

    max_batch: int = 16
    max_wait: float = 0.002
    max_delay: float = 1.0
    max_samples: int = 1024
    merge: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_samples"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}, expected 1 or more")
        for name in ("max_wait", "max_delay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}, expected seconds, 0 or more")


class RefusedError(EENetError):
    """A request that cannot be served; `status` is the HTTP status that says so.

    Examples
    --------
    >>> from eenet.serving.engine import RefusedError
    >>> RefusedError(413, "too many samples").status
    413
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Ints = NDArray[np.intp]


class Outcome(enum.Enum):
    """How a request ended; every accepted request ends once.

    Examples
    --------
    >>> from eenet.serving.engine import Outcome
    >>> [one.name for one in Outcome]
    ['ANSWERED', 'LATE', 'CANCELLED', 'FAILED']
    """

    ANSWERED = "answered"
    LATE = "late"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Request:
    """n samples that came together and are answered together.

    `Engine.submit` makes it. Times are in seconds of the caller's clock.

    Attributes
    ----------
    number : int
        Counts the requests in the order they came.
    samples : int
        n.
    policy : ThresholdPolicy
        What decides on its samples, at every exit.
    arrived, deadline, finished : float
        `deadline` is None where the caller sets no limit; `finished` is None until the request has ended.
    outcome : Outcome
        None until the request has ended.
    logits : array (n, C, ...)
        The logits that each sample left with; complete when `outcome` is `ANSWERED`.
    exits : array (n,)
        The exit of each sample, from 0; -1 for samples without an answer.
    abstained : array (n,)
        Which samples are handed back, since no exit is sure of them.
    scores : dict of int to array
        The scores on the way of the first few samples, by their number: (k,) at the exits before the one it left at,
        and at that one where it is not the last. For the server's page; empty where stages run elsewhere.
    error : Exception
        Why the request failed, where `outcome` is `FAILED`.
    context : Any
        The caller's own.
    reached : array (n,)
        The last stage that was begun on each sample, from 0; -1 before the first. A sample has cost what the exit of
        that stage does, answered or not.
    onward : list of Batch
        Where an engine runs some of the stages only: the samples that go on to a stage elsewhere.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> from eenet.serving.engine import Request
    >>> policy = eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=2.0).policy
    >>> Request(0, samples=3, arrived=0.0, policy=policy).open
    True
    """

    __slots__ = (
        "abstained", "arrived", "context", "deadline", "error", "exits", "finished", "logits", "number", "onward",
        "outcome", "policy", "reached", "remaining", "samples", "scores",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        samples: int,
        arrived: float,
        policy: ThresholdPolicy,
        deadline: float | None = None,
        context: Any = None,
    ) -> None:
        self.number = number
        self.samples = samples
        self.arrived = arrived
        self.policy = policy
        self.deadline = deadline
        self.context = context
        self.remaining = samples
        self.exits: Ints = np.full(samples, -1, dtype=np.intp)
        self.reached: Ints = np.full(samples, -1, dtype=np.intp)
        self.abstained: NDArray[np.bool_] = np.zeros(samples, dtype=np.bool_)
        self.logits: NDArray[np.float32] | None = None
        self.scores: dict[int, NDArray[np.float64]] = {}
        self.outcome: Outcome | None = None
        self.finished: float | None = None
        self.error: Exception | None = None
        self.onward: list[Batch] = []

    @property
    def open(self) -> bool:
        """Whether it has not ended yet."""
        return self.outcome is None

    def answer(
        self,
        places: list[int],
        exit_index: int,
        logits: NDArray[np.float32],
        abstained: NDArray[np.bool_] | None = None,
    ) -> None:
        """Fill in the answers (m, C, ...) of the samples at `places`, which left at an exit or are handed back."""
        if self.logits is None:
            self.logits = np.empty((self.samples, *logits.shape[1:]), dtype=logits.dtype)
        self.logits[places] = logits
        self.exits[places] = exit_index
        if abstained is not None:
            self.abstained[places] = abstained
        self.remaining -= len(places)

    def pass_on(self, batch: Batch) -> None:
        """Samples of this request go on to a stage elsewhere."""
        self.onward.append(batch)
        self.remaining -= len(batch)

    def __repr__(self) -> str:
        state = f"{self.remaining} of {self.samples} samples left" if self.outcome is None else self.outcome.value
        return f"Request({self.number}, {state})"


class Batch:
    """Samples of one or more requests that wait before one stage and go by one policy.

    Sample i is row `rows[i]` of `live` and of the running samples of `state`, and number `places[i]` of its request
    `owners[i]`. Selecting samples copies no tensor: `Work.execute` does that. Live tensors merge only with those of the
    same `shape`. `queued` is when the batch came to its stage.
    """

    __slots__ = ("live", "owners", "places", "queued", "rows", "shape", "state")

    def __init__(
        self,
        live: Live,
        state: DecisionState,
        owners: list[Request],
        places: list[int],
        shape: Hashable,
        queued: float,
        rows: Ints | None = None,
    ) -> None:
        self.live = live
        self.state = state
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

    def select(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions."""
        if len(positions) == len(self.owners):
            return self
        picked = np.asarray(positions, dtype=np.intp)
        return Batch(
            self.live,
            self.state,
            [self.owners[i] for i in positions],
            [self.places[i] for i in positions],
            self.shape,
            self.queued,
            picked if self.rows is None else self.rows[picked],
        )

    def without_ended(self) -> Batch:
        """The samples whose requests still wait."""
        return self.select([i for i, owner in enumerate(self.owners) if owner.open])

    def by_request(self) -> list[Batch]:
        """One batch for each of its requests."""
        return [
            self.select([i for i, one in enumerate(self.owners) if one is owner])
            for owner in dict.fromkeys(self.owners)
        ]


class Work:
    """Running stage `stage` on batches merged into one batch of `samples`: made by the engine, done by a worker.

    `execute` computes and changes nothing in the engine, so it may run in another thread; the engine takes the results
    when it is informed that the work is complete.
    """

    def __init__(self, stage: int, parts: Iterable[Batch], num_exits: int) -> None:
        self.stage = stage
        # One policy's samples lie side by side, so that its decisions are made on one slice of the logits.
        self.parts = sorted(parts, key=lambda part: id(part.state.policy))
        self.samples = sum(map(len, self.parts))
        self.last = stage == num_exits - 1
        self.observe = any(part.state.policy.observes(stage) for part in self.parts)
        self.answers: list[tuple[list[Request], list[int], NDArray[np.float32], NDArray[np.bool_] | None]] = []
        self.scores: list[tuple[Request, int, NDArray[np.float64]]] = []
        self.staying: list[Batch] = []

    @property
    def requests(self) -> list[Request]:
        """The requests that have samples in it, each once."""
        return list(dict.fromkeys(owner for part in self.parts for owner in part.owners))

    def execute(self, backend: StageBackend, task: Task) -> None:
        """Gather the live tensors, run the stage, let samples leave, and compact those that stay."""
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
        history = state.history  # it keeps the scores of the samples that exit
        leaving, staying, answers, abstained = decide(state, task, logits, rows)
        if len(leaving):
            left = leaving.tolist()
            for i in left:
                if places[i] < SCORED:
                    self.scores.append((owners[i], places[i], np.array([scores[i] for scores in history.scores])))
            self.answers.append(([owners[i] for i in left], [places[i] for i in left], answers, abstained))
        if staying is not None and len(staying) == 0:
            return
        if staying is not None:
            stay = staying.tolist()
            owners, places = [owners[i] for i in stay], [places[i] for i in stay]
        if staying is None and count == self.samples:
            live = onward
        else:
            live = backend.take(self.stage + 1, onward, start + (np.arange(count) if staying is None else staying))
        self.staying.append(Batch(live, state, owners, places, parts[0].shape, parts[0].queued))
