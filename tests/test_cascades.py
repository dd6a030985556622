"""Cascades from predictions alone: the records and the costs of several models as those of one network."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eenet
from eenet import ExitCosts, ExitRecords
from eenet.errors import FallbackWarning, InvalidInputError, ReliabilityWarning
from eenet.tasks import Segmentation
from eenet.testing import toy_costs, toy_logits, toy_records


def plain(seed: int, samples: int = 60, labeled: bool = True, classes: int = 4) -> ExitRecords:
    """Records of a plain network."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % 4
    return ExitRecords.from_logits(rng.normal(size=(samples, classes)), labels if labeled else None)


def maps(labels: Any, seed: int = 0, utility: str = "pixel_accuracy") -> ExitRecords:
    """Records of one exit of a network with a class per pixel."""
    task = Segmentation(stride=1, utility=utility)
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3, 4, 4)).astype(np.float32)
    counts = task.pixel_counts(logits.argmax(axis=1), labels, 3)
    evidence = task.evidence(logits, [])
    return ExitRecords.from_evidence([[evidence]], utility=task.utility_of(counts)[None], pixel_counts=counts[None])


@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.data())
def test_exits_count_one_by_one_and_labels_in_one_member_are_enough(sizes: list[int], data: st.DataObject) -> None:
    whole = toy_records(samples=30, exits=sum(sizes), nonfinite=0.1)
    assert whole.labels is not None
    labeled = data.draw(st.integers(0, len(sizes) - 1))
    ends = np.cumsum(sizes)
    members = []
    for number, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        part = slice(end - size, end)
        labels = whole.labels if number == labeled else None
        members.append(ExitRecords(whole.probabilities[part], whole.predictions[part], labels))
    assert ExitRecords.cascade(members) == whole
    own = np.random.default_rng(0).uniform(0.5, 1.0, sum(sizes)).tolist()
    costs = []
    for end, size in zip(ends, sizes, strict=True):
        cumulative = np.cumsum(own[end - size : end])
        costs.append(float(cumulative[0]) if size == 1 else ExitCosts(cumulative, "cents"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # costs are random, so that some are above the next
        joined = ExitCosts.cascade(costs, "cents")
    np.testing.assert_allclose(joined.values, np.cumsum(own))
    assert joined.unit == "cents"
    last = costs[-1]
    assert joined.plain == (last if isinstance(last, float) else last[-1])


def test_a_cascade_of_two_plain_networks_is_fitted_like_any_network() -> None:
    logits, labels = toy_logits(samples=800, exits=2)
    members = [ExitRecords.from_logits(logits[0], labels), ExitRecords.from_logits(logits[1])]
    records = ExitRecords.cascade(members)
    assert records == ExitRecords.from_logits(logits, labels)
    assert ExitRecords.cascade(dict(zip(("small", "big"), members, strict=True))) == records
    costs = ExitCosts.cascade([1.0, 4.0])
    assert ExitCosts.cascade({"small": 1.0, "big": 4.0}) == costs
    fitted = eenet.MaxProbability().fit(records, costs, "60%")
    assert fitted.budget == pytest.approx(2.4), "of the last network by itself, not of both"
    assert fitted.calibration_cost <= 2.4


def test_records_of_a_plain_network_cannot_be_fitted_alone() -> None:
    with pytest.raises(InvalidInputError, match=r"the records or the model have 1; .*ExitRecords\.cascade"):
        eenet.MaxProbability().fit(plain(0), toy_costs(), "60%")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([plain(0)], r"members are a list of 1, expected a list of at least two"),
        (plain(0), r"members are an ExitRecords, expected a list"),
        ([plain(0), np.zeros((60, 4))], r"member 1 is an ndarray, expected ExitRecords"),
        ([plain(0), plain(1, samples=40)], r"member 1 has records of 40 samples, member 0 of 60; .*same order"),
        ([plain(0), plain(1, classes=5)], r"member 1 has 5 classes, member 0 has 4"),
        (
            [plain(0, labeled=False), plain(1), plain(2).subset(np.arange(60)[::-1])],
            r"member 2 has other labels than member 1 for 60 of 60 samples: of sample 0 3 and 0; both have the same "
            r"labels in another order; give the records of the same samples",
        ),
        (
            [maps(np.zeros((2, 4, 4), int)), ExitRecords.from_logits(np.zeros((2, 3)), [0, 1])],
            r"member 1 has records of one class for each sample, member 0 of a class for each pixel, with labels",
        ),
        (
            [maps(np.zeros((2, 4, 4), int)), maps(np.ones((2, 4, 4), int))],
            r"member 1 has other label maps than member 0 for 2 of 2 samples, the first of them 0",
        ),
    ],
)
def test_members_that_differ_are_named(members: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ExitRecords.cascade(members)


def test_images_with_a_class_per_pixel_are_a_cascade_too(tmp_path: Any) -> None:
    labels = np.arange(32).reshape(2, 4, 4) % 3
    records = ExitRecords.cascade([maps(labels), maps(labels, seed=1)])
    assert records.num_exits == 2
    records.save(tmp_path / "records.safetensors")
    assert ExitRecords.load(tmp_path / "records.safetensors") == records


def worth(seed: int, right: float, **labels: Any) -> ExitRecords:
    """Records whose right answers are worth less than 1."""
    one = plain(seed)
    utility = np.where(one.predictions == one.labels, right, 0.0)
    return ExitRecords(one.probabilities, one.predictions, utility=utility, **labels)


def test_utilities_of_other_meanings_are_not_joined() -> None:
    with pytest.raises(InvalidInputError, match=r"member 1 has no labels, others have"):
        ExitRecords.cascade([worth(0, 0.5), plain(1, labeled=False)])
    labels = plain(0).labels
    message = r"member 1 has answers that are worth 1 where they are the label and 0 elsewhere, member 0 has a utility"
    for member in (worth(0, 0.5, labels=labels), worth(0, 0.5)):
        with pytest.raises(InvalidInputError, match=message):
            ExitRecords.cascade([member, plain(0)])
    with pytest.raises(InvalidInputError, match=message):
        ExitRecords.cascade([worth(0, 0.5, labels=labels), plain(1, labeled=False)])
    with pytest.raises(InvalidInputError, match=r"candidate 'b' has answers .* candidate 'a' has a utility of its own"):
        eenet.search({"a": worth(0, 0.5, labels=labels), "b": plain(1, labeled=False)}, {"a": 1.0, "b": 2.0})


def test_utilities_of_one_meaning_are_joined_and_kept() -> None:
    labels = plain(0).labels
    members = [worth(seed, 0.5, labels=labels) for seed in (0, 1)]
    joined = ExitRecords.cascade(members)
    assert joined.accuracies.tolist() == [member.accuracies[0] for member in members]
    for row in range(60):  # of one sample a utility may be either by chance
        rows = np.array([row])
        part = ExitRecords.cascade([member.subset(rows) for member in members])
        np.testing.assert_array_equal(part.require_utility(), joined.subset(rows).require_utility())


def test_images_that_are_worth_other_things_are_not_joined() -> None:
    labels = np.arange(96).reshape(6, 4, 4) % 3
    message = r"member 1 has images that are worth mean_iou, member 0 pixel_accuracy; collect all with one task"
    with pytest.raises(InvalidInputError, match=message):
        ExitRecords.cascade([maps(labels), maps(labels, 1, "mean_iou")])
    joined = ExitRecords.cascade([maps(labels, 0, "mean_iou"), maps(labels, 1, "mean_iou")])
    assert joined.accuracies.tolist() == [maps(labels, seed, "mean_iou").accuracies[0] for seed in (0, 1)]


class TestCosts:
    def test_what_is_kept_of_measurements(self) -> None:
        first = ExitCosts([1.0, 2.0], spread=[0.1, 0.2], batch_size=8, device={"cpu": "a"}, includes=("heads", "x"))
        second = ExitCosts(
            [3.0, 4.0], spread=[0.0, 0.3], batch_size=8, device={"cpu": "a"}, includes=("heads",), plain=3.5
        )
        joined = ExitCosts.cascade([first, second])
        assert joined.values.tolist() == [1, 2, 5, 6]
        assert joined.plain == 3.5, "the last network without its exits"
        assert (joined.batch_size, joined.device, joined.includes) == (8, {"cpu": "a"}, ("heads",))
        assert joined.spread is not None
        np.testing.assert_allclose(joined.spread * joined.values, [0.1, 0.4, 0.4, np.hypot(0.4, 1.2)])
        assert ExitCosts.cascade([first, 9]).spread is None

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ([1.0], r"members are a list of 1"),
            ([1.0, -2.0], r"member 1 costs -2.0, expected ExitCosts, or one positive, finite number"),
            ([1.0, [2.0, 3.0]], r"member 1 costs \[2.0, 3.0\]"),
            (
                [ExitCosts([1, 2]), ExitCosts([1, 2], "flops")],
                r"the unit is 'ms' for one member .* 'flops' for another",
            ),
            (
                [ExitCosts([1, 2], batch_size=1), ExitCosts([1, 2], batch_size=8)],
                r"the batch size is 1 for one member of the cascade and 8 for another",
            ),
        ],
    )
    def test_bad_members_are_refused(self, members: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            ExitCosts.cascade(members)

    def test_a_member_that_costs_more_than_the_next_is_allowed_and_told(self) -> None:
        with pytest.warns(ReliabilityWarning, match=r"member 0 costs 5 ms by itself, more than member 1"):
            costs = ExitCosts.cascade([5.0, 3.0])
        assert costs.values.tolist() == [5, 8]


@pytest.mark.filterwarnings("ignore:.*is used instead:eenet.errors.FallbackWarning")
def test_a_member_that_is_worse_and_dearer_than_others_is_left_out_and_told() -> None:
    logits, labels = toy_logits(samples=1500, exits=3)
    rng = np.random.default_rng(0)
    useless = ExitRecords.from_logits(rng.normal(size=logits[0].shape))
    small, big = (ExitRecords.from_logits(logits[k], labels) for k in (1, 2))
    records = ExitRecords.cascade([small, useless, big])
    with pytest.warns(FallbackWarning, match=r"exit 1 (says nothing|does not pay)"):
        fitted = eenet.EENet().fit(records, ExitCosts.cascade([1.0, 2.0, 4.0]), "90%")
    assert [dead.exit_index for dead in fitted.left_out] == [1]
    assert (fitted.replay(records).exits != 1).all()
