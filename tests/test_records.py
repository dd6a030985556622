"""ExitRecords: what is accepted, what is refused and how, and what comes back."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from files import write_arrays

import eenet
from eenet import ExitCosts, ExitRecords, MaxProbability
from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning
from eenet.testing import toy_costs, toy_logits, toy_records


def good() -> tuple[Any, Any]:
    """Probabilities (2, 4, 3) and labels (4,)."""
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(3), size=(2, 4)), np.array([0, 1, 2, 1])


def spoilt(value: float) -> Any:
    probs, _ = good()
    probs[1, 2, 0] = value
    return probs


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (spoilt(-0.25), r"probabilities\[1, 2, 0\] is -0.25, which is negative; for logits use from_logits"),
        (spoilt(0.9999), r"probabilities\[1, 2\] sums to 1\.\d+, expected 1 within 0.001; apply softmax, or"),
        (spoilt(np.nan), r"probabilities\[1, 2, 0\] is nan: expected finite values; drop the sample, or use from"),
        (spoilt(np.inf), r"probabilities\[1, 2, 0\] is inf: expected finite"),
        (good()[0][0, 0], r"probabilities have shape \(3,\), expected \(exits, samples, classes\), or \(samples, cl"),
        (good()[0][None], r"probabilities have shape \(1, 2, 4, 3\), expected \(exits"),
        (np.ones((2, 4, 3), dtype=int), r"probabilities have dtype int64, expected a float dtype such as float32"),
        (np.ones((2, 4, 3), dtype=complex), r"probabilities have dtype complex128, expected a float"),
        (np.full((2, 4, 3), "x"), r"probabilities have dtype <U1, expected a float"),
        (good()[0][:1], r"probabilities have 1 exit, expected at least 2: with one exit there is no choice"),
        (np.ones((2, 4, 1)), r"probabilities have 1 class, expected at least 2; give a binary output as \(1 - p, p\)"),
        (good()[0][:, :0], r"probabilities have 0 samples, expected at least 1"),
    ],
)
def test_bad_probabilities_are_refused(probs: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ExitRecords.from_probabilities(probs)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3, 1], r"labels\[2\] is 3, expected 0 to 2: classes count from 0"),
        ([0, -1, 2, 1], r"labels\[1\] is -1, expected 0 to 2: 1 of 4 samples has no label; leave these samples out"),
        ([0, np.nan, 2, np.nan], r"labels\[1\] is nan, expected 0 to 2: 2 of 4 samples have no label; leave"),
        ([0.0, -1.0, 2.0, 1.0], r"labels\[1\] is -1\.0, expected 0 to 2: 1 of 4 samples has no label"),
        ([0, None, 2, 1], r"labels\[1\] is None, .*labels\[known\]; or give no labels, .*judged_by_last\(\)"),
        ([-100] * 4, r"labels\[0\] is -100, expected 0 to 2: 4 of 4 samples have no label; give no labels, and"),
        ([0, -1, 3, 1], r"labels\[1\] is -1, expected 0 to 2: 1 of 4 samples has no label"),
        ([0.0, 1.0, 2.0, 1.0], r"dtype float64, expected integers: class numbers from 0; give labels\.long\(\) of a"),
        ([True, False, True, True], r"labels have dtype bool, expected integers: .*labels\.astype\(int\)"),
        (list("abca"), r"dtype <U1, expected integers: .* numpy\.searchsorted\(model\.classes_, labels\)"),
        (np.eye(3)[[0, 1, 2, 1]], r"shape \(4, 3\), expected \(4,\): .*; of one-hot labels give labels\.argmax\(1\)"),
        (np.eye(3, dtype=int)[[0, 1, 2, 1]], r"of one-hot labels give labels\.argmax\(1\)"),
        ([0, 1, 2], r"labels have shape \(3,\), expected \(4,\): one for each sample"),
        ([[0, 1, 2, 1]], r"labels have shape \(1, 4\), expected \(4,\)"),
    ],
)
def test_bad_labels_are_refused(labels: Any, message: str) -> None:
    probs, _ = good()
    for make in (ExitRecords.from_probabilities, ExitRecords.from_logits):
        with pytest.raises(InvalidInputError, match=message):
            make(probs, labels)


def test_the_ways_out_of_partly_labeled_records_are_ways_out() -> None:
    probs, labels = good()
    partly = np.where(np.arange(len(labels)) == 1, -1, labels)
    with pytest.raises(InvalidInputError, match="known = labels >= 0 outputs"):
        ExitRecords.from_probabilities(probs, partly)
    known = partly >= 0
    assert len(ExitRecords.from_probabilities(probs[:, known], partly[known])) == len(labels) - 1
    assert len(ExitRecords.from_probabilities(probs).judged_by_last()) == len(labels)


def test_bad_logits_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"logits have 1 exit"):
        ExitRecords.from_logits(np.zeros((1, 4, 3)))
    with pytest.raises(InvalidInputError, match=r"logits have dtype int64"):
        ExitRecords.from_logits(np.zeros((2, 4, 3), dtype=int))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_every_float_type_gives_normalized_float32(dtype: Any) -> None:
    probs, labels = good()
    records = ExitRecords.from_probabilities(probs.astype(dtype), labels)
    assert records.probabilities.dtype == np.float32
    np.testing.assert_allclose(records.probabilities, probs, atol=1e-3)
    np.testing.assert_allclose(records.probabilities.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(records.predictions, probs.argmax(axis=-1))


def test_logits_count_as_float32_as_in_a_network() -> None:
    # In float64 class 1 is larger; in float32, which networks give and a runtime sees, they tie and class 0 is first.
    logits = np.tile([1.0, 1.0 + 1e-12, 0.0], (2, 1, 1))
    assert (ExitRecords.from_logits(logits).predictions == 0).all()
    assert np.isnan(ExitRecords.from_logits(logits * 1e39).probabilities).all()


def test_records_of_probabilities_do_not_depend_on_the_batch_or_the_layout() -> None:
    probs = toy_records(samples=50, classes=1000).probabilities.astype(np.float64)
    whole = ExitRecords.from_probabilities(probs)
    for layout in (np.asfortranarray(probs), probs.transpose(2, 1, 0).copy().transpose(2, 1, 0)):
        np.testing.assert_array_equal(ExitRecords.from_probabilities(layout).probabilities, whole.probabilities)
    for n in range(50):
        alone = ExitRecords.from_probabilities(probs[:, n : n + 1].astype(np.float32))
        np.testing.assert_array_equal(
            alone.probabilities, ExitRecords.from_probabilities(probs.astype(np.float32)).probabilities[:, n : n + 1]
        )


def test_logits_that_are_not_finite_are_kept_as_such() -> None:
    logits, labels = toy_logits(samples=100, nonfinite=0.2)
    records = ExitRecords.from_logits(logits, labels)
    broken = np.asarray((~np.isfinite(logits)).any(axis=-1))
    np.testing.assert_array_equal(np.isnan(records.probabilities).any(axis=-1), broken)
    np.testing.assert_array_equal(~records.all_evidence()[1].finite, broken[1])


def test_what_cannot_be_an_array_is_refused() -> None:
    probs, labels = good()
    ragged: Any = [probs[0].tolist(), probs[1, :3].tolist()]
    mixed: Any = [0, [1], 2, 1]
    with pytest.raises(InvalidInputError, match=r"probabilities are a list that cannot be made an array .*one length"):
        ExitRecords.from_probabilities(ragged, labels)
    with pytest.raises(InvalidInputError, match=r"labels are a list that cannot be made an array"):
        ExitRecords.from_probabilities(probs, mixed)
    fresh: Any = torch.zeros(2, 4, 3, requires_grad=True)
    for logits in (fresh, list(fresh), torch.zeros(2, 4, 3, dtype=torch.bfloat16)):
        with pytest.raises(InvalidInputError, match=r"logits are a .*give tensor\.detach\(\)\.cpu\(\)"):
            ExitRecords.from_logits(logits, labels)
    with pytest.raises(InvalidInputError, match=r"labels: 1 of 2 values are masked, and would be taken"):
        ExitRecords.from_probabilities(np.full((2, 2, 2), 0.5), np.ma.masked_equal([0, 1], 1))


def test_sizes_accuracy_and_description() -> None:
    records = toy_records(samples=40, exits=4, classes=3)
    assert (len(records), records.num_exits, records.num_classes) == (40, 4, 3)
    assert records.labels is not None
    np.testing.assert_allclose(records.accuracies, (records.predictions == records.labels).mean(axis=1))
    assert repr(records) == "ExitRecords(4 exits, 40 labeled samples, 3 classes)"


def test_without_labels_there_is_no_accuracy() -> None:
    records = ExitRecords.from_probabilities(good()[0])
    assert "unlabeled" in repr(records)
    with pytest.raises(InvalidInputError, match=r"have no labels: pass labels=\.\.\. when making them"):
        _ = records.accuracies


def test_a_subset_by_numbers_or_by_mask() -> None:
    records = toy_records(samples=20)
    mask = np.arange(20) % 3 == 0
    by_mask, by_number = records.subset(mask), records.subset(np.flatnonzero(mask))
    np.testing.assert_array_equal(by_mask.probabilities, by_number.probabilities)
    np.testing.assert_array_equal(by_mask.probabilities, records.probabilities[:, ::3])
    assert by_mask.labels is not None
    assert records.labels is not None
    np.testing.assert_array_equal(by_mask.labels, records.labels[::3])
    for rows in ([], [0.5], np.zeros(20, dtype=bool), np.ones(19, dtype=bool), [[1]]):
        with pytest.raises(InvalidInputError, match=r"rows have dtype .*expected at least one sample number"):
            records.subset(rows)


def test_a_subset_of_samples_that_are_not_there_is_refused() -> None:
    for row in (20, -21):
        with pytest.raises(InvalidInputError, match=f"rows hold {row}, expected sample numbers from 0 to 19"):
            toy_records(samples=20).subset([0, row])


def test_a_split_is_disjoint_complete_and_the_same_for_a_seed() -> None:
    probs = toy_records(samples=31).probabilities
    marked = ExitRecords.from_probabilities(probs)
    first, second = marked.split(0.3, seed=4)
    assert (len(first), len(second)) == (9, 22)
    together = np.concatenate([first.probabilities[0], second.probabilities[0]])
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(marked.probabilities[0], axis=0))
    np.testing.assert_array_equal(first.probabilities, marked.split(0.3, seed=4)[0].probabilities)
    assert not np.array_equal(first.probabilities, marked.split(0.3, seed=5)[0].probabilities)
    for fraction in (0.0, 1.0, -1.0, 2.0, float("nan")):
        with pytest.raises(InvalidInputError, match=rf"fraction {re.escape(str(fraction))} of 31 samples leaves one"):
            marked.split(fraction, seed=0)


@pytest.mark.parametrize("labeled", [True, False])
def test_save_and_load(tmp_path: Path, labeled: bool) -> None:
    logits, labels = toy_logits(samples=30, nonfinite=0.1)
    records = ExitRecords.from_logits(logits, labels if labeled else None)
    path = tmp_path / "new" / "records.safetensors"
    records.save(path)
    loaded = ExitRecords.load(path)
    np.testing.assert_array_equal(loaded.probabilities, records.probabilities)
    np.testing.assert_array_equal(loaded.predictions, records.predictions)
    assert (loaded.labels is not None) == (loaded.utility is not None) == labeled
    if labeled:
        np.testing.assert_array_equal(loaded.accuracies, records.accuracies)


def test_the_first_exits_are_records_of_a_shorter_network() -> None:
    records = toy_records(20)
    first = records.first_exits(2)
    assert (first.num_exits, len(first)) == (2, 20)
    np.testing.assert_array_equal(first.accuracies, records.accuracies[:2])
    for exits in (0, 4):
        with pytest.raises(InvalidInputError, match=f"exits is {exits}, expected 1 to 3"):
            records.first_exits(exits)


def test_digests_are_equal_where_all_outputs_are() -> None:
    records = toy_records(20).subset([3, 4, 3, 5])
    digests = records.digests()
    assert digests[0] == digests[2]
    assert len(np.unique(digests)) == 3


def test_a_file_whose_predictions_are_not_those_of_its_probabilities_is_refused(tmp_path: Path) -> None:
    records = toy_records(samples=30)
    arrays: dict[str, Any] = {name: getattr(records, name) for name in ("probabilities", "predictions", "labels")}
    path = tmp_path / "odd.safetensors"

    def refused(**changed: Any) -> str:
        write_arrays(path, {**arrays, **changed}, kind="records", schema=1, header={})
        with pytest.raises(FileFormatError) as caught:
            ExitRecords.load(path)
        return str(caught.value)

    write_arrays(path, arrays, kind="records", schema=1, header={})
    assert len(ExitRecords.load(path)) == 30
    for wrong in (int(records.probabilities[1, 4].argmin()), records.num_classes, -1):
        predictions = records.predictions.copy()
        predictions[1, 4] = wrong
        message = f"exit 1 predicts class {wrong} for sample 4, which is not its most probable one"
        assert message in refused(predictions=predictions)
        with pytest.raises(InvalidInputError, match=message):
            ExitRecords(records.probabilities, predictions)
    assert "predictions of dtype float64, expected integers" in refused(predictions=records.predictions.astype(float))
    assert "probabilities have dtype int64" in refused(probabilities=records.probabilities.astype(int))
    assert "labels[0] is 5, expected 0 to 4" in refused(labels=np.full(30, records.num_classes))
    assert "probabilities have 0 class" in refused(probabilities=records.probabilities[:, :, :0])


def parts() -> dict[str, Any]:
    """Valid arguments of `ExitRecords`."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), size=(2, 4))
    return {
        "probabilities": probabilities,
        "predictions": probabilities.argmax(axis=-1),
        "labels": [0, 1, 2, 1],
        "utility": rng.random((2, 4)),
        "pooled": {"entropy": rng.random((2, 4))},
        "pixel_counts": rng.integers(0, 9, (2, 4, 3, 3)),
    }


