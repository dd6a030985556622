"""How many replicas each stage needs for given traffic and latency, by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.capacity._simulation import SimulatedTraffic, simulate, simulate_fleet
from eenet.errors import InvalidInputError
from eenet.serving.engine import BatchingDelay, EngineOptions

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_WARM_UP = 0.2  # of the simulated requests: the queues begin empty
_FEWEST, _PER_REPLICA = 10_000, 150  # requests in a simulation
_STEPS = 8  # of a bisection
_MOST_LOAD = 0.98


@dataclass(frozen=True)
class StageTime:
    """The seconds a replica takes for n samples: `fixed + per_sample * n`, as measured (`docs/howto/scale.md`).

    Parameters
    ----------
    fixed : float
        Seconds of a call.
    per_sample : float
        Seconds for each sample of it.

    Examples
    --------
    >>> from eenet.capacity import StageTime
    >>> StageTime(0.003, 0.002)
    StageTime(fixed=0.003, per_sample=0.002)
    """

    fixed: float
    per_sample: float

    def __post_init__(self) -> None:
        for name in ("fixed", "per_sample"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}, expected seconds, 0 or more")
        if self.fixed + self.per_sample == 0:
            raise InvalidInputError("a stage that takes no time needs no plan; give seconds above 0")

    def __call__(self, samples: int) -> float:
        """Seconds for n samples."""
        return self.fixed + self.per_sample * samples


@dataclass(frozen=True)
class ReplicaPlan:
    """Replicas of each stage for `rate` requests per second.

    `p50` and `p99` are the simulated latencies in seconds, `load` (K,) is the share of what each stage's replicas can
    do with full batches. `replicas` is empty for one process that runs all stages (`eenet serve` without `--ray`).

    Examples
    --------
    >>> from eenet.capacity import StageTime, plan
    >>> found = plan([StageTime(0.003, 0.002)] * 2, [0.5, 0.5], rate=50, p99=0.15)
    >>> found.total == sum(found.replicas)
    True
    """

    rate: float
    replicas: tuple[int, ...]
    p50: float
    p99: float
    load: tuple[float, ...]

    @property
    def total(self) -> int:
        """All replicas; 1 for one process that runs all stages."""
        return sum(self.replicas) or 1


def plan(
    stages: Sequence[StageTime],
    exit_shares: Sequence[float],
    *,
    rate: float,
    p99: float,
    options: EngineOptions | None = None,
    hop: float = 0.0,
    seed: int = 0,
) -> ReplicaPlan:
    """The replicas of each stage that answer `rate` requests a second, 99 % of them within `p99` seconds.

    The replicas are in proportion to the work, as few as the simulation allows; then fewer are tried stage by stage.

    Parameters
    ----------
    stages : sequence of StageTime (K,)
        What each stage takes.
    exit_shares : sequence of float (K,)
        The share of requests that exit at each exit.
    rate : float
        Requests a second, each of one sample, at random times (Poisson).
    p99 : float
        Seconds.
    options : EngineOptions
        How batches are formed.
    hop : float
        Seconds that a call takes to arrive at a stage.
    seed : int
        Of the simulated traffic.

    Returns
    -------
    ReplicaPlan

    Raises
    ------
    InvalidInputError
        For an objective that no number of replicas can meet.

    Examples
    --------
    >>> from eenet.capacity import StageTime, plan
    >>> stages = [StageTime(fixed=0.004, per_sample=0.001), StageTime(fixed=0.004, per_sample=0.004)]
    >>> plan(stages, [0.6, 0.4], rate=200, p99=0.1).replicas
    (1, 1)
    """
    work = _Work(stages, exit_shares, options, hop, seed)
    if not 0 < rate < math.inf:
        raise InvalidInputError(f"rate is {rate!r}, expected requests per second, above 0")
    work.require_possible(p99)

    def at(load: float) -> tuple[int, ...]:
        return tuple(max(1, math.ceil(rate * one / load)) for one in work.seconds)

    def enough(replicas: Sequence[int]) -> bool:
        return work.tried(rate, replicas).percentile(99) <= p99

    fewest, most = 0.01, _MOST_LOAD  # of the load: the first is enough, the last may be
    if enough(at(most)):
        fewest = most
    else:
        for _ in range(_STEPS):
            middle = math.sqrt(fewest * most)
            if at(middle) == at(fewest) or enough(at(middle)):
                fewest = middle
            else:
                most = middle
    replicas = list(at(fewest))
    for k in sorted(range(len(replicas)), key=lambda k: -replicas[k]):
        step = max(1, replicas[k] // 8)
        while step:
            fewer = [*replicas[:k], replicas[k] - step, *replicas[k + 1 :]]
            if fewer[k] >= max(1, rate * work.seconds[k] / _MOST_LOAD) and enough(fewer):
                replicas = fewer
            else:
                step //= 2
                if step < replicas[k] // 32:
                    break
    return work.as_plan(rate, tuple(replicas), work.tried(rate, replicas))


def capacity(
    stages: Sequence[StageTime],
    exit_shares: Sequence[float],
    *,
    replicas: int,
    p99: float,
    options: EngineOptions | None = None,
    hop: float = 0.0,
    seed: int = 0,
) -> ReplicaPlan:
    """The most requests a second that a number of replicas answers, 99 % of them within `p99` seconds.

    Parameters
    ----------
    replicas : int
        Of all stages together; they are divided in proportion to the work. 1 is one process that runs all stages,
        batched by the engine, without hops.
    stages, exit_shares, p99, options, hop, seed
        As for `plan`.

    Returns
    -------
    ReplicaPlan

    Raises
    ------
    InvalidInputError
        Where there are fewer replicas than stages, but more than one, and where they answer too slowly at any rate.

    Examples
    --------
    >>> from eenet.capacity import StageTime, capacity
    >>> found = capacity([StageTime(0.003, 0.002)] * 2, [0.5, 0.5], replicas=1, p99=0.15)
    >>> found.p99 <= 0.15
    True
    """
    work = _Work(stages, exit_shares, options, hop, seed)
    work.require_possible(p99)
    if replicas != 1 and replicas < len(stages):
        raise InvalidInputError(
            f"{replicas} replicas cannot run {len(stages)} stages, expected one for each or more, or 1 for one process "
            "that runs them all"
        )
    shared = () if replicas == 1 else work.shared_out(replicas)
    ceiling = 1 / sum(work.seconds) if not shared else min(c / s for c, s in zip(shared, work.seconds, strict=True))
    tried = work.alone if not shared else (lambda rate: work.tried(rate, shared))
    low, high = 0.0, ceiling
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if tried(middle).percentile(99) <= p99:
            low = middle
        else:
            high = middle
    if low == 0.0:
        raise InvalidInputError(
            f"{replicas} replicas do not answer 99 % within {p99:g} s at 1/{2**_STEPS} of what they can do; allow more "
            "time"
        )
    return work.as_plan(low, shared, tried(low))


class _Work:
    """The work of the stages, checked, and simulations of it."""

    def __init__(
        self,
        stages: Sequence[StageTime],
        exit_shares: Sequence[float],
        options: EngineOptions | None,
        hop: float,
        seed: int,
    ) -> None:
        shares = np.asarray(exit_shares, dtype=np.float64)
        whole = shares.ndim == 1 and np.isfinite(shares).all() and (shares >= 0).all() and abs(shares.sum() - 1) < 1e-6
        if not whole or len(shares) != len(stages):
            raise InvalidInputError(
                f"exit_shares are {list(exit_shares)} for {len(stages)} stages, expected one for each, which sum to 1"
            )
        if not 0 <= hop < math.inf:
            raise InvalidInputError(f"hop is {hop!r}, expected seconds, 0 or more")
        self._stages, self._shares = list(stages), shares / shares.sum()
        self._options, self._hop, self._seed = options or EngineOptions(), hop, seed
        self._known: dict[tuple[float, tuple[int, ...]], _Tried] = {}
        reach = 1 - np.concatenate([[0.0], np.cumsum(self._shares)[:-1]])
        batch = self._options.max_batch
        # Replica-seconds of each stage for one request, in full batches.
        self.seconds = [float(r * stage(batch) / batch) for r, stage in zip(reach, stages, strict=True)]

    def require_possible(self, p99: float) -> None:
        """Raise unless a sample that is always alone would be answered in time."""
        alone = np.cumsum([self._hop + self._options.max_wait + stage(1) for stage in self._stages])
        k = int(np.searchsorted(np.cumsum(self._shares), 0.99 - 1e-9))
        if not alone[k] <= p99 < math.inf:
            raise InvalidInputError(
                f"p99 is {p99!r} s, but with any number of replicas 99 % of the requests take {alone[k]:.6g} "
                "s; allow more, or shorten max_wait, hops or stages"
            )

    def shared_out(self, total: int) -> tuple[int, ...]:
        """The replicas of each stage: one, and the others in proportion to its work."""
        counts = [1] * len(self.seconds)
        for _ in range(total - len(counts)):
            counts[max(range(len(counts)), key=lambda k: self.seconds[k] / counts[k])] += 1
        return tuple(counts)

    def tried(self, rate: float, replicas: Sequence[int]) -> _Tried:
        """Traffic through stages with replicas."""
        key = rate, tuple(replicas)
        if key not in self._known:
            self._known[key] = self._run(
                rate,
                sum(replicas),
                lambda arrivals, exits: simulate_fleet(
                    arrivals, exits, self._cost, replicas, self._options, hop=self._hop, seed=self._seed
                ),
            )
        return self._known[key]

    def alone(self, rate: float) -> _Tried:
        """Traffic through one process that runs all stages, with the batching delay it would learn."""
        batch, most = self._options.max_batch, self._options.max_delay
        delay = max(BatchingDelay.of(stage.fixed, stage(batch), most) for stage in self._stages)
        options = replace(self._options, max_delay=delay)
        return self._run(
            rate, 1, lambda arrivals, exits: simulate(arrivals, exits, self._cost, len(self._stages), options)
        )

    def as_plan(self, rate: float, replicas: tuple[int, ...], tried: _Tried) -> ReplicaPlan:
        """The plan that was tried."""
        counts = replicas or (1,) * len(self.seconds)
        load = tuple(rate * one / count for one, count in zip(self.seconds, counts, strict=True))
        return ReplicaPlan(rate, replicas, tried.percentile(50), tried.percentile(99), load)

    def _cost(self, k: int, samples: int) -> float:
        return self._stages[k](samples)

    def _run(self, rate: float, replicas: int, run: Callable[[Floats, Ints], SimulatedTraffic]) -> _Tried:
        rng = np.random.default_rng(self._seed)
        samples = max(_FEWEST, _PER_REPLICA * replicas)
        arrivals = np.cumsum(rng.exponential(1 / rate, samples))
        exits = rng.choice(len(self._shares), samples, p=self._shares).astype(np.intp)
        return _Tried(run(arrivals, exits).latencies[int(_WARM_UP * samples) :])


@array_value
@dataclass(frozen=True)
class _Tried:
    latencies: Floats

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.latencies, q))
