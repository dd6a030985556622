"""What profiling measures, counts and warns about."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import eenet
from eenet import profiling
from eenet.errors import CutError, InvalidInputError, ReliabilityWarning
from eenet.networks import CifarResNet
from eenet.testing import toy_costs, toy_records
from networks import conv_model

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def noisy_machine() -> None:
    # A test machine may be busy; the warning has a test of its own.
    warnings.filterwarnings("ignore", message="the costs at batch size", category=ReliabilityWarning)


def test_costs_are_cumulative_and_say_where_they_come_from() -> None:
    model = conv_model(0)
    for unit in ("ms", "cpu_ms", "flops"):
        costs = eenet.profile(model, X, unit=unit, batch_size=2, seconds=0.1)
        assert len(costs) == 3
        assert costs.unit == unit
        assert costs.batch_size == 2
        assert costs.includes == ("stages", "heads")
        assert costs.device["threads"] == torch.get_num_threads()
        assert costs.device["torch"] == torch.__version__
        assert costs.spread is not None
        assert (costs.spread >= 0).all()


def test_flops_are_those_of_the_stages_and_heads() -> None:
    # Counted by hand: two FLOPs for each multiply-add of the convolutions and linear layers.
    costs = eenet.profile(conv_model(0), X, unit="flops")

    def conv(size: int, inputs: int, outputs: int) -> int:
        return 2 * size * size * 9 * inputs * outputs

    head = [conv(7, 8, 32) + 2 * 32 * 5, conv(4, 16, 32) + 2 * 32 * 5]
    stages = [conv(8, 3, 8), conv(4, 8, 16), conv(2, 16, 16) + 2 * 16 * 5]
    expected = np.cumsum([stages[0] + head[0], stages[1] + head[1], stages[2]])
    np.testing.assert_array_equal(costs.values, expected)


def test_flops_of_the_residual_network_are_the_published_ones() -> None:
    # ResNet-56 on 32 x 32 has 125.5 M multiply-adds in its convolutions (He et al., CVPR 2016, quote 0.13 G).
    net = CifarResNet([9, 9, 9]).eval()
    x = torch.randn(2, 3, 32, 32)
    model = eenet.attach(net, ["layers.0"], 10, x)
    head = eenet.profile(eenet.attach(net, ["layers.0", "layers.1"], 10, x), x, unit="flops")
    one = eenet.profile(model, x, unit="flops")
    head_flops = 2 * (49 * 9 * 16 * 32 + 32 * 10)
    assert (one[1] - head_flops) / 2e6 == pytest.approx(125.5, abs=0.5)
    assert head[0] == one[0]


def test_the_scheduler_step_and_all_batch_sizes_are_measured() -> None:
    model = conv_model(1)
    records = eenet.collect(model, [(X, torch.zeros(3, dtype=torch.long))])
    scheduler = eenet.EENet(turns=1, target="right", weight_decay=1e-4).fit(
        records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0
    )
    seen: list[int] = []
    found = profiling.measure(model, X, batch_sizes=(1, 4), scheduler=scheduler, seconds=0.05, progress=seen.append)
    assert seen == [1, 4]
    assert found.includes == ("stages", "heads", "scheduler")
    assert found.parts_ms.shape == (2, 3, 3)
    assert (found.parts_ms[:, :2] > 0).all()
    np.testing.assert_allclose(found.tables["ms"], found.parts_ms.sum(axis=2).cumsum(axis=1))
    assert found.costs("ms", 4) == found.costs("ms", 4)
    assert found.costs("ms", 4).includes == ("stages", "heads", "scheduler")
    assert found.costs("flops", 4).includes == ("stages", "heads")
    assert set(found.to_dict()) == {"batch_sizes", "costs", "spreads", "parts_ms", "device", "includes"}


@pytest.mark.parametrize("exit_index", [0, 1, 2])
def test_a_head_that_never_runs_is_not_charged(exit_index: int) -> None:
    model = conv_model(0)
    records = eenet.collect(model, [(X, torch.zeros(3, dtype=torch.long))])
    counted = eenet.profile(model, X, unit="flops")
    scheduler = eenet.Static(exit_index).fit(records, counted)
    table = eenet.describe(model)
    heads = [row.head_flops if k == exit_index else 0 for k, row in enumerate(table.rows)]
    expected = np.cumsum([row.flops + head for row, head in zip(table.rows, heads, strict=True)])
    found = eenet.profile(model, X, unit="flops", scheduler=scheduler)
    np.testing.assert_array_equal(found.values, expected)
    measured = profiling.measure(model, X, batch_sizes=(2,), scheduler=scheduler, seconds=0.05)
    stage, head, step = measured.parts_ms[0].T
    on = np.arange(2) == exit_index
    assert (head[:2][on] > 10 * head[:2][~on].max(initial=0.0)).all(), "what is off takes no time"
    assert (step[:2][on] > 10 * step[:2][~on].max(initial=0.0)).all()
    assert (stage > 0).all()


def test_a_spread_too_large_to_trust_warns() -> None:
    steady = profiling.StageProfile(
        (1,), {"ms": np.array([[1.0, 2.0]])}, {"ms": np.array([[0.01, 0.02]])}, np.zeros((1, 2, 2))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steady.costs("ms", 1)
    noisy = profiling.StageProfile(
        (1,), {"ms": np.array([[1.0, 2.0]])}, {"ms": np.array([[0.9, 0.02]])}, np.zeros((1, 2, 2))
    )
    with pytest.warns(ReliabilityWarning, match="vary by 90%.*quieter machine"):
        noisy.costs("ms", 1)


def test_an_example_on_another_device_than_the_model_is_moved_there() -> None:
    model = conv_model(2)
    expected = eenet.profile(model, X, unit="flops", seconds=0.0)
    found = eenet.profile(copy.deepcopy(model).to("meta"), X, unit="flops", seconds=0.0)  # stands in for a GPU
    assert found.device["device"] == "meta"
    assert np.array_equal(found.values, expected.values)


def test_profiling_leaves_the_model_the_weights_and_the_example_alone() -> None:
    model = conv_model(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = X.clone()
    eenet.profile(model, x, seconds=0.05)
    assert torch.equal(x, X)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_wrong_units_and_batch_sizes_are_refused() -> None:
    model = conv_model(0)
    with pytest.raises(InvalidInputError, match=r"'seconds' cannot be measured.*cpu_ms"):
        eenet.profile(model, X, unit="seconds")
    with pytest.raises(InvalidInputError, match="batch sizes \\[0\\]"):
        eenet.profile(model, X, batch_size=0)
    half: Any = 1.5
    with pytest.raises(InvalidInputError, match=r"batch sizes \[1.5\]: expected at least one, each a whole"):
        eenet.profile(model, X, batch_size=half)
    with pytest.raises(InvalidInputError, match="example has batch size 0; give at least one sample"):
        eenet.profile(model, X[:0])
    found = profiling.measure(model, X, batch_sizes=(1,), seconds=0.01)
    with pytest.raises(InvalidInputError, match="batch size 8 was not measured"):
        found.costs("ms", 8)


def test_a_scheduler_of_other_exits_is_refused() -> None:
    for exits in (2, 4):
        other = eenet.MaxProbability().fit(toy_records(samples=40, exits=exits), toy_costs(exits), "100%")
        with pytest.raises(InvalidInputError, match=f"fitted for {exits} exits and 5 classes, the model has 3 exits"):
            eenet.profile(conv_model(0), X, scheduler=other, seconds=0.01)


def test_a_network_that_was_changed_after_it_was_cut_is_not_measured() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
    model = eenet.attach(network.eval(), ["1"], example=torch.randn(2, 4))
    network[2], network[3] = torch.nn.Linear(8, 80), torch.nn.Linear(80, 3)
    with pytest.raises(CutError, match="attach"):
        eenet.profile(model, torch.randn(2, 4), unit="flops")
