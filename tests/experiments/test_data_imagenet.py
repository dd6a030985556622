"""ImageNet as folders of synsets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import data_files as files
import numpy as np
import pytest
import torch
from optional import import_or_skip

from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning
from eenet.experiments.data import load, three_way_split

TRAIN = {"n01440764": 3, "n01443537": 4, "n01484850": 2}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files.write_imagenet(tmp_path, {"train": TRAIN, "val": {"n01443537": 2, "n01484850": 1}})
    return tmp_path


def folder(root: Path, split: str = "train", **options: Any) -> Any:
    return load("imagenet", root, split, size=24, **options)


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
        with pillow.open(dataset.files[n]) as image:
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
    files.write_image(tmp_path / "train" / "n1" / "gray.png", np.full((40, 50), 200, np.uint8))
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


class TestSynsets:
    """Numbering the classes as a network that was trained on more of them does."""

    def test_val_alone_is_numbered_by_its_folders_and_that_is_said(self, tmp_path: Path) -> None:
        files.write_imagenet(tmp_path, {"val": {"n1": 1, "n2": 1}})
        with pytest.warns(ReliabilityWarning, match=r"numbered 0 to 1 by the 2 folders of val/.*synsets="):
            assert folder(tmp_path, "val").classes == ("n1", "n2")

    @pytest.mark.parametrize("name", ["list", "synset_words.txt", "classes.json", "index.json", "plain.json"])
    def test_a_list_or_a_file_numbers_the_classes(self, tmp_path: Path, name: str) -> None:
        files.write_imagenet(tmp_path, {"val": {"n2": 2, "n7": 1}})
        order = ["n7", "n1", "n2"]
        contents = {
            "synset_words.txt": "".join(f"{synset} a word, another\n" for synset in order),
            "classes.json": json.dumps([{"label": k, "wnid": synset, "name": "w"} for k, synset in enumerate(order)]),
            "index.json": json.dumps({str(k): [synset, "w"] for k, synset in enumerate(order)}),
            "plain.json": json.dumps(order),
        }
        if name in contents:
            (tmp_path / name).write_text(contents[name])
        dataset = folder(tmp_path, "val", synsets=order if name == "list" else name)
        assert dataset.classes == tuple(order)
        assert dataset.labels.tolist() == [2, 2, 0]

    def test_a_list_that_cannot_be_used_is_refused(self, tmp_path: Path) -> None:
        files.write_imagenet(tmp_path, {"val": {"n2": 1}})
        (tmp_path / "broken.json").write_text("[1, 2]")
        with pytest.raises(InvalidInputError, match="n2' is a label outside the 1 classes that `synsets` lists"):
            folder(tmp_path, "val", synsets=["n1"])
        with pytest.raises(InvalidInputError, match="none of them twice"):
            folder(tmp_path, "val", synsets=["n2", "n2"])
        with pytest.raises(InvalidInputError, match="there is no such file"):
            folder(tmp_path, "val", synsets="nowhere.txt")
        with pytest.raises(FileFormatError, match=r"broken.json' lists no synsets"):
            folder(tmp_path, "val", synsets="broken.json")


class TestParquet:
    """Images as Hugging Face publishes them."""

    @pytest.fixture
    def parquet(self, tmp_path: Path) -> Path:
        for split, count in (("train", 6), ("valid", 4)):
            cells = files.image_cells(files.pixels(count, 30, 40), "JPEG")
            labels = [(n + 1) % 3 for n in range(count)]
            files.write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", {"image": cells, "label": labels})
        return tmp_path

    def test_it_gives_the_images_of_the_folders(self, parquet: Path, tmp_path: Path) -> None:
        dataset = folder(parquet, "val")
        assert dataset.labels.tolist() == [1, 2, 0, 1]
        assert dataset.classes == ("0", "1", "2")
        for n, image in enumerate(files.pixels(4, 30, 40)):
            files.write_image(tmp_path / "other" / "train" / "n1" / f"{n}.jpg", image, "JPEG")
        torch.testing.assert_close(dataset.batch(range(4))[0], folder(tmp_path / "other").batch(range(4))[0])
        train = folder(parquet, transform="train")
        assert torch.equal(train.batch([0, 5], (0, 1))[0], train.batch([0, 5], (0, 1))[0])
        assert train.fingerprint() != dataset.fingerprint()
        assert three_way_split(train, calibration=2, test=2).duplicates == {
            "calibration": {"train": 0},
            "test": {"train": 0, "calibration": 0},
        }

    def test_names_come_from_classes_json_and_synsets_renumber_them(self, parquet: Path) -> None:
        names = [{"label": k, "wnid": f"n{k}", "name": "w"} for k in range(3)]
        (parquet / "classes.json").write_text(json.dumps(names))
        assert folder(parquet, "val").classes == ("n0", "n1", "n2")
        dataset = folder(parquet, "val", synsets=["n9", "n2", "n1", "n0"])
        assert dataset.labels.tolist() == [2, 1, 3, 2]
        with pytest.raises(InvalidInputError, match=r"`synsets` lacks 1 classes of split 'val' .* such as 'n2'"):
            folder(parquet, "val", synsets=["n0", "n1"])

    def test_limit_takes_evenly_spaced_rows(self, parquet: Path) -> None:
        assert folder(parquet, limit=3).labels.tolist() == [2, 1, 0]

    def test_rows_that_do_not_decode_are_named(self, parquet: Path) -> None:
        cells = files.image_cells(files.pixels(3, 30, 40), "JPEG")
        cells[1]["bytes"] = None
        files.write_parquet(parquet / "train-00000-of-00001.parquet", {"image": cells, "label": [0, 1, 2]})
        with pytest.raises(FileFormatError, match="parquet row 1' has no image bytes"):
            folder(parquet).batch(range(3))
        with pytest.warns(ReliabilityWarning, match="1 of 3 samples cannot be read: .*row 1: has no image bytes"):
            assert folder(parquet, on_corrupt="skip").labels.tolist() == [0, 2]
        files.write_parquet(parquet / "train-00000-of-00001.parquet", {"image": cells, "label": [0, None, 2]})
        with pytest.raises(InvalidInputError, match="row 1 has label -1"):
            folder(parquet)

    def test_more_than_the_memory_is_refused(self, parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.sysconf", lambda name: 10)
        with pytest.raises(InvalidInputError, match=r"are kept in memory.*give limit="):
            folder(parquet)

    def test_the_shared_tiny_imagenet_loads(self, shared: Path) -> None:
        root = shared / "datasets" / "tiny-imagenet"
        if not root.is_dir():
            pytest.skip("the shared material has no datasets/tiny-imagenet")
        dataset = load("imagenet", root, "val", size=56, limit=400)
        assert len(dataset.classes) == 200
        assert dataset.classes[0] == "n01443537"
        assert dataset.batch([0, 399])[0].shape == (2, 3, 56, 56)
        words = shared / "datasets" / "imagenet-mini" / "synset_words.txt"
        assert len(load("imagenet", root, "val", limit=5, synsets=words).classes) == 1000