def test_the_constructor_makes_records_of_valid_arrays() -> None:
    given = parts()
    records = ExitRecords(**given)
    assert records.probabilities.dtype == np.float32
    np.testing.assert_allclose(records.probabilities, given["probabilities"], rtol=1e-6)
    np.testing.assert_allclose(records.accuracies, given["utility"].mean(axis=1), rtol=1e-6)
    assert repr(records) == "ExitRecords(2 exits, 4 labeled samples, 3 classes)"
    by_labels = ExitRecords(given["probabilities"], given["predictions"], given["labels"])
    assert by_labels == ExitRecords.from_probabilities(given["probabilities"], given["labels"])
    assert ExitRecords(given["probabilities"], given["predictions"]).utility is None


def test_the_constructor_takes_rows_that_are_not_finite() -> None:
    given = parts()
    given["probabilities"][1, 2] = np.nan
    given["probabilities"][0, 3, given["predictions"][0, 3]] = np.inf
    records = ExitRecords(**{name: given[name] for name in ("probabilities", "predictions")})
    assert [evidence.finite.tolist() for evidence in records.all_evidence()] == [
        [True, True, True, False],
        [True, True, False, True],
    ]


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("probabilities", lambda p: p[0], r"probabilities have shape \(4, 3\), expected \(exits, samples, classes\)"),
        ("probabilities", lambda p: p * 2, r"probabilities\[0, 0\] sums to 2, expected 1 within 0.001; apply softmax"),
        ("probabilities", lambda p: p - [0, 0, 1], r"probabilities\[0, 0, 2\] is -0.*, which is negative"),
        ("probabilities", lambda p: p[:, :, ::-1], r"exit 0 predicts class . for sample ., which is not its most prob"),
        ("predictions", lambda p: p.T, r"predictions of shape \(4, 2\), expected \(2, 4\)"),
        ("predictions", lambda p: p * 1.0, r"predictions of dtype float64, expected integers"),
        ("predictions", lambda p: p + 3, r"exit 0 predicts class . for sample 0, which is not its most probable one"),
        ("labels", lambda y: [*y, 0], r"labels have shape \(5,\), expected \(4,\): one for each sample$"),
        ("labels", lambda y: [3, *y[1:]], r"labels\[0\] is 3, expected 0 to 2"),
        ("utility", lambda u: u + 1, r"utility\[0, 0\] is 1.*, expected a number from 0 to 1"),
        ("utility", lambda u: np.where(u == u.max(), np.nan, u), r"utility\[., .\] is nan, expected a number from 0"),
        ("utility", lambda u: u[:1], r"utility of shape \(1, 4\), expected \(2, 4\)"),
        ("pooled", lambda _: {"surprise": np.zeros((2, 4))}, r"pooled holds \['surprise'\], expected names among"),
        ("pooled", lambda _: {"entropy": np.zeros(4)}, r"pooled\['entropy'\] of shape \(4,\), expected \(2, 4\)"),
        ("pixel_counts", lambda c: c[..., 0], r"pixel_counts of shape \(2, 4, 3\), expected \(2, 4, 3, 3\)"),
        ("pixel_counts", lambda c: c * 1.0, r"pixel_counts of dtype float64, expected integers"),
    ],
)
def test_the_constructor_refuses_what_is_not_as_described(name: str, spoil: Any, message: str) -> None:
    given = parts()
    given[name] = spoil(given[name])
    with pytest.raises(InvalidInputError, match=message):
        ExitRecords(**given)


