"""A run that is killed at any moment goes on as if it had not been."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import training_killed
import training_on_two
import training_shares
from training_toys import assert_same_weights, corner_model, loaders, weights_of

from eenet.errors import FileFormatError, InvalidInputError
from eenet.training import TrainConfig, TrainResult, load_checkpoint, train

pytest.importorskip("lightning_fabric", reason="Lightning is not installed")

Run = tuple[Path, dict[str, torch.Tensor], TrainResult]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    return out, *training_killed.run(out)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    for row in found:
        del row["seconds"], row["images_per_second"]
    return found


@pytest.mark.parametrize("where", ["batch", "checkpoint"])
def test_a_killed_run_ends_with_the_same_weights(where: str, whole: Run, tmp_path: Path) -> None:
    out, weights, result = whole
    script = Path(training_killed.__file__)
    paths = [str(script.parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, str(script), str(tmp_path), where], env=environment)
    assert died.returncode == -signal.SIGKILL
    assert len(rows(tmp_path)) == 2
    assert bool(list(tmp_path.glob(".*.partial"))) == (where == "checkpoint")
    random.seed(7)
    torch.manual_seed(7)  # a resumed run starts from another random state than the first did
    resumed, again = training_killed.run(tmp_path)
    assert_same_weights(weights, resumed)
    one, other = corner_model(1), corner_model(2)
    load_checkpoint(one, out / "last.safetensors")
    load_checkpoint(other, tmp_path / "last.safetensors")
    assert_same_weights(weights_of(one), weights_of(other))
    assert rows(out) == rows(tmp_path)
    assert again.best.score == result.best.score
    assert not list(tmp_path.glob(".*.partial"))


def test_a_finished_run_resumes_to_its_result(whole: Run) -> None:
    out, weights, result = whole
    before = (out / "last.safetensors").read_bytes()
    again, repeated = training_killed.run(out)
    assert_same_weights(weights, again)
    assert repeated.history == result.history
    assert (out / "last.safetensors").read_bytes() == before


def test_a_folder_with_a_run_is_not_overwritten(whole: Run) -> None:
    with pytest.raises(InvalidInputError, match=r"already holds a run; pass resume=True"):
        training_killed.run(whole[0], resume=False)


def test_other_settings_or_data_are_not_resumed(whole: Run) -> None:
    train_loader, validation = loaders(80)
    config = TrainConfig.from_dict({**training_killed.CONFIG.to_dict(), "seed": 3, "epochs": 9})
    with pytest.raises(InvalidInputError, match=r"epochs: 9 instead of 5; seed: 3 instead of 0.*another `out`"):
        train(corner_model(), train_loader, validation, config=config, out=whole[0], resume=True)
    with pytest.raises(InvalidInputError, match="had 5 batches in an epoch, train_loader has 3"):
        train(corner_model(), train_loader, validation, config=training_killed.CONFIG, out=whole[0], resume=True)


def test_another_architecture_is_refused_by_the_first_names(whole: Run) -> None:
    checkpoint = whole[0] / "best.safetensors"
    wider = corner_model(width=8)
    before = weights_of(wider)
    with pytest.raises(InvalidInputError) as caught:
        load_checkpoint(wider, checkpoint)
    assert "another architecture: of other shapes are staged.backbone.first.0.weight (6, 3, 3, 3) instead of" in str(
        caught.value
    )
    assert " more; build the model as it was" in str(caught.value)
    assert_same_weights(before, weights_of(wider))
    with pytest.raises(InvalidInputError, match=r"it lacks weight, bias; it has besides heads\.0\..* more;"):
        load_checkpoint(torch.nn.Linear(2, 2), checkpoint)


def test_a_checkpoint_is_safetensors_and_nothing_else_is_read(whole: Run, tmp_path: Path) -> None:
    model = corner_model()
    for name in ("best.safetensors", "last.safetensors"):
        header = load_checkpoint(model, whole[0] / name)
        assert header["config"] == training_killed.CONFIG.to_dict()
        assert header["exits"] == ["first", "second", "output"]
    torch.save(model.state_dict(), tmp_path / "pickle.pt")
    with pytest.raises(FileFormatError, match="pickle"):
        load_checkpoint(model, tmp_path / "pickle.pt")
    (tmp_path / "short").write_bytes((whole[0] / "best.safetensors").read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        load_checkpoint(model, tmp_path / "short")
    with pytest.raises(InvalidInputError, match="not there"):
        load_checkpoint(model, tmp_path / "none")


def test_a_run_leaves_the_generators_as_they_were(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(11)
    train_loader, validation = loaders(64, generator=generator)
    model = corner_model().eval()
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), generator.get_state())  # type: ignore[index] # noqa: NPY002
    train(
        model, train_loader, validation, config=TrainConfig(epochs=1, progress=False, accelerator="cpu"), out=tmp_path
    )
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), generator.get_state())  # type: ignore[index] # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])
    assert not any(module.training for module in model.modules())


def test_the_seed_decides(tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        model = corner_model()
        config = TrainConfig(epochs=1, seed=seed, progress=False, tensorboard=False, accelerator="cpu")
        train(model, *loaders(64), config=config, out=tmp_path / str(number))
        found.append(weights_of(model))
    assert_same_weights(found[0], found[1])
    assert any(not torch.equal(tensor, found[2][name]) for name, tensor in found[0].items())


def _run_script(script: Path, out: Path) -> str:
    paths = [str(script.parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_share_the_samples_and_train_as_one(tmp_path: Path) -> None:
    _run_script(Path(training_shares.__file__), tmp_path)
    first, second = (json.loads((tmp_path / f"read{rank}.json").read_text()) for rank in (0, 1))
    for name in first:
        samples = 40 if "subset" in name else 44
        read = first[name]["read"][: samples // 2] + second[name]["read"][: samples // 2]
        # Of 11 batches one comes twice, and what another process reads is not noted here.
        assert name.startswith(("list", "by epoch")) or sorted(read) == list(range(samples)), name
        assert first[name]["loss"] == second[name]["loss"]
    assert first["by epoch, other process 0"]["loss"] == first["by epoch 0"]["loss"]
    assert first["shuffled 0"]["read"] != first["shuffled 5"]["read"], "the seed decides on the order"
    assert first["shuffled 0"]["read"][:22] != first["shuffled 0"]["read"][22:], "and so does the epoch"
    alone = training_shares.trained(tmp_path / "alone", 1)["in order 0"]
    assert first["in order 0"]["step"] == alone["step"] == 6
    assert first["in order 0"]["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert first["in order 0"]["exits"] == pytest.approx(alone["exits"], rel=1e-4)


def test_what_two_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, devices=2, strategy="ddp_spawn", accelerator="cpu", tensorboard=False)
    with pytest.raises(InvalidInputError, match=r"strategy='ddp_spawn' cannot be used.*script"):
        train(corner_model(), *loaders(64), config=config, out=tmp_path)


def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    said = _run_script(Path(training_on_two.__file__), tmp_path)
    found = Counter(tuple(line.split()[1:]) for line in said.splitlines() if line.startswith("FOUND"))
    assert list(found.values()) == [2, 2], "both processes end with the same, jointly and with the heads alone"
    # 4 batches of 32 for two processes, two of which make a step, and two epochs.
    assert sorted(line[:2] for line in found) == [("False", "2"), ("True", "2")]
    assert (tmp_path / "False" / "best.safetensors").is_file()
