"""What the server counts, for Prometheus; and recent traffic over time, for its page, without inputs."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.costs import ExitCosts
from eenet.serving.engine._request import Request
from eenet.tasks import softmax

_RECENT = 10_000  # samples that the shown exit shares and mean cost are taken over
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own; `recent` has them over time.

    `waiting` gives the samples before each stage; `about` describes the model, with the name and digest of a bundle.
    """

    def __init__(
        self, costs: ExitCosts, waiting: Callable[[], Sequence[int]], about: Mapping[str, Any] | None = None
    ) -> None:
        client = require("prometheus_client", "serve")
        self._client = client
        self._costs = costs.values
        self._registry: Any = client.CollectorRegistry()
        # Samples by the exit they left at and, without an answer, by the last stage that was begun on them: (2, K).
        self._recent: deque[NDArray[np.intp]] = deque()
        self._recent_counts = np.zeros((2, len(costs)), dtype=np.int64)
        self._waiting = waiting
        self.recent = Recent(costs)

        # CPU time, memory and open files, on systems that show them.
        client.ProcessCollector(registry=self._registry)

        def made(kind: Any, name: str, text: str, labels: Sequence[str] = (), **more: Any) -> Any:
            return kind(f"eenet_{name}", text, list(labels), registry=self._registry, **more)

        if about is not None and "digest" in about:
            which = made(client.Gauge, "bundle_info", "1, for the bundle that is served.", ["name", "digest"])
            which.labels(about["name"], about["digest"]).set(1)
        self._requests = made(client.Counter, "requests", "Requests by HTTP status.", ["status"])
        self._seconds = made(
            client.Histogram, "request_seconds", "From the last byte of a request to its answer.", buckets=_SECONDS
        )
        self._samples = made(client.Counter, "samples", "Samples by the exit they left at.", ["exit"])
        self._abstained = made(client.Counter, "abstained", "Samples that were handed back: no exit was sure of them.")
        self._unanswered = made(
            client.Counter, "unanswered_samples",
            "Samples that were begun and got no answer (late, cancelled, failed), by the last stage that was begun.",
            ["stage"],
        )  # fmt: skip
        self._cost = made(client.Counter, "cost", f"What the samples cost, answered or not, in {costs.unit}.")
        self._mean = made(
            client.Gauge, "mean_cost",
            f"Mean cost of the last {_RECENT} samples that were begun, answered or not, in {costs.unit}.",
        )  # fmt: skip
        self._budget = made(client.Gauge, "budget", f"The budget per sample, in {costs.unit}.")
        self._alarm = made(
            client.Gauge, "drift_alarm", "1 where samples take other exits than planned, by more than chance explains."
        )
        self._p_value = made(client.Gauge, "drift_p_value", "Of the test behind eenet_drift_alarm.")
        self._planned = made(
            client.Gauge, "planned_exit_share", "Planned for the samples since the start, by exit.", ["exit"]
        )
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
        self._spend(np.stack([counts, np.zeros_like(counts)]))

    def unanswered(self, stages: NDArray[np.intp], budget: float) -> NDArray[np.float64]:
        """Count samples without an answer by the last stage begun on each, (n,); returns what each has cost."""
        counts = np.bincount(stages, minlength=len(self._costs))
        for k in np.flatnonzero(counts):
            self._unanswered.labels(str(k)).inc(int(counts[k]))
        self._spend(np.stack([np.zeros_like(counts), counts]))
        self.recent.add_unanswered(stages, budget)
        costs: NDArray[np.float64] = self._costs[stages]
        return costs

    def _spend(self, counts: NDArray[np.intp]) -> None:
        self._cost.inc(float(counts.sum(axis=0) @ self._costs))
        self._recent.append(counts)
        self._recent_counts += counts
        while len(self._recent) > 1 and self._recent_counts.sum() - self._recent[0].sum() >= _RECENT:
            self._recent_counts -= self._recent.popleft()

    @property
    def exit_shares(self) -> list[float] | None:
        """The share of the recent samples that left at each exit; None before the first."""
        left = self._recent_counts[0]
        return (left / left.sum()).tolist() if left.any() else None

    @property
    def mean_cost(self) -> float | None:
        """The mean cost of the recent samples that were begun, answered or not; None before the first."""
        begun = self._recent_counts.sum(axis=0)
        return float(begun @ self._costs / begun.sum()) if begun.any() else None

    def exposition(self, budget: float, drift: Mapping[str, Any] | None = None) -> bytes:
        """All of it in the text format of Prometheus; `drift` has "alarm", "p_value" and "planned", where known."""
        self._budget.set(budget)
        mean, drift = self.mean_cost, drift or {}
        self._mean.set(math.nan if mean is None else mean)
        self._alarm.set(drift.get("alarm", math.nan))
        self._p_value.set(drift.get("p_value", math.nan))
        planned = drift.get("planned") or [math.nan] * len(self._costs)
        for k, share in enumerate(planned):
            self._planned.labels(str(k)).set(share)
        text: bytes = self._client.generate_latest(self._registry)
        return text