def test_swapped_axes_are_recognized() -> None:
    logits, labels = toy_logits(samples=40, exits=3, classes=5)
    probabilities = toy_records(samples=40, exits=3, classes=5).probabilities
    by_samples = (
        r"have shape \(40, 3, 5\), expected \(exits, samples, classes\): there are 40 labels, so the first axis"
    )
    with pytest.raises(InvalidInputError, match=rf"logits {by_samples} .*numpy.swapaxes\(logits, 0, 1\)"):
        ExitRecords.from_logits(logits.swapaxes(0, 1), labels)
    swapped = probabilities.swapaxes(0, 1)
    for make in (ExitRecords.from_probabilities, lambda p, y: ExitRecords(p, p.argmax(axis=-1), y)):
        with pytest.raises(InvalidInputError, match=rf"probabilities {by_samples}"):
            make(swapped, labels)
    with pytest.raises(
        InvalidInputError, match=r"they sum to 1 along axis 1, so the classes are there: of shape \(3, 5"
    ):
        ExitRecords.from_probabilities(probabilities.swapaxes(1, 2))
    with pytest.raises(InvalidInputError, match=r"they sum to 1 along axis 0, so the classes are there"):
        ExitRecords.from_probabilities(probabilities.transpose(2, 0, 1))
    with pytest.raises(
        InvalidInputError, match=r"labels have shape \(40,\), expected \(5,\).*; logits have shape \(3, 5"
    ):
        ExitRecords.from_logits(logits.swapaxes(1, 2), labels)


