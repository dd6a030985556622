"""EENet learns what max probability cannot see, spends any budget, and is as good at test time as in training."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

import eenet
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler import ExitHistory, LearningOptions
from eenet.scheduler._training import _Evidence, _Scores
from eenet.testing import toy_costs, toy_logits, toy_records


def test_it_learns_that_a_class_is_hard() -> None:
    # At the first exit one class looks like a sure case of another: the predicted class says who should go on.
    gains = []
    for seed in range(3):
        calibration = toy_records(1500, classes=6, seed=seed, deceptive_class=2)
        fresh = toy_records(3000, classes=6, seed=seed + 100, deceptive_class=2)
        plain = eenet.MaxProbability().fit(calibration, toy_costs(), 2.0).replay(fresh)
        learned = eenet.EENet(seed=seed).fit(calibration, toy_costs(), 2.0).replay(fresh)
        assert learned.mean_cost == pytest.approx(2.0, rel=0.03)
        assert plain.mean_cost == pytest.approx(2.0, rel=0.03)
        gains.append(learned.accuracy - plain.accuracy)
    assert min(gains) > 0
    assert np.mean(gains) > 0.02


@pytest.mark.parametrize("sharpness", [1.0, 10.0])
def test_it_keeps_up_with_max_probability_where_that_is_the_best_score(sharpness: float) -> None:
    # Where a network is overconfident, max probability, entropy and the probabilities themselves all saturate.
    calibration, fresh = (toy_records(2000, classes=10, seed=s, sharpness=sharpness) for s in (0, 1))
    for budget in (1.6, 2.4):
        plain = eenet.MaxProbability().fit(calibration, toy_costs(), budget).replay(fresh)
        learned = eenet.EENet().fit(calibration, toy_costs(), budget).replay(fresh)
        assert learned.accuracy > plain.accuracy - 0.015


@pytest.mark.parametrize("exits", [2, 3, 6])
def test_any_share_can_be_assigned(exits: int) -> None:
    # A softmax over sigmoids, as published, keeps every share between 0.16 and 0.58 for three exits.
    records, costs = toy_records(600, exits), toy_costs(exits)
    for where in (0.01, 0.05, 0.95, 0.99):
        budget = 1 + where * (exits - 1)
        scheduler = eenet.EENet(options=LearningOptions(epochs=20, target="right", weight_decay=1e-4)).fit(
            records, costs, budget
        )
        assert budget * 0.998 <= scheduler.calibration_cost <= budget
        shares = scheduler.replay(records).exit_shares
        if where in (0.01, 0.99):
            assert shares[0 if where < 0.5 else -1] > 0.9


def test_the_scores_used_are_the_scores_trained() -> None:
    logits, labels = toy_logits(200, exits=4, classes=7, sharpness=2.0, nonfinite=0.05)
    records = ExitRecords.from_logits(logits, labels)
    data = _Evidence(records)
    training = _Scores(data, 1e-4)
    training.learn(data, data.targets("right"), torch.full((4, 200), 0.25))
    used = training.frozen(7, np.full(4, 0.25))
    trail = ExitHistory()
    for k, evidence in enumerate(records.all_evidence()[:-1]):
        trail.evidence.append(evidence)
        trail.scores.append(used(trail))
        trained = training(data)[k].numpy()
        np.testing.assert_allclose(trail.scores[k], trained, rtol=1e-4, atol=2e-4)
    assert any(np.ptp(scores) > 1 for scores in trail.scores)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_it_learns_is_one_of_the_ways_it_tried(seed: int) -> None:
    records = toy_records(300, classes=5, deceptive_class=1, seed=seed)
    chosen = eenet.EENet(options=LearningOptions(epochs=20, weight_decay=1e-4)).fit(records, toy_costs(), 1.8).policy
    ways = [LearningOptions(epochs=20, weight_decay=1e-4, target=target) for target in ("right", "lossless")]
    tried = [eenet.EENet(options=way).fit(records, toy_costs(), 1.8).policy for way in ways]
    assert not np.array_equal(tried[0].thresholds, tried[1].thresholds)
    assert any(np.array_equal(chosen.thresholds, policy.thresholds) for policy in tried)


def test_learning_that_nothing_is_lost_lets_the_hopeless_go() -> None:
    # A third of the samples are wrong at every exit and unsure at the first: going on with them is a waste.
    calibration, fresh = (_with_hopeless(2000, seed) for seed in (0, 1))
    way = {t: LearningOptions(target=t) for t in ("right", "lossless")}
    right, lossless = (eenet.EENet(options=o).fit(calibration, toy_costs(), 1.6).replay(fresh) for o in way.values())
    assert lossless.accuracy > right.accuracy + 0.02
    chosen = eenet.EENet().fit(calibration, toy_costs(), 1.6).replay(fresh)
    assert chosen.accuracy > right.accuracy + 0.02


def _with_hopeless(samples: int, seed: int) -> ExitRecords:
    logits, labels = toy_logits(samples, classes=6, seed=seed)
    hopeless = np.random.default_rng(seed).permutation(samples) < samples // 3
    logits[:, hopeless] *= 0.05
    logits[:, hopeless, labels[hopeless]] = -1.0
    return ExitRecords.from_logits(logits, labels)


def test_fitting_takes_seconds() -> None:
    records = toy_records(5000, classes=10)
    start = time.perf_counter()
    scheduler = eenet.EENet().fit(records, toy_costs(), "60%")
    seconds = time.perf_counter() - start
    print(f"EENet on 5,000 samples x 3 exits x 10 classes: {seconds:.1f} s")
    assert seconds < 30
    assert scheduler.calibration_cost == pytest.approx(1.8, rel=1e-3)


def test_nothing_outside_changes_what_is_learned_and_learning_changes_nothing_outside() -> None:
    records = toy_records(150)
    options = LearningOptions(epochs=20, target="right", weight_decay=1e-4)

    def thresholds() -> Any:
        return eenet.EENet(options=options).fit(records, toy_costs(), 2.0).policy.thresholds

    expected = thresholds()
    state = torch.get_rng_state()
    np.testing.assert_array_equal(thresholds(), expected)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    np.testing.assert_array_equal(thresholds(), expected)
    with torch.no_grad():
        np.testing.assert_array_equal(thresholds(), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        np.testing.assert_array_equal(thresholds(), expected)
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(thresholds(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_seed_starts_elsewhere() -> None:
    records = toy_records(200)
    first, second = (eenet.EENet(seed=s).fit(records, toy_costs(), 2.0).policy for s in (0, 7))
    assert not np.array_equal(first.thresholds, second.thresholds)


@pytest.mark.parametrize("epochs", [1, 5, 19, 21])
def test_short_training_works(epochs: int) -> None:
    records = toy_records(60)
    scheduler = eenet.EENet(options=LearningOptions(epochs=epochs)).fit(records, toy_costs(), 2.0)
    assert scheduler.calibration_cost <= 2.0


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("epochs", 0, "a number above 0"),
        ("turn", -1, "a number above 0"),
        ("restarts", 0, "a number above 0"),
        ("hidden_factor", 0.0, "a number above 0"),
        ("folds", 1, "a number, 2 or more"),
        ("target", "left", "'right' or 'lossless', or None"),
        ("assignment_rate", float("inf"), "a number above 0"),
        ("kl_weight", -1e-3, "a number, 0 or more"),
        ("cost_weight", float("nan"), "a number, 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: float, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"LearningOptions\({option}={value!r}\): expected {expected}"):
        LearningOptions(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("samples", "exits", "classes"), [(1, 2, 2), (2, 6, 2), (30, 2, 400), (40, 10, 3)])
def test_few_samples_many_exits_many_classes(samples: int, exits: int, classes: int) -> None:
    records = toy_records(samples, exits, classes, sharpness=3.0)
    options = LearningOptions(epochs=20, target="right", weight_decay=1e-4)
    for where in (0.0, 0.5):
        budget = 1 + where * (exits - 1)
        scheduler = eenet.EENet(options=options).fit(records, toy_costs(exits), budget)
        assert scheduler.calibration_cost <= budget
        assert scheduler.calibration_cost >= budget - (exits - 1) / samples


def test_records_where_every_exit_is_right_or_every_exit_is_wrong() -> None:
    logits, labels = toy_logits(100)
    predicted = logits.argmax(axis=2)
    agree = (predicted == predicted[0]).all(axis=0)
    for answers in (predicted[0][agree], (predicted[0][agree] + 1) % 5):
        records = ExitRecords.from_logits(logits[:, agree], answers)
        scheduler = eenet.EENet().fit(records, toy_costs(), 2.0)
        assert scheduler.replay(records).accuracy in {0.0, 1.0}
        assert 1.9 < scheduler.calibration_cost <= 2.0
    assert len(labels) == 100
