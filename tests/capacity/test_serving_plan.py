"""Plans for fleets: the queueing simulation against formulae and against the engine's own, and what a plan promises."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.capacity import StageTime, capacity, plan, simulate, simulate_fleet
from eenet.errors import InvalidInputError
from eenet.serving.engine import EngineOptions

ALONE = EngineOptions(max_batch=1, max_wait=0.0)
STAGES = [StageTime(0.004, 0.001), StageTime(0.004, 0.002), StageTime(0.004, 0.004)]
SHARES = [0.5, 0.3, 0.2]


def poisson(rate: float, samples: int, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, samples))


def erlang_c(servers: int, offered: float) -> float:
    """The probability that a customer of an M/M/c queue waits (Erlang's second formula)."""
    terms = [offered**n / math.factorial(n) for n in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.8), (3, 0.7), (10, 0.8)])
def test_a_shared_queue_waits_as_erlang_says(servers: int, load: float) -> None:
    samples, rng = 200_000, np.random.default_rng(1)
    rate, service = load * servers, 1.0
    traffic = simulate_fleet(
        poisson(rate, samples),
        np.zeros(samples, dtype=int),
        lambda k, n: float(rng.exponential(service)),
        [servers],
        ALONE,
        routing="shared",
    )
    expected = erlang_c(servers, rate * service) * service / (servers - rate * service) + service
    assert traffic.latencies.mean() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_one_replica_of_constant_service_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    samples = 300_000
    for routing in ("shared", "two choices"):
        traffic = simulate_fleet(
            poisson(load, samples), np.zeros(samples, dtype=int), lambda k, n: 1.0, [1], ALONE, routing=routing
        )
        assert traffic.latencies.mean() == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)


def test_many_replicas_with_two_choices_are_between_no_choice_and_a_shared_queue() -> None:
    samples, servers, load = 60_000, 20, 0.8
    rng = np.random.default_rng(2)
    service = rng.exponential(1.0, 3 * samples).tolist()

    def mean(routing: str) -> float:
        times = iter(service)
        arrivals = poisson(load * servers, samples)
        leave = np.zeros(samples, dtype=int)
        traffic = simulate_fleet(arrivals, leave, lambda k, n: next(times), [servers], ALONE, routing=routing)
        return float(traffic.latencies.mean())

    no_choice = 1 / (1 - load)  # M/M/1: a queue chosen by chance
    # Of many queues with two choices, Mitzenmacher (2001): the sum over i >= 1 of load ** (2 ** i - 2).
    two_choices = sum(load ** (2**i - 2) for i in range(1, 12))
    assert mean("shared") < mean("two choices") < no_choice
    assert mean("two choices") == pytest.approx(two_choices, rel=0.08)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(1, 150),
    load=st.floats(0.1, 4.0),
    fixed=st.sampled_from([0.0, 0.25, 4.0]),
    max_batch=st.integers(1, 9),
    max_wait=st.sampled_from([0.0, 0.5, 8.0]),
    routing=st.sampled_from(["shared", "two choices"]),
)
def test_one_stage_with_one_replica_is_the_engine(
    seed: int, samples: int, load: float, fixed: float, max_batch: int, max_wait: float, routing: str
) -> None:
    arrivals = np.cumsum(np.round(np.random.default_rng(seed).exponential(1 / load, samples) * 4) / 4)
    options = EngineOptions(max_batch=max_batch, max_wait=max_wait, max_samples=10**6)
    leave = np.zeros(samples, dtype=int)

    def cost(k: int, n: int) -> float:
        return fixed + 0.25 * n

    engine = simulate(arrivals, leave, cost, 1, options)
    fleet = simulate_fleet(arrivals, leave, cost, [1], options, routing=routing)
    assert fleet.calls == engine.calls
    np.testing.assert_array_equal(fleet.finished, engine.finished)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    replicas=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    samples=st.integers(1, 200),
    max_batch=st.integers(1, 6),
    hop=st.sampled_from([0.0, 0.3]),
    routing=st.sampled_from(["shared", "two choices"]),
)
def test_every_sample_goes_through_the_stages_before_its_exit_once(
    seed: int, replicas: list[int], samples: int, max_batch: int, hop: float, routing: str
) -> None:
    rng = np.random.default_rng(seed)
    exits = rng.integers(0, len(replicas), samples)
    arrivals = np.cumsum(rng.exponential(0.3, samples))
    options = EngineOptions(max_batch=max_batch, max_wait=0.1)
    traffic = simulate_fleet(
        arrivals, exits, lambda k, n: 0.5 + 0.1 * n, replicas, options, hop=hop, routing=routing, seed=seed
    )
    for k, count in enumerate(replicas):
        calls = [(begin, n) for stage, n, begin in traffic.calls if stage == k]
        assert sum(n for _, n in calls) == (exits >= k).sum()
        assert all(1 <= n <= max_batch for _, n in calls)
        for begin, _ in calls:
            running = sum(other <= begin < other + 0.5 + 0.1 * n - 1e-9 for other, n in calls)
            assert running <= count, "no replica does two things at once"
    assert (traffic.latencies >= (exits + 1) * (hop + 0.6) - 1e-9).all()


