"""Recent traffic, for a server's page: exits, cost and budget over time, and the last samples without their inputs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.costs import ExitCosts
from eenet.serving.engine._request import Request
from eenet.tasks import softmax

WIDTH = 5.0
"""Seconds of one point in time."""

_POINTS = 120  # ten minutes
_SAMPLES = 40


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
        self._samples: deque[dict[str, Any]] = deque(maxlen=_SAMPLES)

    def add(self, requests: Sequence[Request], budget: float) -> None:
        """Count the samples of answered requests that went by one policy, under this budget."""
        now = self._clock()
        exits = np.concatenate([request.exits for request in requests])
        counts = np.bincount(exits, minlength=len(self._costs))
        back = int(sum(request.abstained.sum() for request in requests))
        with self._lock:
            start = now - now % WIDTH
            if not self._points or self._points[-1].start < start:
                self._points.append(_Point(start, np.zeros(len(self._costs), dtype=np.int64)))
            point = self._points[-1]
            point.counts += counts
            point.handed_back += back
            point.budget = budget
            for request in requests[-_SAMPLES:]:
                self._samples.extend(_shown(request, now, self._costs))

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

    __slots__ = ("budget", "counts", "handed_back", "start")

    def __init__(self, start: float, counts: NDArray[np.int64]) -> None:
        self.start, self.counts = start, counts
        self.handed_back, self.budget = 0, float("nan")

    def to_dict(self, costs: NDArray[np.float64]) -> dict[str, Any]:
        total = int(self.counts.sum())
        return {
            "time": self.start,
            "samples": total,
            "exit_shares": (self.counts / total).tolist(),
            "mean_cost": float(self.counts @ costs / total),
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
