"""Stages in int8: what is chosen keeps its accuracy, a bundle replays its own answers, bad input is refused."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import eenet
from eenet.bundle import LoadedBundle
from eenet.bundle._choosing import Chooser, PartTime  # private: `export` quantizes with it, a test has the rule alone
from eenet.bundle._frontier import (
    Frontier,
    folded,
)  # private: `export` compares makes by it, a test must set their times
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.testing import toy_records

for _library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_library)


@pytest.fixture(autouse=True)
def _busy_machine() -> Iterator[None]:
    """Small networks on few samples warn of much; what a test is about it looks for itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        yield


class Narrow(nn.Module):
    """Three stages of vectors; with `wide`, one channel after the first is 100,000 times as large as the others."""

    def __init__(self, *, wide: bool = False) -> None:
        super().__init__()
        into, on = nn.Linear(12, 24), nn.Linear(24, 24)
        self.first, self.second = nn.Sequential(into, nn.ReLU()), nn.Sequential(on, nn.ReLU())
        self.last = nn.Linear(24, 4)
        if wide:
            with torch.no_grad():
                into.weight[0] *= 1e5
                on.weight[:, 0] /= 1e5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.second(self.first(x)))
        return out


def made(*, wide: bool = False) -> tuple[eenet.MultiExitModel, list[Any], eenet.Scheduler]:
    """A model whose exits know its own last answers, samples with these as labels, and a scheduler."""
    torch.manual_seed(0)
    network = Narrow(wide=wide).eval()
    x = torch.randn(400, 12)
    model = eenet.attach(network, ["first", "second"], example=x[:2], heads=[nn.Linear(24, 4), nn.Linear(24, 4)]).eval()
    with torch.no_grad():
        features = network.first(x), network.second(network.first(x))
        for head, feature in zip(model.heads, features, strict=True):
            # The head that says what the last layer does, as well as a linear map of the feature can.
            ones = torch.cat([feature, torch.ones(len(feature), 1)], dim=1)
            solved = torch.linalg.lstsq(ones, network(x)).solution
            assert isinstance(head, nn.Linear)
            head.weight.copy_(solved[:-1].T)
            head.bias.copy_(solved[-1])
        labels = network(x).argmax(dim=1)
    loader = [(x[start : start + 50], labels[start : start + 50]) for start in range(0, 400, 50)]
    scheduler = eenet.MaxProbability().fit(
        eenet.collect(model, loader), eenet.ExitCosts([1, 2, 3]), "60%", fallback=False
    )
    return model, loader, scheduler


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    """A bundle with all in int8 that was measured."""
    model, loader, scheduler = made()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        return eenet.export(
            model, scheduler, tmp_path_factory.mktemp("int8") / "bundle", example=loader[0][0], precision="int8",
            calibration=loader, seconds=0.0, batch_sizes=[4], threads=1,
        )  # fmt: skip


def fresh(samples: int = 60) -> Any:
    """Other samples of the same kind."""
    return np.random.default_rng(5).normal(size=(samples, 12)).astype(np.float32)


def replayed(bundle: LoadedBundle, x: Any) -> Any:
    """The exits of a replay of what the bundle's own stages say."""
    live, logits = bundle.backend.enter(x), list[Any]()
    for k in range(bundle.backend.num_exits):
        live, answers = bundle.backend.run(k, live, observe=True)
        logits.append(answers)
    return bundle.scheduler.replay(eenet.ExitRecords.from_logits(np.stack(logits))).exits