def test_a_plan_meets_its_objective_on_other_traffic_and_is_not_lavish() -> None:
    made = plan(STAGES, SHARES, rate=2000, p99=0.1)
    assert made.p99 <= 0.1
    arrivals, rng = poisson(2000, 40_000, seed=7), np.random.default_rng(8)
    exits = rng.choice(3, 40_000, p=SHARES)

    def cost(k: int, n: int) -> float:
        return STAGES[k](n)

    again = simulate_fleet(arrivals, exits, cost, made.replicas, seed=9)
    assert again.percentile(99) <= 0.1 * 1.1
    assert max(made.load) > 0.5
    least = [2000 * share * stage(16) / 16 for share, stage in zip((1, 0.5, 0.2), STAGES, strict=True)]
    assert all(count >= need for count, need in zip(made.replicas, least, strict=True))


def test_more_traffic_or_less_time_takes_more_replicas() -> None:
    few = plan(STAGES, SHARES, rate=300, p99=0.1).total
    assert few < plan(STAGES, SHARES, rate=1200, p99=0.1).total
    assert few <= plan(STAGES, SHARES, rate=300, p99=0.05).total


def test_capacity_grows_with_replicas_and_a_plan_for_it_needs_no_more() -> None:
    made = [capacity(STAGES, SHARES, replicas=count, p99=0.1) for count in (1, 6, 24)]
    assert [one.total for one in made] == [1, 6, 24]
    assert made[0].rate < made[1].rate < made[2].rate
    assert all(one.p99 <= 0.1 for one in made)
    assert plan(STAGES, SHARES, rate=made[2].rate, p99=0.1).total <= 26


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan(STAGES, SHARES, rate=10, p99=0.001), "with any number of replicas 99 % .* 0.025 s"),
        (lambda: plan(STAGES, [0.5, 0.5], rate=10, p99=1), "expected one for each, which sum to 1"),
        (lambda: plan(STAGES, SHARES, rate=0, p99=1), "rate is 0"),
        (lambda: plan(STAGES, SHARES, rate=1, p99=1, hop=-1), "hop is -1"),
        (lambda: capacity(STAGES, SHARES, replicas=2, p99=1), "2 replicas cannot run 3 stages"),
        (lambda: StageTime(0, 0), "takes no time"),
        (lambda: StageTime(-1, 0), "fixed is -1"),
        (lambda: simulate_fleet([0.0], [0], lambda k, n: 1.0, [0]), "1 or more for each stage"),
        (lambda: simulate_fleet([0.0], [0], lambda k, n: 1.0, [1], routing="none"), "routing is 'none'"),
    ],
)
def test_what_cannot_be_planned_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


def shown(*words: str) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = json.loads(run("plan", *words, "--json").stdout)["plans"]
    return found


def test_the_command_prints_plans() -> None:
    words = ["--stages-ms", "4+1,4+2,4+4", "--exit-shares", "50%,30%,20%", "--p99-ms", "100"]
    (one,) = shown(*words, "--rate", "500")
    made = plan(STAGES, SHARES, rate=500, p99=0.1)
    assert one["replicas"] == list(made.replicas)
    assert one["p99_ms"] == pytest.approx(1000 * made.p99)
    assert [row["total"] for row in shown(*words, "--replicas", "1,5")] == [1, 5]
    assert "p99" in run("plan", *words, "--replicas", "5").stdout
    assert "give either --rate or --replicas" in refused("plan", *words)
    assert "expected such as 4+0.5,8+1" in refused("plan", "--stages-ms", "x", *words[2:], "--rate", "5")
