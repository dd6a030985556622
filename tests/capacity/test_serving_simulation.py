"""The engine against its simulation, and what the simulation says of merging."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving_toys import TableBackend, scripted_logits, scripted_policy

from eenet.capacity import simulate
from eenet.errors import InvalidInputError
from eenet.serving.engine import Engine, EngineOptions
from eenet.tasks import Classification


def drive(
    arrivals: NDArray[np.float64],
    exits: list[int],
    cost: Callable[[int, int], float],
    num_exits: int,
    options: EngineOptions,
) -> tuple[NDArray[np.float64], list[tuple[int, int, float]]]:
    """The engine itself on a fake clock, one worker."""
    engine, backend = Engine(scripted_policy(num_exits), options), TableBackend(num_exits, 2)
    inputs = scripted_logits(exits, num_exits)
    finished, calls, requests = np.zeros(len(exits)), [], []
    now, arrived = float(arrivals[0]), 0

    def let_in() -> None:
        nonlocal arrived
        while arrived < len(exits) and arrivals[arrived] <= now:
            live = backend.enter(inputs[arrived : arrived + 1])
            requests.append(engine.submit(live, 1, float(arrivals[arrived]), context=arrived))
            arrived += 1

    while arrived < len(exits) or not engine.idle:
        let_in()
        work = engine.next_work(now)
        if work is None:
            wake = engine.wake_at
            times = [*arrivals[arrived : arrived + 1], *([] if wake is None else [wake])]
            now = max(now, float(min(times)))
            continue
        calls.append((work.stage, work.samples, now))
        now += cost(work.stage, work.samples)
        let_in()
        work.execute(backend, Classification())
        for request in engine.complete(work, now):
            assert request.finished is not None
            finished[request.context] = request.finished
            assert request.exits.tolist() == [exits[request.context]]
    return finished, calls


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_exits=st.integers(2, 4),
    samples=st.integers(1, 120),
    load=st.floats(0.1, 4.0),
    fixed=st.sampled_from([0.0, 0.25, 4.0]),
    max_batch=st.integers(1, 9),
    max_wait=st.sampled_from([0.0, 0.5, 8.0]),
    max_delay=st.sampled_from([0.0, 4.0, 1000.0]),
    merge=st.booleans(),
)
def test_engine_and_simulation_make_the_same_calls_at_the_same_times(
    seed: int,
    num_exits: int,
    samples: int,
    load: float,
    fixed: float,
    max_batch: int,
    max_wait: float,
    max_delay: float,
    merge: bool,
) -> None:
    rng = np.random.default_rng(seed)
    # Times in quarters, so that both add them up without rounding, and so that events do fall together.
    arrivals = np.cumsum(np.round(rng.exponential(1 / load, samples) * 4) / 4)
    exits = rng.integers(0, num_exits, samples).tolist()
    options = EngineOptions(max_batch=max_batch, max_wait=max_wait, max_delay=max_delay, merge=merge, max_samples=10**6)

    def cost(k: int, n: int) -> float:
        return fixed + 0.25 * n * (k + 1)

    simulated = simulate(arrivals, exits, cost, num_exits, options)
    finished, calls = drive(arrivals, exits, cost, num_exits, options)
    assert calls == simulated.calls
    np.testing.assert_array_equal(finished, simulated.finished)
    assert (simulated.latencies >= 0).all()


def test_merging_pays_where_a_call_has_a_large_fixed_cost_and_costs_nothing_elsewhere() -> None:
    rng = np.random.default_rng(0)
    samples, share = 4000, (0.4, 0.3, 0.2, 0.1)
    exits = rng.choice(4, samples, p=share)
    saturated = np.sort(rng.uniform(0, 1.0, samples))

    def throughput(fixed: float, *, merge: bool, leave: NDArray[np.intp]) -> float:
        options = EngineOptions(max_batch=16, max_wait=0.002, merge=merge)
        return simulate(saturated, leave, lambda _, n: fixed + 1e-3 * n, 4, options).throughput

    last = np.full(samples, 3)
    stage, batch = (throughput(16e-3, merge=merge, leave=exits) for merge in (True, False))
    model = throughput(16e-3, merge=False, leave=last)
    assert stage >= 1.3 * batch
    assert stage >= 1.7 * model
    stage, batch = (throughput(0.0, merge=merge, leave=exits) for merge in (True, False))
    assert stage == pytest.approx(batch, rel=0.01)


def test_traffic_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="expected one exit for each arrival"):
        simulate([0.0, 1.0], [0], lambda k, n: 1.0, 2)
    with pytest.raises(InvalidInputError, match="arrivals ascending"):
        simulate([1.0, 0.0], [0, 0], lambda k, n: 1.0, 2)
    with pytest.raises(InvalidInputError, match="exits go from 0 to 2, expected 0 to 1"):
        simulate([0.0, 1.0], [0, 2], lambda k, n: 1.0, 2)
