"""`eenet.benchmark`: right figures, a fair verdict, errors that name the system, and what Ctrl-C leaves."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bundles import small_convolutions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from optional import import_or_skip
from torch import nn

import eenet
from eenet.benchmarking import Benchmark
from eenet.errors import CutError, InvalidInputError
from eenet.runtime import AdaptiveOutput
from networks import table_model

CLASSES = 4
Array = NDArray[Any]


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that are the logits of three exits, each better than the one before, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (200,), generator=generator)
    signal = torch.nn.functional.one_hot(labels, CLASSES).float()
    exits = [signal * strength + torch.randn(200, CLASSES, generator=generator) for strength in (1.0, 2.0, 3.0)]
    return torch.cat(exits, dim=1), labels


@pytest.fixture(scope="module")
def early(data: Any) -> tuple[eenet.MultiExitModel, eenet.Scheduler]:
    model = table_model(3, CLASSES)
    return model, eenet.MaxProbability().fit(eenet.collect(model, [data]), eenet.ExitCosts([1, 2, 3]))


def run(systems: Any, data: Any, *rest: Any, **options: Any) -> Benchmark:
    return eenet.benchmark(systems, data, *rest, **{"batch_sizes": [8], "seconds": 0.0, **options})


class Work:
    """A function of numpy that takes about `work` times as long as the least, and gives these answers."""

    def __init__(self, work: int, answers: Array, *, exits: bool = False) -> None:
        self.work, self.answers, self.exits = work, answers, exits
        self.matrix = np.eye(48)

    def __call__(self, x: Array) -> Any:
        for _ in range(self.work):
            self.matrix = self.matrix @ self.matrix
        logits = np.eye(CLASSES)[self.answers[x[:, 0].astype(int)]]
        return AdaptiveOutput(logits, np.zeros(len(x), np.int64)) if self.exits else logits


NUMBERED = np.arange(160, dtype=np.float64)[:, None]
LABELS = np.arange(160) % CLASSES


def wrong(count: int) -> Array:
    """The labels with the first `count` wrong."""
    return np.where(np.arange(160) < count, (LABELS + 1) % CLASSES, LABELS)


def pixels() -> tuple[eenet.MultiExitModel, torch.Tensor, torch.Tensor]:
    """A network with a class per pixel, inputs, and labels of which it has about 80 % right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)).eval()
        x = torch.randn(40, 3, 6, 6)
        task = eenet.tasks.Segmentation(stride=1, utility="mean_iou")
        model = eenet.attach(network, ["1"], example=x[:2], task=task).eval()
        with torch.inference_mode():
            labels = torch.where(torch.rand(40, 6, 6) < 0.8, network(x).argmax(dim=1), 0)
    return model, x, labels.clone()


