"""Cityscapes pairs: label ids, joint augmentation, damaged and mismatched files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data_files as files
import numpy as np
import pytest
import torch

from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning
from eenet.experiments.data import load

IGNORED = 255
# From the labels.py that Cityscapes publishes: trainId of each id that has one.
TRAIN_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def all_ids(height: int = 6, width: int = 8) -> files.Pixels:
    """Label maps that hold every id from 0 to 33, and 255 for the license plate."""
    values = np.resize(np.array([*range(34), 255]), height * width)
    return values.reshape(height, width).astype(np.uint8)


def pairs(root: Path, split: str = "train", name: str = "cityscapes", **options: Any) -> Any:
    return load(name, root, split, **options)


def test_ids_become_the_19_training_classes(tmp_path: Path) -> None:
    files.write_cityscapes(tmp_path, "val", [all_ids()])
    dataset = pairs(tmp_path, "val")
    x, y = dataset[0]
    expected = [TRAIN_IDS.index(n) if n in TRAIN_IDS else IGNORED for n in all_ids().ravel().tolist()]
    assert y.dtype == torch.int64
    assert y.flatten().tolist() == expected
    assert x.shape == dataset.sample_shape == (3, 6, 8)
    assert len(dataset.classes) == 19
    assert (dataset.classes[0], dataset.classes[13], dataset.classes[18]) == ("road", "car", "bicycle")
    assert dataset.labels is None
    assert dataset.pixel_counts().tolist() == [expected.count(k) for k in range(19)]
    with pytest.raises(InvalidInputError, match="pixel_counts"):
        dataset.class_sizes()


def test_pairs_of_all_cities_are_found_in_order_and_evaluation_keeps_the_pixels(tmp_path: Path) -> None:
    made = files.write_cityscapes(tmp_path / "cityscapes", "train", [all_ids(), all_ids()], city="ulm")
    made = files.write_cityscapes(tmp_path / "cityscapes", "train", [all_ids()], city="aachen") + made
    dataset = pairs(tmp_path, mean=(0, 0, 0), std=(1, 1, 1))
    assert list(zip(dataset.files, dataset.label_maps, strict=True)) == made
    x, _ = dataset.batch([1, 2])
    torch.testing.assert_close(x, torch.stack([torch.from_numpy(files.pixels(1, 6, 8, n)[0]) for n in (0, 1)]).permute(0, 3, 1, 2) / 255)  # fmt: skip  # noqa: E501


def coded(ids: files.Pixels) -> files.Pixels:
    """An image whose red channel tells the label of each pixel."""
    image = np.zeros((*ids.shape, 3), np.uint8)
    image[..., 0] = ids * 7
    return image


@pytest.mark.parametrize("crop", [(40, 48), (100, 30), (120, 140), None])
def test_image_and_labels_are_augmented_together(tmp_path: Path, crop: tuple[int, int] | None) -> None:
    # Large blocks, so that most pixels are far from an edge that scaling blurs.
    blocks = np.kron(np.array([[7, 8, 11], [21, 23, 26]]), np.ones((40, 30), int)).astype(np.uint8)
    files.write_cityscapes(tmp_path, "train", [blocks], images=[coded(blocks)])
    dataset = pairs(tmp_path, transform="train", crop_size=crop, mean=(0, 0, 0), std=(1, 1, 1))
    to_id = np.append(np.array(TRAIN_IDS), 0)  # outside the image: black, and ignored
    flips, shares = set(), []
    for epoch in range(12):
        x, y = dataset.batch([0], (0, epoch))
        assert x.shape[2:] == y.shape[1:] == (crop or blocks.shape)
        labels = y[0].numpy()
        red = (x[0, 0].numpy() * 255 / 7).round().astype(int)
        ids = to_id[np.where(labels == IGNORED, 19, labels)]
        shares.append((red == ids).mean())
        inside = labels[labels != IGNORED]
        flips.add(bool(len(inside) and inside[0] == 0))
    assert min(shares) > 0.85
    assert len(flips) == 2 or crop is not None


def test_augmentation_is_fixed_by_seed_and_epoch(tmp_path: Path) -> None:
    files.write_cityscapes(tmp_path, "train", [all_ids(30, 40)] * 3)
    dataset = pairs(tmp_path, transform="train", crop_size=(16, 16))
    x, y = dataset.batch([0, 1, 2], (1, 5))
    again_x, again_y = dataset.batch([2], (1, 5))
    assert torch.equal(x[2:], again_x)
    assert torch.equal(y[2:], again_y)
    assert not torch.equal(x, dataset.batch([0, 1, 2], (1, 6))[0])
    evaluation = dataset.with_transform("eval")
    assert torch.equal(evaluation.batch([0], (1, 5))[0], evaluation.batch([0], (1, 6))[0])


def test_a_scale_of_one_without_crop_only_flips(tmp_path: Path) -> None:
    files.write_cityscapes(tmp_path, "train", [all_ids(10, 12)])
    train = pairs(tmp_path, transform="train", scale=(1, 1))
    x, y = train.with_transform("eval").batch([0])
    for epoch in range(6):
        augmented, labels = train.batch([0], (0, epoch))
        flipped = not torch.equal(labels, y)
        torch.testing.assert_close(augmented, x.flip(3) if flipped else x)
        assert torch.equal(labels, y.flip(2) if flipped else y)


def test_images_of_several_sizes_need_a_batch_each(tmp_path: Path) -> None:
    files.write_cityscapes(tmp_path, "train", [all_ids(6, 8), all_ids(8, 6)])
    dataset = pairs(tmp_path)
    assert dataset[1][0].shape == (3, 8, 6)
    with pytest.raises(InvalidInputError, match=r"of size \(8, 6\), others of its batch of \(6, 8\); use batch size 1"):
        dataset.batch([0, 1])
    assert pairs(tmp_path, transform="train", crop_size=(4, 4)).batch([0, 1])[0].shape == (2, 3, 4, 4)


def test_a_label_map_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    made = files.write_cityscapes(tmp_path, "train", [all_ids()] * 3)
    files.write_image(made[1][1], all_ids(6, 9))
    with pytest.raises(
        FileFormatError, match=r"1 of 3 samples.*000001_000019_gtFine_labelIds.png: is 9 x 6.*image 8 x 6"
    ):
        pairs(tmp_path)
    with pytest.warns(ReliabilityWarning, match="1 of 3 samples"):
        assert len(pairs(tmp_path, on_corrupt="skip")) == 2


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_file_of_a_pair_is_named(tmp_path: Path, which: int) -> None:
    made = files.write_cityscapes(tmp_path, "train", [all_ids(60, 80)] * 3)
    bad = made[2][which]
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])  # the header is whole: found when it is read
    dataset = pairs(tmp_path)
    assert len(dataset.check()) == 1
    with pytest.raises(FileFormatError, match=f"{bad.name}' does not decode"):
        dataset[2]
    with pytest.warns(ReliabilityWarning, match="1 of 3 samples cannot be read"):
        assert len(pairs(tmp_path, on_corrupt="skip")) == 2
    bad.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match=f"1 of 3 samples.*{bad.name}: does not decode"):
        pairs(tmp_path)


def test_an_id_outside_the_34_is_named_with_its_pixel(tmp_path: Path) -> None:
    ids = all_ids()
    ids[2, 3] = 34
    files.write_cityscapes(tmp_path, "train", [ids])
    with pytest.raises(FileFormatError, match=r"labelIds.png' has label id 34 at row 2, column 3 \(1 such pixels\)"):
        pairs(tmp_path)[0]


def test_a_color_map_is_not_a_label_map(tmp_path: Path) -> None:
    made = files.write_cityscapes(tmp_path, "train", [all_ids()])
    files.write_image(made[0][1], files.pixels(1, 6, 8)[0])
    with pytest.raises(FileFormatError, match="has 3 channels, expected one of label ids"):
        pairs(tmp_path)[0]


def test_images_without_a_label_map_are_counted_and_named(tmp_path: Path) -> None:
    made = files.write_cityscapes(tmp_path, "train", [all_ids()] * 4)
    made[2][1].unlink()
    with pytest.raises(
        InvalidInputError, match=r"4 images and 3 label maps.*'ulm/ulm_000002_000019', which has no label"
    ):
        pairs(tmp_path)
    made[2][0].unlink()
    made[3][0].unlink()
    with pytest.raises(
        InvalidInputError, match=r"2 images and 3 label maps.*'ulm/ulm_000003_000019', which has no image"
    ):
        pairs(tmp_path)


def test_missing_and_empty_folders_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"it holds nothing. Expected leftImg8bit/val/<city>/\*_leftImg8bit.png"
    ):
        pairs(tmp_path, "val")
    (tmp_path / "leftImg8bit" / "val" / "ulm").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match=r"no Cityscapes labels of split 'val'.*gtFine.*it does not exist"):
        pairs(tmp_path, "val")
    (tmp_path / "gtFine" / "val").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match=r"val' has no images: it holds ulm/. Expected"):
        pairs(tmp_path, "val")


@pytest.mark.parametrize("options", [{"crop_size": (0, 5)}, {"scale": (0, 1)}, {"scale": (2, 1)}, {"std": (1, 1, 0)}])
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    files.write_cityscapes(tmp_path, "train", [all_ids()])
    with pytest.raises(InvalidInputError, match="expected"):
        pairs(tmp_path, **options)


def test_the_shared_camvid_loads_with_its_11_classes(shared: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    if not (shared / "datasets" / "camvid-as-cityscapes").is_dir():
        pytest.skip("the shared material has no datasets/camvid-as-cityscapes")
    val = pairs(shared / "datasets", "val", "camvid")
    assert len(val) == 101
    assert val.batch([0, 1])[0].shape == (2, 3, 180, 240)
    some = pairs(shared / "datasets", "train", "camvid", limit=40)
    assert (some.pixel_counts() > 0).sum() == 11
    assert pairs(shared / "datasets" / "camvid-as-cityscapes", "train", transform="train", crop_size=(96, 128)).batch(
        range(4), (0, 0)
    )[1].shape == (4, 96, 128)
