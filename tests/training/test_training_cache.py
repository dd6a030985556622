"""Training the heads alone, on features that are computed once and kept on disk."""

from __future__ import annotations

import copy
import errno
import json
import random
import shutil
import tempfile
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files import full_disk
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset
from training_toys import Augmented, CornerNet, assert_same_weights, corner_model, images, loaders, weights_of

import eenet
import eenet.experiments.data
from eenet.errors import InvalidInputError
from eenet.training import OutOfSpaceError, TrainConfig, train

pytest.importorskip("lightning_fabric", reason="Lightning is not installed")

FROZEN = TrainConfig(
    epochs=3, learning_rate=0.05, freeze_backbone=True, accelerator="cpu", tensorboard=False, progress=False
)


@dataclass(frozen=True)
class Cached:
    """What a run with frozen backbone kept: of the early exits (N, ...) each, the last exit's logits, the labels."""

    features: list[np.ndarray[Any, Any]]
    logits: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.targets)


def cache(
    model: eenet.MultiExitModel, loader: Any, folder: Path, dtype: str = "float32", *, validation: Any = None
) -> Cached:
    """The features of a loader's data, by a run that is over after one epoch; the heads stay as they are."""
    heads = copy.deepcopy(model.heads.state_dict())
    config = replace(FROZEN, epochs=1, cache_dtype=dtype)
    costs = eenet.ExitCosts(range(1, model.num_exits + 1))
    with tempfile.TemporaryDirectory() as out:
        train(model, loader, validation or loader, config=config, out=out, features=folder, costs=costs)
    model.heads.load_state_dict(heads)
    found = max(folder.glob("*/complete.json"), key=lambda path: path.stat().st_mtime_ns).parent
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in found.glob("*.npy")}
    exits = [arrays[f"exit{k}"] for k in range(model.num_exits - 1)]
    return Cached(exits, arrays["logits"], arrays["targets"])


def marker(folder: Path) -> Path:
    (found,) = folder.glob("*/complete.json")
    return found


def test_heads_learn_and_the_backbone_stays(tmp_path: Path) -> None:
    model, (train_loader, validation) = corner_model(), loaders(256)
    before = weights_of(model)
    result = train(model, train_loader, validation, config=replace(FROZEN, epochs=6), out=tmp_path)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("heads.") for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())
    records = eenet.collect(model, validation)
    assert records.accuracies.tolist() == pytest.approx(result.best.accuracies)
    assert result.best.accuracies[0] > result.history[0].accuracies[2] + 0.2
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_cached_features_give_the_logits_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = images(20, 0)
    net = CornerNet()
    heads = [eenet.models.ConvHead(6, 4, grid=2), nn.Sequential(nn.Flatten(), nn.Linear(96, 4))]
    model = eenet.attach(net, exits=["first", "second"], num_classes=4, example=x[:2], heads=heads).eval()
    for dtype, tolerance in (("float32", 1e-6), ("float16", 1e-2)):
        found = cache(model, DataLoader(TensorDataset(x, y), 8, shuffle=True), tmp_path / dtype, dtype)
        assert len(found) == 20
        assert found.features[0].shape == (20, 6, 2, 2), "only what the head's pooling leaves is kept"
        assert found.features[1].shape == (20, 6, 4, 4)
        assert isinstance(found.features[0], np.memmap)
        tensors = [torch.from_numpy(np.array(part)).float() for part in (*found.features, found.logits)]
        assert found.targets.tolist() == y.tolist()
        with torch.no_grad():
            for logits, head, feature in zip(model(x), heads, tensors, strict=False):
                torch.testing.assert_close(head(feature), logits, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(tensors[-1], model(x)[-1])


def test_the_cache_is_used_again_for_the_same_weights_and_data_only(tmp_path: Path) -> None:
    data, plain = Augmented(24, 0), [images(8, 1)]
    model = corner_model()

    def fill() -> bool:
        """Whether features of the training data were written."""
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the augmentation uses it
        random.seed(0)
        before = written()
        cache(model, DataLoader(data, 8), tmp_path, validation=plain)
        return written() != before

    def written() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/complete.json")}

    assert fill()
    assert not fill()
    with torch.no_grad():
        next(model.heads.parameters()).add_(1)
    assert not fill(), "heads do not matter"
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1)
    assert fill()
    data.x[0] += 1
    assert fill()
    assert len(list(tmp_path.iterdir())) == 3 + 2, "of the training data, and of the validation data"
    data.x[-1] += 1
    assert fill(), "the last batch matters as the first does"
    assert not fill()
    assert len(list(tmp_path.iterdir())) == 3 + 2, "in place of those with the same first batch"