class TestFigures:
    def test_accuracies_exits_and_costs_are_those_of_a_replay(self, data: Any, early: Any) -> None:
        model, scheduler = early
        result = run({"plain": model.backbone, "early": (model, scheduler, ["50%", "80%"])}, data)
        records = eenet.collect(model, [data])
        assert [row.title for row in result.rows] == ["plain", "early 50%", "early 80%"]
        x, labels = data
        right = [(x[:, -CLASSES:].argmax(dim=1) == labels).numpy().astype(float)]
        for row, budget in zip(result.rows[1:], ["50%", "80%"], strict=True):
            decisions = scheduler.at(budget).replay(records)
            right.append((decisions.predictions == labels.numpy()).astype(float))
            assert row.exit_shares == pytest.approx(decisions.exit_shares)
            assert row.realized_cost == pytest.approx(decisions.mean_cost)
            assert (row.planned_cost, row.cost_limit) == (
                scheduler.at(budget).planned_cost,
                scheduler.at(budget).budget,
            )
        for row, mine in zip(result.rows, right, strict=True):
            difference = mine - right[0]
            assert row.accuracy == pytest.approx(mine.mean())
            assert row.accuracy_error == pytest.approx(mine.std(ddof=1) / np.sqrt(200))
            assert row.difference == pytest.approx(difference.mean())
            assert row.difference_error == pytest.approx(difference.std(ddof=1) / np.sqrt(200))

    def test_times_belong_together(self, data: Any, early: Any) -> None:
        result = run({"plain": early[0].backbone, "early": (*early, ["60%"])}, data, batch_sizes=[1, 16])
        assert result.batch_sizes == (1, 16)
        for row in result.rows:
            assert row.p50_ms <= row.p95_ms <= row.p99_ms
            assert row.samples_per_second * row.ms_per_sample == pytest.approx(1000)
            assert row.calls >= 5
            reference = next(one for one in result.rows if one.batch_size == row.batch_size)
            assert row.speed == pytest.approx(reference.ms_per_sample / row.ms_per_sample)

    def test_what_does_a_hundred_times_the_work_is_slower(self) -> None:
        result = run({"much": Work(300, LABELS), "little": Work(3, LABELS)}, NUMBERED, LABELS, seconds=0.2)
        assert result.rows[1].cpu_speed > 2

    def test_all_forms_of_the_same_data_give_the_same_answers(self, data: Any, early: Any) -> None:
        x, labels = data
        systems = {"plain": early[0].backbone, "early": (*early, ["60%"])}
        forms: list[tuple[Any, ...]] = [
            ((x, labels),),
            (x, labels),
            (x.numpy(), labels.numpy()),
            ({"x": x.numpy(), "labels": labels.numpy()},),
            (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=48),),
            ([{"x": x[:150], "labels": labels[:150]}, {"x": x[150:], "labels": labels[150:]}],),
        ]
        found = {tuple((row.accuracy, row.exit_shares) for row in run(systems, *form).rows) for form in forms}
        assert len(found) == 1

    def test_texts_of_different_lengths_are_padded(self) -> None:
        def network(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot((input_ids * attention_mask).sum(dim=1) % CLASSES, CLASSES).float()

        batches = [
            {"input_ids": torch.full((8, n), 2), "attention_mask": torch.ones(8, n, dtype=torch.long)} for n in (3, 5)
        ]
        labels = [2 * n % CLASSES for n in (3, 5) for _ in range(8)]
        assert run({"network": network}, batches, labels).rows[0].accuracy == 1

    def test_images_with_a_class_per_pixel(self) -> None:
        labels = np.array([[[0, 1], [255, 1]]] * 8)
        logits = np.moveaxis(np.eye(2)[np.array([[[0, 1], [0, 0]]] * 8)], -1, 1)
        result = run({"plain": lambda x: logits[: len(x)]}, np.zeros((8, 1)), labels)
        assert result.rows[0].accuracy == pytest.approx(2 / 3)  # a pixel does not count

    def test_a_network_in_training_mode_is_run_in_inference_mode_and_left_as_it_was(self) -> None:
        network = nn.Sequential(nn.Linear(4, CLASSES), nn.Dropout(0.9)).train()
        result = run({"one": network, "two": lambda x: network[0](x)}, torch.randn(64, 4))
        assert result.rows[1].agreement == 1
        assert network.training
        assert network[1].training

    def test_a_budget_that_cannot_be_met_names_its_system(
        self, data: Any, early: tuple[eenet.MultiExitModel, eenet.Scheduler]
    ) -> None:
        model, scheduler = early
        with pytest.raises(eenet.InfeasibleBudgetError, match=r"system 'early': budget .* the smallest") as raised:
            run({"plain": model.backbone, "early": (model, scheduler, ["90%", "0.1%"])}, data)
        with pytest.raises(eenet.InfeasibleBudgetError) as alone:
            scheduler.at("0.1%")
        assert raised.value.smallest == alone.value.smallest

    def test_what_is_handed_back_is_not_right(self) -> None:
        def hands_back(x: Array) -> Any:
            logits = np.eye(CLASSES)[LABELS[x[:, 0].astype(int)]]
            return AdaptiveOutput(logits, np.zeros(len(x), np.int64), np.arange(len(x)) < 4)

        result = run({"plain": Work(1, LABELS), "careful": hands_back}, NUMBERED, LABELS)
        assert (result.rows[1].accuracy, result.rows[1].handed_back) == (0.5, 0.5)
        assert any("handed back" in note for note in result.notes)

    def test_images_that_are_handed_back_count_as_in_a_replay(self) -> None:
        model, x, labels = pixels()
        records = eenet.collect(model, [(x, labels)])
        scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1, 2]), 1.5, abstain=0.3, fallback=False)
        decisions = scheduler.replay(records)
        assert decisions.utility is not None
        assert 0 < decisions.handed_back < 0.5
        first = np.argsort(~decisions.abstained, kind="stable")  # an image that is handed back is the first of a batch
        for rows in (first, first[::-1].copy()):
            result = run({"plain": model.backbone, "early": (model, scheduler)}, x[rows], labels[rows])
            assert result.rows[1].handed_back == decisions.handed_back
            assert result.rows[1].accuracy == pytest.approx(decisions.utility.mean())

    def test_images_without_labels_do_not_count(self) -> None:
        model, x, labels = pixels()
        expected = run({"plain": model.backbone}, x[4:], labels[4:]).rows[0].accuracy
        labels[:4] = 255
        result = run({"plain": model.backbone}, x, labels)
        assert result.rows[0].accuracy == pytest.approx(expected)
        assert any(note.startswith("4 images have no labeled pixel") for note in result.notes)
        with pytest.raises(eenet.EENetError, match="no image has a labeled pixel"):
            run({"plain": model.backbone}, x[:8], np.full((8, 6, 6), 255))


