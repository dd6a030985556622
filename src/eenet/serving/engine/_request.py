"""What the engine was asked, and what became of it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eenet.scheduler import ThresholdPolicy

if TYPE_CHECKING:
    from eenet.serving.engine._work import Cohort


class Outcome(enum.Enum):
    """How a request ended; every accepted request ends once."""

    ANSWERED = "answered"
    LATE = "late"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Request:
    """n samples that came together and are answered together.

    `number` counts the requests in the order they came. When `outcome` is `ANSWERED`, `logits` (n, C, ...) and `exits`
    (n,) are those of the samples in their order; where it is `FAILED`, `error` says why. Times are in seconds of the
    caller's clock; `deadline` is None where the caller waits as long as it takes. It goes by `policy` all the way.
    `context` is the caller's own. Where an engine runs some of the stages only, `onward` holds the samples that go on
    to stages elsewhere; their exits are -1.
    """

    __slots__ = (
        "arrived", "context", "deadline", "error", "exits", "finished", "logits", "number", "onward", "outcome",
        "policy", "remaining", "samples",
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
        self.exits: NDArray[np.intp] = np.full(samples, -1, dtype=np.intp)
        self.logits: NDArray[np.float32] | None = None
        self.outcome: Outcome | None = None
        self.finished: float | None = None
        self.error: Exception | None = None
        self.onward: list[Cohort] = []

    @property
    def open(self) -> bool:
        """Whether it has not ended yet."""
        return self.outcome is None

    def answer(self, places: list[int], exit_index: int, logits: NDArray[np.float32]) -> None:
        """Fill in the answers (m, C, ...) of the samples at `places`, which left at an exit."""
        if self.logits is None:
            self.logits = np.empty((self.samples, *logits.shape[1:]), dtype=logits.dtype)
        self.logits[places] = logits
        self.exits[places] = exit_index
        self.remaining -= len(places)

    def pass_on(self, cohort: Cohort) -> None:
        """Samples of this request go on to a stage elsewhere."""
        self.onward.append(cohort)
        self.remaining -= len(cohort)

    def __repr__(self) -> str:
        state = f"{self.remaining} of {self.samples} samples left" if self.outcome is None else self.outcome.value
        return f"Request({self.number}, {state})"
