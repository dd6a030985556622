"""What the server counts, for Prometheus and for its page."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.costs import ExitCosts
from eenet.serving.engine._recent import Recent

_RECENT = 10_000  # samples that the shown exit shares and mean cost are taken over
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own; `recent` has them over time.

    `waiting` gives the samples before each stage.
    """

    def __init__(self, costs: ExitCosts, waiting: Callable[[], Sequence[int]]) -> None:
        client = require("prometheus_client", "serve")
        self._client = client
        self._costs = costs.values
        self._registry: Any = client.CollectorRegistry()
        self._recent: deque[NDArray[np.intp]] = deque()
        self._recent_counts = np.zeros(len(costs), dtype=np.int64)
        self._waiting = waiting
        self.recent = Recent(costs)

        # CPU time, memory and open files, on systems that show them.
        client.ProcessCollector(registry=self._registry)

        def made(kind: Any, name: str, text: str, labels: Sequence[str] = (), **more: Any) -> Any:
            return kind(f"eenet_{name}", text, list(labels), registry=self._registry, **more)

        self._requests = made(client.Counter, "requests", "Requests by HTTP status.", ["status"])
        self._seconds = made(
            client.Histogram, "request_seconds", "From the last byte of a request to its answer.", buckets=_SECONDS
        )
        self._samples = made(client.Counter, "samples", "Samples by the exit they left at.", ["exit"])
        self._abstained = made(client.Counter, "abstained", "Samples that were handed back: no exit was sure of them.")
        self._cost = made(client.Counter, "cost", f"What the samples cost, in {costs.unit}.")
        self._mean = made(client.Gauge, "mean_cost", f"Mean cost of the last {_RECENT} samples, in {costs.unit}.")
        self._budget = made(client.Gauge, "budget", f"The budget per sample, in {costs.unit}.")
        self._queued = made(client.Gauge, "queue_samples", "Samples that wait before a stage.", ["stage"])
        self._batch = made(
            client.Histogram, "batch_samples", "Samples in a run of a stage.", ["stage"], buckets=_SAMPLES
        )
        self._stage = made(client.Histogram, "stage_seconds", "Time of a run of a stage.", ["stage"], buckets=_SECONDS)
        self._failures = made(client.Counter, "failed_batches", "Runs of a stage that raised.", ["stage"])
        self._again = made(
            client.Counter, "calls_sent_again", "Calls of a stage elsewhere whose replica died.", ["stage"]
        )
        stages = [str(k) for k in range(len(costs))]
        self._samples_at = [self._samples.labels(k) for k in stages]
        self._batch_at = [self._batch.labels(k) for k in stages]
        self._stage_at = [self._stage.labels(k) for k in stages]
        for k, stage in enumerate(stages):
            self._queued.labels(stage).set_function(lambda k=k: self._waiting()[k])
            self._failures.labels(stage)

    def request(self, status: int, seconds: float) -> None:
        """Count a request that was answered or refused."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def batch(self, stage: int, samples: int, seconds: float) -> None:
        """Count a run of a stage."""
        self._batch_at[stage].observe(samples)
        self._stage_at[stage].observe(seconds)

    def failure(self, stage: int) -> None:
        """Count a run of a stage that raised."""
        self._failures.labels(str(stage)).inc()

    def sent_again(self, stage: int) -> None:
        """Count a call of a stage that was sent again, because its replica died."""
        self._again.labels(str(stage)).inc()

    def left(self, exits: NDArray[np.intp], abstained: int = 0) -> None:
        """Count samples that left at these exits (n,), and how many of them were handed back."""
        self._abstained.inc(abstained)
        counts = np.bincount(exits, minlength=len(self._costs))
        for k in np.flatnonzero(counts):
            self._samples_at[k].inc(int(counts[k]))
        self._cost.inc(float(counts @ self._costs))
        self._recent.append(counts)
        self._recent_counts += counts
        while len(self._recent) > 1 and self._recent_counts.sum() - self._recent[0].sum() >= _RECENT:
            self._recent_counts -= self._recent.popleft()

    @property
    def exit_shares(self) -> list[float] | None:
        """The share of the recent samples that left at each exit; None before the first."""
        total = int(self._recent_counts.sum())
        return (self._recent_counts / total).tolist() if total else None

    @property
    def mean_cost(self) -> float | None:
        """The mean cost of the recent samples; None before the first."""
        total = int(self._recent_counts.sum())
        return float(self._recent_counts @ self._costs / total) if total else None

    def exposition(self, budget: float) -> bytes:
        """All of it in the text format of Prometheus."""
        self._budget.set(budget)
        mean = self.mean_cost
        self._mean.set(float("nan") if mean is None else mean)
        text: bytes = self._client.generate_latest(self._registry)
        return text
