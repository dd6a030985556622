"""Semantic segmentation: pooled evidence, utility and metrics, and the same scheduler code."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from optional import import_or_skip
from torch import Tensor, nn
from torch.nn import functional as F

import eenet
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.scheduler import SCHEDULERS
from eenet.tasks import Segmentation, mean_iou

CLASSES = 4


class DenseNet(nn.Module):
    """Two groups of convolutions and a classifier for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.classify = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.classify(self.second(self.first(x)))
        return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


@lru_cache(maxsize=1)
def dense_model() -> eenet.MultiExitModel:
    torch.manual_seed(0)
    net = DenseNet()
    with torch.no_grad():
        net.classify.weight.mul_(30)
    return eenet.attach(net.eval(), ["first", "second"], CLASSES, torch.randn(2, 3, 16, 24)).eval()


def scenes(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, 16, 24, generator=generator)
    y = torch.randint(CLASSES, (samples, 16, 24), generator=generator)
    y[torch.rand(y.shape, generator=generator) < 0.1] = 255
    return x, y


def records_of(samples: int = 60, seed: int = 0) -> eenet.ExitRecords:
    x, y = scenes(samples, seed)
    return eenet.collect(dense_model(), [(x[i : i + 7], y[i : i + 7]) for i in range(0, samples, 7)])


def test_evidence_is_the_mean_over_pixels() -> None:
    rng = np.random.default_rng(0)
    logits = [rng.standard_normal((3, CLASSES, 8, 12)).astype(np.float32) * 3 for _ in range(3)]
    task = Segmentation(stride=1)
    history: list[eenet.tasks.Evidence] = []
    for z in logits:
        history.append(task.evidence(z, history))
    for k, evidence in enumerate(history):
        p = torch.softmax(torch.from_numpy(logits[k]).double(), 1)
        np.testing.assert_allclose(evidence.probabilities, p.mean((2, 3)), rtol=1e-5)
        np.testing.assert_allclose(evidence.max_probability, p.amax(1).mean((1, 2)), rtol=1e-5)
        entropy = -(p * p.log()).sum(1).mean((1, 2)) / np.log(CLASSES)
        np.testing.assert_allclose(evidence.entropy, entropy, rtol=1e-4)
        here = logits[k].argmax(1)
        share = np.mean([logits[j].argmax(1) == here for j in range(k + 1)], axis=0).mean((1, 2))
        np.testing.assert_allclose(evidence.vote_share, share)
        assert evidence.finite.all()


def test_evidence_of_saturated_and_non_finite_images() -> None:
    logits = np.zeros((3, CLASSES, 4, 4), dtype=np.float32)
    logits[0, 1] = 1e4
    logits[1, 2, 0, 0] = np.nan
    evidence = Segmentation(stride=1).evidence(logits, [])
    assert evidence.finite.tolist() == [True, False, True]
    for name in eenet.tasks.POOLED:
        assert np.isfinite(getattr(evidence, name)).all(), name
    assert evidence.entropy[0] == pytest.approx(0.0, abs=1e-9)
    assert evidence.entropy[2] == pytest.approx(1.0)
    assert evidence.log_odds[0] > 50


def test_stride_looks_at_a_part_of_the_pixels_alone() -> None:
    logits = torch.zeros(1, CLASSES, 8, 8)
    shown = Segmentation(stride=4).shown(logits)
    assert shown.shape == (1, CLASSES, 2, 2)
    with pytest.raises(InvalidInputError, match="stride is 0"):
        Segmentation(stride=0)
    with pytest.raises(InvalidInputError, match=r"utility is 'iou'.*mean_iou"):
        Segmentation(utility="iou")


