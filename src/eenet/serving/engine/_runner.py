"""What the HTTP application asks of whoever runs the stages, in this process or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from eenet.costs import Budget
from eenet.serving.engine._metrics import Metrics
from eenet.serving.engine._request import Request


class Runner(Protocol):
    """Answers requests: `Driver` by stages in this process, `RayRunner` by stages that are deployments."""

    @property
    def metrics(self) -> Metrics:
        """What was counted."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it works; where not, it must be started anew."""
        ...

    @property
    def accepting(self) -> bool:
        """Whether requests are taken in."""
        ...

    @property
    def waiting(self) -> Sequence[int]:
        """Samples before each stage, K numbers."""
        ...

    def start(self) -> None:
        """Begin; called from the event loop."""
        ...

    async def answer(self, inputs: Any, *, timeout: float, full: bool = False) -> Request:
        """Answer some samples; `full` switches the exits off.

        Raises `InvalidInputError` for inputs that do not fit, `OverloadedError` or `DrainingError` where there is no
        room, `RefusedError` where it cannot be done now.
        """
        ...

    async def set_budget(self, budget: Budget) -> float:
        """Keep to another budget, returned in the unit of the costs; raises `InvalidInputError` where there is none."""
        ...

    async def drain(self) -> None:
        """Take no more requests and end when those inside are answered."""
        ...