def test_features_are_not_taken_for_those_of_other_labels(tmp_path: Path) -> None:
    x, y = images(24, 0)
    for labels in (3 - y, y):
        found = cache(corner_model(), DataLoader(TensorDataset(x, labels), 8), tmp_path)
        assert found.targets.tolist() == labels.tolist()


def test_features_that_are_made_again_are_those_of_a_folder_of_their_own(tmp_path: Path) -> None:
    data = Augmented(24, 0)
    cache(corner_model(), DataLoader(data, 8), tmp_path / "shared", validation=[images(8, 1)])
    data.x[-1] += 1
    found = []
    for folder in (tmp_path / "shared", tmp_path / "own"):
        cache(corner_model(), DataLoader(data, 8), folder, validation=[images(8, 1)])
        (features,) = (one for one in map(np.load, folder.glob("*/exit0.npy")) if len(one) == 24)
        found.append(features)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("damage", ["no marker", "short file", "missing file"])
def test_nothing_half_written_is_taken_for_complete(damage: str, tmp_path: Path) -> None:
    model, (loader, _) = corner_model(), loaders(32)
    whole = cache(model, loader, tmp_path)
    expected = [np.array(part) for part in (*whole.features, whole.logits, whole.targets)]
    folder = marker(tmp_path).parent
    if damage == "no marker":
        marker(tmp_path).unlink()
        (folder / "exit0.npy").write_bytes(b"half")
    elif damage == "short file":
        content = (folder / "exit1.npy").read_bytes()
        (folder / "exit1.npy").write_bytes(content[:-4])
    else:
        (folder / "logits.npy").unlink()
    again = cache(model, loader, tmp_path)
    for one, other in zip((*again.features, again.logits, again.targets), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    sizes = json.loads(marker(tmp_path).read_text(encoding="utf-8"))["files"]
    assert sizes == {name: (folder / name).stat().st_size for name in sizes}


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 1000))
    with pytest.raises(OutOfSpaceError, match=r"needs .* kB in .*, where 1 kB are free; free some space"):
        cache(corner_model(), loaders(64)[0], tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        full_disk(20_000),
        pytest.raises(OutOfSpaceError, match=r"the disk filled up .* nothing of it is left") as caught,
    ):
        cache(corner_model(), loaders(256)[0], tmp_path)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert isinstance(caught.value, OSError)
    assert not list(tmp_path.iterdir())