@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_bundle_in_int8_takes_the_exits_of_a_replay_of_its_own_answers(chosen: LoadedBundle, size: int) -> None:
    x = fresh()
    expected = replayed(chosen, x)
    got = np.concatenate([chosen(x[start : start + size]).exits for start in range(0, len(x), size)])
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "precision", ["int8", {"stages.0": "int8"}, {"stages.1": "int8"}, {"heads.0": "int8"}, {"stages.2": "int8"}]
)
def test_inputs_that_are_not_finite_are_handed_back_as_in_fp32(precision: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network, x = nn.Sequential(first, second, nn.Linear(8, 4)).eval(), torch.randn(200, 3, 8, 8)
    model = eenet.attach(network, ["0", "1"], example=x[:2]).eval()
    labels = model(x)[-1].argmax(dim=1)
    loader = [(x[start : start + 50], labels[start : start + 50]) for start in range(0, 200, 50)]
    scheduler = eenet.MaxProbability().fit(
        eenet.collect(model, loader), eenet.ExitCosts([1, 2, 3]), 2.0, abstain=0.05, fallback=False
    )
    bad = np.random.default_rng(5).normal(size=(8, 3, 8, 8)).astype(np.float32)
    good = bad.copy()
    bad[1, 0, 3, 3], bad[3], bad[4, 2, 0, 0], bad[6, 1, 7, 7] = np.nan, np.nan, np.inf, -np.inf
    rows = np.array([1, 3, 4, 6])
    for number, one in enumerate(("fp32", precision)):
        bundle = eenet.export(
            model, scheduler, tmp_path / str(number), example=x[:16], precision=one, calibration=loader, measure=False
        )
        out, usual = bundle(bad), bundle(good)
        assert np.isfinite(usual.logits).all()
        assert (out.exits[rows] == 2).all()
        assert not np.isfinite(out.logits[rows]).all(axis=1).any()
        assert (out.predictions[rows] == -1).all()
        others = np.setdiff1d(np.arange(8), rows)
        np.testing.assert_array_equal(out.logits[others], usual.logits[others])
        assert out.exits[others].tolist() == usual.exits[others].tolist()


def test_its_records_are_of_its_own_stages_and_its_scheduler_is_fitted_to_them(chosen: LoadedBundle) -> None:
    records, made_with = chosen.records, chosen.info["quantization"]
    assert records is not None
    assert len(records) == made_with["samples"]["judged"] == 300
    np.testing.assert_allclose(records.accuracies, made_with["accuracies"]["bundle"])
    again = eenet.MaxProbability().fit(records, chosen.costs, chosen.scheduler.budget, fallback=False)
    assert again.policy == chosen.scheduler.policy


def test_the_manifest_says_each_parts_precision_and_measuring_again_keeps_it(chosen: LoadedBundle) -> None:
    names = ["stages.0", "stages.1", "stages.2", "heads.0", "heads.1"]
    assert chosen.precision == dict.fromkeys(names, "int8")
    assert chosen.info["verified"]["compared_with_itself"] == [0, 1, 2]
    folder = chosen.manifest.root
    eenet.bundle.measure(folder, seconds=0.0, batch_sizes=[4], threads=1, update=True)
    again = eenet.bundle.load(folder, threads=1)
    assert again.precision == chosen.precision
    np.testing.assert_array_equal(again(fresh()).exits, replayed(again, fresh()))
    assert eenet.bundle.load(folder, stages=[1]).precision == chosen.precision


def test_records_of_the_model_in_fp32_are_refused(chosen: LoadedBundle) -> None:
    model, loader, _ = made()
    with pytest.raises(InvalidInputError, match="other weights"):
        eenet.bundle.measure(chosen.manifest.root, records=eenet.collect(model, loader))


def test_a_benchmark_shows_the_plain_network_in_fp32_and_in_int8(chosen: LoadedBundle) -> None:
    systems = {"exits": chosen.manifest.root}
    rows = eenet.benchmark(systems, fresh(), batch_sizes=[4], seconds=0.0, threads=1).rows
    assert [row.system for row in rows] == ["exits, plain fp32", "exits, plain int8", "exits, exits off", "exits"]
    assert rows[1].weight_bytes is not None
    assert min(row.agreement or 0 for row in rows[:3]) > 0.9


def test_a_bundle_without_a_precision_is_in_fp32(exported: Any) -> None:
    bundle = eenet.bundle.load(exported("convolutions")[1])
    assert set(bundle.precision.values()) == {"fp32"}
    assert bundle.info["quantization"] is None


def test_parts_by_hand_and_the_others_as_the_model_has_them(tmp_path: Path) -> None:
    model, loader, scheduler = made()
    bundle = eenet.export(
        model, scheduler, tmp_path / "bundle", example=loader[0][0], measure=False, calibration=loader,
        precision={"stages.2": "int8", "heads.0": "fp32"},
    )  # fmt: skip
    assert [name for name, precision in bundle.precision.items() if precision == "int8"] == ["stages.2"]
    assert bundle.info["verified"]["compared_with_itself"] == [2]
    x = fresh()
    live = bundle.backend.enter(x)
    _, logits = bundle.backend.run(0, live, observe=True)
    assert logits is not None
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model(torch.from_numpy(x))[0].numpy(), atol=1e-3)
    np.testing.assert_array_equal(bundle(x).exits, replayed(bundle, x))