@pytest.mark.filterwarnings("ignore:.*of the budget of:eenet.errors.ReliabilityWarning")  # of random records
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    batch_size=st.integers(1, 33),
    name=st.sampled_from(["MaxProbability", "Entropy", "Patience", "SearchedThresholds", "EENet"]),
    budget=st.floats(1.05, 2.95),
)
def test_adaptive_model_takes_the_exits_that_replay_does(seed: int, batch_size: int, name: str, budget: float) -> None:
    x, y = scenes(40, seed)
    model = dense_model()
    records = eenet.collect(model, [(x[:25], y[:25]), (x[25:], y[25:])])
    maker = eenet.EENet(turns=1, target="right", weight_decay=1e-4) if name == "EENet" else getattr(eenet, name)()
    scheduler = maker.fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=budget, fallback=False)
    decisions = scheduler.replay(records)
    assert decisions.mean_cost <= budget * (1 + 1e-9)
    fast = eenet.AdaptiveModel(model, scheduler)
    outputs = [fast(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
    exits = torch.cat([o.exits for o in outputs])
    np.testing.assert_array_equal(exits.numpy(), decisions.exits)
    with torch.inference_mode():
        logits = torch.stack(model(x))
    expected = logits[exits, torch.arange(len(x))]
    torch.testing.assert_close(torch.cat([o.logits for o in outputs]), expected, rtol=1e-4, atol=1e-4)


@lru_cache(maxsize=1)
def four_exits() -> eenet.MultiExitModel:
    torch.manual_seed(1)
    net = DenseNet()
    with torch.no_grad():
        net.classify.weight.mul_(30)
    return eenet.attach(net.eval(), ["first.0", "first", "second"], CLASSES, torch.randn(2, 3, 16, 24)).eval()


COUNT_AGREEMENT = ["patience", "voting", "stopping", "eenet"]


@pytest.mark.filterwarnings("ignore:.*of the budget of:eenet.errors.ReliabilityWarning")  # of random records
@pytest.mark.filterwarnings("ignore:.*is used instead:eenet.errors.FallbackWarning")
@pytest.mark.parametrize(
    ("exits", "refused"),
    [
        ([1, 2, 3], COUNT_AGREEMENT),
        ([0, 2, 3], COUNT_AGREEMENT),
        ([0, 1, 2], []),  # the first exits: those before are all there
        ([1, 3], ["eenet"]),  # of two exits the last decides nothing, but EENet learns from it
        ("four, plain", ["eenet"]),
        ("plain, four", COUNT_AGREEMENT),
    ],
)
def test_records_that_are_cut_or_joined_decide_as_the_model_does_or_are_refused(
    exits: str | list[int], refused: list[str]
) -> None:
    x, y = scenes(60)
    whole = four_exits()
    records = eenet.collect(whole, [(x, y)])
    if isinstance(exits, list):
        model, records = whole.keep_exits(exits), records.keep_exits(exits)
    else:
        plain = eenet.build_network("test_segmentation:DenseNet").eval()
        alone = eenet.collect(eenet.attach(plain, ["first"], CLASSES, x[:2]), [(x, y)]).keep_exits([1])
        given = [(whole, records), (plain, alone)][:: 1 if exits.startswith("four") else -1]
        model = eenet.cascade([member for member, _ in given], x[:2]).eval()
        records = eenet.ExitRecords.cascade([of_member for _, of_member in given])
    collected = eenet.collect(model, [(x, y)])
    costs = eenet.ExitCosts(np.arange(1.0, model.num_exits + 1))
    for name in ("max_prob", "entropy", "searched", *COUNT_AGREEMENT):
        maker = SCHEDULERS[name]()
        if name in refused:
            with pytest.raises(
                InvalidInputError, match=r"the exits agree is not known .* by eenet\.collect, or choose"
            ):
                maker.fit(records, costs, "60% of last", fallback=False)
            fitted = maker.fit(collected, costs, "60% of last", fallback=False)
            try:
                replayed = fitted.replay(records).exits
            except InvalidInputError as error:
                assert "the exits agree is not known" in str(error)  # noqa: PT017 - a policy may not read all exits
            else:
                np.testing.assert_array_equal(replayed, fitted.replay(collected).exits)
            continue
        fitted = maker.fit(records, costs, "60% of last", fallback=False)
        replayed = fitted.replay(records).exits
        np.testing.assert_array_equal(fitted.replay(collected).exits, replayed)
        np.testing.assert_array_equal(eenet.AdaptiveModel(model, fitted)(x).exits, replayed)


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")  # of random records
def test_a_search_joins_networks_by_what_their_records_can_say() -> None:
    first, second = records_of(), records_of().keep_exits([2])
    candidates = {"first": first, "second": second, "third": first.keep_exits([1, 2])}
    costs: dict[str, eenet.ExitCosts | float] = {"first": eenet.ExitCosts([1.0, 2.0, 3.0]), "second": 4.0}
    costs |= {"third": eenet.ExitCosts([1.5, 2.5])}
    found = eenet.search(candidates, costs)
    own = [one.scheduler.policy.score.name for one in found.frontier if one.scheduler is not None]
    assert set(own) <= {"max_prob", "constant"}


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")  # of random records
@pytest.mark.parametrize("scheduler", [eenet.OptimalStopping(), eenet.Patience()])
def test_a_search_leaves_out_cascades_that_its_scheduler_cannot_judge(scheduler: eenet.Scheduler) -> None:
    first = records_of(300)  # of fewer the first scheduler learns nothing, and counts nothing
    costs = {"first": eenet.ExitCosts([1.0, 2.0, 3.0]), "third": eenet.ExitCosts([1.5, 2.5])}
    found = eenet.search({"first": first, "third": first.keep_exits([1, 2])}, costs, scheduler=scheduler)
    names = [one["name"] for one in found.to_dict()["systems"]]
    assert {"first, with exits", "third, with exits"} <= set(names)
    assert "third + first" not in names
    assert found.notes == (
        f"third + first is left out: {scheduler.name} counts on how many pixels exits agree, which is not known for "
        "records that were joined or cut; MaxProbability (max_prob) does not count it.",
    )
    assert all(len(one.members) == 1 for one in found.frontier)


def test_an_empty_batch_gives_empty_maps() -> None:
    scheduler = eenet.MaxProbability().fit(records_of(), eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0)
    out = eenet.AdaptiveModel(dense_model(), scheduler)(torch.randn(0, 3, 16, 24))
    assert out.logits.shape == (0, CLASSES, 16, 24)


def reference(model: eenet.MultiExitModel, x: Tensor) -> NDArray[np.intp]:
    with torch.inference_mode():
        return torch.stack(model(x)).argmax(2).numpy()


def test_metrics_are_those_of_torchmetrics() -> None:
    classification = import_or_skip("torchmetrics.functional.classification")
    x, y = scenes(20)
    model = dense_model()
    records = eenet.collect(model, [(x, y)])
    maps = torch.from_numpy(reference(model, x))
    for k in range(3):
        decisions = eenet.Static(k).fit(records, eenet.ExitCosts([1.0, 2.0, 3.0])).replay(records)
        kept = y != 255
        iou = classification.multiclass_jaccard_index(maps[k][kept], y[kept], CLASSES)
        assert decisions.mean_iou == pytest.approx(float(iou), abs=1e-6)
        each = [float((maps[k][n] == y[n])[kept[n]].float().mean()) for n in range(len(x))]
        assert decisions.accuracy == pytest.approx(np.mean(each), abs=1e-6)


def test_an_image_can_be_worth_its_mean_iou() -> None:
    task = Segmentation(utility="mean_iou")
    predictions = np.array([[[0, 0], [1, 1]]])
    labels = np.array([[[0, 1], [1, 255]]])
    counts = task.pixel_counts(predictions, labels, CLASSES)
    assert counts[0, :2].tolist() == [[1, 2, 1], [1, 1, 2]]
    assert task.utility_of(counts).tolist() == pytest.approx([0.5])
    assert mean_iou(counts) == pytest.approx(0.5)


@pytest.mark.parametrize("utility", ["pixel_accuracy", "mean_iou"])
def test_images_without_labels_are_left_out_and_told(utility: str) -> None:
    x, whole = scenes(20)
    y = whole.clone()
    y[[3, 11]] = 255
    model = eenet.attach(DenseNet().eval(), ["first"], CLASSES, x[:2], task=Segmentation(utility=utility))
    with pytest.warns(ReliabilityWarning, match="2 of 20 images have no labeled pixel"):
        records = eenet.collect(model, [(x[:7], y[:7]), (x[7:], y[7:])])
    labeled = np.delete(np.arange(20), [3, 11])
    assert records == eenet.collect(model, [(x[:7], whole[:7]), (x[7:], whole[7:])]).subset(labeled)
    with pytest.raises(InvalidInputError, match=r"none of the 2 images has a labeled pixel: all are ignore_index=255"):
        eenet.collect(model, [(x[[3, 11]], y[[3, 11]])])


def test_counts_are_of_classes_alone() -> None:
    with pytest.raises(InvalidInputError, match="a pixel is predicted as -1, expected 0 to 3"):
        Segmentation().pixel_counts(np.full((1, 2, 2), -1), np.zeros((1, 2, 2), dtype=int), CLASSES)


def test_records_of_images_round_trip_and_split(tmp_path: Path) -> None:
    records = records_of()
    records.save(tmp_path / "records.safetensors")
    again = eenet.ExitRecords.load(tmp_path / "records.safetensors")
    scheduler = eenet.Patience().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0)
    decisions = scheduler.replay(records)
    np.testing.assert_array_equal(scheduler.replay(again).exits, decisions.exits)
    assert scheduler.replay(again).mean_iou == decisions.mean_iou
    rows = np.array([5, 3, 40])
    np.testing.assert_array_equal(scheduler.replay(records.subset(rows)).exits, decisions.exits[rows])


def test_wrong_labels_and_tasks_are_refused() -> None:
    x, y = scenes(4)
    with pytest.raises(InvalidInputError, match="a pixel is labeled 9, expected 0 to 3 or ignore_index=255"):
        eenet.collect(dense_model(), [(x, torch.full_like(y, 9))])
    with pytest.raises(InvalidInputError, match="labels have shape"):
        eenet.collect(dense_model(), [(x, y[:, :8])])
    with pytest.raises(InvalidInputError, match="the task is classification, but the network gives logits"):
        eenet.attach(DenseNet().eval(), ["first"], CLASSES, x, task=eenet.tasks.Classification())
    unlabeled = eenet.collect(dense_model(), [x])
    scheduler = eenet.MaxProbability().fit(unlabeled, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0)
    with pytest.raises(InvalidInputError, match="no pixel counts"):
        _ = scheduler.replay(unlabeled).mean_iou


def test_a_saved_network_keeps_its_task(tmp_path: Path) -> None:
    task = Segmentation(stride=2, utility="mean_iou")
    x = torch.randn(1, 3, 32, 32)
    network = eenet.build_network("eenet:hrnet-w18-small-v1", num_classes=3)
    model = eenet.attach(network.eval(), ["stage1"], 3, x, task=task)
    model.save_pretrained(tmp_path / "model")
    again = eenet.MultiExitModel.from_pretrained(tmp_path / "model")
    assert again.task == task
    for a, b in zip(model.eval()(x), again(x), strict=True):
        torch.testing.assert_close(a, b)
