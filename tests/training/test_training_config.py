"""The settings of a run, and exits judged by their frontier."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import eenet
from eenet.errors import InfeasibleBudgetError, InvalidInputError, ReliabilityWarning
from eenet.scheduler._out_of_fold import folds_of  # private: which samples are in which half
from eenet.testing import toy_costs, toy_records
from eenet.training import TrainConfig, two_fold_frontier


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, ["epochs is 0", "at least 1"]),
        ({"epochs": True}, ["epochs is True"]),
        ({"learning_rate": 0.0}, ["learning_rate is 0.0", "above 0"]),
        ({"learning_rate": math.nan}, ["learning_rate is nan"]),
        ({"learning_rate": "0.1"}, ["learning_rate is '0.1'"]),
        ({"momentum": 1.0}, ["momentum is 1.0", "below 1"]),
        ({"optimizer": "adam"}, ["'adam'", "did you mean 'adamw'"]),
        ({"schedule": "cosin"}, ["did you mean 'cosine'"]),
        ({"precision": "8"}, ["precision is '8'", "bf16"]),
        ({"milestones": (0.75, 0.5)}, ["milestones", "ascending"]),
        ({"milestones": (150,)}, ["milestones is (150,)", "between 0 and 1"]),
        ({"warmup_epochs": 10, "epochs": 5}, ["warmup_epochs is 10", "below 5"]),
        ({"loss_weights": "lineer"}, ["loss_weights", "did you mean 'linear'"]),
        ({"loss_weights": (1.0, -1.0)}, ["loss_weights", "at least 0"]),
        ({"loss_weights": (0.0, 0.0)}, ["loss_weights"]),
        ({"gradient_scaling": 1.5}, ["gradient_scaling is 1.5", "at most 1"]),
        ({"gradient_scaling": "equal"}, ["gradient_scaling", "or a number from 0 to 1"]),
        ({"patience": 0}, ["patience is 0"]),
        ({"nesterov": True, "momentum": 0.0}, ["nesterov is True"]),
        ({"nesterov": True, "optimizer": "adamw"}, ["nesterov is True"]),
        ({"devices": 0}, ["devices is 0"]),
        ({"cache_dtype": "float64"}, ["cache_dtype"]),
        ({"freeze_backbone": 1}, ["freeze_backbone is 1", "True or False"]),
        ({"betas": (0.9,)}, ["betas", "2 numbers"]),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        TrainConfig(**values)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_setting_names_what_is_near() -> None:
    with pytest.raises(InvalidInputError, match=r"no 'learning_rat'; did you mean 'learning_rate'"):
        TrainConfig.from_dict({"learning_rat": 0.1})
    with pytest.raises(InvalidInputError, match=r"no 'optimzer'; did you mean 'optimizer'"):
        TrainConfig.from_dict({"optimzer": "sgd"})
    with pytest.raises(InvalidInputError, match=r"no 'zzz'; known are \['epochs'"):
        TrainConfig.from_dict({"zzz": 1})


def test_a_config_goes_through_json_and_back() -> None:
    config = TrainConfig(epochs=3, milestones=(0.3, 0.6), loss_weights=(1.0, 2.0), gradient_scaling=0.5, patience=2)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert TrainConfig.from_dict({}) == TrainConfig()
    assert config.differences(config) == []
    assert config.differences(TrainConfig.from_dict({**config.to_dict(), "progress": False})) == []
    other = TrainConfig.from_dict({**config.to_dict(), "seed": 1})
    assert config.differences(other) == ["seed: 0 instead of 1"]


def test_the_spelling_of_older_files_is_read() -> None:
    assert TrainConfig.from_dict({"optimiser": "adamw"}) == TrainConfig(optimizer="adamw")
    assert "optimizer" in TrainConfig().to_dict()


def test_the_frontier_is_measured_on_samples_that_were_not_searched_on() -> None:
    records, costs = toy_records(800), toy_costs()
    one, other = (records.subset(rows) for rows in folds_of(records, 0, 2))
    found = two_fold_frontier(records, costs, budgets=3)
    assert found.budgets == pytest.approx((1.5, 2.0, 2.5))
    for budget, accuracy, cost in zip(found.budgets, found.accuracies, found.costs, strict=True):
        decisions = [
            eenet.SearchedThresholds().fit(calibration, costs, budget, fallback=False).replay(test)
            for calibration, test in ((one, other), (other, one))
        ]
        assert accuracy == pytest.approx(np.mean([d.accuracy for d in decisions]))
        assert cost == pytest.approx(np.mean([d.mean_cost for d in decisions]))
        assert cost == pytest.approx(budget, rel=0.1)
    assert found.mean == pytest.approx(np.mean(found.accuracies))
    given = two_fold_frontier(records, costs, (1.6, 2.0))
    assert given.budgets == (1.6, 2.0)
    assert given.accuracies[1] == found.accuracies[1]


def test_equal_samples_are_in_one_half_of_the_frontier() -> None:
    # With every sample four times, halves that share none of them judge as two halves of the samples themselves do:
    # where copies came to both halves, thresholds were judged on what they were searched on.
    once, costs = toy_records(60, seed=3), toy_costs()
    found = two_fold_frontier(once.subset(np.tile(np.arange(60), 4)), costs, budgets=5)
    alone = two_fold_frontier(once, costs, budgets=5)
    assert found.accuracies == pytest.approx(alone.accuracies)
    assert found.costs == pytest.approx(alone.costs)


def test_a_frontier_of_outputs_that_are_not_finite_costs_what_it_must() -> None:
    records, costs = toy_records(300), toy_costs()
    logits = np.log(records.probabilities)
    logits[0, :250] = np.nan
    found = two_fold_frontier(eenet.ExitRecords.from_logits(logits, records.labels), costs, [1.5, 2.9])
    assert found.budgets == (1.5, 2.9)
    assert found.costs[0] == pytest.approx((50 * 1 + 250 * 3) / 300, rel=0.05)
    assert found.costs[0] < found.costs[1] <= 3.0
    logits[:] = np.nan
    with pytest.warns(ReliabilityWarning, match="no more than with the labels in any order"):
        found = two_fold_frontier(eenet.ExitRecords.from_logits(logits, records.labels), costs)
    assert found.costs == (3.0, 3.0, 3.0)


def test_a_frontier_needs_two_samples_and_a_budget() -> None:
    records = toy_records(20)
    with pytest.raises(InvalidInputError, match="1 sample, expected at least 2"):
        two_fold_frontier(records.subset([0]), toy_costs())
    with pytest.raises(InvalidInputError, match="budgets is 0"):
        two_fold_frontier(records, toy_costs(), budgets=0)
    with pytest.raises(InvalidInputError, match="budgets is empty"):
        two_fold_frontier(records, toy_costs(), budgets=[])
    with pytest.raises(InfeasibleBudgetError):
        two_fold_frontier(records, toy_costs(), budgets=[0.5])
    with pytest.raises(InvalidInputError, match="costs are for 4 exits"):
        two_fold_frontier(records, toy_costs(4))