def test_a_stage_that_collapses_is_warned_of_by_hand_and_never_chosen(tmp_path: Path) -> None:
    model, loader, scheduler = made(wide=True)
    options: dict[str, Any] = {"example": loader[0][0], "calibration": loader, "seconds": 0.0, "batch_sizes": [4]}
    with pytest.warns(ReliabilityWarning, match=r"exit 1 has [\d.]+ % with these parts in int8, [\d.]+ % in fp32"):
        bundle = eenet.export(
            model, scheduler, tmp_path / "a", precision={"stages.1": "int8"}, measure=False, **options
        )
    lost = bundle.info["quantization"]["accuracies"]
    assert lost["bundle"][1] < lost["fp32"][1] - 0.1
    bundle = eenet.export(model, scheduler, tmp_path / "b", precision="auto", **options)
    assert bundle.precision["stages.1"] == "fp32"
    kept = bundle.info["quantization"]["accuracies"]
    assert (np.subtract(kept["fp32"], kept["bundle"]) <= 0.005 + 1e-9).all()
    np.testing.assert_array_equal(bundle(fresh()).exits, replayed(bundle, fresh()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision is 'int4'"),
        (
            {"precision": {"stages.9": "int8"}},
            r"'stages.9', which is no part; expected some of stages.0, .*stages.1 ends at 'second'; stages.2 is the r",
        ),
        ({"precision": {"stages.0": "half"}}, "'half' for a part"),
        ({"precision": "auto", "backend": "torch"}, "int8 stages run in ONNX Runtime alone"),
        ({"precision": "auto", "calibration": None}, "give calibration=loader"),
        ({"precision": "auto", "max_exit_drop": 0.5}, "that is 50 points of accuracy"),
        ({"precision": "auto", "exit_drop_guarantee": 95}, "expected a probability such as 0.95"),
        ({"precision": "int8", "exit_drop_guarantee": 0.95}, "give precision='auto', or no guarantee"),
        ({"precision": ["stages.0"]}, r"precision is \['stages.0'\], expected a word such as 'auto', or a mapping"),
        ({"precision": "int8", "calibration": [torch.randn(64, 12)]}, "no labels"),
        (
            {"precision": "int8", "calibration": [(torch.randn(20, 12), torch.zeros(20).long())]},
            "20 samples; expected at l",
        ),
        ({"precision": "int8", "calibration": [(torch.randn(64, 12), torch.zeros(63))]}, "64 samples has labels of"),
        (
            {"precision": "int8", "calibration": [(torch.randn(64, 12), torch.zeros(64))]},
            "labels have dtype float32, expected integers",
        ),
        ({"precision": "int8", "calibration": [(torch.randn(64, 12), ["a"] * 64)]}, "dtype <U1, expected integers"),
        ({"precision": "int8", "calibration": [(torch.randn(64, 12), [[0], [0, 1]] * 32)]}, "no array of integers"),
        ({"precision": "int8", "calibration": iter([])}, "0 samples; .* A generator gives its batches once"),
        ({"precision": "int8", "calibration": 3}, "calibration is an int, expected a DataLoader"),
        (
            {"precision": "int8", "calibration": [(torch.randn(64, 12), torch.full((64,), 4))]},
            "the label 4, expected 0",
        ),
        ({"precision": "int8", "calibration": [(torch.full((64, 12), np.nan), torch.ones(64).long())]}, "hold NaN"),
        ({"precision": "int8", "calibration": (torch.randn(64, 12), torch.ones(64).long())}, "give .*inputs, labels.*"),
        ({"precision": None}, "precision is None, expected a word"),
        ({"precision": "auto", "max_exit_drop": "0.5%"}, "max_exit_drop is '0.5%', expected a number"),
        ({"precision": "auto", "exit_drop_guarantee": "95%"}, "expected a probability such as 0.95"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    model, loader, scheduler = made()
    given_options = {"example": loader[0][0], "calibration": loader, "measure": False, **options}
    with pytest.raises(InvalidInputError, match=message):
        eenet.export(model, scheduler, tmp_path / "bundle", **given_options)
    assert not (tmp_path / "bundle").exists()


def test_calibration_data_of_one_class_are_warned_of_and_numpy_s_numbers_taken(tmp_path: Path) -> None:
    model, loader, scheduler = made()
    options: dict[str, Any] = {"example": loader[0][0], "precision": "auto", "seconds": 0.0, "measure": False}
    one_class = [(x, torch.zeros_like(y).numpy().astype(np.uint16)) for x, y in loader]
    with pytest.warns(ReliabilityWarning, match="all 300 samples are of class 0"):
        bundle = eenet.export(
            model, scheduler, tmp_path / "bundle", calibration=one_class, max_exit_drop=np.float32(0.01), **options
        )
    assert bundle.info["quantization"]["max_exit_drop"] == pytest.approx(0.01)


def test_an_error_of_the_calibration_data_is_not_taken_for_one_of_writing(tmp_path: Path) -> None:
    model, loader, scheduler = made()

    def torn() -> Any:
        yield loader[0]
        raise FileNotFoundError(2, "No such file or directory", "images/7.png")

    with pytest.raises(FileNotFoundError, match=r"images/7\.png"):
        eenet.export(model, scheduler, tmp_path / "b", example=loader[0][0], precision="int8", calibration=torn())
    assert not list(tmp_path.iterdir())


PARTS = ("stages.0", "stages.1", "stages.2")
HEADS = ("heads.0", "heads.1")


@st.composite
def losses(draw: st.DrawFn) -> tuple[dict[frozenset[str], Any], dict[str, PartTime]]:
    """What the exits answer rightly for every set of stages in int8, at random, and times."""
    samples = draw(st.integers(20, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    right = rng.random((3, samples)) < 0.9
    table = {}
    for size in range(4):
        for names in itertools.combinations(PARTS, size):
            worth = []
            for head in (0.0, draw(st.sampled_from([0.0, 0.01, 0.2]))):
                wrong = draw(st.sampled_from([0.0, 0.005, 0.02, 0.2])) if names else 0.0
                of_exits = np.array([[wrong + head], [wrong + head], [wrong]])
                worth.append((right & (rng.random(right.shape) >= of_exits)).astype(np.float64))
            if not names:
                worth[0] = right.astype(np.float64)
            table[frozenset(names)] = tuple(worth)
    ratios, errors = st.sampled_from([0.3, 0.6, 0.94, 0.97, 2.0]), st.sampled_from([0.0, 0.01, 0.3])
    times = {name: PartTime(draw(st.sampled_from([0.002, 1.0])), 0.0) for name in (*PARTS, *HEADS)}
    times = {name: PartTime(one.fp32, draw(ratios) * one.fp32, draw(errors)) for name, one in times.items()}
    return table, times


@settings(max_examples=150, deadline=None)
@given(case=losses(), most=st.sampled_from([0.0, 0.005, 0.05]))
def test_what_is_chosen_is_faster_and_no_exit_loses_more_than_it_may(case: Any, most: float) -> None:
    table, times = case
    asked: list[frozenset[str]] = []

    def judged(stages: frozenset[str]) -> Any:
        asked.append(stages)
        return table[stages]

    chooser = Chooser(judged, most)
    found = chooser.chosen(times)
    assert all(times[name].ratio + 2 * times[name].error < 0.95 for name in found)
    assert all(times[name].saved >= 0.01 * sum(one.fp32 for one in times.values()) for name in found)
    lost = table[frozenset()][0].mean(axis=1) - chooser.worth(found).mean(axis=1)
    assert (lost <= most + 1e-9).all()
    assert {name for name in times if name not in found} == {name for name in chooser.why if name not in found}
    assert len(set(asked)) <= 2 + len(PARTS)


@settings(max_examples=50, deadline=None)
@given(case=losses(), seed=st.integers(0, 2**16))
def test_times_that_differ_by_chance_change_no_choice(case: Any, seed: int) -> None:
    table, times = case
    rng = np.random.default_rng(seed)
    # None is at the limit: there any choice is a matter of chance, and fp32 is taken.
    times = {name: PartTime(one.fp32, one.int8 if one.ratio < 0.9 else one.fp32, 0.01) for name, one in times.items()}
    again = {
        name: PartTime(one.fp32 * (1 + 0.02 * rng.uniform(-1, 1)), one.int8 * (1 + 0.02 * rng.uniform(-1, 1)), 0.01)
        for name, one in times.items()
    }
    first, second = (Chooser(lambda stages: table[stages], 0.005).chosen(measured) for measured in (times, again))
    assert first == second


@settings(max_examples=100, deadline=None)
@given(case=losses())
def test_the_looser_limit_that_is_named_allows_what_it_says(case: Any) -> None:
    table, times = case
    chooser = Chooser(lambda stages: table[stages], 0.005)
    chooser.chosen(times)
    named = chooser.looser(times, 0.1, 0.005)
    faster = frozenset(name for name in PARTS if times[name].faster and not chooser.why.get(name, "").startswith("in "))
    lost = table[frozenset()][0].mean(axis=1) - table[faster][0].mean(axis=1)
    if named is None:
        assert lost.max() > 0.1 - 1e-9, "an exit has collapsed"
        return
    limit, parts = named
    assert {name for name in parts if name in PARTS} == faster
    assert Chooser(lambda stages: table[stages], limit).chosen(times) == parts
    stricter = Chooser(lambda stages: table[stages], limit - 0.005)
    assert limit < 0.005 or not faster <= stricter.chosen(times) or not faster


def test_half_a_point_and_two() -> None:
    rng = np.random.default_rng(0)
    right = np.ones((2, 1000))
    worse = right.copy()
    worse[0, rng.permutation(1000)[:14]] = 0.0  # the first exit loses 1.4 points, in int8 or not
    times = {"stages.0": PartTime(1.0, 0.5), "stages.1": PartTime(1.0, 0.5), "heads.0": PartTime(0.1, 0.05)}

    def judged(stages: frozenset[str]) -> Any:
        return (worse, worse) if "stages.0" in stages else (right, right)

    strict = Chooser(judged, 0.005)
    assert strict.chosen(times) == {"stages.1", "heads.0"}
    assert strict.looser(times, 0.1, 0.005) == (0.015, frozenset(times))
    assert Chooser(judged, 0.02).chosen(times) == times.keys()
    worse[0, :200] = 0.0
    assert strict.looser(times, 0.1, 0.005) is None, "an exit that loses 20 points has collapsed"


def test_a_make_that_is_as_accurate_for_less_is_ahead_and_by_how_much() -> None:
    records, costs = toy_records(samples=1500), eenet.ExitCosts([1.0, 2.0, 3.0], "ms")
    one = Frontier(records, costs)
    same = one.ahead_of(Frontier(records, costs))
    assert (same.mean, same.certain, same.behind) == (0.0, False, False)
    assert same.speed == pytest.approx(1.0)
    halved = Frontier(records, eenet.ExitCosts(costs.values / 2, "ms"))
    ahead, behind = halved.ahead_of(one), one.ahead_of(halved)
    assert ahead.certain
    assert ahead.speed == pytest.approx(2.0)
    assert behind.behind
    assert behind.speed == pytest.approx(0.5)


def test_equal_samples_are_in_one_fold_of_a_make() -> None:
    once, costs = toy_records(samples=90, seed=3), eenet.ExitCosts([1.0, 2.0, 3.0], "ms")
    folds = folded(once.subset(np.tile(np.arange(90), 4)))
    assert len(folds) == 3
    assert sorted(np.concatenate(folds)) == list(range(360))
    samples = [set((rows % 90).tolist()) for rows in folds]
    assert sum(map(len, samples)) == 90
    found = Frontier(once.subset(np.tile(np.arange(90), 4)), costs)
    alone = Frontier(once, costs)
    assert found.accuracies == pytest.approx(alone.accuracies)


def test_one_that_loses_what_it_saves_is_not_ahead() -> None:
    records, costs = toy_records(samples=1500), eenet.ExitCosts([1.0, 2.0, 3.0], "ms")
    right = np.asarray(records.utility).copy()
    right[:, np.random.default_rng(0).random(len(records)) < 0.2] = 0.0
    worse = eenet.ExitRecords(records.probabilities, records.predictions, records.labels, right)
    lost = Frontier(worse, eenet.ExitCosts(costs.values * 0.9, "ms")).ahead_of(Frontier(records, costs))
    assert lost.behind


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_with_a_guarantee_what_is_chosen_was_shown_on_other_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    right = (rng.random((2, 6000)) < 0.9).astype(np.float64)
    times = {"stages.0": PartTime(1.0, 0.5), "stages.1": PartTime(1.0, 0.4), "heads.0": PartTime(1.0, 0.5)}
    same = Chooser(lambda _: (right, right), 0.01, 0.9)
    assert same.chosen(times) == times.keys()
    few = Chooser(lambda _: (right[:, :60], right[:, :60]), 0.005, 0.9)
    assert few.chosen(times) == frozenset()
    assert few.why.keys() == times.keys()
    assert all("do not show" in why for why in few.why.values())


def test_a_loss_beyond_the_limit_is_rarely_chosen_with_a_guarantee() -> None:
    rng, wrongly = np.random.default_rng(0), 0
    for _ in range(200):
        right = (rng.random((2, 1000)) < 0.9).astype(np.float64)
        worse = right * (rng.random(right.shape) >= 0.0112)  # of 0.9, a loss of one point: at the limit
        chooser = Chooser(lambda stages, r=right, w=worse: (w, w) if stages else (r, r), 0.01, 0.9)  # type: ignore[misc]
        wrongly += bool(chooser.chosen({"stages.0": PartTime(1.0, 0.5)}))
    assert wrongly <= 0.1 * 200
