"""Abstention: what is handed back, what that promises, and that every runtime hands back the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from serving_toys import TableBackend, flat

import eenet
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords
from eenet.runtime import run_arrays
from eenet.scheduler import ZTW, Scheduler, ThresholdPolicy
from eenet.serving.engine import Engine, EngineOptions
from eenet.tasks import Classification
from eenet.testing import toy_costs, toy_logits, toy_records
from networks import table_model

# Where toy records give nothing to learn, the methods that learn say what is taken instead.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    exits=st.integers(2, 4),
    samples=st.integers(40, 120),
    batch=st.integers(1, 30),
    share=st.floats(0.05, 0.5),
    nonfinite=st.sampled_from([0.0, 0.1]),
    make=st.sampled_from([eenet.MaxProbability, ZTW]),
)
def test_every_runtime_hands_back_what_the_replay_does(
    tmp_path_factory: pytest.TempPathFactory, seed: int, exits: int, samples: int, batch: int, share: float,
    nonfinite: float, make: type[Scheduler],
) -> None:  # fmt: skip
    classes, costs = 5, toy_costs(exits)
    scheduler = make().fit(toy_records(samples, exits, classes, seed), costs, "90%", abstain=share)
    assert scheduler.replay(toy_records(samples, exits, classes, seed)).handed_back <= share
    logits, labels = toy_logits(samples, exits, classes, seed + 1, nonfinite=nonfinite)
    records = ExitRecords.from_logits(logits, labels)
    decisions = scheduler.replay(records)
    back = decisions.abstained
    assert (decisions.exits[back] == exits - 1).all()
    np.testing.assert_array_equal(decisions.predictions == -1, back)
    assert decisions.utility is not None
    if (~back).any():
        assert decisions.accuracy == pytest.approx((decisions.predictions == labels)[~back].mean())

    path = tmp_path_factory.mktemp("saved") / "scheduler.safetensors"
    scheduler.save(path)
    loaded = eenet.load_scheduler(path)
    assert loaded == scheduler
    assert (loaded.abstain, loaded.max_error) == (share, None)
    np.testing.assert_array_equal(loaded.replay(records).abstained, back)
    assert loaded.at("95%").replay(toy_records(samples, exits, classes, seed)).handed_back <= share

    torch = pytest.importorskip("torch")
    x = torch.from_numpy(logits.transpose(1, 0, 2).reshape(samples, -1).copy())
    fast = eenet.AdaptiveModel(table_model(exits, classes), loaded)
    answers = [fast(x[i : i + batch]) for i in range(0, samples, batch)]
    np.testing.assert_array_equal(np.concatenate([a.abstained for a in answers]), back)
    np.testing.assert_array_equal(np.concatenate([a.predictions for a in answers]), decisions.predictions)

    backend, inputs = TableBackend(exits, classes), flat(logits)
    walked = run_arrays(backend, scheduler.policy, Classification(), inputs)
    assert walked is not None
    np.testing.assert_array_equal(walked.abstained, back)
    np.testing.assert_array_equal(walked.predictions, decisions.predictions)

    engine = Engine(scheduler.policy, EngineOptions(max_batch=batch, max_wait=0.0))
    parts = [(i, min(i + 7, samples)) for i in range(0, samples, 7)]
    requests = [engine.submit((inputs[first:end],), end - first, 0.0) for first, end in parts]
    while (work := engine.next_work(0.0)) is not None:
        work.execute(backend, Classification())
        engine.complete(work, 0.0)
    np.testing.assert_array_equal(np.concatenate([request.abstained for request in requests]), back)
    np.testing.assert_array_equal(np.concatenate([request.exits for request in requests]), decisions.exits)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), samples=st.integers(20, 200), share=st.floats(0.01, 0.9), ties=st.booleans())
def test_the_least_sure_of_the_last_exit_are_handed_back_and_never_more_than_asked(
    seed: int, samples: int, share: float, ties: bool
) -> None:
    records, costs = toy_records(samples, seed=seed), toy_costs()
    if ties:
        records = records.subset(np.arange(samples) // 4)
    plain = eenet.MaxProbability().fit(records, costs, "80%", fallback=False)
    careful = eenet.MaxProbability().fit(records, costs, "80%", fallback=False, abstain=share)
    one, other = plain.replay(records), careful.replay(records)
    np.testing.assert_array_equal(one.exits, other.exits)
    assert other.handed_back <= share
    last = one.exits == len(costs) - 1
    largest = 4 if ties else 1  # as many samples are alike, so that fewer may be handed back
    allowed = min(int(share * samples), int(last.sum()))
    assert other.abstained.sum() > allowed - largest
    sure = records.probabilities[-1].max(axis=1)
    if other.abstained.any() and (last & ~other.abstained).any():
        assert sure[other.abstained].max() <= sure[last & ~other.abstained].min()


def test_an_error_is_kept_by_handing_back_no_more_than_it_takes() -> None:
    records, costs = toy_records(1000, classes=4), toy_costs()
    plain = eenet.MaxProbability().fit(records, costs, "90%").replay(records)
    fitted = eenet.MaxProbability().fit(records, costs, "90%", max_error=0.04)
    decisions = fitted.replay(records)
    assert 1 - plain.accuracy > 0.04 >= 1 - decisions.accuracy
    below = fitted.policy.abstains_below
    assert below is not None
    fewer = ThresholdPolicy(
        fitted.policy.score,
        fitted.policy.thresholds,
        fitted.policy.enabled,
        4,
        below - 0.05,
    )
    assert 1 - eenet.scheduler.replay(fewer, records, costs).accuracy > 0.04
    needed = decisions.handed_back
    with pytest.raises(InvalidInputError, match=r"abstain=0.001 is not enough for max_error=0.04 .* the smallest") as e:
        eenet.MaxProbability().fit(records, costs, "90%", max_error=0.04, abstain=0.001)
    assert float(str(e.value).rsplit("=", 1)[1]) == pytest.approx(needed, abs=1e-6)
    assert eenet.MaxProbability().fit(records, costs, "90%", max_error=0.04, abstain=needed + 1e-6) is not None
    with pytest.raises(InvalidInputError, match="cannot be kept at this budget however many samples are handed back"):
        eenet.MaxProbability().fit(records, costs, "40%", max_error=0.001)


@pytest.mark.parametrize("make", [eenet.MaxProbability, eenet.OptimalStopping])
def test_a_guaranteed_abstention_is_rarely_broken(make: type[Scheduler]) -> None:
    pool, costs = toy_records(20_000, classes=4), toy_costs()
    rng = np.random.default_rng(0)
    broken, back = 0, []
    draws = 8
    for _ in range(draws):
        records = pool.subset(rng.integers(0, len(pool), 1000))
        fitted = make().fit(records, costs, "90%", abstain=0.4, max_error=0.08, guarantee=0.9)
        decisions = fitted.replay(pool)
        broken += decisions.handed_back > 0.4 or 1 - decisions.accuracy > 0.08 or decisions.mean_cost > fitted.budget
        back.append(decisions.handed_back)
    assert broken <= 4  # of 8 at 10 %, more are seen once in 200 runs of a test whose draws were not fixed
    assert max(back) >= 0
    assert (fitted.abstain, fitted.max_error, fitted.guarantee) == (0.4, 0.08, 0.9)


def test_an_abstention_that_cannot_be_promised_names_the_smallest_that_can() -> None:
    records, costs = toy_records(300), toy_costs()
    with pytest.raises(InvalidInputError, match=r"abstain=0.001 cannot be guaranteed at 0.95 by the 300 samples") as e:
        eenet.MaxProbability().fit(records, costs, "80%", abstain=0.001, guarantee=0.95)
    smallest = float(str(e.value).split("abstain=")[2].split(",")[0])
    fitted = eenet.MaxProbability().fit(records, costs, "80%", abstain=smallest, guarantee=0.95)
    assert fitted.replay(records).handed_back <= smallest
    with pytest.raises(InvalidInputError, match="cannot be guaranteed"):
        eenet.MaxProbability().fit(records, costs, "80%", abstain=smallest * 0.99, guarantee=0.95)


def test_one_fit_abstains_at_every_budget_for_which_it_can() -> None:
    records, costs = toy_records(600, classes=4), toy_costs()
    fitted = eenet.MaxProbability().fit(records, costs, max_error=0.05)
    assert all(fitted.at(budget).replay(records).accuracy >= 0.95 - 1e-9 for budget in ("90%", "95%", "100%"))
    budgets = [point.budget for point in fitted.frontier()]
    assert 0 < len(budgets) < 101
    with pytest.raises(InvalidInputError, match=r"max_error=0\.05 cannot be kept at this budget"):
        fitted.at("34%")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"abstain": 2}, "abstain=2: expected a share between 0 and 1"),
        ({"max_error": 0.0}, "max_error=0.0: expected a share between 0 and 1"),
        ({"abstain": 0.1, "max_accuracy_drop": 0.1}, "the drop is of a policy that answers all samples"),
        ({"max_error": 0.1, "guarantee": "mean"}, "promised with a probability only"),
        ({"abstain": 0.1, "guarantee": 0.9, "unlabeled": toy_records(50)}, "and no max_accuracy_drop, abstain"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        eenet.MaxProbability().fit(toy_records(100), toy_costs(), **options)  # type: ignore[arg-type]


def test_outputs_that_are_not_finite_are_handed_back_where_anything_is() -> None:
    logits, labels = toy_logits(200, 3, 5, 0, nonfinite=0.3)
    records = ExitRecords.from_logits(logits, labels)
    broken = np.isnan(records.probabilities[-1]).any(axis=1)
    with pytest.raises(InvalidInputError, match="not finite and must be handed back; the smallest that can be is 0"):
        eenet.MaxProbability().fit(records, toy_costs(), "100%", abstain=0.001)
    fitted = eenet.MaxProbability().fit(records, toy_costs(), "100%", abstain=0.6)
    decisions = fitted.replay(records)
    assert decisions.abstained[broken & (decisions.exits == 2)].all()


def test_a_file_with_an_abstention_is_not_read_by_what_would_ignore_it(tmp_path: Path) -> None:
    fitted = eenet.MaxProbability().fit(toy_records(100), toy_costs(), "80%", abstain=0.1)
    fitted.save(tmp_path / "with")
    eenet.MaxProbability().fit(toy_records(100), toy_costs(), "80%").save(tmp_path / "without")
    for name, schema in (("without", "2"), ("with", "3")):  # what reads up to 2 refuses 3
        with safe_open(tmp_path / name, "np") as file:
            assert file.metadata()["schema"] == schema
