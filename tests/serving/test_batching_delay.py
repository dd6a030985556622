"""The batching delay at deep stages is learned from the times of calls: a multiple of a call's fixed time."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_toys import ToyModel, scripted_logits
from waiting import PATIENCE

from eenet.capacity import simulate
from eenet.serving.engine import BatchingDelay, EngineOptions, FixedBudget, LocalService

SHARES = (0.4, 0.3, 0.2, 0.1)


@given(
    fixed=st.floats(0, 0.05),
    per_sample=st.floats(1e-5, 0.01),
    sizes=st.lists(st.integers(1, 16), min_size=30, max_size=60),
    late=st.floats(0, 0.5),
)
def test_the_fixed_time_is_found_in_spite_of_slower_calls(
    fixed: float, per_sample: float, sizes: list[int], late: float
) -> None:
    rng, delay = np.random.default_rng(0), BatchingDelay(1.0)
    for number, size in enumerate([1, 2, 4, 8, 16, *sizes] * 3):
        disturbed = late * rng.random() if number % 3 == 0 else 0.0  # by other work of the machine
        delay.add(number % 2, size, fixed + per_sample * size + disturbed)
    for stage in (0, 1):
        for size in (1, 2, 4, 8, 16, *sizes):
            delay.add(stage, size, fixed + per_sample * size)
    full = fixed + 16 * per_sample
    near = (fixed * 0.9 - 0.1 * per_sample, fixed, fixed * 1.1 + 0.1 * per_sample)
    expected = {BatchingDelay.of(f, share * full, 1.0) for f in near for share in (0.9, 1.0, 1.1)}
    assert min(expected) <= delay.seconds <= max(expected)


def test_while_all_batches_have_one_size_the_delay_is_the_longest() -> None:
    delay = BatchingDelay(0.7)
    for _ in range(10):
        assert delay.add(0, 16, 0.01) == 0.7
    assert delay.add(0, 4, 0.004) == pytest.approx(BatchingDelay.MAX_CALLS * 0.002)
    assert delay.add(1, 4, 0.5) == pytest.approx(BatchingDelay.MAX_CALLS * 0.002), "of stage 1 nothing is known yet"
    assert delay.add(1, 16, 0.5) == 0.7, "the stage with the longest delay decides"


def test_there_is_no_delay_where_a_call_costs_little_beyond_its_samples() -> None:
    assert BatchingDelay.of(0.0, 1.0, 1.0) == 0.0
    assert BatchingDelay.of(0.03, 0.2, 1.0) == 0.0
    assert BatchingDelay.of(0.1, 0.2, 1.0) == 1.0
    assert BatchingDelay.of(0.04, 0.2, 1.0) == pytest.approx(0.48)
    assert BatchingDelay(0.0).seconds == 0.0


def test_the_delay_follows_a_stage_that_becomes_faster_or_slower() -> None:
    delay = BatchingDelay(10.0)
    for fixed in (0.1, 0.01, 0.05):
        for size in [1, 2, 4, 8, 16] * 200:
            delay.add(0, size, fixed + 0.001 * size)
        assert delay.seconds == pytest.approx(BatchingDelay.MAX_CALLS * fixed, rel=0.05)


def test_a_service_learns_it() -> None:
    pytest.importorskip("prometheus_client", reason="needs the extra that serves")

    async def serve() -> float:
        model = ToyModel()
        service = LocalService(model, FixedBudget(model.scheduler), EngineOptions(max_delay=100.0, max_wait=0.0))
        service.start()
        for size in [1, 2, 4, 8, 16] * 3:
            await service.answer(np.concatenate([scripted_logits([2], 3)] * size), timeout=PATIENCE)
        await service.drain()
        return service.batching_delay

    assert asyncio.run(serve()) < 100.0


@pytest.mark.parametrize(("fixed", "batch"), [(16.0, 16), (0.1, 8), (1.7, 8)])
def test_with_this_delay_merging_keeps_the_tail_and_the_throughput(fixed: float, batch: int) -> None:
    rng = np.random.default_rng(0)
    exits = rng.choice(4, 8000, p=SHARES)
    merged = EngineOptions(max_batch=batch, max_wait=0.0, max_delay=BatchingDelay.of(fixed, fixed + batch, 250.0))
    alone = EngineOptions(max_batch=batch, max_wait=0.0, merge=False)

    def cost(_: int, samples: int) -> float:
        return fixed + samples

    at_once = np.zeros(4000)
    most = {o.merge: simulate(at_once, exits[:4000], cost, 4, o).throughput for o in (merged, alone)}
    assert most[True] > most[False] * {16.0: 1.35, 1.7: 1.05, 0.1: 0.99}[fixed]
    arrivals = np.cumsum(rng.exponential(1 / (0.9 * most[False]), 8000))
    tails = {o.merge: simulate(arrivals, exits, cost, 4, o).percentile(99) for o in (merged, alone)}
    assert tails[True] <= 1.05 * tails[False]