def test_samples_held_out_by_the_sampler_are_not_cached(tmp_path: Path) -> None:
    x, y = images(32, 0)
    rows = [3, 30, 7, 11, 12]
    loader = DataLoader(TensorDataset(x, y), 2, sampler=SubsetRandomSampler(rows))
    found = cache(corner_model(), loader, tmp_path)
    assert found.targets.tolist() == y[sorted(rows)].tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_our_own_loader_of_whole_batches_is_cached_in_the_order_of_the_data(shuffle: bool, tmp_path: Path) -> None:
    x, y = images(22, 0)
    pixels = ((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8).numpy()
    data = eenet.experiments.data.ImageArray(
        pixels, y.numpy(), "abcd", name="corners", split="train", transform="eval", mean=(0, 0, 0), std=(1, 1, 1)
    )
    model, batches = corner_model().eval(), eenet.experiments.data.loader(data, 8, shuffle=shuffle, drop_last=True)
    found = cache(model, batches, tmp_path)
    assert found.targets.tolist() == y.tolist(), "each sample once, the smaller last batch too"
    with torch.no_grad():
        logits = model(data.batch(range(22))[0])
    torch.testing.assert_close(torch.from_numpy(np.array(found.logits)), logits[-1])
    next(iter(batches))  # a later epoch
    cache(model, batches, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    train(model, batches, batches, config=replace(FROZEN, epochs=1), out=tmp_path / "run")
    (written,) = (tmp_path / "run" / "features").glob("*/exit0.npy")
    assert len(np.load(written)) == 22


def test_a_loader_whose_samples_cannot_be_told_is_refused_by_name(tmp_path: Path) -> None:
    x, y = images(16, 0)
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    with pytest.raises(InvalidInputError, match=r"batch_size=None, .* give one that batches by itself"):
        cache(corner_model(), DataLoader(batches, batch_size=None), tmp_path)  # type: ignore[arg-type]
    assert len(cache(corner_model(), batches, tmp_path)) == 16


def test_runs_share_features_where_they_are_told_to(tmp_path: Path) -> None:
    train_loader, validation = loaders(64)
    for seed in range(2):
        model = corner_model()
        with torch.no_grad():
            for parameter in model.heads.parameters():
                parameter.add_(seed)  # other heads, the same backbone
        train(
            model,
            train_loader,
            validation,
            config=replace(FROZEN, epochs=1, seed=seed),
            out=tmp_path / f"run{seed}",
            features=tmp_path / "features",
        )
        assert not (tmp_path / f"run{seed}" / "features").exists()
    assert len(list((tmp_path / "features").iterdir())) == 2, "of the training and of the validation data"


def test_a_frozen_run_resumes(tmp_path: Path) -> None:
    train_loader, validation = loaders(96)
    whole = corner_model()
    train(whole, train_loader, validation, config=FROZEN, out=tmp_path / "whole")

    model = corner_model()
    with pytest.raises(_InterruptedError):
        train(model, train_loader, validation, config=FROZEN, out=tmp_path / "two", task=_InterruptedTask(2))
    resumed = corner_model()
    train(resumed, train_loader, validation, config=FROZEN, out=tmp_path / "two", resume=True)
    assert_same_weights(weights_of(whole), weights_of(resumed))


class _InterruptedError(Exception):
    pass


class _InterruptedTask(eenet.training.ClassificationTask):
    """Fails at an evaluation."""

    def __init__(self, good: int) -> None:
        self.good = good

    def records(self, outputs: Any) -> eenet.ExitRecords:
        if self.good == 0:
            raise _InterruptedError
        self.good -= 1
        return super().records(outputs)


def test_what_cannot_be_cached_is_refused(tmp_path: Path) -> None:
    model = corner_model()
    x, y = images(16, 0)
    with pytest.raises(InvalidInputError, match="data of known length, got a generator"):
        cache(model, ((a, b) for a, b in [(x, y)]), tmp_path)
    with pytest.raises(InvalidInputError, match="gave no batch"):
        cache(model, [], tmp_path)
    with pytest.raises(InvalidInputError, match=r"range of float16; use cache_dtype='float32'"):
        cache(model, [(x * 1e8, y)], tmp_path, "float16")
    with pytest.raises(InvalidInputError, match="a teacher needs the inputs"):
        train(
            model,
            [(x, y)],
            [(x, y)],
            config=replace(FROZEN, teacher_weight=1.0),
            out=tmp_path / "run",
            teacher=CornerNet(),
        )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_feature_sizes_that_vary_are_refused(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.top = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.top(self.body(x).mean(1))
            return logits

    class MeanHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, feature: Tensor) -> Tensor:
            logits: Tensor = self.fc(feature.mean(1))
            return logits

    model = eenet.attach(
        Wide(), exits=["body"], num_classes=3, example=torch.randn(2, 5, 4), heads=[MeanHead()], dynamic={1: "length"}
    )
    batches = [(torch.randn(2, length, 4), torch.tensor([0, 1])) for length in (5, 6)]
    with pytest.raises(InvalidInputError, match=r"'exit0' has shape \(6, 4\) in one batch and \(5, 4\) in another"):
        cache(model, batches, tmp_path)
    assert not list(tmp_path.iterdir())
