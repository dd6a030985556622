"""The settings of a run, the loss weightings, learning rates, and exits judged by their frontier."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_toys import corner_model

import eenet
from eenet.errors import InfeasibleBudgetError, InvalidInputError
from eenet.testing import toy_costs, toy_records
from eenet.training import WEIGHTINGS, ClassificationTask, TrainConfig, frontier, two_fold_frontier
from eenet.training._loss import JointLoss
from eenet.training._optim import make_optimizer, rate_factor
from eenet.training._weights import Moment, exit_weights

COSTS = eenet.ExitCosts([1.0, 2.0, 4.0])


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


def moment(progress: float = 0.0, losses: tuple[float, ...] = ()) -> Moment:
    return Moment(3, progress, [0.25, 0.5, 1.0], losses)


@pytest.mark.parametrize(
    ("name", "at", "expected"),
    [
        ("linear", moment(), [1 / 3, 2 / 3, 1]),
        ("uniform", moment(), [1, 1, 1]),
        ("pabee", moment(), [1 / 6, 2 / 6, 3 / 6]),
        ("shallow_deep", moment(0.0), [0.01, 0.01, 1]),
        ("shallow_deep", moment(1.0), [0.25, 0.5, 1]),
        ("adaptive", moment(), [1, 1, 1]),
        ("adaptive", moment(losses=(2.0, 1.0, 1.0)), [0.6, 1.2, 1.2]),
        ((1.0, 0.0, 3.0), moment(), [1, 0, 3]),
    ],
)
def test_exits_are_weighted_as_published(name: Any, at: Moment, expected: list[float]) -> None:
    assert exit_weights(name, at) == pytest.approx(expected)


@given(
    name=st.sampled_from(sorted(WEIGHTINGS)),
    exits=st.integers(2, 8),
    progress=st.floats(0, 1),
    losses=st.lists(st.floats(0, 100), min_size=8, max_size=8) | st.none(),
)
def test_every_weighting_gives_each_exit_a_positive_weight(
    name: str, exits: int, progress: float, losses: list[float] | None
) -> None:
    relative = np.linspace(0.1, 1, exits).tolist()
    found = exit_weights(name, Moment(exits, progress, relative, tuple(losses[:exits]) if losses else ()))
    assert len(found) == exits
    assert all(math.isfinite(weight) and weight > 0 for weight in found)


def test_as_many_weights_as_exits() -> None:
    with pytest.raises(InvalidInputError, match="2 numbers for 3 exits"):
        exit_weights((1.0, 2.0), moment())


def test_the_joint_loss_is_the_papers() -> None:
    labels = torch.tensor([0, 1, 1])
    logits = [torch.randn(3, 2, requires_grad=True) for _ in range(3)]
    loss = JointLoss(ClassificationTask(), temperature=3.0, teacher_weight=0.5)
    plain, losses = loss(logits, labels, [1 / 3, 2 / 3, 1])
    each = [torch.nn.functional.cross_entropy(z, labels) for z in logits]
    torch.testing.assert_close(losses, torch.stack(each).detach())
    torch.testing.assert_close(plain, each[0] / 3 + 2 * each[1] / 3 + each[2])

    def divergence(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p, q = (target / 3).softmax(1), (z / 3).softmax(1)
        return 9 * (p * (p / q).log()).sum(1).mean()

    distilled, _ = loss(logits, labels, [1 / 3, 2 / 3, 1], distillation_weight=0.01)
    extra = sum((divergence(z, logits[2]) for z in logits[:2]), torch.zeros(()))
    torch.testing.assert_close(distilled, plain + 0.01 * extra)
    gradient = torch.autograd.grad(distilled - plain, logits, allow_unused=True)
    assert gradient[0].abs().sum() > 0
    assert gradient[2] is None or gradient[2].abs().max() < 1e-6, "the last exit must not learn from the early ones"
    teacher = torch.randn(3, 2)
    taught, _ = loss(logits, labels, [1 / 3, 2 / 3, 1], teacher=teacher)
    extra = sum((divergence(z, teacher) for z in logits), torch.zeros(()))
    torch.testing.assert_close(taught, plain + 0.5 * extra)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1]),
        ({"schedule": "multistep"}, [1, 1, 0.1, 0.01, 0.01]),
        ({"schedule": "linear"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "cosine"}, [1, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2), 0]),
    ],
)
def test_the_learning_rate_follows_its_schedule(options: dict[str, Any], expected: list[float]) -> None:
    config = TrainConfig(epochs=4, **options)
    assert [rate_factor(config, step, 100) for step in (0, 25, 50, 75, 100)] == pytest.approx(expected)


def test_warm_up_rises_to_the_schedule() -> None:
    config = TrainConfig(epochs=10, schedule="linear", warmup_epochs=2)
    factors = [rate_factor(config, step, 100) for step in range(100)]
    assert factors[:20] == pytest.approx([(s + 1) / 21 for s in range(20)])
    assert factors[20] == 1
    assert factors[20:] == sorted(factors[20:], reverse=True)


def test_heads_and_backbone_have_learning_rates_of_their_own() -> None:
    model = corner_model()
    config = TrainConfig(learning_rate=0.1, head_learning_rate=0.5, weight_decay=0.01, decay_vectors=False)
    optimizer = make_optimizer(model, config)
    heads = {id(p) for p in model.heads.parameters()}
    seen = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen += 1
            assert group["lr"] == (0.5 if id(parameter) in heads else 0.1)
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0)
    assert seen == len(list(model.parameters()))
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(InvalidInputError, match="nothing can be trained"):
        make_optimizer(model, config)


def test_the_frontier_is_measured_on_samples_that_were_not_searched_on() -> None:
    records, costs = toy_records(800), toy_costs()
    one, other = records.split(0.5, seed=0)
    found = frontier(one, other, costs, budgets=3)
    assert found.budgets == pytest.approx((1.5, 2.0, 2.5))
    for budget, accuracy, cost in zip(found.budgets, found.accuracies, found.costs, strict=True):
        decisions = eenet.SearchedThresholds().fit(one, costs, budget).replay(other)
        assert (accuracy, cost) == (decisions.accuracy, decisions.mean_cost)
    assert found.mean == pytest.approx(np.mean(found.accuracies))
    given = frontier(one, other, costs, (1.6, 2.0))
    assert given.budgets == (1.6, 2.0)
    assert given.accuracies[1] == found.accuracies[1]
    both = two_fold_frontier(records, costs)
    assert min(other.accuracies[0], one.accuracies[0]) < both.accuracies[0] < both.accuracies[-1]
    for budget, cost in zip(both.budgets, both.costs, strict=True):
        assert cost == pytest.approx(budget, rel=0.1)


def test_a_frontier_needs_two_samples_and_a_budget() -> None:
    records = toy_records(20)
    with pytest.raises(InvalidInputError, match="1 sample, expected at least 2"):
        two_fold_frontier(records.subset([0]), toy_costs())
    with pytest.raises(InvalidInputError, match="budgets is 0"):
        frontier(records, records, toy_costs(), budgets=0)
    with pytest.raises(InvalidInputError, match="budgets is empty"):
        frontier(records, records, toy_costs(), budgets=[])
    with pytest.raises(InfeasibleBudgetError):
        frontier(records, records, toy_costs(), budgets=[0.5])
    with pytest.raises(InvalidInputError, match="costs are for 4 exits"):
        frontier(records, records, toy_costs(4))