WIDTH = 5.0
"""Seconds of one point in time."""

_POINTS = 120  # ten minutes
_SHOWN = 40


class Recent:
    """What recent traffic did. May be called from several threads.

    Parameters
    ----------
    costs : ExitCosts
        Of the K exits.
    clock : callable
        Gives the seconds since 1970.
    """

    def __init__(self, costs: ExitCosts, *, clock: Callable[[], float] = time.time) -> None:
        self._costs, self._clock = costs.values, clock
        self._lock = threading.Lock()
        self._points: deque[_Point] = deque(maxlen=_POINTS)
        self._samples: deque[dict[str, Any]] = deque(maxlen=_SHOWN)

    def add(self, requests: Sequence[Request], budget: float) -> None:
        """Count the samples of answered requests that went by one policy, under this budget."""
        now = self._clock()
        exits = np.concatenate([request.exits for request in requests])
        counts = np.bincount(exits, minlength=len(self._costs))
        back = int(sum(request.abstained.sum() for request in requests))
        with self._lock:
            point = self._point(now, budget)
            point.counts += counts
            point.begun += counts
            point.handed_back += back
            for request in requests[-_SHOWN:]:
                self._samples.extend(_shown(request, now, self._costs))

    def add_unanswered(self, stages: NDArray[np.intp], budget: float) -> None:
        """Count samples without an answer by the last stage begun on each, (n,), under this budget."""
        with self._lock:
            self._point(self._clock(), budget).begun += np.bincount(stages, minlength=len(self._costs))

    def _point(self, now: float, budget: float) -> _Point:
        start = now - now % WIDTH
        while self._points and self._points[-1].start > start + WIDTH:  # the clock was set back: these lie ahead of it
            self._points.pop()
        if not self._points or self._points[-1].start < start:
            self._points.append(_Point(start, len(self._costs)))
        self._points[-1].budget = budget
        return self._points[-1]

    def to_dict(self) -> dict[str, Any]:
        """The points in time in which there was traffic, and the last samples, the newest first; ready for JSON."""
        with self._lock:
            points = [point.to_dict(self._costs) for point in self._points]
            samples = list(self._samples)
        now = self._clock()
        return {
            "now": now,
            "seconds": WIDTH,
            "points": points,
            "samples": [_answered(one) for one in reversed(samples)],
        }


class _Point:
    """The traffic of some seconds."""

    __slots__ = ("begun", "budget", "counts", "handed_back", "start")

    def __init__(self, start: float, exits: int) -> None:
        self.start = start
        self.counts, self.begun = np.zeros(exits, dtype=np.int64), np.zeros(exits, dtype=np.int64)
        self.handed_back, self.budget = 0, float("nan")

    def to_dict(self, costs: NDArray[np.float64]) -> dict[str, Any]:
        total = int(self.counts.sum())
        return {
            "time": self.start,
            "samples": total,
            "exit_shares": (self.counts / max(total, 1)).tolist(),
            "mean_cost": float(self.begun @ costs / self.begun.sum()),
            "budget": self.budget,
            "handed_back": self.handed_back,
        }


def _shown(request: Request, now: float, costs: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The first samples of a request, with the scores on their way where they are known."""
    policy = request.policy
    readable = policy.score.readable  # on the scale of messages, as `?exits=true` has them
    found = []
    for place, scores in sorted(request.scores.items()):
        k = int(request.exits[place])
        observed = [policy.observes(n) and bool(np.isfinite(s)) for n, s in enumerate(scores)]
        logits = request.logits
        found.append(
            {
                "time": now,
                "exit": k,
                "cost": float(costs[k]),
                "abstained": bool(request.abstained[place]),
                "scores": [readable(float(s)) if seen else None for s, seen in zip(scores, observed, strict=True)],
                "thresholds": [
                    readable(float(t)) if on and np.isfinite(t) else None
                    for t, on in zip(policy.thresholds, policy.enabled, strict=True)
                ],
                "logits": logits[place].copy() if logits is not None and logits.ndim == 2 else None,
            }
        )
    return found


def _answered(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample with its class in place of its logits."""
    shown = {name: value for name, value in sample.items() if name != "logits"}
    logits = sample["logits"]
    if logits is None:
        return {**shown, "class": None, "probability": None}
    best = int(logits.argmax())
    value = float(softmax(logits[None].astype(np.float64))[0, best])
    return {
        **shown,
        "class": -1 if sample["abstained"] else best,
        "probability": value if np.isfinite(value) else None,
    }