def test_equal_records_are_equal_and_have_one_hash_also_after_a_file_a_copy_or_a_pickle(tmp_path: Path) -> None:
    logits, labels = toy_logits(samples=100, nonfinite=0.2)
    path = tmp_path / "records.safetensors"
    for records in (ExitRecords.from_logits(logits, labels), ExitRecords.from_logits(logits), ExitRecords(**parts())):
        records.save(path)
        unpickled = pickle.loads(pickle.dumps(records))  # noqa: S301
        for again in (ExitRecords.load(path), unpickled, copy.deepcopy(records), records.subset(range(len(records)))):
            assert again == records
            assert hash(again) == hash(records)
            assert again.subset([1, 0, *range(2, len(records))]) != records
            assert again.first_exits(2) == records.first_exits(2)
        other: object = "records"
        assert records != other
    assert ExitRecords.from_logits(logits, labels) != ExitRecords.from_logits(logits)


class TestClassesThatAreMissing:
    """What lacks classes is said where chance does not explain it, and by no false alarm elsewhere."""

    costs = eenet.ExitCosts([1.0, 2.0])

    def fit(self, labels: Any, classes: int) -> None:
        labels = np.asarray(labels)
        logits = np.random.default_rng(0).normal(size=(2, len(labels), classes))
        logits[:, np.arange(len(labels)), labels] += 2
        eenet.MaxProbability().fit(ExitRecords.from_logits(logits, labels), self.costs, fallback=False)

    @pytest.mark.parametrize("rows", [150, 200, 250, 300, 500, 800])
    def test_the_first_rows_of_a_file_that_is_sorted_by_class(self, rows: int) -> None:
        held = -(-rows // 100)
        with pytest.warns(ReliabilityWarning, match="sorted by class") as said:
            self.fit(np.repeat(np.arange(10), 100)[:rows], 10)
        (one,) = said
        named = ", ".join(map(str, range(held, 10)))
        assert f"lack {10 - held} of the network's 10 classes ({named})" in str(one.message)
        assert Path(one.filename) == Path(__file__)

    def test_half_of_the_classes_in_any_order(self) -> None:
        labels = np.random.default_rng(0).integers(0, 50, 5000)
        with pytest.warns(ReliabilityWarning, match=r"lack 50 of .* 100 classes \(50, .*, 57 and 42 more\)") as said:
            self.fit(labels, 100)
        assert "sorted" not in str(said[0].message)

    @pytest.mark.parametrize(
        ("shares", "samples"),
        [
            (np.ones(10), 25),
            (np.ones(1000), 138),
            (np.ones(100), 300),
            (100.0 ** -(np.arange(10) / 9), 200),
            (1000.0 ** -(np.arange(100) / 99), 1000),
            (1 / np.arange(1, 1001), 2000),
            (np.append(np.ones(9), 0.005), 500),
        ],
        ids=["few", "fewer than classes", "three each", "tail", "long tail", "zipf", "one rare"],
    )
    def test_no_false_alarm_of_few_samples_and_rare_classes(self, shares: Any, samples: int) -> None:
        rng, missing = np.random.default_rng(0), 0
        with warnings.catch_warnings():
            warnings.simplefilter("error", ReliabilityWarning)
            for _ in range(20):
                labels = rng.choice(len(shares), samples, p=shares / shares.sum())
                missing += len(np.unique(labels)) < len(shares)
                self.fit(labels, len(shares))
        assert missing >= 10

    def test_all_classes_in_order_and_no_labels(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ReliabilityWarning)
            self.fit(np.repeat(np.arange(10), 20), 10)
            eenet.MaxProbability().fit(ExitRecords.from_logits(np.zeros((2, 50, 3))), self.costs, fallback=False)


def test_labels_that_the_last_exit_says_nothing_of_are_warned_of_once() -> None:
    known = toy_records(600)
    labels = known.labels
    assert labels is not None
    shuffled = np.random.default_rng(0).permutation(labels)
    for wrong in (shuffled, (labels + 1) % known.num_classes):
        records = ExitRecords.from_probabilities(known.probabilities, wrong)
        with pytest.warns(ReliabilityWarning) as said:
            MaxProbability().fit(records, toy_costs(), fallback=False)
        expected = (
            f"the last exit is right on {records.accuracies[-1]:.1%} of 600 samples, no more than with the labels in"
        )
        asked = [str(one.message) for one in said if str(one.message).startswith(expected)]
        assert len(asked) == 1
        assert "are they in the order of the samples" in asked[0]
    few = ExitRecords.from_probabilities(known.probabilities[:, :99], shuffled[:99])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReliabilityWarning)
        MaxProbability().fit(few, toy_costs(), fallback=False)
        MaxProbability().fit(known, toy_costs(), fallback=False)


