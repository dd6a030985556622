"""What profiling measures, counts and warns about."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import eenet
from eenet import profiling
from eenet.errors import CutError, InvalidInputError, ReliabilityWarning
from eenet.networks import CifarResNet
from eenet.stages import Variant
from eenet.testing import toy_costs, toy_records
from networks import conv_model

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Pooled(nn.Module):
    """A head of two layers on the mean over the map."""

    def __init__(self, width: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(feature.mean((2, 3)))
        return logits


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
        in_runs = ("scheduler", "inputs", "selection", "outputs")
        assert costs.includes == ("stages", "heads", *(() if unit == "flops" else in_runs))
        assert costs.device["threads"] == torch.get_num_threads()
        assert costs.device["torch"] == torch.__version__
        assert costs.spread is not None
        assert (costs.spread >= 0).all()


def test_flops_are_those_of_the_stages_and_heads() -> None:
    # Counted by hand: two FLOPs for each multiply-add of the convolutions and linear layers.
    costs = eenet.profile(conv_model(0), X, unit="flops")

    def conv(size: int, inputs: int, outputs: int) -> int:
        return 2 * size * size * 9 * inputs * outputs

    def head_of(size: int, channels: int) -> int:  # to 32 channels of a grid, a hidden layer of 128 on it, 5 classes
        return 2 * (size * size * channels * 32 + size * size * 32 * 128 + 128 * 5)

    head = [head_of(8, 8), head_of(4, 16)]
    stages = [conv(8, 3, 8), conv(4, 8, 16), conv(2, 16, 16) + 2 * 16 * 5]
    expected = np.cumsum([stages[0] + head[0], stages[1] + head[1], stages[2]])
    np.testing.assert_array_equal(costs.values, expected)
    assert costs.plain == sum(stages), "the plain network has no heads"
    assert not costs.percentiles


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
        records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0, fallback=False
    )
    seen: list[int] = []
    found = profiling.measure(
        model, X, batch_sizes=(1, 4), scheduler=scheduler, seconds=0.05, progress=seen.append, full_batches=True
    )
    assert seen == [1, 4]
    assert found.includes == ("stages", "heads", "scheduler")
    assert found.parts_ms.shape == (2, 3, 3)
    assert (found.parts_ms[:, :2] > 0).all()
    np.testing.assert_allclose(found.tables["ms"], found.parts_ms.sum(axis=2).cumsum(axis=1))
    assert found.costs("ms", 4) == found.costs("ms", 4)
    assert found.costs("ms", 4).includes == ("stages", "heads", "scheduler")
    assert found.costs("flops", 4).includes == ("stages", "heads")
    assert set(found.to_dict()) == {
        "batch_sizes", "costs", "spreads", "plain", "percentiles", "parts_ms", "runs", "device", "includes"
    }  # fmt: skip


def test_sixty_percent_is_of_the_plain_network() -> None:
    # Case U1: on this small network 60% of the last exit was 78% of the FLOPs of the network without exits.
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    model = eenet.attach(network, ["2"], example=torch.randn(2, 3, 16, 16), heads=[Pooled(8, 5, hidden=250)])
    costs = eenet.profile(model, torch.randn(1, 3, 16, 16), unit="flops")
    layers = [2 * 16 * 16 * 9 * 3 * 8, 2 * 8 * 8 * 9 * 8 * 16, 2 * 16 * 5]
    assert costs.plain == sum(layers)
    assert costs[-1] / costs.plain > 1.01, "the head on the way to the last exit"
    records = toy_records(exits=2)
    fitted = eenet.MaxProbability().fit(records, costs, "80%")
    assert fitted.budget == pytest.approx(0.8 * sum(layers))
    assert fitted.replay(records).mean_cost <= 0.8 * sum(layers)


def test_the_plain_network_is_timed_in_the_same_rounds() -> None:
    model = conv_model(0)
    calls: list[int] = []
    handle = model.backbone.register_forward_hook(lambda *_: calls.append(1))
    found = profiling.measure(model, X, batch_sizes=(2,), seconds=0.0)
    handle.remove()
    assert len(calls) == 2 + 3 + 7, "once in each round, three of warm-up and seven, and before it twice to compare"
    for unit in ("ms", "cpu_ms"):
        costs = found.costs(unit, 2)
        assert costs.plain == found.plain[unit][0] > 0
        assert list(costs.percentiles) == ["p50", "p95", "p99"]
        low, middle, high = (np.array(costs.percentiles[name]) for name in ("p50", "p95", "p99"))
        assert low.shape == (4,), "three exits and the plain network"
        assert (low <= middle).all()
        assert (middle <= high).all()
        assert low[-1] == pytest.approx(costs.plain)
        assert (np.diff(low[:-1]) > 0).all()


def test_stages_written_by_hand_are_a_plain_network_without_the_early_heads() -> None:
    stages = [nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)]
    staged = eenet.StagedModel.from_stages(stages, torch.randn(2, 4))
    costs = eenet.profile(eenet.attach(staged.eval()), torch.randn(2, 4), unit="flops")
    assert costs.plain == 2 * (4 * 8 + 8 * 8 + 8 * 3)
    assert costs.plain < costs[-1]


def test_another_network_can_be_the_plain_one() -> None:
    # A cascade of two networks: without exits one would run the large one alone.
    class Cascade(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.large(x) + 0 * self.small(x)
            return answer

    cascade = Cascade().eval()
    model = eenet.attach(cascade, ["small"], example=torch.randn(2, 4), heads=[nn.Identity()])
    large = 2 * (4 * 64 + 64 * 3)
    assert eenet.profile(model, torch.randn(2, 4), unit="flops").plain == 2 * 4 * 3 + large
    costs = eenet.profile(model, torch.randn(2, 4), unit="flops", plain=cascade.large)
    assert costs.plain == large
    assert costs[-1] == pytest.approx(2 * 4 * 3 + large, abs=1)  # a head that counts nothing counts as one
    timed = eenet.profile(model, torch.randn(2, 4), unit="cpu_ms", plain=cascade.large, seconds=0)
    assert timed.plain is not None


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
        (1,),
        dict.fromkeys(("ms", "cpu_ms"), np.array([[1.0, 2.0]])),
        dict.fromkeys(("ms", "cpu_ms"), np.array([[0.9, 0.02]])),
        np.zeros((1, 2, 2)),
    )
    with pytest.warns(
        ReliabilityWarning,
        match="vary by 90%.*or take CPU times: unit='cpu_ms' in Python, --unit cpu_ms of `eenet fit`",
    ):
        noisy.costs("ms", 1)
    with pytest.warns(ReliabilityWarning, match="quieter machine, or for longer"):
        noisy.costs("cpu_ms", 1)


def test_a_plain_network_that_waited_for_other_programs_warns() -> None:
    # Figures of a busy machine: by wall time early exit looked 14 times as fast, by CPU time 3 times.
    wall, cpu = np.array([[1.4, 4.9]]), np.array([[1.3, 4.8]])

    def found(plain_wall: float, device: str = "cpu") -> profiling.StageProfile:
        return profiling.StageProfile(
            (1,),
            {"ms": wall, "cpu_ms": cpu},
            dict.fromkeys(("ms", "cpu_ms"), np.zeros((1, 2))),
            np.zeros((1, 2, 3)),
            device={} if device == "cpu" else {"accelerator": device},
            plain={"ms": np.array([plain_wall]), "cpu_ms": np.array([4.2])},
        )

    with pytest.warns(ReliabilityWarning, match=r"4.07 times the last exit's in wall time and 0.875 times in CPU"):
        found(19.93).costs("ms", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found(19.93).costs("cpu_ms", 1)
        found(4.5).costs("ms", 1)
        found(19.93, "NVIDIA H200").costs("ms", 1)
        found(2.2).costs("ms", 1)  # in many threads, where decisions take much of the parts' wall time


def test_a_clock_of_the_processor_that_ticks_coarsely_leaves_wall_times_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = time.process_time_ns
    monkeypatch.setattr(time, "process_time_ns", lambda: ticks() // 15_625_000 * 15_625_000)  # as on Windows
    monkeypatch.setattr("eenet._timing.TRUSTED_SPREAD", np.inf)  # a busy machine is not the matter here
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="an early exit costs more", category=ReliabilityWarning)
        costs = eenet.profile(conv_model(0), X, unit="ms", seconds=0.1)
    assert costs.plain is not None
    assert costs.plain > 0


def test_decisions_are_counted_without_a_scheduler_too() -> None:
    # In PyTorch at batch 1 a budget of 60 % took up to 78 %, since decisions had not been counted.
    found = profiling.measure(conv_model(0), X, batch_sizes=(1,), seconds=0.05)
    assert found.includes == ("stages", "heads", "scheduler")
    assert (found.parts_ms[0, :, 2] > 0.001).all(), "at the last exit evidence is looked at as well"


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
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    model = eenet.attach(network.eval(), ["1"], example=torch.randn(2, 4))
    network[2], network[3] = nn.Linear(8, 80), nn.Linear(80, 3)
    with pytest.raises(CutError, match="attach"):
        eenet.profile(model, torch.randn(2, 4), unit="flops")


def test_costs_of_a_network_for_inputs_of_any_length_say_which_was_measured() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), MeanOverTime(), nn.Linear(8, 3)).eval()
    model = eenet.attach(network, ["1"], example=torch.randn(2, 6, 4), dynamic={1: "time"})
    costs = eenet.profile(model, torch.randn(2, 9, 4), unit="flops", seconds=0.0)
    assert costs.device["sizes"] == {"time": 9}
    assert costs.of_inputs == "of inputs of length 9 (time); longer ones cost more"
    longer = eenet.profile(model, torch.randn(2, 90, 4), unit="flops", seconds=0.0)
    assert longer[0] - costs[0] == (90 - 9) * 2 * 4 * 8  # the head averages over time
    fixed = eenet.attach(network, ["1"], example=torch.randn(2, 6, 4))
    assert eenet.profile(fixed, torch.randn(2, 6, 4), unit="flops", seconds=0.0).of_inputs is None


class MeanOverTime(nn.Module):
    """(N, T, D) to (N, D)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
