"""Replay is reality, no sample is lost, and what the runtime copies and synchronizes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import up_to_nine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from policies import MAKERS, awkward_logits
from torch import Tensor, nn

import eenet
from eenet.errors import CutError, InvalidInputError
from eenet.evaluation import compare, evaluate
from eenet.serving.engine import ServedModel
from eenet.testing import toy_costs
from networks import SmallConvNet, conv_model, table_model

pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")


def run(fast: eenet.AdaptiveModel, x: Tensor, batch_size: int) -> tuple[NDArray[np.intp], Tensor]:
    outputs = [fast(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
    return torch.cat([o.exits for o in outputs]).numpy(), torch.cat([o.logits for o in outputs])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    exits=st.integers(2, 4),
    classes=st.sampled_from([2, 5, 10]),
    samples=st.integers(8, 150),
    batch_size=st.integers(1, 64),
    share=st.floats(0.05, 1.0),
    name=st.sampled_from(sorted(MAKERS)),
)
def test_adaptive_model_takes_the_exits_and_gives_the_logits_that_replay_does(
    seed: int, exits: int, classes: int, samples: int, batch_size: int, share: float, name: str
) -> None:
    rng = np.random.default_rng(seed)
    calibration = eenet.ExitRecords.from_logits(
        awkward_logits(rng, exits, samples, classes), rng.integers(classes, size=samples)
    )
    costs = eenet.ExitCosts(np.cumsum(rng.random(exits) + 0.1))
    try:
        scheduler = MAKERS[name]().fit(calibration, costs, budget=costs[0] + share * (costs[-1] - costs[0]))
    except eenet.InfeasibleBudgetError as error:
        scheduler = MAKERS[name]().fit(calibration, costs, budget=error.smallest)
    # Fresh samples, thresholds of other ones: nothing keeps the scores away from the thresholds.
    logits = awkward_logits(rng, exits, samples, classes)
    decisions = scheduler.replay(eenet.ExitRecords.from_logits(logits))
    x = torch.from_numpy(logits.transpose(1, 0, 2).reshape(samples, -1).copy())
    taken, answers = run(eenet.AdaptiveModel(table_model(exits, classes), scheduler), x, batch_size)
    np.testing.assert_array_equal(taken, decisions.exits)
    np.testing.assert_array_equal(answers.argmax(1).numpy(), decisions.predictions)
    if scheduler.changes_predictions:
        assert torch.isfinite(answers).all()
    else:
        np.testing.assert_array_equal(answers.numpy(), logits[taken, np.arange(samples)])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 4),
    data_seed=st.integers(0, 2**31 - 1),
    batch_size=st.integers(1, 64),
    budget=st.floats(1.0, 3.0),
    name=st.sampled_from(sorted(MAKERS)),
)
def test_no_calibration_sample_flips_when_the_batch_size_changes_its_rounding(
    seed: int, data_seed: int, batch_size: int, budget: float, name: str
) -> None:
    model = conv_model(seed)
    generator = torch.Generator().manual_seed(data_seed)
    x = torch.randn(120, 3, 8, 8, generator=generator)
    x[100:] = x[:20]  # duplicated samples, which other neighbors may round differently
    y = torch.randint(5, (120,), generator=generator)
    records = eenet.collect(model, [(x[:50], y[:50]), (x[50:], y[50:])])
    scheduler = MAKERS[name]().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=budget)
    decisions = scheduler.replay(records)
    taken, answers = run(eenet.AdaptiveModel(model, scheduler), x, batch_size)
    np.testing.assert_array_equal(taken, decisions.exits)
    with torch.inference_mode():
        logits = torch.stack(model(x))
    if not scheduler.changes_predictions:
        torch.testing.assert_close(answers, logits[torch.from_numpy(taken), torch.arange(120)], rtol=1e-4, atol=1e-4)


def fitted(model: eenet.MultiExitModel, x: Tensor, budget: float, maker: str = "MaxProbability") -> eenet.Scheduler:
    records = eenet.collect(model, [(x, torch.arange(len(x)) % 5)])
    return MAKERS[maker]().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=budget)


def test_an_empty_batch_gives_empty_answers() -> None:
    model = conv_model(0)
    fast = eenet.AdaptiveModel(model, fitted(model, torch.randn(40, 3, 8, 8), 2.0))
    out = fast(torch.randn(0, 3, 8, 8))
    assert out.logits.shape == (0, 5)
    assert out.exits.shape == (0,)


def calls_of_stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    calls: list[tuple[str, int]] = []
    original = eenet.stages.Stage.__call__

    def counted(stage: eenet.stages.Stage, *live: Tensor) -> tuple[Tensor, ...]:
        calls.append((stage.name, len(live[0])))
        return original(stage, *live)

    monkeypatch.setattr(eenet.stages.Stage, "__call__", counted)
    return calls


def test_later_stages_run_for_the_remaining_samples_alone_and_not_at_all_once_all_exited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = conv_model(1)
    x = torch.randn(64, 3, 8, 8)
    scheduler = fitted(model, x, 1.8)
    exits = scheduler.replay(eenet.collect(model, [x])).exits
    assert len(set(exits.tolist())) == 3
    fast = eenet.AdaptiveModel(model, scheduler)
    calls = calls_of_stages(monkeypatch)
    fast(x)
    assert calls == [("first", 64), ("second", int((exits > 0).sum())), ("output", int((exits > 1).sum()))]
    calls.clear()
    fast(x[exits == 0])
    assert [name for name, _ in calls] == ["first"]


def test_nothing_is_copied_where_no_sample_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_model(1)
    x = torch.randn(64, 3, 8, 8)
    scheduler = fitted(model, x, 1.8)
    staying = x[scheduler.replay(eenet.collect(model, [x])).exits == 2]
    compacted: list[int] = []
    original = eenet.StagedModel.compact

    def counted(
        staged: eenet.StagedModel, live: tuple[Tensor, ...], index: Tensor, stage_index: int
    ) -> tuple[Tensor, ...]:
        compacted.append(stage_index)
        return original(staged, live, index, stage_index)

    monkeypatch.setattr(eenet.StagedModel, "compact", counted)
    out = eenet.AdaptiveModel(model, scheduler)(staying)
    assert out.exits.tolist() == [2] * len(staying)
    assert compacted == []


def test_a_static_scheduler_runs_no_head_but_its_own() -> None:
    model = conv_model(2)
    x = torch.randn(8, 3, 8, 8)
    seen: list[int] = []
    handles = [h.register_forward_hook(lambda *_, k=k: seen.append(k)) for k, h in enumerate(model.heads)]
    records = eenet.collect(model, [x])
    seen.clear()
    for k, expected in ((0, [0]), (1, [1]), (2, [])):
        scheduler = eenet.Static(k).fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]))
        out = eenet.AdaptiveModel(model, scheduler)(x)
        assert out.exits.tolist() == [k] * 8
        assert seen == expected
        seen.clear()
    for handle in handles:
        handle.remove()


def test_inputs_are_not_changed_and_answers_are_not_overwritten_by_the_next_call() -> None:
    model = conv_model(3)
    x = torch.randn(32, 3, 8, 8)
    fast = eenet.AdaptiveModel(model, fitted(model, x, 2.0))
    before = x.clone()
    first = fast(x)
    expected = first.logits.clone()
    fast(x.flip(0))
    assert torch.equal(x, before)
    assert torch.equal(first.logits, expected)


def test_a_model_in_training_mode_is_run_for_inference() -> None:
    model = conv_model(4)
    x = torch.randn(16, 3, 8, 8)
    fast = eenet.AdaptiveModel(model, fitted(model, x, 2.0))
    expected = fast(x)
    model.train()
    out = fast(x)
    assert torch.equal(out.logits, expected.logits)
    assert not model.training


def test_a_scheduler_of_other_exits_or_classes_is_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    for exits, classes in ((3, 4), (4, 5)):
        records = eenet.ExitRecords.from_logits(rng.standard_normal((exits, 20, classes)), rng.integers(4, size=20))
        scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts(np.arange(1.0, exits + 1)), budget=2.0)
        with pytest.raises(
            InvalidInputError, match=f"fitted for {exits} exits and {classes} classes, the model has 3 exits and 5"
        ):
            eenet.AdaptiveModel(conv_model(0), scheduler)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_empty_batch_has_the_answers_of_a_full_one_but_none_of_them(dtype: torch.dtype) -> None:
    x = torch.randn(16, 3, 8, 8, dtype=dtype)
    model = eenet.attach(SmallConvNet().eval().to(dtype), ["second"], 5, x)
    scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0]), budget=1.5)
    fast = eenet.AdaptiveModel(model, scheduler)
    full, empty = fast(x), fast(x[:0])
    assert (empty.logits.shape, empty.exits.shape) == ((0, 5), (0,))
    assert (empty.logits.dtype, empty.exits.dtype) == (dtype, full.exits.dtype)
    assert full.logits.dtype == dtype


@pytest.mark.parametrize("before", [True, False])
def test_in_half_precision_the_exits_are_those_of_the_replay_in_it(before: bool) -> None:
    x = torch.randn(64, 3, 8, 8, dtype=torch.bfloat16)
    if before:
        model = eenet.attach(SmallConvNet().eval().bfloat16(), ["first", "second"], 5, x)
    else:
        model = eenet.attach(SmallConvNet().eval(), ["first", "second"], 5, x.float()).bfloat16()
    scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0)
    fast = eenet.AdaptiveModel(model, scheduler)
    fresh = torch.randn(64, 3, 8, 8, dtype=torch.bfloat16)
    assert fast(fresh).exits.tolist() == scheduler.replay(eenet.collect(model, [fresh])).exits.tolist()
    assert len(set(fast(fresh).exits.tolist())) > 1


def test_an_unfitted_scheduler_is_refused() -> None:
    with pytest.raises(eenet.EENetError, match="not fitted: call fit"):
        eenet.AdaptiveModel(conv_model(0), eenet.EENet())


def test_the_output_unpacks_and_keeps_its_attributes() -> None:
    model = conv_model(1)
    x = torch.randn(16, 3, 8, 8)
    fast = eenet.AdaptiveModel(model, fitted(model, x, 1.8))
    output = fast(x)
    logits, exits = output
    assert logits is output.logits
    assert exits is output.exits
    assert output == fast(x)


def test_the_representation_names_network_exits_scheduler_and_place() -> None:
    model = conv_model(1)
    fast = eenet.AdaptiveModel(model, fitted(model, torch.randn(40, 3, 8, 8), 1.8))
    shown = repr(fast)
    assert shown.startswith("AdaptiveModel(SmallConvNet, exits=[first, second, output], ")
    assert repr(fast.scheduler) in shown
    assert shown.endswith(", cpu, float32)")


def test_moving_converts_the_model_and_its_stages() -> None:
    model = copy.deepcopy(conv_model(1))
    x = torch.randn(40, 3, 8, 8)
    fast = eenet.AdaptiveModel(model, fitted(model, x, 1.8))
    before = fast(x)
    assert fast.to(torch.float64) is fast
    after = fast(x.double())
    assert after.logits.dtype == torch.float64
    assert "cpu, float64" in repr(fast)
    assert torch.equal(after.exits, before.exits)
    torch.testing.assert_close(after.logits.float(), before.logits, rtol=1e-3, atol=1e-3)


def test_heads_that_are_replaced_are_used_from_the_next_call_on() -> None:
    model = copy.deepcopy(conv_model(1))
    x = torch.randn(64, 3, 8, 8)
    fast = eenet.AdaptiveModel(model, eenet.Static(0).fit(eenet.collect(model, [x]), toy_costs(3)))
    before = fast(x).logits

    class Shifted(torch.nn.Module):
        def __init__(self, head: torch.nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, feature: Tensor) -> Tensor:
            logits: Tensor = self.head(feature)
            return logits + 1

    model.heads[0] = Shifted(model.heads[0])
    torch.testing.assert_close(fast(x).logits, before + 1)


def test_a_network_that_was_changed_after_it_was_cut_is_refused() -> None:
    model = copy.deepcopy(conv_model(1))
    scheduler = fitted(model, torch.randn(40, 3, 8, 8), 1.8)
    model.backbone.get_submodule("first")[0] = torch.nn.Conv2d(3, 8, 1)  # type: ignore[operator]
    with pytest.raises(CutError, match=r"the network was changed after it was cut: module 'first\.0'"):
        eenet.AdaptiveModel(model, scheduler)


class TestNotAModule:
    """What a user of torch.nn.Module may try."""

    def make(self) -> eenet.AdaptiveModel:
        model = copy.deepcopy(conv_model(1))
        return eenet.AdaptiveModel(model, fitted(model, torch.randn(40, 3, 8, 8), 1.8))

    def test_modes(self) -> None:
        fast = self.make()
        assert fast.eval() is fast
        assert fast.train(False) is fast
        with pytest.raises(InvalidInputError, match=r"inference mode only.*eenet\.train\(fast\.model"):
            fast.train()
        assert not fast.model.training

    def test_attributes_of_a_module_are_those_of_its_model(self) -> None:
        fast = self.make()
        assert not hasattr(fast, "parameters")
        with pytest.raises(AttributeError, match=r"'half'.*fast\.model\.half.*fast\.to"):
            _ = fast.half
        with pytest.raises(AttributeError, match=r"has no attribute 'fit'$"):
            _ = fast.fit

    @pytest.mark.parametrize("device", ["nowhere", "cuda:99", torch.device("cuda", 99)])
    def test_a_device_that_is_not_there(self, device: str | torch.device) -> None:
        fast, x = self.make(), torch.randn(4, 3, 8, 8)
        before = fast(x)
        with pytest.raises(InvalidInputError, match=f"cannot move to '{device}'.*'cpu'.*torch.float64"):
            fast.to(device)
        with pytest.raises(InvalidInputError, match=f"cannot move to '{device}'"):
            fast.to(device=device, dtype=torch.float64)
        assert fast(x) == before

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_compiling_changes_nothing(self) -> None:
        fast, x = self.make(), torch.randn(6, 3, 8, 8)
        assert torch.compile(fast, backend="eager")(x) == fast(x)

    def test_what_is_no_scheduler(self) -> None:
        model = conv_model(1)
        with pytest.raises(InvalidInputError, match="scheduler is a str, expected a fitted scheduler or a BudgetContr"):
            eenet.AdaptiveModel(model, "eenet")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="model is a MaxProbability, expected a MultiExitModel"):
            eenet.AdaptiveModel(fitted(model, torch.randn(40, 3, 8, 8), 1.8), model)  # type: ignore[arg-type]


class TestSizesThatANetworkDoesNotTake:
    EXPECTED = r"^the inputs have length {} \(time\), expected one up to 9, which is the longest that the network takes"

    @pytest.fixture
    def model(self) -> eenet.MultiExitModel:
        return up_to_nine()[0]

    def fast(self, model: eenet.MultiExitModel, dtype: torch.dtype = torch.float32) -> eenet.AdaptiveModel:
        records = eenet.collect(model, [(torch.randn(40, 5, 4, dtype=dtype), torch.arange(40) % 3)])
        return eenet.AdaptiveModel(model, eenet.MaxProbability().fit(records, toy_costs(2), 1.8))

    def test_collecting_refuses_inputs_that_are_too_long_as_a_bundle_does(self, model: eenet.MultiExitModel) -> None:
        batches = [torch.zeros(3, length, 4) for length in (5, 9, 20)]
        with pytest.raises(InvalidInputError, match=self.EXPECTED.format(20)):
            eenet.collect(model.train(), batches)
        assert model.training
        assert len(eenet.collect(model, batches[:2])) == 6

    def test_so_does_an_adaptive_model_again_and_again(self, model: eenet.MultiExitModel) -> None:
        fast = self.fast(model)
        before = fast(torch.zeros(3, 9, 4))
        for length in (20, 10, 5000):
            with pytest.raises(InvalidInputError, match=self.EXPECTED.format(length)):
                fast(torch.zeros(3, length, 4))
        assert fast(torch.zeros(3, 9, 4)) == before

    def test_so_does_one_in_a_dtype_that_numpy_does_not_have(self, model: eenet.MultiExitModel) -> None:
        fast = self.fast(model.to(torch.bfloat16), torch.bfloat16)
        with pytest.raises(InvalidInputError, match=self.EXPECTED.format(20)):
            fast(torch.zeros(3, 20, 4, dtype=torch.bfloat16))

    def test_so_does_profiling(self, model: eenet.MultiExitModel) -> None:
        with pytest.raises(InvalidInputError, match=self.EXPECTED.format(20)):
            eenet.profile(model, torch.zeros(3, 20, 4), unit="flops")

    @pytest.mark.parametrize("settings", [{}, {"freeze_backbone": True}, {"gradient_scaling": "equilibrium"}])
    def test_so_does_training(self, model: eenet.MultiExitModel, settings: dict[str, Any], tmp_path: Path) -> None:
        fits, too_long = ([(torch.zeros(6, n, 4), torch.arange(6) % 3)] for n in (5, 20))
        config = eenet.training.TrainConfig(epochs=1, **settings)
        with pytest.raises(InvalidInputError, match=self.EXPECTED.format(20)):
            eenet.train(model, too_long, fits, config=config, out=tmp_path / "one")
        with pytest.raises(InvalidInputError, match=self.EXPECTED.format(20)):
            eenet.train(model, fits, too_long, config=config, out=tmp_path / "two")

    def test_what_fails_for_another_reason_is_raised_as_it_is(self) -> None:
        class Vocabulary(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.classes = nn.Embedding(7, 4), nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.classes(self.words(x).mean(1))
                return logits

        example = torch.arange(10).reshape(2, 5) % 7
        model = eenet.attach(Vocabulary().eval(), ["words"], 3, example, dynamic={1: "time"})
        with pytest.raises(IndexError, match="out of range"):
            eenet.collect(model, [torch.full((2, 20), 7)])


def _fitted_conv(labels: int = 60) -> tuple[eenet.MultiExitModel, eenet.Scheduler, Tensor]:
    model = copy.deepcopy(conv_model(1))
    x = torch.randn(labels, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    records = eenet.collect(model, [(x, torch.arange(labels) % 5)])
    return model, eenet.MaxProbability().fit(records, toy_costs(), "70%"), x


def test_a_scheduler_that_was_fitted_to_records_of_other_weights_is_refused(tmp_path: Path) -> None:
    model, scheduler, x = _fitted_conv()
    scheduler.save(tmp_path / "scheduler.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "scheduler.safetensors")
    for fitting in (scheduler, loaded, scheduler.at("80%"), eenet.BudgetController(scheduler)):
        eenet.AdaptiveModel(model, fitting)
    ServedModel(model, scheduler)
    model.backbone.get_submodule("head").weight.data.mul_(3)  # type: ignore[operator]
    for other in (scheduler, loaded, scheduler.at("80%"), eenet.BudgetController(loaded)):
        with pytest.raises(InvalidInputError, match=f"fitted to records of a network with other .*{scheduler.network}"):
            eenet.AdaptiveModel(model, other)
    with pytest.raises(InvalidInputError, match="with other weights"):
        ServedModel(model, scheduler)
    with pytest.raises(InvalidInputError, match="with other weights"):
        eenet.benchmark({"early": (model, scheduler)}, x, batch_sizes=[4], seconds=0.01)
    again = eenet.MaxProbability().fit(eenet.collect(model, [x]), toy_costs(), "70%")
    eenet.AdaptiveModel(model, again)


def test_a_model_in_float64_is_not_taken_for_one_of_other_weights() -> None:
    model, scheduler, x = _fitted_conv()
    converted = copy.deepcopy(model).double()
    eenet.AdaptiveModel(converted, scheduler)
    eenet.AdaptiveModel(model, eenet.MaxProbability().fit(eenet.collect(converted, [x.double()]), toy_costs(), "70%"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_a_scheduler_fits_the_model_whose_outputs_it_was_fitted_to(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model, scheduler, x = _fitted_conv()
    converted = copy.deepcopy(model).to(dtype)
    there = eenet.MaxProbability().fit(eenet.collect(converted, [x.to(dtype)]), toy_costs(), "70%")
    eenet.AdaptiveModel(converted, there)
    for one, other in ((converted, scheduler), (model, there)):
        with pytest.raises(InvalidInputError, match="or with the same ones in another precision"):
            eenet.AdaptiveModel(one, other)
    with pytest.raises(InvalidInputError, match="or with the same ones in another precision"):
        ServedModel(model, there)
    fast = eenet.AdaptiveModel(model, scheduler)
    before = fast(x)
    with pytest.raises(InvalidInputError, match="or with the same ones in another precision"):
        fast.to(dtype)
    assert fast.to("cpu")(x) == before
    with pytest.raises(InvalidInputError, match="or with the same ones in another precision"):
        eenet.export(model, there, tmp_path / "bundle", example=x[:2], measure=False)


def test_records_of_other_weights_are_no_evaluation_of_a_scheduler() -> None:
    model, scheduler, x = _fitted_conv()
    y = torch.arange(len(x)) % 5
    own = eenet.collect(model, [(x, y)])
    model.backbone.get_submodule("head").weight.data.mul_(3)  # type: ignore[operator]
    other = eenet.collect(model, [(x, y)])
    for words in (
        lambda: evaluate(scheduler, other),
        lambda: evaluate(scheduler, own, calibration=other),
        lambda: compare(own, toy_costs(), ["max_prob"], [2.0], held_out=other),
        lambda: eenet.report(other, costs=toy_costs(), schedulers=[scheduler], draws=0),
        lambda: eenet.report(other, costs=toy_costs(), calibration=own, draws=0),
        lambda: eenet.MaxProbability().fit(own, toy_costs(), 2.5, guarantee=0.5, unlabeled=other),
    ):
        with pytest.raises(InvalidInputError, match=f"with other weights.*{own.network}.*{other.network}.*collect"):
            words()
    arrays = eenet.ExitRecords(other.probabilities, other.predictions, other.labels)  # of which nothing is known
    assert evaluate(scheduler, arrays).samples == len(x)
    without = eenet.MaxProbability().fit(arrays, toy_costs(), "70%")
    assert evaluate(without, own).samples == len(x)


def test_without_a_digest_of_the_same_exits_a_scheduler_is_taken_as_it_is() -> None:
    model, _, x = _fitted_conv()
    records = eenet.collect(model, [x])
    arrays = eenet.ExitRecords(records.probabilities, records.predictions)
    kept = records.keep_exits([1, 2])
    costs = eenet.ExitCosts([1.0, 2.0])
    assert arrays.network is kept.network is records.first_exits(2).network is None
    eenet.AdaptiveModel(model, eenet.MaxProbability().fit(arrays, toy_costs(), "70%"))
    eenet.AdaptiveModel(model.keep_exits([1, 2]), eenet.MaxProbability().fit(kept, costs, "80%"))
    whole = records.keep_exits([0, 1, 2])
    eenet.AdaptiveModel(model.keep_exits([0, 1, 2]), eenet.MaxProbability().fit(whole, toy_costs(), "70%"))
