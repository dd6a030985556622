"""The baselines of the field: what each scores, fits and answers, by hand and by property."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scores import largest_tie
from serving_toys import TableBackend, flat

import eenet
from eenet.errors import FileFormatError, InvalidInputError
from eenet.records import ExitRecords
from eenet.runtime import run_arrays
from eenet.scheduler import (
    BEEM,
    EERO,
    SCHEDULERS,
    SCORES,
    ZTW,
    ExitHistory,
    LearnedGate,
    Margin,
    Scheduler,
    TemperatureScaled,
    Voting,
)
from eenet.tasks import Classification, Evidence, Segmentation
from eenet.testing import toy_costs, toy_logits, toy_records
from networks import table_model

Floats = NDArray[np.float64]

MAKERS: dict[str, Callable[[], Scheduler]] = {
    **SCHEDULERS,
    "eenet": lambda: eenet.EENet(turns=1, target="right", weight_decay=1e-4),
}
ROOT = Path(__file__).parents[2]

# OptimalStopping says where it leaves much of a budget unspent.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")


def history_of(*probabilities: list[list[float]]) -> ExitHistory:
    history = ExitHistory()
    for p in probabilities:
        array = np.array(p, dtype=np.float32)
        history.evidence.append(Evidence(array, array.argmax(axis=1), list(history.evidence)))
    return history


def made(name: str, *fitted: Floats) -> Any:
    """A score of what is fitted in it."""
    return SCORES[name](*fitted)


def order(scores: Floats) -> list[int]:
    return [int(n) for n in np.argsort(-scores, kind="stable")]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    exits=st.integers(2, 5),
    classes=st.sampled_from([2, 5, 10]),
    samples=st.integers(20, 150),
    batch=st.integers(1, 40),
    where=st.floats(0.02, 0.98),
    nonfinite=st.sampled_from([0.0, 0.1]),
    name=st.sampled_from(sorted(MAKERS)),
)
def test_every_scheduler_keeps_its_promises(
    tmp_path_factory: pytest.TempPathFactory, seed: int, exits: int, classes: int, samples: int, batch: int,
    where: float, nonfinite: float, name: str,
) -> None:  # fmt: skip
    records, costs = toy_records(samples, exits, classes, seed), toy_costs(exits)
    budget = 1 + where * (exits - 1)
    scheduler = MAKERS[name]().fit(records, costs, budget, fallback=False)
    # The budget is met on the calibration set, and but for who may stop spending, to within a sample.
    assert scheduler.calibration_cost <= budget * (1 + 1e-12)
    if name not in ("searched", "stopping"):
        ties = largest_tie(records, scheduler.policy.score)
        assert scheduler.calibration_cost >= budget - ties * (exits - 1) / samples - 1e-9
    # Replay and runtime agree on fresh samples, in exits and in answers; so does what was saved.
    logits, labels = toy_logits(samples, exits, classes, seed + 1, nonfinite=nonfinite)
    fresh = ExitRecords.from_logits(logits, labels)
    decisions = scheduler.replay(fresh)
    path = tmp_path_factory.mktemp("saved") / "scheduler.safetensors"
    scheduler.save(path)
    loaded = eenet.load_scheduler(path)
    for other in (loaded.replay(fresh), loaded.replay(fresh.subset(np.arange(samples)))):
        np.testing.assert_array_equal(other.exits, decisions.exits)
        np.testing.assert_array_equal(other.predictions, decisions.predictions)
        np.testing.assert_array_equal(other.utility, decisions.utility)
    assert loaded.changes_predictions == scheduler.changes_predictions == (name in ("ztw", "beem"))
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(logits.transpose(1, 0, 2).reshape(samples, -1).copy())
    fast = eenet.AdaptiveModel(table_model(exits, classes), loaded)
    answers = [fast(x[i : i + batch]) for i in range(0, samples, batch)]
    np.testing.assert_array_equal(torch.cat([a.exits for a in answers]), decisions.exits)
    combined = torch.cat([a.logits for a in answers])
    np.testing.assert_array_equal(combined.argmax(dim=1), decisions.predictions)
    np.testing.assert_array_equal((combined.argmax(dim=1).numpy() == labels).astype(np.float32), decisions.utility)
    walked = run_arrays(TableBackend(exits, classes), scheduler.policy, Classification(), flat(logits))
    assert walked is not None
    np.testing.assert_array_equal(walked.exits, decisions.exits)
    np.testing.assert_array_equal(walked.logits, combined)
    # Who is not finite at an exit that is looked at goes on to the last one.
    broken: NDArray[np.bool_] = np.asarray(np.isnan(fresh.probabilities).any(axis=2))
    left = decisions.exits < exits - 1
    assert not broken[decisions.exits[left], np.flatnonzero(left)].any()


def test_the_logits_of_an_ensemble_are_the_same_to_the_last_bit_in_any_batch() -> None:
    logits, labels = toy_logits(300, 3, 10)
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(logits.transpose(1, 0, 2).reshape(300, -1).copy())
    for make in (ZTW, BEEM):
        scheduler = make().fit(ExitRecords.from_logits(logits, labels), toy_costs(), 2.0, fallback=False)
        fast = eenet.AdaptiveModel(table_model(3, 10), scheduler)
        whole = fast(x).logits
        assert torch.equal(torch.cat([fast(x[i : i + 7]).logits for i in range(0, 300, 7)]), whole)
        assert torch.equal(torch.cat([fast(x[i : i + 1]).logits for i in range(0, 300, 1)]), whole)
        assert fast(x[:0]).logits.shape == (0, 10)


def test_an_ensemble_observes_every_exit_even_where_no_sample_exits() -> None:
    scheduler = ZTW().fit(toy_records(), toy_costs(), 3.0, fallback=False)
    assert not scheduler.policy.enabled.any()
    assert all(scheduler.policy.observes(k) for k in range(3))
    plain = eenet.MaxProbability().fit(toy_records(), toy_costs(), 3.0, fallback=False)
    assert not plain.changes_predictions
    assert not plain.policy.observes(0)


def test_voting_counts_the_exits_that_agree_with_this_one() -> None:
    a, b, sure_a = [0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.8, 0.1, 0.1]
    #             a b a: two votes      a a b: one vote    b b a: one vote, surer   a a a: three votes
    history = history_of([a, a, b, a], [b, a, b, a], [a, b, sure_a, a])
    assert order(Voting().fit(toy_records(classes=3), toy_costs(), 2.0, fallback=False).policy.score(history)) == [
        3,
        0,
        2,
        1,
    ]
    np.testing.assert_allclose(history.evidence[-1].agreement, [2 / 3, 1 / 3, 1 / 3, 1])
    # Patience, which wants them in a row, does not tell the first from the second.
    np.testing.assert_array_equal(history.evidence[-1].streak, [1, 1, 1, 3])


@given(seed=st.integers(0, 10**6), classes=st.sampled_from([2, 3, 10]))
def test_margin_orders_samples_by_the_gap_of_the_two_largest(seed: int, classes: int) -> None:
    history = ExitHistory([Evidence.from_logits(toy_logits(80, 2, classes, seed, sharpness=0.5)[0][0])])
    top = np.sort(history.evidence[0].probabilities.astype(np.float64), axis=1)
    gap = top[:, -1] - top[:, -2]
    scores = Margin().fit(toy_records(classes=classes), toy_costs(), 2.0, fallback=False).policy.score(history)
    ranked = gap[order(scores)]
    assert (np.diff(ranked) <= 1e-6).all()


def test_margin_distinguishes_samples_that_float32_rounds_to_one() -> None:
    history = history_of([[1.0, 1e-12, 0.0], [1.0, 1e-14, 0.0], [1.0, 6e-13, 5e-13]])
    scores = Margin().fit(toy_records(classes=3), toy_costs(), 2.0, fallback=False).policy.score(history)
    assert order(scores) == [1, 2, 0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_sharpened_the_logits_is_found(temperature: float) -> None:
    logits, labels = toy_logits(20000, 3, 5)  # calibrated as they are
    fitted = TemperatureScaled().fit(
        ExitRecords.from_logits(logits * temperature, labels), toy_costs(), 2.0, fallback=False
    )
    score: Any = fitted.policy.score
    assert score.name == "temperature"
    np.testing.assert_allclose(score.temperatures, temperature, rtol=0.06)


def test_calibrated_confidences_are_those_of_the_scaled_logits() -> None:
    logits, _ = toy_logits(50, 2, 4)
    score = made("temperature", np.array([2.0]))
    p = np.exp(logits[0] / 2.0)
    p /= p.sum(axis=1, keepdims=True)
    top = p.max(axis=1)
    found = score(ExitHistory([Evidence.from_logits(logits[0])]))
    np.testing.assert_allclose(found, np.log(top / (1 - top)), rtol=1e-4, atol=1e-4)


def test_a_shared_threshold_is_one_for_all_exits_up_to_the_gap_between_samples() -> None:
    records = toy_records(3000, 4, 10)
    scheduler = Scheduler("max_prob", "shared").fit(records, toy_costs(4), 2.2, fallback=False)
    policy = scheduler.policy
    assert policy.enabled.all()
    assert np.ptp(policy.thresholds) < 0.05
    assert 2.2 - 3 / 3000 <= scheduler.calibration_cost <= 2.2


def test_ztw_multiplies_the_exits_and_fits_better_than_any_of_them() -> None:
    logits, labels = toy_logits(4000, 3, 5, sharpness=2.0)
    records = ExitRecords.from_logits(logits, labels)
    score: Any = ZTW().fit(records, toy_costs(), 2.0, fallback=False).policy.score
    assert score.name == "ztw"
    history = ExitHistory()
    for k, evidence in enumerate(records.all_evidence()):
        history.evidence.append(evidence)
        log_p = np.log(records.probabilities[: k + 1].astype(np.float64))
        by_hand = score.log_biases[k] + np.einsum("j,jnc->nc", score.weights[k, : k + 1], log_p)
        by_hand -= by_hand.max(axis=1, keepdims=True)
        np.testing.assert_allclose(score.answers(history), by_hand, rtol=1e-5, atol=1e-4)
        log_q = by_hand - np.log(np.exp(by_hand).sum(axis=1, keepdims=True))
        loss = -log_q[np.arange(4000), labels].mean()
        assert loss < min(-log_p[j, np.arange(4000), labels].mean() for j in range(k + 1))
        others = np.exp(log_q).sum(axis=1) - np.exp(log_q.max(axis=1))
        np.testing.assert_allclose(score(history), log_q.max(axis=1) - np.log(others), rtol=1e-3, atol=1e-3)
    assert (score.weights[2] > 0).all()
    np.testing.assert_array_equal(np.triu(score.weights, 1), 0)


def test_beem_adds_up_the_votes_of_experts() -> None:
    score = made("beem", np.array([0.5, 0.6, 0.9]))
    history = history_of([[0.9, 0.1], [0.6, 0.4]], [[0.8, 0.2], [0.1, 0.9]], [[0.4, 0.6], [0.2, 0.8]])
    votes = np.array([[0.5 * 0.9 + 0.6 * 0.8, 0.9 * 0.6], [0.5 * 0.6, 0.6 * 0.9 + 0.9 * 0.8]])
    np.testing.assert_allclose(np.exp(score.answers(history)), votes / 2.0, rtol=1e-5)
    # The last exit says class 1 of the first sample, and is outvoted.
    assert score.answers(history).argmax(axis=1).tolist() == [0, 1]
    np.testing.assert_allclose(1 - np.exp(-score(history)), votes.max(axis=1) / 2.0, rtol=1e-5)
    fitted: Any = BEEM().fit(toy_records(), toy_costs(), 2.0, fallback=False).policy.score
    assert fitted.name == "beem"
    np.testing.assert_allclose(fitted.weights, toy_records().accuracies)


@pytest.mark.parametrize("make", [ZTW, BEEM])
def test_ensembles_are_judged_and_searched_by_what_they_answer(make: Callable[[], Scheduler]) -> None:
    records = toy_records(2000, 4, 5)
    assert records.labels is not None
    scheduler = make().fit(records, toy_costs(4), 2.5, fallback=False)
    decisions = scheduler.replay(records)
    assert (decisions.predictions != records.predictions[decisions.exits, np.arange(2000)]).any()
    assert decisions.accuracy == pytest.approx((decisions.predictions == records.labels).mean())
    # Searched thresholds on the same score are the better ones on the calibration set by the combined answers.
    name = scheduler.policy.score.name
    searched = Scheduler(name, "searched").fit(records, toy_costs(4), 2.5, fallback=False).replay(records)
    assert searched.accuracy >= decisions.accuracy
    # Without labels there are answers and costs.
    blind = ExitRecords.from_probabilities(records.probabilities)
    np.testing.assert_array_equal(scheduler.replay(blind).predictions, decisions.predictions)
    assert scheduler.replay(blind).utility is None


def test_what_is_not_finite_has_no_vote() -> None:
    logits, labels = toy_logits(200, 3, 5)
    records = ExitRecords.from_logits(logits, labels)
    broken = logits.copy()
    broken[2, 0] = np.nan
    broken[1, 1] = np.inf
    for make in (ZTW, BEEM):
        scheduler = make().fit(records, toy_costs(), 3.0, fallback=False)
        decisions = scheduler.replay(ExitRecords.from_logits(broken, labels))
        usual = scheduler.replay(records)
        assert decisions.exits.tolist() == [2] * 200
        np.testing.assert_array_equal(decisions.predictions[2:], usual.predictions[2:])
        # The first sample is answered by the first two exits, as at the second exit.
        history = ExitHistory(records.subset([0]).all_evidence()[:2])
        ensemble = scheduler.policy.ensemble
        assert ensemble is not None
        if make is BEEM:
            assert decisions.predictions[0] == ensemble.answers(history).argmax()


def test_eero_shares_are_exponential_weights_that_spend_the_budget() -> None:
    records = toy_records(4000, 3, 5)
    cold = EERO((1e-3,)).fit(records, toy_costs(), 2.0, fallback=False)
    warm = EERO((1e3,)).fit(records, toy_costs(), 2.0, fallback=False)
    for scheduler in (cold, warm):
        assert 2.0 - 2 / 4000 <= scheduler.calibration_cost <= 2.0
    # In equal steps of cost: with a large beta only lambda is left, p_k is a geometric series of the costs.
    shares = warm.replay(records).exit_shares
    assert shares[1] ** 2 == pytest.approx(shares[0] * shares[2], rel=0.02)
    # With a small one the middle exit, which lies above the line between its neighbors, takes all.
    risks = 1 - records.accuracies
    assert risks[1] < (risks[0] + risks[2]) / 2
    assert cold.replay(records).exit_shares[1] > 0.95
    both = EERO((1e-3, 1e3)).fit(records, toy_costs(), 2.0, fallback=False)
    assert both.replay(records).accuracy == max(s.replay(records).accuracy for s in (cold, warm))
    for betas in ((), (0.0,), (1.0, np.inf)):
        with pytest.raises(InvalidInputError, match="betas are"):
            EERO(betas)


def test_the_gate_learns_who_gains_nothing_from_going_on() -> None:
    calibration, fresh = toy_records(3000, 3, 5), toy_records(4000, 3, 5, seed=1)
    scheduler = LearnedGate().fit(calibration, toy_costs(), 1.8, fallback=False)
    assert scheduler.policy.score.name == "gate"
    decisions = scheduler.replay(fresh)
    plain = eenet.MaxProbability().fit(calibration, toy_costs(), 1.8, fallback=False).replay(fresh)
    assert decisions.accuracy > plain.accuracy - 0.01
    # Its first gate separates samples that the first exit gets right from those that a later exit gets right.
    evidence = fresh.all_evidence()[:1]
    logits = scheduler.policy.score(ExitHistory(evidence))
    utility = fresh.require_utility()
    mendable = (utility[0] == 0) & (utility[1:].max(axis=0) == 1)
    assert logits[mendable].mean() < logits[utility[0] == 1].mean() - 0.5


@pytest.mark.parametrize("exits", [2, 3])
def test_a_gate_with_nothing_to_learn_is_the_same_for_all_samples(exits: int) -> None:
    logits, _ = toy_logits(100, exits, 3)
    labels = logits[0].argmax(axis=1)
    records = ExitRecords.from_logits(np.repeat(logits[:1], exits, axis=0), labels)  # no exit is better than the first
    scheduler = LearnedGate().fit(records, toy_costs(exits), 1.5, fallback=False)
    assert scheduler.replay(records).accuracy == 1.0
    assert scheduler.calibration_cost <= 1.5


@pytest.mark.parametrize("name", ["temperature", "ztw", "beem", "eero", "gate"])
def test_what_learns_from_labels_says_so_without_them(name: str) -> None:
    records = ExitRecords.from_probabilities(toy_records().probabilities)
    with pytest.raises(InvalidInputError, match=r"have no labels: pass labels=\.\.\. when making them"):
        SCHEDULERS[name]().fit(records, toy_costs(), 2.0, fallback=False)


def pooled_records() -> ExitRecords:
    task, rng = Segmentation(stride=1), np.random.default_rng(0)
    history: list[Evidence] = []
    for _ in range(3):
        history.append(task.evidence(rng.normal(size=(20, 5, 4, 4)).astype(np.float32), tuple(history)))
    return ExitRecords.from_evidence([history], utility=rng.random((3, 20)).astype(np.float32))


@pytest.mark.parametrize("name", ["margin", "temperature", "ztw", "beem", "gate"])
def test_pooled_records_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"^{name} reads the class probabilities of whole samples.*pooled"):
        SCHEDULERS[name]().fit(pooled_records(), toy_costs(), 2.0, fallback=False)
    fitted = SCHEDULERS[name]().fit(toy_records(), toy_costs(), 2.0, fallback=False)
    with pytest.raises(InvalidInputError, match=rf"^{name} reads the class probabilities of whole samples"):
        fitted.replay(pooled_records())


@pytest.mark.parametrize("name", ["voting", "eero", "patience"])
def test_pooled_records_are_taken_by_scores_that_are_means(name: str) -> None:
    scheduler = SCHEDULERS[name]().fit(pooled_records(), toy_costs(), 2.0, fallback=False)
    assert scheduler.calibration_cost <= 2.0
    np.testing.assert_array_equal(
        pooled_records().all_evidence()[2].agreement, pooled_records().pooled["vote_share"][2]
    )


@pytest.mark.parametrize(
    ("score", "arrays", "message"),
    [
        ("temperature", {}, "'temperatures', one for each early exit"),
        ("ztw", {"weights": np.eye(3), "log_biases": np.zeros((2, 5))}, "'weights' .exits, exits."),
        ("beem", {"weights": np.eye(3)}, "'weights', one for each exit"),
        ("gate", {"weights": np.zeros((2, 3)), "biases": np.zeros(2)}, r"'weights' \(early exits, 4\)"),
    ],
)
def test_damaged_scores_are_refused(score: str, arrays: dict[str, Floats], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        SCORES[score].from_arrays(arrays)


def test_schedulers_that_eenet_0_1_saved_still_load() -> None:
    """They were fitted to records of results/cifar10-resnet56-gpu; its README has their costs on its test part."""
    records = ExitRecords.load(ROOT / "results" / "cifar10-resnet56-gpu" / "test.safetensors")
    spent = {"eenet": 3.542, "stopping": 3.557, "max_prob": 3.551, "entropy": 3.553, "patience": 3.552}
    for name, cost in (spent | {"searched": 3.536}).items():
        scheduler = eenet.load_scheduler(Path(__file__).parent / "files" / f"{name}-65-0.1.safetensors")
        assert scheduler.replay(records).mean_cost == pytest.approx(cost, abs=0.001)
        assert scheduler.fallback is None


def test_any_score_goes_with_any_assignment() -> None:
    records = toy_records(300)
    for score in ("temperature", "ztw", "beem", "gate", "margin", "voting", "learned"):
        for assignment in ("geometric", "shared", "searched", "exponential", "learned"):
            assert Scheduler(score, assignment).fit(records, toy_costs(), 1.7, fallback=False).calibration_cost <= 1.7
    with pytest.raises(InvalidInputError, match=r"score 'nonsense' is not known; choose from \['beem', 'constant'"):
        Scheduler("nonsense")
