"""`eenet benchmark` from outside: systems by path, data from files, results in files."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run

import eenet


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, a scheduler, samples with labels, and a folder as `eenet demo` leaves it."""
    folder = tmp_path_factory.mktemp("benchmark")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = eenet.models.multi_exit("resnet-digits")
        x = torch.randn(24, 1, 28, 28)
    labels = model.eval().backbone(x).argmax(dim=1)
    records = eenet.collect(model, [(x, labels)])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 4.0]))
    model.save_pretrained(folder / "model")
    scheduler.save(folder / "scheduler.safetensors")
    np.savez(folder / "data.npz", x=x.numpy(), labels=labels.numpy())
    run_folder = folder / "run"
    model.save_pretrained(run_folder / "work" / "model")
    np.savez(run_folder / "work" / "samples.npz", x=x.numpy()[::2])
    records.save(run_folder / "work" / "test.safetensors")
    (run_folder / "schedulers").mkdir()
    for share in (40, 60):
        scheduler.at(f"{share}%").save(run_folder / "schedulers" / f"eenet-{share}.safetensors")
    return folder


def benchmark(*words: object, code: int = 0) -> Any:
    return run("benchmark", *words, "--seconds", 0, "--batch-size", 4, code=code)


def test_batch_sizes_are_a_list_or_given_one_by_one(work: Path) -> None:
    words = ("benchmark", f"plain:{work}/model", "--data", work / "data.npz", "--seconds", 0, "--json")
    for given in (
        ("--batch-sizes", "2,4"),
        ("--batch-size", 4, "--batch-size", 2),
        ("--batch-sizes=4", "--batch-size=2"),
    ):
        rows = json.loads(run(*words, "-", *given).stdout)["rows"]
        assert [row["batch_size"] for row in rows] == [2, 4], given
    assert "--batch-sizes '0': a batch has at least 1 sample" in refused(*words[:4], "--batch-sizes", 0)


def test_a_saved_model_its_plain_network_and_a_function(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_mine.py").write_text(
        "import eenet\ndef net(): return eenet.build_network('resnet-digits').eval()\n"
    )
    early = f"early={work / 'model'}+{work / 'scheduler.safetensors'}@40%,100%"
    files = ("--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    shown = benchmark(
        f"plain=plain:{work / 'model'}", early, "mine=of_mine:net", "--data", work / "data.npz", *files
    ).stdout
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    rows = found["rows"]
    assert [(row["system"], row["budget"]) for row in rows] == [
        ("plain", None), ("early", "40%"), ("early", "100%"), ("mine", None),
    ]  # fmt: skip
    assert rows[0]["accuracy"] == 1
    assert rows[1]["realized_cost"] <= 4 * 0.4 + 1e-9
    assert " ".join(shown.split()).endswith(" ".join(found["verdict"].split()))
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").count("\n") == 5


