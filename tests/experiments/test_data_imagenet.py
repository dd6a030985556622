"""ImageNet as folders of synsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data_files as files
import numpy as np
import pytest
import torch
from optional import import_or_skip

from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning
from eenet.experiments.data import ImageFolder, load

TRAIN = {"n01440764": 3, "n01443537": 4, "n01484850": 2}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files.write_imagenet(tmp_path, {"train": TRAIN, "val": {"n01443537": 2, "n01484850": 1}})
    return tmp_path


def folder(root: Path, split: str = "train", **options: Any) -> ImageFolder:
    dataset = load("imagenet", root, split, size=24, **options)
    assert isinstance(dataset, ImageFolder)
    return dataset


def test_synsets_in_order_are_the_classes(root: Path) -> None:
    dataset = folder(root)
    assert dataset.classes == tuple(TRAIN)
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    x, y = dataset.batch([0, 3, 8])
    assert x.shape == (3, *dataset.sample_shape) == (3, 3, 24, 24)
    assert y.tolist() == [0, 1, 2]
    torch.testing.assert_close(dataset[3][0], x[1])


def test_val_uses_the_classes_of_train(root: Path) -> None:
    assert folder(root, "val").labels.tolist() == [1, 1, 2]
    assert folder(root, "validation").split == "val"


def test_val_alone_has_its_own_classes(tmp_path: Path) -> None:
    files.write_imagenet(tmp_path, {"val": {"n1": 1, "n2": 1}})
    assert folder(tmp_path, "val").classes == ("n1", "n2")


def test_evaluation_is_what_torchvision_does(root: Path) -> None:
    transforms = import_or_skip("torchvision.transforms")
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    reference = transforms.Compose(
        [
            transforms.Resize(27),  # 24 * 256 / 224
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = folder(root)
    for n in range(len(dataset)):
        with pillow.open(dataset.paths[n]) as image:
            torch.testing.assert_close(dataset[n][0], reference(image.convert("RGB")), rtol=0, atol=1e-5)


def test_training_cuts_a_different_part_each_epoch_and_evaluation_never(root: Path) -> None:
    train = folder(root, transform="train")
    draws = [train.batch([0, 1], (0, epoch))[0] for epoch in range(4)]
    assert all(not torch.equal(draws[0], other) for other in draws[1:])
    assert torch.equal(draws[2], train.batch([0, 1], (0, 2))[0])
    assert torch.equal(draws[2][1:], train.batch([1], (0, 2))[0])
    evaluation = train.with_transform("eval")
    assert torch.equal(evaluation.batch([0], (0, 0))[0], evaluation.batch([0], (0, 1))[0])


def test_training_copes_with_very_long_images_and_other_modes(tmp_path: Path) -> None:
    files.write_image(tmp_path / "train" / "n1" / "long.png", np.full((300, 2, 3), 200, np.uint8))
    files.write_image(tmp_path / "train" / "n1" / "grey.png", np.full((40, 50), 200, np.uint8))
    files.write_image(tmp_path / "train" / "n1" / "alpha.png", np.full((40, 50, 4), 200, np.uint8))
    dataset = load("imagenet", tmp_path, "train", size=8, transform="train", mean=(0, 0, 0), std=(1, 1, 1))
    for epoch in range(5):
        x, _ = dataset.batch([0, 1, 2], (0, epoch))
        torch.testing.assert_close(x, torch.full_like(x, 200 / 255))


def test_limit_takes_images_of_all_classes(root: Path) -> None:
    assert set(folder(root, limit=4).labels.tolist()) == {0, 1, 2}
    assert len(folder(root, limit=100)) == 9


def test_a_file_that_does_not_decode_is_named_when_it_is_read(root: Path) -> None:
    bad = root / "train" / "n01443537" / "n01443537_1.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    dataset = folder(root)
    assert [sample.name for sample in dataset.check()] == [str(bad)]
    with pytest.raises(FileFormatError, match=r"n01443537_1.JPEG' does not decode as an image"):
        dataset.batch(range(9))


def test_files_that_do_not_decode_can_be_skipped(root: Path) -> None:
    bad = root / "train" / "n01443537" / "n01443537_1.JPEG"
    bad.write_bytes(b"")
    with pytest.warns(ReliabilityWarning, match="1 of 9 samples cannot be read: .*n01443537_1.JPEG: does not decode"):
        dataset = folder(root, on_corrupt="skip")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert len(dataset.batch(range(8))[0]) == 8
    assert len(dataset.skipped) == 1


def test_a_missing_folder_says_what_was_expected_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InvalidInputError) as caught:
        folder(tmp_path)
    message = str(caught.value)
    assert "it holds notes.txt, photos/" in message
    assert "Expected train/<synset>/*.JPEG" in message
    assert "https://image-net.org" in message
    with pytest.raises(InvalidInputError, match=r"it does not exist; .* holds notes.txt, photos/"):
        folder(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError, match="it is a file, not a folder"):
        folder(tmp_path / "notes.txt")


def test_val_that_was_not_sorted_into_synsets_is_explained(root: Path) -> None:
    flat = root / "flat" / "val"
    files.write_image(flat / "ILSVRC2012_val_00000001.JPEG", files.pixels(1)[0], "JPEG")
    with pytest.raises(
        InvalidInputError, match=r"no synset folders: it holds ILSVRC2012_val_00000001.JPEG.*one folder"
    ):
        folder(flat.parent, "val")


def test_an_empty_class_folder_is_refused(root: Path) -> None:
    (root / "train" / "n09999999").mkdir()
    with pytest.raises(InvalidInputError, match="n09999999' has no images: it holds nothing"):
        folder(root)


def test_an_empty_split_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(InvalidInputError, match="no synset folders: it holds nothing"):
        folder(tmp_path)


def test_a_val_class_that_train_does_not_have_is_refused(root: Path) -> None:
    files.write_imagenet(root, {"val": {"n07777777": 1}})
    with pytest.raises(InvalidInputError, match="n07777777' is a label outside the 3 classes of train/"):
        folder(root, "val")


def test_images_and_labels_must_be_as_many(root: Path) -> None:
    dataset = folder(root)
    with pytest.raises(InvalidInputError, match="9 images and 8 labels"):
        ImageFolder(root, dataset.paths, dataset.labels[:8], dataset.classes, name="mine", split="train")