def test_in_batches_costs_are_the_times_of_runs_of_which_samples_exit_on_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    fixed, each, selecting = np.array([0.004, 0.006, 0.002]), np.array([0.5, 0.25, 1.0]) / 1e3, 0.001
    run_stage, take = Variant.run, Variant.take

    def timed_run(self: Variant, k: int, live: Any, *, observe: bool) -> Any:
        now[0] += fixed[k] + self.size(k, live) * each[k]
        return run_stage(self, k, live, observe=observe)

    def timed_take(self: Variant, k: int, live: Any, rows: Any) -> Any:
        now[0] += selecting
        return take(self, k, live, rows)

    monkeypatch.setattr(Variant, "run", timed_run)
    monkeypatch.setattr(Variant, "take", timed_take)
    monkeypatch.setattr("eenet.runtime._batch_runs.clock_now", lambda: (now[0], 2 * now[0]))
    found = profiling.measure(conv_model(0), torch.randn(4, 3, 8, 8), batch_sizes=(1, 16), seconds=0.0)
    assert found.includes == ("stages", "heads", "scheduler", "inputs", "selection", "outputs")
    assert found.costs("ms", 1).runs == ()
    assert found.costs("ms", 1).includes == ("stages", "heads", "scheduler")
    assert found.costs("flops", 16).runs == ()
    assert found.costs("flops", 16).includes == ("stages", "heads")
    costs = found.costs("ms", 16)
    assert [samples for samples, _ in costs.runs] == [(16, 16, 16), (16, 13, 10), (16, 8, 4), (16, 4, 1), (16, 2, 1)]
    for samples, took in costs.runs:
        selected = selecting * (np.diff(samples, prepend=samples[0]) < 0)
        np.testing.assert_allclose(took, 1e3 * (fixed + samples * each + selected))
    by_cpu = found.costs("cpu_ms", 16).runs
    np.testing.assert_allclose([took for _, took in by_cpu], [2 * np.array(took) for _, took in costs.runs])
    np.testing.assert_allclose(costs.at_shares([1 / 3] * 3).values, costs.values)
    alone = costs.at_shares([0.0, 0.0, 1.0])
    np.testing.assert_allclose(alone.values, 1e3 * (fixed + 16 * each).cumsum() / 16)