def test_labels_that_are_names_are_looked_up_in_the_classes_of_the_network(work: Path, tmp_path: Path) -> None:
    with np.load(work / "data.npz") as file:
        x, labels = file["x"], file["labels"].copy()
    labels[::4] = (labels[::4] + 1) % 10
    names = [f"class {9 - k}" for k in range(10)]  # by name they come backwards
    np.savez(tmp_path / "named.npz", x=x, labels=[names[k] for k in labels])
    words = ("--data", tmp_path / "named.npz")
    message = benchmark(f"plain:{work / 'model'}", *words, code=2).stderr
    assert "holds names such as 'class " in message
    assert "give --labels FILE with class numbers" in message
    shutil.copytree(work / "run", tmp_path / "run")
    (tmp_path / "run" / "work" / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    found = json.loads(benchmark(f"plain:{tmp_path / 'run'}", *words, "--json").stdout)
    assert found["rows"][0]["accuracy"] == pytest.approx(0.75)


def test_a_folder_of_the_demo_brings_its_data_and_schedulers(work: Path) -> None:
    found = json.loads(benchmark(work / "run", "--json").stdout)
    assert (found["samples"], found["labeled"]) == (12, True)
    assert [row["budget"] for row in found["rows"]] == [None, "40%", "60%"]
    assert found["rows"][0]["accuracy"] == 1  # the labels are those of the samples
    named = json.loads(benchmark(f"a={work / 'run'}@60%", "b=eenet:resnet-digits", "--json", "-").stdout)
    assert [row["system"] for row in named["rows"]] == ["plain network", "a", "b"]
    assert named["rows"][2]["accuracy"] is None  # random weights


def test_one_exit_alone_is_a_word(work: Path) -> None:
    words = (work / "run", f"exit0:{work / 'run'}", f"one=exit1:{work / 'model'}", "--json")
    rows = {row["system"]: row for row in json.loads(benchmark(*words).stdout)["rows"]}
    assert list(rows) == ["plain network", "run", "run, exit 0", "one"]
    assert rows["one"]["accuracy"] is not None
    assert not rows["run, exit 0"]["early_exit"]
    assert 0 < rows["run, exit 0"]["weight_bytes"] < rows["one"]["weight_bytes"] < rows["run"]["weight_bytes"]


def test_labels_of_a_file_and_a_limit(work: Path, tmp_path: Path) -> None:
    with np.load(work / "data.npz") as arrays:
        np.save(tmp_path / "x.npy", arrays["x"])
        (tmp_path / "y.txt").write_text("\n".join(map(str, arrays["labels"])), encoding="utf-8")
    words = (f"plain:{work / 'model'}", "--data", tmp_path / "x.npy", "--json", "-", "--limit", 8)
    found = json.loads(benchmark(*words, "--labels", tmp_path / "y.txt").stdout)
    assert (found["samples"], found["rows"][0]["accuracy"]) == (8, 1)
    assert json.loads(benchmark(*words).stdout)["rows"][0]["accuracy"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{work}/model"], "is a model without a scheduler; write"),
        (
            ["exit0:{work}/model+{work}/scheduler.safetensors"],
            "is one exit alone, at which all samples leave",
        ),
        (["exit0:{work}/model@40%,60%"], "is one exit alone, at which all samples leave; leave out @40%,60%"),
        (
            ["exit7:{work}/model", "--data", "{work}/data.npz", "--batch-size", "4"],
            "is exit 7 alone, expected the number of an exit, 0 to",
        ),
        (["exit0:nowhere"], "'nowhere' is neither a folder nor the name of a model"),
        (["nowhere"], "'nowhere' is neither a folder nor the name of a model, nor another system: a bundle"),
        (["plain:{work}/model"], "there are no samples: give --data"),
        (["a=plain:{work}/model", "a=plain:{work}/model", "--data", "{work}/data.npz"], "two systems are called 'a'"),
        (["torchvision:nothing+{work}/scheduler.safetensors", "--data", "{work}/data.npz"], "nothing"),
        (["plain:{work}/model", "--data", "{work}/scheduler.safetensors"], "is neither .npz nor .npy"),
        (["plain:{work}/model", "--data", "{work}/nowhere.npz"], "nowhere.npz"),
        (["plain:{work}/model", "--data", "{work}/data.npz", "--column", "x"], "has no columns, which .parquet, .csv"),
        (
            ["{work}/run", "--column", "x"],
            "samples.npz' has no columns, which .parquet, .csv, .tsv, .jsonl have: leave",
        ),
    ],
)
def test_what_cannot_be_is_refused(work: Path, words: list[str], message: str) -> None:
    assert message in refused("benchmark", *(word.replace("{work}", str(work)) for word in words))


def test_a_stopped_measurement_says_by_its_exit_code_what_stopped_it(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    (tmp_path / "stopping.py").write_text(
        """
import signal
import torch

class Net(torch.nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number, self.calls = number, 0
        self.linear = torch.nn.Linear(784, 10)

    def forward(self, x):
        self.calls += 1
        if self.calls == 400:
            signal.raise_signal(self.number)
        return self.linear(x.flatten(1))

def ctrl_c(): return Net(signal.SIGINT)
def sigterm(): return Net(signal.SIGTERM)
"""
    )
    try:
        for name, code in (("ctrl_c", 130), ("sigterm", 143)):
            words = ("benchmark", f"stopping:{name}", "--data", work / "data.npz", "--batch-size", 4, "--seconds", 60)
            result = run(*words, code=code)
            assert "warning: stopped: this is what was measured until then" in result.stderr
            assert "Stopped after" in result.stdout
    finally:
        signal.signal(signal.SIGINT, before)