class TestSystems:
    def test_the_network_without_exits_is_added_before_a_system_with_exits(self, data: Any, early: Any) -> None:
        alone = run({"early": (*early, ["60%"])}, data)
        given = run({"early": (*early, ["60%"]), "mine": early[0].backbone}, data)
        assert [row.title for row in alone.rows] == ["plain network", "early 60%"]
        assert [row.title for row in given.rows] == ["mine", "early 60%"]
        assert alone.rows[0].accuracy == given.rows[0].accuracy

    def test_a_bundle_is_compared_with_its_plain_network_as_one_graph(self, tmp_path: Path) -> None:
        import_or_skip("onnxruntime")
        import_or_skip("onnx")
        case = small_convolutions()
        bundle = case.export(tmp_path / "bundle")
        labels = case.model.backbone(case.fresh["x"]).argmax(dim=1).numpy()
        result = run({"mine": (str(tmp_path / "bundle"), ["60%", "100%"])}, case.arrays["x"], labels)
        assert [row.title for row in result.rows] == ["mine, plain fp32", "mine, exits off", "mine 60%", "mine 100%"]
        for row in result.rows[:2]:
            assert row.accuracy == 1
            assert not row.early_exit
        assert result.rows[0].speed == 1
        assert result.rows[2].exit_shares == pytest.approx(
            np.bincount(bundle.at("60%")(case.arrays).exits, minlength=3) / 40
        )
        assert (result.rows[2].weight_bytes or 0) > 1000
        code = f"""
import sys, numpy as np, eenet
x = np.zeros((16, 3, 8, 8), "f4")
result = eenet.benchmark({{"bundle": {str(tmp_path / "bundle")!r}}}, x, seconds=0, batch_sizes=[4])
assert "torch" not in sys.modules
print(result)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "bundle, plain fp32" in done.stdout

    def test_bundles_of_one_network_show_its_plain_network_once(self, tmp_path: Path) -> None:
        import_or_skip("onnxruntime")
        import_or_skip("onnx")
        case = small_convolutions()
        for name in ("a", "b"):
            case.export(tmp_path / name)
        result = run({name: str(tmp_path / name) for name in ("a", "b")}, case.arrays["x"])
        titles = ["a and b, plain fp32", "a, exits off", "a", "b, exits off", "b"]
        assert [row.title for row in result.rows] == titles
        loaded = {f"on {n}": eenet.bundle.load(tmp_path / "a", threads=n) for n in (1, 2)}
        titles = [f"on {n}{row}" for n in (1, 2) for row in (", plain fp32", ", exits off", "")]
        result = run(loaded, case.arrays["x"])
        assert [row.title for row in result.rows] == titles
        assert any("differ" in note and "on 1: 1; " in note and "on 2: 2)" in note for note in result.notes)

    def test_what_does_not_take_the_threads_is_told(self, tmp_path: Path) -> None:
        import_or_skip("onnxruntime")
        import_or_skip("onnx")
        case = small_convolutions()
        case.export(tmp_path / "a")
        both = {"net": case.model.backbone, "a": eenet.bundle.load(tmp_path / "a")}
        told = [note for note in run(both, case.arrays["x"], threads=1).notes if note.startswith("Numbers of threads")]
        assert [note.partition("(")[2].startswith("net: 1; a, plain fp32: its own choice") for note in told] == [True]
        for alike in ({**both, "a": str(tmp_path / "a")}, {**both, "a": eenet.bundle.load(tmp_path / "a", threads=1)}):
            assert not any("threads" in note for note in run(alike, case.arrays["x"], threads=1).notes)

    def test_an_onnx_file(self, tmp_path: Path) -> None:
        import_or_skip("onnxruntime")
        onnx = import_or_skip("onnx")
        weights = np.eye(3, CLASSES, dtype=np.float32)
        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        shapes = [onnx.helper.make_tensor_value_info(n, 1, ["n", size]) for n, size in (("x", 3), ("y", CLASSES))]
        graph = onnx.helper.make_graph(
            [node], "g", shapes[:1], shapes[1:], [onnx.numpy_helper.from_array(weights, "w")]
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / "net.onnx")
        beside = {"save_as_external_data": True, "location": "net.weights", "size_threshold": 0}
        (tmp_path / "apart").mkdir()
        onnx.save(model, tmp_path / "apart" / "net.onnx", **beside)
        x = np.random.default_rng(0).normal(size=(16, 3))
        systems = {"numpy": lambda x: x @ weights, "onnx": tmp_path / "net.onnx"}
        systems["apart"] = tmp_path / "apart" / "net.onnx"
        result = run(systems, x)
        assert [row.agreement for row in result.rows] == [1, 1, 1]
        files = [tmp_path / "net.onnx"], [*(tmp_path / "apart").iterdir()]
        assert len(files[1]) == 2
        sizes = [sum(file.stat().st_size for file in some) for some in files]
        assert [row.weight_bytes for row in result.rows[1:]] == sizes
        with pytest.raises(eenet.EENetError, match=r"system 'onnx' cannot answer .*\(8, 5\)"):
            run({"onnx": tmp_path / "net.onnx"}, np.zeros((16, 5)))

    @pytest.mark.parametrize(("said", "given", "expected"), [("3", None, 3), ("3", 2, 2), ("", None, 0)])
    def test_an_onnx_file_has_the_threads_that_a_bundle_has(
        self, said: str, given: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtime = import_or_skip("onnxruntime")
        import_or_skip("onnx")
        case = small_convolutions()
        graph = case.export(tmp_path / "bundle").manifest.path("plain.onnx")
        asked: list[int] = []
        made = runtime.InferenceSession

        def noted(content: Any, options: Any, **more: Any) -> Any:
            asked.append(options.intra_op_num_threads)  # 0 is one for each core
            return made(content, options, **more)

        monkeypatch.setattr(runtime, "InferenceSession", noted)
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        run({"file": graph, "bundle": str(tmp_path / "bundle")}, case.arrays["x"], threads=given)
        assert set(asked) == {expected}

    def test_random_weights_count_for_times_only(self) -> None:
        systems = {"plain": Work(1, LABELS), "random": Work(1, wrong(160))}
        result = run(systems, NUMBERED, LABELS, untrained=["random"])
        assert (result.rows[1].accuracy, result.rows[1].agreement) == (None, None)
        assert result.rows[1].speed > 0


class Clocked(Work):
    """A system whose calls take milliseconds that the test sets, by a function of the call's number and its batch."""

    last = 0.0

    def __init__(self, ms: Callable[[int, int], float], *, exits: bool = False, answers: Array = LABELS) -> None:
        super().__init__(1, answers, exits=exits)
        self.ms, self.calls = ms, 0

    def __call__(self, x: Array) -> Any:
        self.calls += 1
        Clocked.last = self.ms(self.calls, int(x[0, 0]) // 8) / 1000
        return super().__call__(x)


def stub_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls take the times that systems of `Clocked` say, and so long is measured."""
    now = [0.0]

    def clock(call: Callable[[], Any], **_options: Any) -> tuple[float, float]:
        call()
        now[0] += Clocked.last
        return Clocked.last, Clocked.last

    monkeypatch.setattr("eenet.benchmarking._measure.timed", clock)
    monkeypatch.setattr("eenet._timing.time", SimpleNamespace(perf_counter=lambda: now[0]))


def steady(ms: float) -> Callable[[int, int], float]:
    return lambda _call, _batch: ms


def noisy(ms: float) -> Callable[[int, int], float]:
    """Of the same work one call in three takes twenty times as long."""
    return lambda call, _batch: ms * (1 + 19 * (call * 7919 % 31 < 10))


def uneven(low: float, high: float) -> Callable[[int, int], float]:
    """Half of the batches are quick: the mean is known with an error."""
    return lambda _call, batch: low if batch % 2 else high


def takes(ms: float, answers: Array = LABELS, *, exits: bool = False) -> Clocked:
    """Of which each call takes so long."""
    return Clocked(steady(ms), exits=exits, answers=answers)


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls take the times that systems of `Clocked` say."""
    stub_clock(monkeypatch)


@pytest.mark.usefixtures("set_clock")
class TestVerdict:
    """Systems whose calls take 1, 0.1 or 0.01 ms: what is said does not depend on the machine."""

    def verdict(self, early: Any, *others: Any, labels: Any = LABELS) -> str:
        systems = {"plain": takes(1.0), "early": early, **{f"other {n}": one for n, one in enumerate(others)}}
        result = run(systems, NUMBERED, labels, seconds=0.1)
        assert " ".join(str(result).split()).endswith(" ".join(result.verdict.split()))
        return result.verdict

    def test_faster_and_as_right_is_worth_it(self) -> None:
        said = self.verdict(takes(0.1, exits=True))
        assert said.startswith("Worth it at batch 8")
        assert "times as fast as plain, accuracy the same" in said

    def test_a_static_network_that_is_faster_and_as_right_wins(self) -> None:
        said = self.verdict(takes(0.1, exits=True), takes(0.01))
        assert said.startswith("Not worth it at batch 8")
        assert "other 0 is" in said
        assert "has no exits" in said

    def test_a_static_network_that_is_faster_and_less_right_is_named(self) -> None:
        said = self.verdict(takes(0.1, exits=True), takes(0.01, wrong(40)))
        assert said.startswith("Worth it at batch 8")
        assert "Without exits, other 0 is" in said
        assert "-25.0 ± 3.4 points (beyond chance); no early exit here is as fast" in said

    def test_lost_accuracy_is_not_worth_it(self) -> None:
        said = self.verdict(takes(0.1, wrong(40), exits=True))
        assert said.startswith("Not worth it at batch 8")
        assert "if at most 1 point of accuracy may be lost" in said
        assert "-25.0 ± 3.4 points (beyond chance)" in said

    def test_a_network_that_keeps_more_is_named_beside_early_exits_that_lose(self) -> None:
        said = self.verdict(takes(0.1, wrong(40), exits=True), takes(0.01))
        assert said.startswith("Not worth it at batch 8")
        assert "Without exits, other 0 is" in said

    def test_slower_is_not_worth_it(self) -> None:
        said = self.verdict(takes(10.0, exits=True))
        assert said.startswith("Not worth it at batch 8")
        assert "no early exit is faster than plain" in said

    def test_without_labels_agreement_decides(self) -> None:
        said = self.verdict(takes(0.1, exits=True), labels=None)
        assert said.startswith("Worth it at batch 8")
        assert "160 samples cannot rule out a larger loss than 1 point: give more to be certain." in said
        systems = {"plain": takes(1.0), "early": takes(0.1, exits=True)}
        many = run(systems, np.tile(NUMBERED, (2, 1)), seconds=0.1)
        assert "cannot rule out" not in many.verdict
        said = self.verdict(takes(0.1, wrong(40), exits=True), labels=None)
        assert said.startswith("Without labels it cannot be said")
        assert "another answer on 25.0% of the samples" in said

    def test_a_first_system_with_random_weights_is_the_reason_that_is_given(self) -> None:
        systems = {"random": takes(0.5, wrong(160)), "early": takes(0.01, exits=True), "plain": takes(0.01)}
        result = run(systems, NUMBERED, LABELS, untrained=["random"])
        assert result.verdict.startswith("Nothing can be said of accuracies at batch 8")
        assert "the first system, random, with which all are compared, has random weights" in result.verdict
        assert "without labels" not in result.verdict.lower()
        assert "plain is" not in result.verdict, "its weights are not random"
        assert result.rows[1].accuracy == 1
        systems = {"plain": takes(0.5), "early": takes(0.01, exits=True)}
        said = run(systems, NUMBERED, LABELS, untrained=["early"]).verdict
        assert "these have random weights" in said

    def test_without_early_exits_there_is_nothing_to_judge(self) -> None:
        assert "No system here has early exits" in run({"plain": takes(0.01)}, NUMBERED, LABELS).verdict


class TestPairs:
    """What can be said of two systems is said, whatever disturbs a third one."""

    def verdict(self, monkeypatch: pytest.MonkeyPatch, plain: Any, early: Any, small: Any) -> str:
        stub_clock(monkeypatch)
        early = early if isinstance(early, Clocked) else Clocked(early, exits=True)
        systems = {"plain": Clocked(plain), "early": early, "small": Clocked(small)}
        return run(systems, NUMBERED, LABELS, seconds=3.0).verdict

    def test_a_noisy_third_system_leaves_the_other_pair_decided(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = self.verdict(monkeypatch, steady(1.0), steady(0.5), noisy(0.1))
        assert said.startswith("Worth it at batch 8: early is 2.00 times as fast as plain, accuracy the same.")
        assert "Of small it cannot be said: wall times of the same work vary by" in said
        assert said.count("cannot be said") == 1

    def test_a_noisy_early_exit_leaves_the_networks_without_exits_decided(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = self.verdict(monkeypatch, steady(1.0), noisy(0.5), steady(0.25))
        assert said.startswith(
            "Of early exit it cannot be said at batch 8 whether it is worth it. Without exits, small"
        )
        assert "small is 4.00 times as fast as plain" in said
        assert "Of early it cannot be said: wall times" in said

    def test_the_reason_that_decides_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Faster by far, as it seems, with a large error; what decides is that it loses accuracy.
        losing = Clocked(uneven(0.05, 0.4), exits=True, answers=wrong(6))
        said = self.verdict(monkeypatch, steady(1.0), losing, steady(2.0))
        assert said.startswith("Not worth it at batch 8 if at most 1 point of accuracy may be lost: of the faster")
        assert re.search(r"early is 4\.\d+ ± \d\.\d+ times as fast as plain, accuracy -3\.8", said)
        barely = self.verdict(monkeypatch, steady(1.0), steady(0.98), steady(2.0))
        assert "no early exit is faster than plain by 3% or more; early is 1.02" in barely
        # Without labels: as it answers otherwise, only labels can tell.
        plain, slow = Clocked(steady(1.0)), Clocked(steady(1.2), exits=True)
        said = run({"plain": plain, "slow": slow, "early": losing}, NUMBERED, seconds=3.0).verdict
        assert said.startswith(
            "Without labels it cannot be said whether early exit is worth it at batch 8: early is 4."
        )
        same = Clocked(uneven(0.1, 1.75), exits=True)
        said = run({"plain": plain, "early": same}, NUMBERED, seconds=3.0).verdict
        assert said.startswith("It cannot be said at batch 8: early is 1.0")

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(data=st.data())
    def test_no_sentence_says_that_none_is_faster_beside_a_factor_above_one(
        self, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
    ) -> None:
        stub_clock(monkeypatch)
        ms = st.sampled_from([0.2, 0.5, 0.9, 0.98, 1.0, 1.1, 2.0])
        systems: dict[str, Any] = {"plain": Clocked(steady(1.0))}
        for n in range(data.draw(st.integers(1, 3))):
            times = uneven(data.draw(ms), data.draw(ms))
            answers = wrong(data.draw(st.sampled_from([0, 1, 6, 40])))
            systems[f"system {n}"] = Clocked(times, exits=not n or data.draw(st.booleans()), answers=answers)
        found = run(systems, NUMBERED, data.draw(st.sampled_from([LABELS, None])), seconds=0.0)
        speeds = {row.title: row.speed for row in found.rows if row.early_exit}
        if "no early exit is faster than plain;" in found.verdict:
            assert max(speeds.values()) <= 1
        if "no early exit is faster than plain by 3% or more;" in found.verdict:
            assert 1 < max(speeds.values()) < 1.03
        if found.verdict.startswith("Not worth it") and "no early exit" not in found.verdict:
            assert "may be lost" in found.verdict or "has no exits" in found.verdict, "the reason is said"
        if "of the faster early exits" in found.verdict:
            assert max(speeds.values()) >= 1.03
        assert found.verdict.startswith(("Worth it", "Not worth it", "It ", "Without labels it cannot be said"))

    def test_where_the_first_is_noisy_no_pair_is_decided(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = self.verdict(monkeypatch, noisy(1.0), steady(0.5), steady(0.25))
        assert said.startswith(
            "It cannot be said at batch 8 (by CPU time), since all are compared with plain: even CPU"
        )
        assert "Worth it" not in said

    def test_early_against_plain_is_open_and_against_a_smaller_network_is_not(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = self.verdict(monkeypatch, steady(1.0), uneven(0.1, 1.75), steady(0.1))
        assert said.startswith("Not worth it at batch 8: small is 10.00 ")
        assert "times as fast as plain, accuracy the same, and has no exits" in said
        assert "no early exit here is as fast. Against plain it cannot be said: early is 1.0" in said
        said = self.verdict(monkeypatch, steady(1.0), uneven(0.1, 1.75), steady(2.0))
        assert said.startswith("It cannot be said at batch 8: early is 1.0")

    def test_early_against_a_smaller_network_is_open_and_against_plain_is_not(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = self.verdict(monkeypatch, steady(1.0), steady(0.5), uneven(0.1, 0.85))
        assert said.startswith("Worth it at batch 8: early is 2.00 times as fast as plain, accuracy the same.")
        assert "small is 2.1" in said
        assert "whether early exit is faster than that cannot be said" in said


class TestResults:
    def test_files(self, data: Any, early: Any, tmp_path: Path) -> None:
        import_or_skip("matplotlib")
        result = run({"plain": early[0].backbone, "early": (*early, ["60%"])}, data, batch_sizes=[1, 8])
        result.write_json(tmp_path / "out.json")
        result.write_csv(tmp_path / "out.csv")
        result.write_figure(tmp_path / "out.png")
        written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert written == json.loads(json.dumps(result.to_dict()))
        with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
        assert [(row["system"], row["batch_size"]) for row in rows] == [
            (row.system, str(row.batch_size)) for row in result.rows
        ]
        assert float(rows[1]["accuracy"]) == result.rows[1].accuracy
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
        assert max(map(len, str(result).splitlines())) <= 120

    def test_without_labels_there_is_no_accuracy(self, data: Any, early: Any) -> None:
        result = run({"plain": early[0].backbone, "early": (*early, ["60%"])}, data[0])
        assert all(row.accuracy is None for row in result.rows)
        assert "accuracy" not in str(result)
        assert 0 < (result.rows[1].agreement or 0) < 1

    def test_few_calls_are_said_and_no_error_is_shown_as_zero(self, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        systems = {"plain": lambda x: x[:, 8:], "same": lambda x: x[:, 8:], "other": lambda x: x[:, :4]}
        result = run(systems, data[0].numpy(), data[1].numpy())
        assert result.rows[0].calls == 5
        said = (
            "Batch 8: 5 calls of each are too few for percentiles and errors to be trusted; measure longer: --seconds"
        )
        assert any(note.startswith(said) for note in result.notes)
        assert not re.search(r"± 0\.0+(?!\d)", str(result))
        assert "+0.0\n" in re.sub(" +", "\n", str(result)), "the same answers have no error"
        turns = iter(range(10**6))  # a millisecond each, on any machine
        clocks = {**vars(time), "perf_counter": lambda: next(turns) / 1e3}
        monkeypatch.setattr("eenet._timing.time", SimpleNamespace(**clocks))
        assert not any("too few" in note for note in run(systems, data[0].numpy(), seconds=0.3).notes)

    def test_stopping_keeps_what_was_measured(self) -> None:
        class Stops(Work):
            calls = 0

            def __call__(self, x: Array) -> Any:
                self.calls += 1
                if self.calls == self.last:
                    raise KeyboardInterrupt
                return super().__call__(x)

            last = 0

        system = Stops(1, LABELS)
        system.last = 160 // 8 + 3 + 25  # after the answers, the warm-up, and some turns
        result = run({"plain": system}, NUMBERED, LABELS, seconds=60)
        assert result.stopped
        assert 15 <= result.rows[0].calls < 25
        assert any("Stopped after" in note for note in result.notes)
        system.calls, system.last = 0, 3
        with pytest.raises(KeyboardInterrupt):
            run({"plain": system}, NUMBERED, LABELS)


LINEAR = nn.Linear(3, CLASSES)
X = np.zeros((40, 3), np.float32)


@pytest.mark.parametrize(
    ("systems", "data", "options", "message"),
    [
        (
            {"one": LINEAR, "two": nn.Linear(3, 5)},
            X,
            {},
            r"'two' gives logits \(5,\).*'one' gives \(4,\).*same classes",
        ),
        ({"one": LINEAR}, X[:, :2], {}, r"'one' cannot answer a batch.*\(8, 2\): mat1 and mat2"),
        ({"one": LINEAR}, X[:0], {}, "data holds no sample"),
        ({"one": LINEAR}, X[:5], {}, "batch size 8 is more than the 5 samples"),
        ({"one": LINEAR}, X, {"batch_sizes": [0]}, r"batch_sizes are \[0\], expected whole numbers"),
        ({"one": LINEAR}, (X, np.zeros(7, int)), {}, "7 labels for 40 samples"),
        ({"one": LINEAR}, (X, np.full(40, 4)), {}, "a label is 4, but the systems have 4 classes: expected 0 to 3"),
        ({"one": LINEAR}, (X, np.zeros(40)), {}, "labels are float64"),
        ({"one": LINEAR}, torch.utils.data.TensorDataset(torch.zeros(4)), {}, "wrap a Dataset in a DataLoader"),
        ({"one": LINEAR}, {"a": X, "b": X[:3]}, {}, r"hold \[3, 40\] samples"),
        ({"one": LINEAR}, [X, np.zeros((4, 2))], {}, "the batches of data have the shapes"),
        ({}, X, {}, "expected a mapping of at least one"),
        ({"one": 3}, X, {}, "system 'one' is an int, expected a torch module"),
        ({"one": "nowhere"}, X, {}, "'nowhere' does not exist; a path names the folder of a bundle"),
        ({"one": lambda x: "text"}, X, {}, "system 'one' cannot answer"),
        ({"one": LINEAR}, X, {"untrained": ["two"]}, "'two', which is no system"),
        ({"one": table_model(3, CLASSES)}, X, {}, "a multi-exit model needs a scheduler"),
    ],
)
def test_bad_input_is_refused_by_name(systems: Any, data: Any, options: Any, message: str) -> None:
    with pytest.raises(eenet.EENetError, match=message):
        run(systems, data, **options)


@pytest.mark.parametrize(
    ("early_ms", "told", "measured_at", "where"),
    [
        (0.67, True, 1, "the costs were measured at batch size 1, and may also be of another runtime or load"),
        (0.67, True, 8, "the costs were measured at this batch size, and may be of another runtime or load"),
        (0.67, True, None, "the costs do not say at which batch size they were measured, and may be of another one"),
        (0.65, False, 1, ""),
    ],
)
def test_more_time_than_planned_is_told_with_both_shares_and_the_batch_size_of_the_costs(
    data: Any,
    early: Any,
    monkeypatch: pytest.MonkeyPatch,
    early_ms: float,
    told: bool,
    measured_at: int | None,
    where: str,
) -> None:
    model, _ = early
    costs = eenet.ExitCosts([1, 2, 3], "ms", batch_size=measured_at, plain=3.0)
    scheduler = eenet.MaxProbability().fit(eenet.collect(model, [data]), costs, "60%")

    def clock(call: Callable[[], Any], **_options: Any) -> tuple[float, float]:
        Clocked.last = early_ms / 1000  # the plain network sets its own
        call()
        return Clocked.last, Clocked.last

    monkeypatch.setattr("eenet.benchmarking._measure.timed", clock)
    x = np.concatenate([NUMBERED, np.random.default_rng(0).normal(size=(160, 3 * CLASSES - 1))], axis=1)
    result = run({"plain": Clocked(steady(1.0)), "early": (model, scheduler, ["60%"])}, x.astype(np.float32))
    said = f"Batch 8: early 60% takes 67% of the time of plain, planned was 60% of the plain network: {where}"
    assert any(note.startswith(said) for note in result.notes) == told
    assert any("planned was" in note for note in result.notes) == told


def test_what_is_not_compared_in_one_runtime_or_as_one_graph_is_told(tmp_path: Path) -> None:
    import_or_skip("onnxruntime")
    import_or_skip("onnx")
    case = small_convolutions()
    graph = case.export(tmp_path / "onnx").manifest.path("plain.onnx")
    eager = run({"plain": graph, "early": (case.model, case.scheduler)}, case.arrays["x"])
    assert any(note.startswith("Some systems run in PyTorch and some in ONNX Runtime") for note in eager.notes)
    bundle = run({"plain": graph, "early": tmp_path / "onnx"}, case.arrays["x"])
    assert not any("Some systems run in PyTorch" in note or "carries no plain" in note for note in bundle.notes)
    data = json.loads((tmp_path / "onnx" / "manifest.json").read_text())
    del data["manifest_sha256"], data["files"][data["plain"]]
    data["plain"] = None
    (tmp_path / "onnx" / "manifest.json").write_text(json.dumps(eenet.bundle.sealed(data)))
    without = run({"mine": tmp_path / "onnx"}, case.arrays["x"])
    assert [row.system for row in without.rows] == ["mine, exits off", "mine"]
    (note,) = [note for note in without.notes if "carries no plain network" in note]
    assert note.startswith("mine carries no plain network (eenet.export keeps it up to 16 MiB)")
    assert "looks better here than it is. Give it as the first system" in note


def convolutions() -> tuple[nn.Module, eenet.MultiExitModel, eenet.ExitRecords, torch.Tensor, torch.Tensor]:
    """A network with batch norms, its model with an exit, records, inputs and labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
        ).eval()  # fmt: skip
        x = torch.randn(64, 3, 8, 8)
        model = eenet.attach(network, ["2"], example=x[:2]).eval()
        labels = torch.arange(64) % CLASSES
    return network, model, eenet.collect(model, [(x, labels)]), x, labels


def optimized(model: eenet.MultiExitModel, scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> eenet.AdaptiveModel:
    """With frozen stages, whatever the clock says of so small a network."""
    monkeypatch.setattr("eenet.optimize._optimize.WORTH", 1e9)
    monkeypatch.setattr(
        "eenet.optimize._optimize._ratios",
        lambda variants, inputs, _seconds: np.tile(np.linspace(1, 0.5, len(variants)), (len(list(inputs)), 1)),
    )
    return eenet.AdaptiveModel(model, scheduler, optimize="auto", batch_sizes=(8,), seconds=0.0)


def test_optimized_stages_are_compared_with_the_plain_network_optimized_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    network, model, records, x, labels = convolutions()
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1, 2]), "100%", fallback=False)
    fast = optimized(model, scheduler, monkeypatch)
    assert fast.optimized is not None
    assert fast.optimized.chosen == ("folded, channels last",)
    found = run({"plain": network, "fast": fast, "eager": (model, scheduler)}, (x, labels))
    assert [row.title for row in found.rows] == ["plain, optimized", "plain", "fast", "eager"]
    assert found.rows[0].speed == 1.0, "it is what the others are compared with"
    assert found.rows[0].accuracy == found.rows[1].accuracy == pytest.approx(records.accuracies[-1])
    assert found.rows[1].agreement == 1.0, "it has the plain network's answers"
    assert not found.rows[0].early_exit
    assert "plain, optimized" in found.verdict
    assert any(note.startswith("fast runs stages that were optimized, so the plain network") for note in found.notes)
    # Where another system is the first, it is a row before the system that is optimized; twice the same is one row.
    other = run({"other": lambda x: network(x), "fast": fast, "exit 0": (fast, 0)}, (x, labels))
    assert [row.title for row in other.rows] == ["other", "fast, plain optimized", "fast", "exit 0"]
    # Where nothing was optimized there is nothing to add.
    plain = run({"plain": network, "eager": eenet.AdaptiveModel(model, scheduler)}, (x, labels))
    assert [row.title for row in plain.rows] == ["plain", "eager"]


def test_a_plain_network_that_cannot_be_optimized_alike_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    network, model, records, x, labels = convolutions()
    fast = optimized(model, eenet.MaxProbability().fit(records, eenet.ExitCosts([1, 2]), "100%"), monkeypatch)

    def refused(*_args: Any, **_options: Any) -> Any:
        raise CutError("it cannot be traced")

    monkeypatch.setattr("eenet.runtime._adaptive.cut", refused)
    found = run({"plain": network, "fast": fast}, (x, labels))
    assert [row.title for row in found.rows] == ["plain", "fast"]
    assert any("could not be optimized as a whole (it cannot be traced)" in note for note in found.notes)


def test_one_exit_alone_is_a_system_without_exits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network, model, records, x, labels = convolutions()
    with pytest.raises(InvalidInputError, match=r"\(model, k\) in eenet.benchmark"):
        model.keep_exits([0])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1, 2]), "100%")
    fast = optimized(model, scheduler, monkeypatch)
    bundle = eenet.export(model, scheduler, tmp_path / "bundle", example=x[:2])
    systems = {"plain": network, "exit 0": (model, 0), "exit 1": (model, 1), "fast 0": (fast, 0), "b 0": (bundle, 0)}
    found = {row.title: row for row in run(systems, (x, labels)).rows}
    for name, k in (("exit 0", 0), ("exit 1", 1), ("fast 0", 0), ("b 0", 0)):
        assert found[name].accuracy == pytest.approx(records.accuracies[k])
        assert not found[name].early_exit
    first = 4 * (8 * 3 * 9 + 8 + 4 * 8)  # a convolution and its batch norm, which counts no batches in inference
    head = sum(tensor.nbytes for tensor in (*model.heads[0].parameters(), *model.heads[0].buffers()))
    assert found["exit 0"].weight_bytes == found["fast 0"].weight_bytes == first + head
    assert found["exit 1"].weight_bytes == first + 4 * (8 * 8 * 9 + 8 + 4 * 8 + 9 * CLASSES)
    graphs = [bundle.manifest.stages[0].graph, bundle.manifest.stages[0].head]
    assert found["b 0"].weight_bytes == sum((tmp_path / "bundle" / str(graph)).stat().st_size for graph in graphs)
    with pytest.raises(InvalidInputError, match="'early' is exit 2 alone, expected the number of an exit, 0 to 1"):
        run({"plain": network, "early": (model, 2)}, (x, labels))


def test_a_cascade_of_calls_shows_what_was_planned_and_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    unsure = np.arange(160) % 8 == 0  # one sample of each batch goes on
    guess, sure = np.where(unsure, (LABELS + 1) % CLASSES, LABELS), np.where(unsure, 0.4, 0.9)[:, None]
    spent = [0.0]

    def small(x: Array) -> Array:
        spent[0] = 1.0
        at = x[:, 0].astype(int)
        answers: Array = np.where(np.eye(CLASSES)[guess[at]] > 0, sure[at], (1 - sure[at]) / 3)
        return answers

    def big(x: Array) -> Array:
        spent[0] += 8.0  # however few are asked about
        answers: Array = 0.9 * np.eye(CLASSES)[LABELS[x[:, 0].astype(int)]] + 0.025
        return answers

    records = eenet.ExitRecords.cascade(
        [eenet.ExitRecords.from_probabilities(member(NUMBERED), LABELS) for member in (small, big)]
    )
    costs = eenet.ExitCosts.cascade([1 / 8, 8 / 8], "ms")  # of a sample in a batch of 8
    scheduler = eenet.SearchedThresholds().fit(records, costs, 1 / 8 + 1 / 8, fallback=False)
    cascade = eenet.CallCascade([small, big], scheduler)

    def clock(call: Callable[[], Any], **_options: Any) -> tuple[float, float]:
        call()
        return spent[0] / 1000, spent[0] / 1000

    monkeypatch.setattr("eenet.benchmarking._measure.timed", clock)
    found = run({"big": big, "cascade": cascade}, NUMBERED, LABELS)
    row = found.rows[1]
    assert (row.early_exit, row.unit, row.planned_cost) == (True, "ms", scheduler.planned_cost)
    assert len(row.exit_shares) == 2
    assert row.ms_per_sample == pytest.approx(9 / 8), "the second member takes as long for one sample as for eight"
    assert row.measured_over_planned == pytest.approx(9 / 8 / scheduler.planned_cost)
    assert row.measured_over_planned is not None
    assert row.measured_over_planned > 3
    said = next(note for note in found.notes if "times those planned" in note)
    assert "cascade: a member that takes a fixed time for a call takes it for few open samples too" in said
