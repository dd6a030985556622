"""EENet learns what max probability cannot see, spends any budget, and is as good at test time as in training."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scores import history_of

import eenet
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords
from eenet.testing import toy_costs, toy_logits, toy_records


def test_it_learns_that_a_class_is_hard() -> None:
    # At the first exit one class looks like a sure case of another: the predicted class says who should go on.
    gains = []
    for seed in range(3):
        calibration = toy_records(1500, classes=6, seed=seed, deceptive_class=2)
        fresh = toy_records(3000, classes=6, seed=seed + 100, deceptive_class=2)
        plain = eenet.MaxProbability().fit(calibration, toy_costs(), 2.0, fallback=False).replay(fresh)
        learned = eenet.EENet(seed=seed).fit(calibration, toy_costs(), 2.0, fallback=False).replay(fresh)
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
        plain = eenet.MaxProbability().fit(calibration, toy_costs(), budget, fallback=False).replay(fresh)
        learned = eenet.EENet().fit(calibration, toy_costs(), budget, fallback=False).replay(fresh)
        assert learned.accuracy > plain.accuracy - 0.015


@pytest.mark.parametrize("exits", [2, 3, 6])
def test_any_share_can_be_assigned(exits: int) -> None:
    # A softmax over sigmoids, as published, keeps every share between 0.16 and 0.58 for three exits.
    records, costs = toy_records(600, exits), toy_costs(exits)
    for where in (0.01, 0.05, 0.95, 0.99):
        budget = 1 + where * (exits - 1)
        scheduler = eenet.EENet(turns=1, target="right", weight_decay=1e-4).fit(records, costs, budget, fallback=False)
        assert budget * 0.998 <= scheduler.calibration_cost <= budget
        shares = scheduler.replay(records).exit_shares
        if where in (0.01, 0.99):
            assert shares[0 if where < 0.5 else -1] > 0.9


def test_the_scores_are_the_minimum_of_the_weighted_loss() -> None:
    # One exit score of one turn, against plain gradient descent on the same loss to the end.
    records = toy_records(300, exits=2, classes=3, sharpness=2.0)
    decay = 1e-2
    scheduler = eenet.EENet(turns=1, target="right", weight_decay=decay).fit(records, toy_costs(2), 1.5, fallback=False)
    history = history_of(records, scheduler.policy.score)
    evidence, right = history.evidence[0], records.require_utility()[0].astype(np.float64)
    features = np.column_stack(
        [
            evidence.probabilities,
            evidence.max_probability,
            1 - evidence.entropy,
            evidence.vote_share,
            0.1 * evidence.log_odds,
            np.ones(300),
        ]
    )
    vector, offset = np.zeros(features.shape[1]), 1e-3 * evidence.log_odds
    for _ in range(20_000):
        q = 1 / (1 + np.exp(-(features @ vector + offset)))
        gradient = features.T @ (q - right) / 300
        gradient[:-1] += 2 * decay * vector[:-1]
        vector -= 0.5 * gradient
    np.testing.assert_allclose(history.scores[0], features @ vector + offset, atol=5e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_it_learns_is_one_of_the_ways_it_tried(seed: int) -> None:
    records = toy_records(300, classes=5, deceptive_class=1, seed=seed)
    chosen = eenet.EENet(turns=1, weight_decay=1e-4).fit(records, toy_costs(), 1.8, fallback=False).policy
    ways = [eenet.EENet(turns=1, weight_decay=1e-4, target=target) for target in ("right", "lossless")]
    tried = [way.fit(records, toy_costs(), 1.8, fallback=False).policy for way in ways]
    assert not np.array_equal(tried[0].thresholds, tried[1].thresholds)
    assert any(np.array_equal(chosen.thresholds, policy.thresholds) for policy in tried)


def test_learning_that_nothing_is_lost_lets_the_hopeless_go() -> None:
    # A third of the samples are wrong at every exit and unsure at the first: going on with them is a waste.
    calibration, fresh = (_with_hopeless(2000, seed) for seed in (0, 1))
    right, lossless = (
        eenet.EENet(target=target).fit(calibration, toy_costs(), 1.6, fallback=False).replay(fresh)
        for target in ("right", "lossless")
    )
    assert lossless.accuracy > right.accuracy + 0.02
    chosen = eenet.EENet().fit(calibration, toy_costs(), 1.6, fallback=False).replay(fresh)
    assert chosen.accuracy > right.accuracy + 0.02


def _with_hopeless(samples: int, seed: int) -> ExitRecords:
    logits, labels = toy_logits(samples, classes=6, seed=seed)
    hopeless = np.random.default_rng(seed).permutation(samples) < samples // 3
    logits[:, hopeless] *= 0.05
    logits[:, hopeless, labels[hopeless]] = -1.0
    return ExitRecords.from_logits(logits, labels)


def test_fitting_takes_seconds() -> None:
    records = toy_records(5000, classes=10)
    start = time.process_time()
    scheduler = eenet.EENet().fit(records, toy_costs(), "60%", fallback=False)
    seconds = time.process_time() - start
    print(f"EENet on 5,000 samples x 3 exits x 10 classes: {seconds:.1f} s of CPU time")
    assert seconds < 30
    assert scheduler.calibration_cost == pytest.approx(1.8, rel=1e-3)


def test_fitting_leaves_numpy_s_random_state_alone_and_does_not_depend_on_it() -> None:
    records = toy_records(150)
    expected = eenet.EENet(turns=1).fit(records, toy_costs(), 2.0, fallback=False).policy
    np.random.seed(99)  # noqa: NPY002 - the state that is shared by a process
    before = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    assert eenet.EENet(turns=1).fit(records, toy_costs(), 2.0, fallback=False).policy == expected
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index] # noqa: NPY002


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_any_number_of_turns_works(turns: int) -> None:
    records = toy_records(60)
    scheduler = eenet.EENet(turns=turns).fit(records, toy_costs(), 2.0, fallback=False)
    assert scheduler.calibration_cost <= 2.0


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("turns", 0, "a whole number, 1 or more"),
        ("turns", 1.5, "a whole number, 1 or more"),
        ("folds", 1, "a whole number, 2 or more"),
        ("folds", 2.5, "a whole number, 2 or more"),
        ("target", "left", "'right' or 'lossless', or None"),
        ("kl_weight", -1e-3, "a number, 0 or more"),
        ("cost_weight", float("nan"), "a number, 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: float, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"EENet\({option}={value!r}\): expected {expected}"):
        eenet.EENet(**{option: value})  # type: ignore[arg-type]
    scheduler = eenet.EENet()
    with pytest.raises(InvalidInputError, match=rf"EENet\({option}={value!r}\): expected {expected}"):
        scheduler.set_params(**{option: value})
    assert scheduler == eenet.EENet()


@pytest.mark.parametrize(("samples", "exits", "classes"), [(1, 2, 2), (2, 6, 2), (30, 2, 400), (40, 10, 3)])
def test_few_samples_many_exits_many_classes(samples: int, exits: int, classes: int) -> None:
    records = toy_records(samples, exits, classes, sharpness=3.0)
    for where in (0.0, 0.5):
        budget = 1 + where * (exits - 1)
        made = eenet.EENet(turns=1, target="right", weight_decay=1e-4)
        scheduler = made.fit(records, toy_costs(exits), budget, fallback=False)
        assert scheduler.calibration_cost <= budget
        assert scheduler.calibration_cost >= budget - (exits - 1) / samples


def test_records_where_every_exit_is_right_or_every_exit_is_wrong() -> None:
    logits, labels = toy_logits(100)
    predicted = logits.argmax(axis=2)
    agree = (predicted == predicted[0]).all(axis=0)
    for answers in (predicted[0][agree], (predicted[0][agree] + 1) % 5):
        records = ExitRecords.from_logits(logits[:, agree], answers)
        scheduler = eenet.EENet().fit(records, toy_costs(), 2.0, fallback=False)
        assert scheduler.replay(records).accuracy in {0.0, 1.0}
        assert 1.9 < scheduler.calibration_cost <= 2.0
    assert len(labels) == 100