def test_labels_are_compared_with_their_own_order_where_classes_are_rare() -> None:
    rng = np.random.default_rng(0)

    def warned(labels: np.ndarray, predictions: np.ndarray) -> bool:
        answers = np.full((2, len(labels), 2), 0.1)
        np.put_along_axis(answers, predictions[None, :, None], 0.9, axis=2)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ReliabilityWarning)
            MaxProbability().fit(ExitRecords.from_probabilities(answers, labels), ExitCosts([1.0, 2.0]), fallback=False)
        return any("no more than with the labels in any order" in str(one.message) for one in said)

    for share, right in ((0.1, 0.97), (0.01, 0.995)):
        labels = (rng.permutation(2000) < 2000 * share).astype(np.int64)
        predictions = np.where(rng.random(2000) < right, labels, 1 - labels)
        assert not warned(labels, predictions)
        assert warned(rng.permutation(labels), predictions), "right on more than half, as with any labels"
    assert warned(labels, np.zeros_like(labels)), "a network that knows one class is right by chance too"
    assert not warned(np.zeros_like(labels), np.zeros_like(labels)), "of one class any order is the same"


def test_logits_that_look_like_probabilities_are_warned_of_by_exit(tmp_path: Path) -> None:
    logits, labels = toy_logits(samples=40, exits=3, classes=4)
    probabilities = toy_records(samples=40, exits=3, classes=4).probabilities
    mixed = logits.copy()
    mixed[1:] = probabilities[1:]
    with pytest.warns(ReliabilityWarning, match="the logits of exits 1, 2 look like probabilities.*from_probabil"):
        ExitRecords.from_logits(mixed, labels)
    with pytest.warns(ReliabilityWarning, match="the logits of exit 0 look like probabilities"):
        ExitRecords.from_logits(probabilities[0].astype(np.float16))
    # Too few rows to say, one row that is none, and logits of which rows sum to 1 by chance of their making.
    one_off = probabilities.copy()
    one_off[:, 30] *= 2
    for others in (probabilities[:, :7], one_off, logits, logits - (logits.mean(-1, keepdims=True) - 0.25)):
        ExitRecords.from_logits(others)
    ExitRecords.from_probabilities(probabilities, labels)
    for name, times in (("logits", 1), ("probs", 0)):
        arrays: dict[str, Any] = {name: probabilities, "labels": labels}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        words = ("--costs", "1,2,3", "--budget", "60%", "--method", "max_prob", "--out", tmp_path / "s.safetensors")
        for command in (("fit", *words), ("evaluate", "--scheduler", words[-1])):
            said = run(command[0], tmp_path / f"{name}.npz", *command[1:]).stderr
            assert said.count("the logits of exits 0, 1, 2 look like probabilities") == times, command


