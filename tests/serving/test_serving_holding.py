"""How long survivors are held is learned from what calls take, and comes to what a call costs in itself."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_toys import ToyServable, scripted_logits

from eenet.capacity import simulate
from eenet.serving.engine import EngineOptions, FixedBudget
from eenet.serving.engine._holding import CALLS, FixedCosts, hold_of

SHARES = (0.4, 0.3, 0.2, 0.1)


@given(
    fixed=st.floats(0, 0.05),
    per_sample=st.floats(1e-5, 0.01),
    sizes=st.lists(st.integers(1, 16), min_size=30, max_size=60),
    late=st.floats(0, 0.5),
)
def test_the_fixed_cost_is_found_whatever_else_the_machine_does(
    fixed: float, per_sample: float, sizes: list[int], late: float
) -> None:
    rng, costs = np.random.default_rng(0), FixedCosts(1.0)
    for number, size in enumerate([1, 2, 4, 8, 16, *sizes] * 3):
        disturbed = late * rng.random() if number % 3 == 0 else 0.0  # by something else
        costs.add(number % 2, size, fixed + per_sample * size + disturbed)
    for stage in (0, 1):
        for size in (1, 2, 4, 8, 16, *sizes):
            costs.add(stage, size, fixed + per_sample * size)
    full = fixed + 16 * per_sample
    near = (fixed * 0.9 - 0.1 * per_sample, fixed, fixed * 1.1 + 0.1 * per_sample)
    expected = {hold_of(f, share * full, 1.0) for f in near for share in (0.9, 1.0, 1.1)}
    assert min(expected) <= costs.hold <= max(expected)


def test_while_all_calls_are_alike_survivors_are_held_as_long_as_may_be() -> None:
    costs = FixedCosts(0.7)
    for _ in range(10):
        assert costs.add(0, 16, 0.01) == 0.7
    assert costs.add(0, 4, 0.004) == pytest.approx(CALLS * 0.002)
    assert costs.add(1, 4, 0.5) == pytest.approx(CALLS * 0.002), "of stage 1 nothing is known yet"
    assert costs.add(1, 16, 0.5) == 0.7, "the dearest stage decides"


def test_nobody_is_held_where_a_call_costs_little_beyond_its_samples() -> None:
    assert hold_of(0.0, 1.0, 1.0) == 0.0
    assert hold_of(0.03, 0.2, 1.0) == 0.0
    assert hold_of(0.1, 0.2, 1.0) == 1.0
    assert hold_of(0.04, 0.2, 1.0) == pytest.approx(0.48)
    assert FixedCosts(0.0).hold == 0.0


def test_a_stage_that_has_become_faster_is_noticed_and_so_is_one_that_has_become_slower() -> None:
    costs = FixedCosts(10.0)
    for fixed in (0.1, 0.01, 0.05):
        for size in [1, 2, 4, 8, 16] * 200:
            costs.add(0, size, fixed + 0.001 * size)
        assert costs.hold == pytest.approx(CALLS * fixed, rel=0.05)


def test_a_server_learns_it() -> None:
    pytest.importorskip("prometheus_client", reason="needs the extra that serves")
    from eenet.serving.engine._driver import Driver

    async def serve() -> float:
        servable = ToyServable()
        driver = Driver(servable, FixedBudget(servable.scheduler), EngineOptions(max_hold=100.0, max_wait=0.0))
        driver.start()
        for size in [1, 2, 4, 8, 16] * 3:
            await driver.answer(np.concatenate([scripted_logits([2], 3)] * size), timeout=20.0)
        await driver.drain()
        return driver._engine.max_hold

    assert asyncio.run(serve()) < 100.0


@pytest.mark.parametrize(("fixed", "batch"), [(16.0, 16), (0.1, 8), (1.7, 8)])
def test_held_so_long_merging_costs_no_tail_and_keeps_the_throughput(fixed: float, batch: int) -> None:
    rng = np.random.default_rng(0)
    exits = rng.choice(4, 8000, p=SHARES)
    held = EngineOptions(max_batch=batch, max_wait=0.0, max_hold=hold_of(fixed, fixed + batch, 250.0))
    alone = EngineOptions(max_batch=batch, max_wait=0.0, merge=False)

    def cost(_: int, samples: int) -> float:
        return fixed + samples

    at_once = np.zeros(4000)
    most = {o.merge: simulate(at_once, exits[:4000], cost, 4, o).throughput for o in (held, alone)}
    assert most[True] > most[False] * {16.0: 1.35, 1.7: 1.05, 0.1: 0.99}[fixed]
    arrivals = np.cumsum(rng.exponential(1 / (0.9 * most[False]), 8000))
    tails = {o.merge: simulate(arrivals, exits, cost, 4, o).percentile(99) for o in (held, alone)}
    assert tails[True] <= 1.05 * tails[False]
