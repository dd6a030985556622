"""Candidates of a proof, and the systems made of them as they run: records, costs, and functions to time.

A candidate is a callable that answers samples with logits or probabilities, or a bundle with exits. A system is one
that `eenet.search` can name: a plain network, one exit, a network with exits, or a cascade.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

import eenet
from eenet._extras import require
from eenet._timing import Clock, in_turns, timed
from eenet.runtime import run_arrays

BATCHES = (1, 8, 32)
UNIT = "cpu_ms"
_CHUNK = 32

Array = NDArray[Any]


@dataclass
class Candidate:
    """A network or a model: what runs it, whether it is an int8 copy, and what was found of it.

    `run` answers samples, or is a bundle, whose exits count one by one; then `plain` runs it without exits, and
    `prepare` makes its inputs of samples where they are not its inputs.
    """

    name: str
    run: Any
    int8: bool = False
    plain: Callable[[Any], Any] | None = None
    prepare: Callable[[Any], Any] | None = None
    records: dict[str, eenet.ExitRecords] = field(default_factory=dict)
    costs: dict[int, eenet.ExitCosts | float] = field(default_factory=dict)

    @property
    def exits(self) -> bool:
        """Whether it has early exits."""
        return hasattr(self.run, "backend")

    @property
    def number(self) -> int:
        """K, its exits."""
        return self.run.backend.num_exits if self.exits else 1


def answers(candidate: Candidate, samples: Any) -> Array:
    """What a candidate says of samples at each exit, (K, N, C)."""
    parts: list[Array] = []
    for start in range(0, len(samples), _CHUNK):
        part = samples[start : start + _CHUNK]
        if not candidate.exits:
            parts.append(np.asarray(candidate.run(part))[None])
            continue
        backend = candidate.run.backend
        live = backend.enter(part if candidate.prepare is None else candidate.prepare(part))
        said = []
        for k in range(backend.num_exits):
            live, logits = backend.run(k, live, observe=True)
            said.append(logits)
        parts.append(np.stack(said))
    return np.concatenate(parts, axis=1)


def runner(members: Sequence[Candidate], scheduler: eenet.Scheduler | None, outputs: str) -> Callable[[Any], Any]:
    """A system as one function from samples to answers, as a user would run it."""
    first = members[0]
    if scheduler is None:
        return first.plain if first.exits and first.plain is not None else first.run
    if len(members) > 1:
        cascade = eenet.CallCascade([one.run for one in members], scheduler, outputs=outputs)
        texts = any(one.prepare is not None for one in members)
        return (lambda samples: cascade(list(samples))) if texts else cascade
    return _alone(first, scheduler.policy)


def _alone(candidate: Candidate, policy: Any) -> Callable[[Any], Any]:
    """A bundle under a policy that is not its own."""
    backend, task, prepare = candidate.run.backend, candidate.run.task, candidate.prepare

    def run(samples: Any) -> Any:
        return run_arrays(backend, policy, task, samples if prepare is None else prepare(samples))

    return run


def measure(
    candidates: Sequence[Candidate], samples: Any, batches: Sequence[int], seconds: float, report: Callable[[str], None]
) -> None:
    """The costs of all candidates, each exit by a run that stops there, in turns on the same samples.

    CPU milliseconds per sample: they count what a candidate needs, also where other programs take turns on the
    machine. At an exit the heads and decisions before it are included, by max probability.
    """
    systems: dict[str, Callable[[Any], Any]] = {}
    for one in candidates:
        if one.exits:
            for k in range(one.number):
                systems[f"{one.name} / {k}"] = _stopping_at(one, k)
            assert one.plain is not None
            systems[f"{one.name} / plain"] = one.plain
        else:
            systems[one.name] = one.run
    runs = {id(run): run for run in systems.values()}  # what several candidates share is measured once
    report(f"measuring {len(runs)} ways of {len(candidates)} candidates")
    spent: dict[tuple[str, int], float] = {}
    for size in batches:
        rounds = _Rounds(samples, size)
        clocks = [partial(rounds.clock, run) for run in runs.values()]
        timing = in_turns(clocks, seconds=seconds, least=4, seed=0, progress=rounds.advance)
        cpu = dict(zip(runs, trim_mean(timing.cpu, 0.1), strict=True))
        for name, run in systems.items():
            spent[name, size] = 1000 * float(cpu[id(run)]) / size
    for one in candidates:
        for size in batches:
            if not one.exits:
                one.costs[size] = spent[one.name, size]
                continue
            ways = np.maximum.accumulate([spent[f"{one.name} / {k}", size] for k in range(one.number)])
            ways = ways * (1 + 1e-9 * np.arange(len(ways)))  # of two that are equal by chance the later costs more
            plain = spent[f"{one.name} / plain", size]
            one.costs[size] = eenet.ExitCosts(ways, UNIT, batch_size=size, plain=plain)


class _Rounds:
    """One batch for each round of a measurement: texts differ in length, so that one batch would not do."""

    def __init__(self, samples: Any, size: int) -> None:
        self._samples, self._size, self._number = samples, size, 0

    def clock(self, run: Callable[[Any], Any]) -> Clock:
        """The time of a system on the batch of this round."""
        start = self._number % (len(self._samples) // self._size) * self._size
        return timed(run, self._samples[start : start + self._size])

    def advance(self) -> None:
        """Go on to the next batch."""
        self._number += 1


def _stopping_at(candidate: Candidate, k: int) -> Callable[[Any], Any]:
    """Runs to exit k, where all samples leave, with the decisions before it."""
    records = candidate.records["calibration"]
    costs = eenet.ExitCosts(np.arange(1.0, records.num_exits + 1))
    policy = eenet.MaxProbability().fit(records, costs, "100%", fallback=False).policy
    thresholds = np.where(np.arange(len(policy.thresholds)) < k, np.inf, -np.inf)
    forced = dataclasses.replace(policy, thresholds=thresholds, enabled=np.ones_like(policy.enabled))
    stopping = _alone(candidate, forced)
    return lambda samples: stopping(samples).logits


class Graph:
    """A network as one ONNX graph in ONNX Runtime, one thread; `prepare` makes its inputs of samples."""

    def __init__(self, path: Path, prepare: Callable[[Any], Mapping[str, Array]] | None = None) -> None:
        runtime = require("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]
        self._prepare = prepare

    def __call__(self, samples: Any) -> Array:
        """The logits."""
        if self._prepare is None:
            fed = {self._names[0]: samples}
        else:
            made = self._prepare(samples)
            fed = {name: made[name] for name in self._names}
        found: Array = self._session.run(None, fed)[0]
        return found