def test_costs_of_full_batches_have_no_runs() -> None:
    costs = eenet.profile(
        conv_model(0), torch.randn(4, 3, 8, 8), unit="cpu_ms", batch_size=16, full_batches=True, seconds=0.1
    )
    assert (costs.batch_size, costs.runs) == (16, ())
    assert costs.includes == ("stages", "heads", "scheduler")


def test_an_exit_that_a_scheduler_does_not_look_at_lets_no_sample_leave_in_runs() -> None:
    model = conv_model(1)
    costs = eenet.ExitCosts([1.0, 2.0, 3.0])
    x = torch.randn(64, 3, 8, 8)
    scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), costs, budget=2.5, fallback=False)
    observed = [scheduler.policy.observes(k) for k in range(2)]
    found = eenet.profile(model, x, unit="cpu_ms", batch_size=8, scheduler=scheduler, seconds=0.05)
    for samples, _ in found.runs[1:]:
        assert [samples[k + 1] < samples[k] or samples[k] == 1 for k in range(2)] == observed


def test_where_a_scheduler_looks_at_no_early_exit_the_runs_are_of_all_exits() -> None:
    """They are what other policies are fitted in: from full batches alone the few that are left would cost as much."""
    model = conv_model(1)
    x = torch.randn(64, 3, 8, 8)
    scheduler = eenet.Static(2).fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0, 3.0]))
    assert not any(scheduler.policy.observes(k) for k in range(2))
    found = eenet.profile(model, x, unit="cpu_ms", batch_size=8, scheduler=scheduler, seconds=0.05)
    assert [samples for samples, _ in found.runs] == [
        samples for samples, _ in eenet.profile(model, x, unit="cpu_ms", batch_size=8, seconds=0.05).runs
    ]
    assert min(samples[-1] for samples, _ in found.runs) == 1


def test_early_exits_that_cost_more_than_the_plain_network_are_named() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    large = nn.Sequential(nn.Linear(8, 50), nn.Linear(50, 3))
    plain = 2 * (4 * 8 + 8 * 8 + 8 * 3)
    x = torch.randn(2, 4)
    first = 2 * (4 * 8 + 8 * 50 + 50 * 3)
    with pytest.warns(ReliabilityWarning, match=rf"plain network: exit 0 \('1'\) {first} flops \(485%") as caught:
        costs = eenet.profile(eenet.attach(net, ["1"], example=x, heads=[large]), x, unit="flops")
    assert (costs[0], costs.plain, len(caught)) == (first, plain, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eenet.profile(eenet.attach(net, ["1"], example=x, heads=[nn.Linear(8, 3)]), x, unit="flops")
