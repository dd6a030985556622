"""The three-way split: disjoint, stratified, reproducible, saved; calibration is never augmented."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import data_files as files
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.data import ImageArray, Texts, ThreeWaySplit, load, loader, three_way_split

PARTS = ("train", "calibration", "test")


def texts(labels: list[int], prefix: str = "text", split: str = "train") -> Texts:
    names = [str(n) for n in range(max(labels) + 1)]
    return Texts([f"{prefix} {n}" for n in range(len(labels))], np.array(labels), names, name="toy", split=split)


@given(
    labels=st.lists(st.integers(0, 6), min_size=3, max_size=200),
    shares=st.tuples(st.floats(0.01, 0.45), st.floats(0.01, 0.45)),
    seed=st.integers(0, 2**40),
)
def test_parts_never_overlap_cover_the_data_and_are_stratified(
    labels: list[int], shares: tuple[float, float], seed: int
) -> None:
    data = texts(labels)
    split = three_way_split(data, calibration=shares[0], test=shares[1], seed=seed)
    taken = np.concatenate([split.indices[part] for part in PARTS])
    assert sorted(taken.tolist()) == list(range(len(labels)))
    counts = np.bincount(labels)
    for part, share in zip(("calibration", "test"), shares, strict=True):
        size = len(split.indices[part])
        assert size == max(1, math.floor(share * len(labels) + 1e-9))
        of_class = np.bincount(data.labels[split.indices[part]], minlength=len(counts))
        # One for rounding, and one for what rounding the part before it left.
        assert np.all(np.abs(of_class - counts * size / len(labels)) < 2)
    again = three_way_split(data, calibration=shares[0], test=shares[1], seed=seed)
    assert all(np.array_equal(split.indices[part], again.indices[part]) for part in PARTS)


@given(sizes=st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30)), seed=st.integers(0, 100))
def test_counts_are_met_exactly_and_the_remainder_is_left_out(sizes: tuple[int, int, int], seed: int) -> None:
    data = texts([n % 3 for n in range(100)])
    split = three_way_split(data, train=sizes[0], calibration=sizes[1], test=sizes[2], seed=seed)
    assert tuple(len(split.indices[part]) for part in PARTS) == sizes
    assert len(set(np.concatenate(list(split.indices.values())).tolist())) == sum(sizes)


def test_parts_may_come_from_the_published_splits() -> None:
    data = {"train": texts([n % 5 for n in range(50)]), "test": texts([n % 5 for n in range(20)], "other", "test")}
    split = three_way_split(data, train="train", calibration=("train", 10), test="test", seed=1)
    assert dict(split.sources) == {"train": "train", "calibration": "train", "test": "test"}
    parts = split.parts(data)
    assert [len(parts[part]) for part in PARTS] == [40, 10, 20]
    assert {text for text, _ in parts["test"]} == set(data["test"].texts)  # type: ignore[attr-defined]
    labels = parts["calibration"].labels
    assert labels is not None
    assert np.bincount(labels).tolist() == [2] * 5
    assert (parts["calibration"].part, parts["test"].split) == ("calibration", "test")


def test_another_seed_is_another_split() -> None:
    data = texts([0, 1] * 50)
    assert not np.array_equal(
        three_way_split(data, seed=0).indices["test"], three_way_split(data, seed=1).indices["test"]
    )


def toy_images() -> ImageArray:
    pixels = files.pixels(60, 8, 8).transpose(0, 3, 1, 2)
    return ImageArray(pixels, np.arange(60) % 3, "abc", name="toy", split="train", transform="train")


@pytest.mark.parametrize("given_transform", ["train", "eval"])
def test_calibration_and_test_are_read_with_the_evaluation_transform(given_transform: str) -> None:
    data = toy_images().with_transform(given_transform)
    parts = three_way_split(data, calibration=20, test=20).parts(data)
    plain = data.with_transform("eval")
    for part in ("calibration", "test"):
        view = parts[part]
        assert view.transform == "eval"
        expected, labels = plain.batch(view.indices)
        for epoch in range(3):
            x, y = view.batch(range(20), (0, epoch))
            assert torch.equal(x, expected)
            assert torch.equal(y, labels)
        through_loader = torch.cat([x for x, _ in loader(view, 7)])
        assert torch.equal(through_loader, expected)
        assert torch.equal(view[3][0], expected[3])
        with pytest.raises(InvalidInputError, match=f"the {part} part is read with the evaluation transform only"):
            view.with_transform("train")
    train = parts["train"]
    assert train.transform == "train"
    assert not torch.equal(train.batch(range(20), (0, 0))[0], plain.batch(train.indices)[0])
    assert torch.equal(train.with_transform("eval").batch(range(20))[0], plain.batch(train.indices)[0])


def test_duplicates_across_parts_are_counted() -> None:
    strings = [f"text {n}" for n in range(30)]
    strings[10:20] = strings[:10]
    data = Texts(strings, np.zeros(30, int), ["a", "b"], name="toy", split="train")
    split = three_way_split(data, calibration=10, test=10, seed=2)
    content = {part: [strings[n] for n in split.indices[part]] for part in PARTS}
    expected = {
        "calibration": {"train": sum(text in content["train"] for text in content["calibration"])},
        "test": {
            "train": sum(text in content["train"] for text in content["test"]),
            "calibration": sum(text in content["calibration"] for text in content["test"]),
        },
    }
    assert split.duplicates == expected
    assert sum(sum(counts.values()) for counts in expected.values()) > 0
    assert three_way_split(data, duplicates=False).duplicates is None


@given(seed=st.integers(0, 50), shared=st.integers(0, 20))
def test_duplicates_are_left_out_of_the_train_part_alone(seed: int, shared: int) -> None:
    sentences = [f"A text {n} ." for n in range(20)]
    phrases = [f"a  text {n} . " for n in range(shared)] + [f"part {n}" for n in range(30)]
    data = {
        "phrases": Texts(phrases, np.arange(len(phrases)) % 2, ["a", "b"], name="toy", split="phrases"),
        "test": Texts(sentences, np.arange(20) % 2, ["a", "b"], name="toy", split="test"),
    }
    takes: dict[str, Any] = {"train": "phrases", "calibration": ("test", 8), "test": "test", "seed": seed}
    split = three_way_split(data, duplicates="leave out", **takes)
    counted = three_way_split(data, **takes)
    assert [phrases[n] for n in split.indices["train"]] == phrases[shared:]
    for part in ("calibration", "test"):
        assert split.indices[part].tolist() == counted.indices[part].tolist()
    assert split.duplicates == {"calibration": {"train": 0}, "test": {"train": 0, "calibration": 0}}
    assert counted.duplicates is not None
    assert counted.duplicates["calibration"]["train"] + counted.duplicates["test"]["train"] == shared


def test_duplicates_are_counted_left_out_or_ignored() -> None:
    data = Texts(["a", "b"] * 10, np.zeros(20, int), ["a", "b"], name="toy", split="train")
    with pytest.raises(InvalidInputError, match="duplicates is 'drop', expected True, False or 'leave out'"):
        three_way_split(data, duplicates="drop")
    with pytest.raises(InvalidInputError, match="every sample of the train part equals one of another part"):
        three_way_split(data, duplicates="leave out")


def test_duplicates_are_found_in_images_and_files(tmp_path: Path) -> None:
    pixels = np.repeat(files.pixels(1, 8, 8).transpose(0, 3, 1, 2), 9, axis=0)
    data = ImageArray(pixels, np.arange(9) % 3, "abc", name="toy", split="train")
    same = {"calibration": {"train": 3}, "test": {"train": 3, "calibration": 3}}
    assert three_way_split(data, calibration=3, test=3).duplicates == same
    label_map = np.full((4, 4), 7, np.uint8)
    image = files.pixels(1, 4, 4)[0]
    files.write_cityscapes(tmp_path, "train", [label_map] * 9, images=[image] * 9)
    split = three_way_split(load("cityscapes", tmp_path, "train"), calibration=3, test=3)
    assert split.duplicates == same
    assert not split.stratified


def test_a_saved_split_is_the_same_split(tmp_path: Path) -> None:
    data = toy_images()
    split = three_way_split(data, calibration=0.2, test=5, seed=9)
    split.save(tmp_path / "run" / "split.json")
    loaded = ThreeWaySplit.load(tmp_path / "run" / "split.json")
    assert (loaded.seed, loaded.samples, loaded.duplicates) == (9, {"all": 60}, split.duplicates)
    for part, view in loaded.parts(data).items():
        assert view.indices.tolist() == split.parts(data)[part].indices.tolist()
    assert json.loads((tmp_path / "run" / "split.json").read_text())["sizes"] == {
        "train": 43,
        "calibration": 12,
        "test": 5,
    }


def test_a_split_is_refused_on_other_data() -> None:
    split = three_way_split(texts([0, 1] * 10))
    with pytest.raises(InvalidInputError, match="source 'all' is not the data that was split: it has 22 samples, 20"):
        split.parts(texts([0, 1] * 11))
    with pytest.raises(InvalidInputError, match="not the data that was split"):
        split.parts(texts([0, 1] * 10, "others"))
    with pytest.raises(InvalidInputError, match=r"needs the source 'all', given are \['train'\]"):
        split.parts({"train": texts([0, 1] * 10)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": {"train": [0, 1], "calibration": [1], "test": [2]}}, "parts overlap in 'all'"),
        ({"indices": {"train": [0, 99], "calibration": [1], "test": [2]}}, "an index is outside the 20 samples"),
        ({"indices": {"train": [0], "calibration": [1]}}, "damaged split"),
        ({"sources": {"train": "x", "calibration": "all", "test": "all"}}, "unknown sources"),
        ({"schema": 99}, "schema 99"),
        ({"format": "other"}, "holds no split"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "split.json"
    three_way_split(texts([0, 1] * 10)).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FileFormatError, match=message):
        ThreeWaySplit.load(path)


def test_a_truncated_or_absent_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    three_way_split(texts([0, 1] * 10)).save(path)
    path.write_text(path.read_text()[:-10])
    with pytest.raises(FileFormatError, match="damaged split"):
        ThreeWaySplit.load(path)
    with pytest.raises(InvalidInputError, match="not there"):
        ThreeWaySplit.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("takes", "message"),
    [
        ({"calibration": 15, "test": 15}, "need at least 31 samples of 'all', which has 20"),
        ({"train": 21}, "which has 20; take fewer"),
        ({"calibration": None}, "train and calibration both take the rest of 'all'"),
        ({"calibration": 1.5}, "calibration has the amount 1.5, expected a number of samples, a share"),
        ({"calibration": 0}, "amount 0"),
        ({"test": -3}, "amount -3"),
        ({"test": True}, "amount True"),
        ({"test": float("nan")}, "amount nan"),
        ({"test": "val"}, r"taken from 'val', which is not among the sources \['all'\]"),
        ({"test": ("all",)}, r"expected \(source, amount\)"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_amounts_that_do_not_fit_are_refused(takes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        three_way_split(texts([0, 1] * 10), **takes)


def test_sources_must_be_named_and_different() -> None:
    data = {"train": texts([0, 1] * 10), "test": texts([0, 1] * 5, "other")}
    with pytest.raises(
        InvalidInputError, match=r"train is None and there are the sources \['test', 'train'\]; say which"
    ):
        three_way_split(data)
    twice = {"a": texts([0, 1] * 10), "b": texts([0, 1] * 10)}
    with pytest.raises(InvalidInputError, match="the same data: parts would overlap"):
        three_way_split(twice, train="a", calibration=("b", 3), test="b")