@pytest.mark.parametrize("dense", [False, True])
def test_outputs_that_end_in_a_softmax_are_warned_of_by_collect(dense: bool) -> None:
    torch.manual_seed(0)
    layers: list[Any] = [torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 1)]
    if not dense:
        layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    x = torch.randn(12, 3, 4, 4)
    labels = torch.randint(3, (12, 4, 4) if dense else (12,))
    for last, warned in ((torch.nn.Identity(), False), (torch.nn.LogSoftmax(1), False), (torch.nn.Softmax(1), True)):
        model = eenet.attach(torch.nn.Sequential(*layers, last).eval(), ["1"], example=x[:2])
        if not warned:
            eenet.collect(model, [(x[:6], labels[:6]), (x[6:], labels[6:])])
            continue
        with pytest.warns(ReliabilityWarning, match="the logits of exit 1 look like probabilities"):
            eenet.collect(model, [(x[:6], labels[:6]), (x[6:], labels[6:])])


def test_records_without_labels_are_judged_by_the_answers_of_the_last_exit() -> None:
    first, last = [[0.6, 0.4], [0.4, 0.6], [0.3, 0.7]], [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]
    records = ExitRecords.from_probabilities(np.array([first, last]))
    judged = records.judged_by_last()
    assert records.labels is None
    assert judged.labels is not None
    assert judged.labels.tolist() == [0, 0, 1]
    assert judged.accuracies.tolist() == [pytest.approx(2 / 3), 1]
    labeled = ExitRecords.from_probabilities(np.array([first, last]), [1, 1, 1])
    assert labeled.judged_by_last() == judged
    assert labeled.labels is not None
    assert labeled.labels.tolist() == [1, 1, 1], "the records themselves stay as they are"


def test_so_a_guarantee_bounds_how_many_answers_differ_from_the_last_exits() -> None:
    population, costs = toy_records(20_000, seed=5), toy_costs()
    answers = population.predictions[-1]
    broken = 0
    for draw in range(20):
        rows = np.random.default_rng(draw).choice(len(population), 800, replace=False)
        log = ExitRecords.from_probabilities(population.probabilities[:, rows])
        scheduler = eenet.MaxProbability().fit(log.judged_by_last(), costs, max_accuracy_drop=0.05, guarantee=0.9)
        assert scheduler.planned_cost < costs[-1], "some samples exit early"
        exits = scheduler.replay(population).exits
        broken += (population.predictions[exits, np.arange(len(population))] != answers).mean() > 0.05
    assert broken <= 5  # at most 2 are expected; 6 or more of 20 at 0.1 have a probability of 1 %


def test_records_of_pixels_cannot_be_judged_by_the_last_exit() -> None:
    pooled = {"entropy": np.full((2, 3), 0.5)}
    records = ExitRecords(np.full((2, 3, 2), 0.5), np.zeros((2, 3), int), pooled=pooled)
    with pytest.raises(InvalidInputError, match="many predictions each"):
        records.judged_by_last()
