"""A single sample takes a shorter path through evidence and scores: to the same bits as in a batch."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import MAKERS, awkward_logits

from eenet.scheduler import DecisionState, ExitHistory, ThresholdPolicy
from eenet.tasks import Evidence
from eenet.testing import toy_costs, toy_logits, toy_records

pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
NUMBERS = ("max_probability", "log_odds", "entropy", "vote_share", "agreement", "streak", "finite", "probabilities")


@cache
def policy(name: str, exits: int, classes: int) -> ThresholdPolicy:
    records = toy_records(400, exits, classes, deceptive_class=1)
    return MAKERS[name]().fit(records, toy_costs(exits), "60%", fallback=False).policy


@given(
    name=st.sampled_from(sorted(MAKERS)),
    exits=st.integers(2, 6),
    classes=st.sampled_from([2, 3, 10, 17, 129]),
    seed=st.integers(0, 10**6),
    awkward=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64, np.float16]),
)
@settings(max_examples=150, deadline=None)
def test_evidence_and_scores_of_one_sample_have_the_bits_they_have_in_a_batch(
    name: str, exits: int, classes: int, seed: int, awkward: bool, dtype: type[np.floating]
) -> None:
    rng, samples = np.random.default_rng(seed), 12
    logits = (
        awkward_logits(rng, exits, samples, classes)
        if awkward
        else toy_logits(samples, exits, classes, seed, sharpness=float(rng.choice([0.1, 1, 30, 1e30])))[0]
    )
    with np.errstate(over="ignore"):
        logits = logits.astype(dtype)
    rule = policy(name, exits, classes)
    together, alone = ExitHistory(), [ExitHistory() for _ in range(samples)]
    for k in range(exits - 1):
        together.evidence.append(Evidence.from_logits(logits[k], together.evidence))
        leaving = rule.leaves(together)
        for n, one in enumerate(alone):
            one.evidence.append(Evidence.from_logits(logits[k, n : n + 1], one.evidence))
            assert rule.leaves(one)[0] == leaving[n]
            assert one.scores[k].tobytes() == together.scores[k][n : n + 1].tobytes()
            for number in NUMBERS:
                batch, single = getattr(together.evidence[k], number), getattr(one.evidence[k], number)
                assert single.dtype == batch.dtype
                assert single.tobytes() == np.ascontiguousarray(batch[n : n + 1]).tobytes(), number


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_single_sample_exits_where_it_does_in_a_batch(name: str) -> None:
    logits, _ = toy_logits(60, 4, 5, nonfinite=0.1)
    rule = policy(name, 4, 5)

    def exits_of(rows: list[int]) -> list[int]:
        state = DecisionState(rule, len(rows))
        for k in range(4):
            if not len(state.running):
                break
            if rule.observes(k):
                running = len(state.running)
                evidence = Evidence.from_logits(logits[k, np.array(rows)[state.running]], state.earlier)
                leaving, staying = state.observe(evidence)
                assert leaving.flags.writeable
                assert len(leaving) + (running - len(leaving) if staying is None else len(staying)) == running
                assert (staying is None) == (len(leaving) == 0)
            else:
                state.skip()
        return [int(k) for k in state.exits]

    whole = exits_of(list(range(60)))
    assert [exits_of([n])[0] for n in range(60)] == whole
    assert min(whole) >= 0
