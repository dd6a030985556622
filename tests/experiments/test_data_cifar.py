"""CIFAR-10 and CIFAR-100 in the three formats they are published in."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import data_files as files
import numpy as np
import pytest
import torch
from optional import import_or_skip

from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning
from eenet.experiments.data import ImageArray, load

LABELS = [3, 0, 9, 1, 3, 7, 2, 8, 5, 6]


def raw(root: Path, split: str = "train", **options: Any) -> ImageArray:
    """A CIFAR-10 whose normalization only scales to 0..1."""
    dataset = load("cifar10", root, split, mean=(0, 0, 0), std=(1, 1, 1), **options)
    assert isinstance(dataset, ImageArray)
    return dataset


def write_train(root: Path, count: int = 10, **columns: Any) -> files.Pixels:
    images = files.pixels(count)
    cells = {"img": files.image_cells(images), "label": LABELS[:count], **columns}
    files.write_parquet(root / "train-00000-of-00001.parquet", cells)
    return images


@pytest.mark.parametrize("folder", [".", "cifar10", "plain_text", "cifar10/plain_text"])
def test_parquet_is_read_with_its_pixels_and_labels(tmp_path: Path, folder: str) -> None:
    images = write_train(tmp_path / folder)
    dataset = raw(tmp_path)
    x, y = dataset.batch(range(10))
    assert (dataset.name, dataset.split, dataset.task) == ("cifar10", "train", "classification")
    assert len(dataset) == 10
    assert dataset.sample_shape == (3, 32, 32)
    assert dataset.classes[:2] == ("airplane", "automobile")
    assert y.tolist() == LABELS
    torch.testing.assert_close(x, torch.from_numpy(images).permute(0, 3, 1, 2) / 255, rtol=0, atol=1e-6)
    assert dataset[2][1] == 9
    assert dataset.class_sizes()["cat"] == 2


def test_a_sample_by_index_is_the_one_of_the_batch_and_iteration_ends(tmp_path: Path) -> None:
    write_train(tmp_path)
    dataset = raw(tmp_path)
    assert [y for _, y in dataset] == LABELS  # type: ignore[attr-defined]  # the old protocol of __getitem__
    torch.testing.assert_close(dataset[-1][0], dataset[9][0])
    with pytest.raises(IndexError, match="index 10 is outside a dataset of 10"):
        dataset[10]


def test_pixels_are_normalized_with_the_statistics_of_the_data(tmp_path: Path) -> None:
    images = write_train(tmp_path, 1)
    x, _ = load("cifar10", tmp_path, "train")[0]
    expected = (images[0] / 255 - np.array([0.4914, 0.4822, 0.4465])) / np.array([0.2470, 0.2435, 0.2616])
    np.testing.assert_allclose(x.numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_shards_are_read_in_order_and_a_missing_one_is_named(tmp_path: Path) -> None:
    images = files.pixels(4)
    for k in range(2):
        rows = slice(2 * k, 2 * k + 2)
        path = tmp_path / f"test-{k:05d}-of-00002.parquet"
        files.write_parquet(path, {"image": files.image_cells(images[rows]), "label": LABELS[rows]})
    assert raw(tmp_path, "test").labels.tolist() == LABELS[:4]
    assert raw(tmp_path, "test", limit=3).labels.tolist() == LABELS[:3]
    (tmp_path / "test-00000-of-00002.parquet").unlink()
    with pytest.raises(InvalidInputError, match=r"1 of the 2 parquet files.*test-00000-of-00002.parquet is .*missing"):
        raw(tmp_path, "test")


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    columns = {"img": files.image_cells(files.pixels(3)), "coarse_label": [0, 1, 2], "fine_label": [99, 0, 57]}
    files.write_parquet(tmp_path / "cifar100" / "test-00000-of-00001.parquet", columns)
    dataset = load("cifar100", tmp_path, "test")
    assert dataset.labels is not None
    assert [dataset.classes[n] for n in dataset.labels] == ["worm", "apple", "pear"]
    assert len(set(dataset.classes)) == 100


@pytest.mark.parametrize("at_root", [True, False])
def test_the_binary_version_gives_the_same_images_as_parquet(tmp_path: Path, at_root: bool) -> None:
    images = files.pixels(10)
    folder = tmp_path / "bin" / "cifar-10-batches-bin"
    files.write_cifar10_bin(folder, images, LABELS)
    write_train(tmp_path / "parquet")
    binary = raw(folder if at_root else folder.parent, "test")
    other = raw(tmp_path / "parquet")
    assert np.array_equal(binary.images, other.images)
    assert np.array_equal(binary.labels, other.labels)
    train = raw(folder.parent)
    assert sorted(train.labels.tolist()) == sorted(LABELS)
    assert len(raw(folder.parent, limit=3)) == 3


def test_cifar100_binary_has_two_label_bytes(tmp_path: Path) -> None:
    images = files.pixels(2)
    records = [bytes([k, 90 + k]) + image.transpose(2, 0, 1).tobytes() for k, image in enumerate(images)]
    (tmp_path / "cifar-100-binary").mkdir()
    (tmp_path / "cifar-100-binary" / "train.bin").write_bytes(b"".join(records))
    dataset = load("cifar100", tmp_path, "train")
    assert isinstance(dataset, ImageArray)
    assert dataset.labels.tolist() == [90, 91]
    assert np.array_equal(dataset.images, images.transpose(0, 3, 1, 2))


def test_a_truncated_or_missing_binary_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    files.write_cifar10_bin(folder, files.pixels(10), LABELS)
    damaged = folder / "data_batch_3.bin"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(FileFormatError, match=r"data_batch_3.bin' has 6141 bytes, expected a multiple of 3073"):
        raw(tmp_path)
    damaged.unlink()
    with pytest.raises(InvalidInputError, match=r"lacks data_batch_3.bin, expected data_batch_1.bin, "):
        raw(tmp_path)


def test_the_python_version_is_left_to_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = import_or_skip("torchvision.datasets")
    images = files.pixels(4)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    content = {"data": images.transpose(0, 3, 1, 2).reshape(4, -1), "labels": LABELS[:4], "label_names": ["a"]}
    (folder / "test_batch").write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps(content))
    with pytest.raises(FileFormatError, match=r"torchvision refuses .*not the published one"):
        load("cifar10", tmp_path, "test")
    # The published files are 170 MB; these take their place under their own checksum.
    checksum = hashlib.md5((folder / "test_batch").read_bytes()).hexdigest()
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(datasets.CIFAR10, attribute, [["test_batch", checksum]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "filename": "batches.meta", "md5": None})
    for root in (tmp_path, folder):
        dataset = raw(root, "test", limit=3)
        assert np.array_equal(dataset.images, images.transpose(0, 3, 1, 2)[:3])
        assert dataset.labels.tolist() == LABELS[:3]


def test_training_crops_and_flips_within_the_padded_image_and_differs_by_epoch(tmp_path: Path) -> None:
    write_train(tmp_path)
    dataset = raw(tmp_path, transform="train", padding=2)
    seen = set()
    for epoch in range(30):
        x, _ = dataset.batch([0], (0, epoch))
        image = (x[0] * 255).round().to(torch.uint8).numpy()
        padded = np.pad(dataset.images[0], ((0, 0), (2, 2), (2, 2)))
        views = {
            (down, right, step): padded[:, down : down + 32, right : right + 32][..., ::step]
            for down in range(5)
            for right in range(5)
            for step in (1, -1)
        }
        matches = [key for key, view in views.items() if np.array_equal(view, image)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 15
    assert {step for _, _, step in seen} == {1, -1}


def test_augmentation_belongs_to_the_sample_not_to_its_batch(tmp_path: Path) -> None:
    write_train(tmp_path)
    dataset = raw(tmp_path, transform="train")
    whole, _ = dataset.batch(range(10), (7, 3))
    parts = torch.cat([dataset.batch(part, (7, 3))[0] for part in ([0, 1, 2], [3], range(4, 10))])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, dataset.batch(range(10), (8, 3))[0])
    assert not torch.equal(dataset.batch([0, 1, 2])[0], dataset.batch([0, 1, 2])[0])  # drawn afresh
    assert torch.equal(dataset.with_transform("eval").batch([0])[0], raw(tmp_path).batch([0])[0])


@pytest.mark.parametrize("kind", ["rand", "trivial"])
def test_torchvisions_augmentation_belongs_to_the_sample_too(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision.transforms.v2")
    write_train(tmp_path)
    dataset = raw(tmp_path, transform="train", augment=kind, padding=0)
    before = torch.get_rng_state()
    whole, labels = dataset.batch(range(10), (7, 3))
    parts = torch.cat([dataset.batch(part, (7, 3))[0] for part in ([0, 1, 2], [3], range(4, 10))])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(whole, parts)
    assert labels.tolist() == list(LABELS[:10])
    assert not torch.equal(whole, dataset.batch(range(10), (7, 4))[0])
    plain = raw(tmp_path, transform="train", padding=0)
    assert not torch.equal(whole, plain.batch(range(10), (7, 3))[0])
    assert torch.equal(dataset.with_transform("eval").batch([0])[0], raw(tmp_path).batch([0])[0])


def test_an_unknown_augmentation_is_refused(tmp_path: Path) -> None:
    write_train(tmp_path)
    with pytest.raises(InvalidInputError, match="augment is 'auto', expected one of"):
        raw(tmp_path, augment="auto")


def test_an_image_that_does_not_decode_is_refused_by_name(tmp_path: Path) -> None:
    cells = files.image_cells(files.pixels(10), "JPEG")
    cells[4]["bytes"] = cells[4]["bytes"][:200]
    cells[6]["bytes"] = b"not an image"
    cells[7]["bytes"] = None
    cells[8]["bytes"] = files.encode(files.pixels(1, 20, 24)[0])
    write_train(tmp_path, img=cells)
    with pytest.raises(FileFormatError) as caught:
        load("cifar10", tmp_path, "train")
    message = str(caught.value)
    assert "4 of 10 samples" in message
    assert "train-00000-of-00001.parquet row 4: does not decode" in message
    assert "row 6: does not decode as an image (not an image format" in message
    assert "row 7: has no image bytes" in message
    assert "row 8: is 24 x 20 pixels, expected 32 x 32" in message
    assert 'on_corrupt="skip"' in message


def test_skipped_images_are_named_counted_and_warned_of(tmp_path: Path) -> None:
    cells = files.image_cells(files.pixels(10))
    cells[4]["bytes"] = b"x"
    labels: list[int | None] = [*LABELS]
    labels[5] = None
    write_train(tmp_path, img=cells, label=labels)
    with pytest.warns(ReliabilityWarning, match="2 of 10 samples cannot be read: .*row 4.*row 5: has no label"):
        dataset = raw(tmp_path, on_corrupt="skip")
    assert dataset.labels.tolist() == [3, 0, 9, 1, 2, 8, 5, 6]
    assert [sample.name for sample in dataset.skipped] == [
        "train-00000-of-00001.parquet row 4",
        "train-00000-of-00001.parquet row 5",
    ]


def test_nothing_left_after_skipping_is_an_error(tmp_path: Path) -> None:
    write_train(tmp_path, 2, img=[{"bytes": b"x", "path": None}] * 2)
    with pytest.raises(FileFormatError, match=r"2 of 2 samples .* Nothing is left"):
        raw(tmp_path, on_corrupt="skip")


@pytest.mark.parametrize("bad", [-1, 10])
def test_a_label_outside_the_classes_is_named(tmp_path: Path, bad: int) -> None:
    write_train(tmp_path, label=[*LABELS[:6], bad, *LABELS[7:]])
    with pytest.raises(InvalidInputError, match=f"parquet: row 6 has label {bad}, outside the 10 classes 0 to 9"):
        raw(tmp_path, on_corrupt="skip")


def test_labels_that_are_not_integers_are_refused(tmp_path: Path) -> None:
    write_train(tmp_path, label=["cat"] * 10)
    with pytest.raises(InvalidInputError, match="labels from row 0 on are string, expected integers"):
        raw(tmp_path)


def test_other_columns_are_named(tmp_path: Path) -> None:
    files.write_parquet(tmp_path / "train.parquet", {"picture": [b"x"], "label": [1]})
    with pytest.raises(InvalidInputError, match=r"has the columns \['picture', 'label'\], expected 'img' or 'image'"):
        raw(tmp_path)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    write_train(tmp_path)
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileFormatError, match=r"train-00000-of-00001.parquet' is not a whole parquet file"):
        raw(tmp_path)


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    empty = {"img": arrow.array([], arrow.struct([("bytes", arrow.binary())])), "label": arrow.array([], arrow.int64())}
    files.write_parquet(tmp_path / "train.parquet", empty)
    with pytest.raises(InvalidInputError, match="split 'train' of 'cifar10' has no samples"):
        raw(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 4, 4), np.uint8), [0], "2 images and 1 labels"),
        (np.zeros((2, 3, 4, 4), np.float32), [0, 1], "float32 of shape"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], r"expected uint8 \(N, 3, H, W\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0.0, 1.0], "labels are float64, expected integers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images: files.Pixels, labels: list[int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ImageArray(images, np.array(labels), ("a", "b"), name="mine", split="train")


def test_the_shared_cifar10_loads(shared: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder = shared / "datasets"
    if not (folder / "cifar10").is_dir():
        pytest.skip("the shared material has no datasets/cifar10")
    for split in ("train", "test"):
        dataset = load("cifar10", folder, split, limit=300)
        x, y = dataset.batch(range(300))
        assert len(dataset) == 300
        assert set(y.tolist()) == set(range(10))
        assert abs(float(x.mean())) < 0.2
        assert 0.8 < float(x.std()) < 1.2


def test_pictures_in_cifars_format_have_the_classes_of_the_file_beside_them(tmp_path: Path) -> None:
    cells = files.image_cells(files.pixels(2))
    files.write_parquet(tmp_path / "train-00000-of-00001.parquet", {"img": cells, "label": [0, 9]})
    listed = [{"label": label, "name": f"thing {label}"} for label in reversed(range(10))]
    (tmp_path / "classes.json").write_text(json.dumps(listed))
    assert load("cifar10", tmp_path, "train").classes == tuple(f"thing {label}" for label in range(10))
    (tmp_path / "classes.json").write_text(json.dumps(listed[1:]))
    with pytest.raises(FileFormatError, match=r"classes.json' does not name the 10 classes \(KeyError\(9\)\)"):
        load("cifar10", tmp_path, "train")
