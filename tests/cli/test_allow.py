"""A network of one's own on the command line: what may be called is named by `--allow`, from saving to serving."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run

import eenet
from eenet.errors import ReliabilityWarning
from eenet.testing import toy_costs

NETWORK = """
from torch import nn


def make():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
"""

COLORS = """
import torch, eenet
from torch import nn


class Brightest(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.first.weight.data = torch.eye(3).reshape(3, 3, 1, 1)
        self.first.bias.data.zero_()

    def forward(self, x):
        return self.first(x).mean((2, 3)) * 5


def make():
    network = Brightest().eval()
    return eenet.attach(network, ["first"], example=torch.randn(2, 3, 8, 8)), torch.randn(2, 3, 8, 8)
"""

PAIR = """
import torch, eenet
from torch import nn


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, input, scale):
        return self.last(self.first(input) * scale)


def network():
    return Scaled().eval()


def make():
    example = torch.randn(2, 3), torch.randn(2, 1)
    return eenet.attach(network(), ["first"], example=example, source="scaled_inputs_of_a_test:network"), example
"""

SAYS_ITS_CLASSES = """

def with_names():  # as a network of Hugging Face has them
    from types import SimpleNamespace

    model, example = make()
    model.backbone.config = SimpleNamespace(id2label={0: "red", 1: "green", 2: "blue"})
    return model, example
"""

SOURCE = "own_networks_of_a_test:make"


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module of a network, the model that `save_pretrained` wrote, a scheduler and inputs."""
    (tmp_path / "own_networks_of_a_test.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = __import__("own_networks_of_a_test").make().eval()
    model = eenet.attach(network, ["1", "3"], example=torch.randn(2, 4), source=SOURCE)
    model.save_pretrained("model")
    records = eenet.collect(model, [(torch.randn(90, 4), torch.randint(0, 3, (90,)))])
    eenet.MaxProbability().fit(records, toy_costs(), budget=2.5).save("scheduler.safetensors")
    # The command line must find the module by itself, in the current folder.
    sys.path.remove(str(tmp_path))
    del sys.modules["own_networks_of_a_test"]
    return tmp_path


def test_profile_says_the_option_and_takes_it(saved: Path) -> None:
    assert f"--allow {SOURCE}" in refused("profile", "model")
    words = ("--batch-sizes", "1", "--seconds", 0, "--json")
    found = json.loads(run("profile", "model", "--allow", SOURCE, *words).stdout)
    assert found["exits"] == ["1", "3", "output"]


def test_export_says_the_option_and_takes_it(saved: Path) -> None:
    words = ("export", "model", "--scheduler", "scheduler.safetensors", "--out", "bundle", "--backend", "torch")
    assert f"--allow {SOURCE}" in refused(*words)
    found = json.loads(run(*words, "--allow", SOURCE, "--json").stdout)
    assert found["backend"] == "torch"
    assert f"--allow {SOURCE}" in refused("serve", "bundle")


def test_a_bundle_without_records_says_what_its_thresholds_cost_beside_its_budget(saved: Path) -> None:
    words = ["export", "model", "--scheduler", "scheduler.safetensors", "--backend", "torch", "--allow", SOURCE]
    words += ["--batch-sizes", "1", "--seconds", "0", "--out", "bundle"]
    measured = ("profile", "bundle", "--batch-sizes", "1", "--seconds", 0, "--allow", SOURCE)
    stays = "its thresholds are those of the fit, and the budget is what they cost here"
    within = "its thresholds are those of the fit that cost most within the budget, "
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # no budget is that large, and nothing is gained
        for asked, said in (((), stays), (("--budget", "1000ms"), within)):
            assert f"It carries no calibration records: {said}" in " ".join(run(*words, *asked).stdout.split())
            shown = " ".join(run(*measured, *asked).stdout.split())
            assert f"without calibration records: {said}" in shown
        assert "its thresholds and its budget are those of the fit;" in " ".join(
            run(*words, "--no-measure").stdout.split()
        )


def test_samples_of_an_export_are_named_as_those_of_collect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the arguments of the network, of which tracing calls "input" otherwise."""
    monkeypatch.chdir(tmp_path)
    Path("scaled_inputs_of_a_test.py").write_text(PAIR)
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(40, 3)).astype("f4"), rng.random((40, 1), dtype="f4")
    np.savez("data.npz", input=x, scale=scale, labels=rng.integers(0, 3, 40))
    target = "scaled_inputs_of_a_test:make"
    run("collect", target, "--data", "data.npz", "--out", "records.npz")
    run("fit", "records.npz", "--costs", "1,2", "--budget", "1.5ms", "--out", "scheduler.safetensors")
    words = ("export", target, "--scheduler", "scheduler.safetensors", "--backend", "torch", "--no-measure", "--json")
    exported = json.loads(run(*words, "--samples", "data.npz", "--out", "bundle").stdout)
    assert exported["verified"]["samples"] == 40
    np.savez("other.npz", x=x, scale=scale)
    said = refused(*words, "--samples", "other.npz", "--out", "bundle")
    assert "holds ['scale', 'x'], the network takes ['input', 'scale']" in said


class TestCollect:
    def test_a_network_of_ones_own_gives_the_records_of_eenet_collect(self, saved: Path) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(50, 4)).astype("f4"), rng.integers(0, 3, 50)
        np.savez("data.npz", input=x, labels=y)
        words = ("collect", "model", "--data", "data.npz", "--batch-size", 7)
        assert f"--allow {SOURCE}" in refused(*words, "--out", "records.npz")
        found = json.loads(run(*words, "--out", "records.safetensors", "--allow", SOURCE, "--json").stdout)
        assert (found["samples"], found["exits"]) == (50, ["1", "3", "output"])
        sys.path.insert(0, str(saved))
        model = eenet.MultiExitModel.from_pretrained("model", allow=[SOURCE])
        expected = eenet.collect(model, [(torch.from_numpy(x), torch.from_numpy(y))])
        records = eenet.ExitRecords.load("records.safetensors")
        np.testing.assert_allclose(records.probabilities, expected.probabilities, rtol=1e-5, atol=1e-7)
        assert found["accuracies"] == pytest.approx(expected.accuracies.tolist())
        run(*words, "--out", "records.npz", "--allow", SOURCE)
        run(
            "fit",
            "records.npz",
            "--costs",
            "1,2,3",
            "--budget",
            "2ms",
            "--method",
            "max_prob",
            "--out",
            "s.safetensors",
        )
        run(*words, "--out", "open.npz", "--allow", SOURCE, "--unlabeled")
        with np.load("open.npz") as file:
            assert file.files == ["probabilities"]

    @pytest.mark.parametrize("option", ["--column", "--label-column"])
    def test_a_column_of_data_without_columns_is_refused(
        self, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        np.savez("data.npz", input=np.zeros((4, 3)), labels=np.zeros(4, int))
        Path("photos").mkdir()
        words = ("collect", "model", "--out", "records.npz", option, "x")
        for data, more in (("data.npz", "; arrays are found by their names: those of the network's"), ("photos", "")):
            message = " ".join(refused(*words, "--data", data).split())
            assert f"'{data}' has no columns, which .parquet, .csv, .tsv, .jsonl have: leave {option} x out{more}" in (
                message
            )

    def test_labels_are_given_once(self) -> None:
        words = ("collect", "model", "--out", "records.npz", "--data", "rows.csv", "--label-column", "x")
        assert "--labels y.npy and --label-column x both give labels; leave one" in refused(*words, "--labels", "y.npy")

    def test_folders_and_parquet_of_images_with_their_classes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pillow, pyarrow = pytest.importorskip("PIL.Image"), pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        monkeypatch.chdir(tmp_path)
        Path("colors.py").write_text(COLORS)
        colors = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
        for name, color in colors.items():
            Path("photos", name).mkdir(parents=True)
            for n in range(3):
                pillow.new("RGB", (20 + n, 16), color).save(f"photos/{name}/{n}.png")
        words: tuple[Any, ...] = ("--image-size", 8, "--mean", "0,0,0", "--std", "1,1,1", "--json", "--batch-size", 2)
        out = ("--out", "records.npz")
        # The network answers with the brightest channel; the folders by name are its classes backwards.
        found = json.loads(run("collect", "colors:make", "--data", "photos", *out, *words).stdout)
        assert (found["accuracies"][-1], found["classes"]) == (pytest.approx(1 / 3), ["blue", "green", "red"])
        shown = "the folders by name are taken as the network's classes: 0 = blue, 1 = green, 2 = red; for another"
        said = [word for word in words if word != "--json"]
        assert run("collect", "colors:make", "--data", "photos", *out, *said).stderr.count(shown) == 1
        Path("classes.txt").write_text("red\ngreen\nblue\n")
        words = (*words, "--classes", "classes.txt")
        found = json.loads(run("collect", "colors:make", "--data", "photos", *out, *words).stdout)
        assert (found["samples"], found["accuracies"][-1]) == (9, 1.0)
        rows = [{"bytes": Path("photos", name, "0.png").read_bytes()} for name in colors]
        for labels in ([2, 1, 0], ["blue", "green", "red"]):
            parquet.write_table(pyarrow.table({"image": rows, "color": labels}), "rows.parquet")
            table = ("collect", "colors:make", "--data", "rows.parquet", *out, *words)
            assert json.loads(run(*table, "--label-column", "color").stdout)["accuracies"][-1] == 1.0
        assert "has no labels; give --labels FILE, or --unlabeled" in refused(*table)
        assert "and no 'hue'" in refused(*table, "--label-column", "hue")
        Path("classes.txt").write_text("red\ngreen\n")
        folders = ("collect", "colors:make", "--data", "photos", *out)
        assert "the folder 'blue', which is no class of the network; its classes are red, green; rename" in refused(
            *folders, *words
        )
        Path("photos", "red").rename("red")
        message = refused(*folders, *words[:-2])
        assert "has 2 folders and the network 3 classes" in message
        assert "give --classes FILE" in message

    def test_labels_that_are_names_are_looked_up_in_the_classes_of_the_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        monkeypatch.chdir(tmp_path)
        Path("named_colors.py").write_text(COLORS + SAYS_ITS_CLASSES)
        names = np.array(["blue", "red", "green", "red"])
        x = np.zeros((4, 3, 8, 8), "f4")
        for n, channel in enumerate([2, 0, 1, 0]):
            x[n, channel] = 1
        np.savez("data.npz", x=x, labels=names)
        np.savez("bytes.npz", x=x, labels=names.astype("S"))
        np.save("x.npy", x)
        np.save("names.npy", names)
        Path("names.txt").write_text("\n".join(names))
        pillow = pytest.importorskip("PIL.Image")
        Path("photos").mkdir()
        for n, image in enumerate(x):
            pillow.fromarray((image.transpose(1, 2, 0) * 255).astype("uint8")).save(f"photos/{n}.png")
        rows = [{"bytes": Path(f"photos/{n}.png").read_bytes()} for n in range(4)]
        parquet.write_table(pyarrow.table({"image": rows, "label": names.tolist()}), "rows.parquet")
        Path("classes.txt").write_text("red\ngreen\nblue\n")
        images = ("--image-size", "8", "--mean", "0,0,0", "--std", "1,1,1")
        out = ("--out", "records.npz", "--json")
        for words in (
            ("--data", "data.npz"),
            ("--data", "bytes.npz"),
            ("--data", "x.npy", "--labels", "names.npy"),
            ("--data", "x.npy", "--labels", "names.txt"),
            ("--data", "rows.parquet", *images),
        ):
            message = refused("collect", "named_colors:make", *words, *out)
            assert "holds names such as 'blue', 'green', 'red', and which number each has in the network" in message
            assert "give --classes FILE with the names of the network's classes in order" in message
            assert not Path("records.npz").exists()
            for target, known in (("named_colors:make", ("--classes", "classes.txt")), ("named_colors:with_names", ())):
                found = json.loads(run("collect", target, *words, *known, *out).stdout)
                assert found["accuracies"][-1] == 1.0
                with np.load("records.npz") as file:
                    assert file["labels"].tolist() == [2, 0, 1, 0]
                Path("records.npz").unlink()
        Path("classes.txt").write_text("red\ngreen\nyellow\n")
        message = refused("collect", "named_colors:make", "--data", "data.npz", "--classes", "classes.txt", *out)
        assert "'labels' of 'data.npz' holds 'blue', which is no class of the network; its classes are red, green" in (
            message
        )
        Path("names.txt").write_text("red\n2\nblue\n0\n")
        message = refused("collect", "named_colors:with_names", "--data", "x.npy", "--labels", "names.txt", *out)
        assert "'names.txt' holds '0', which is no class of the network; its classes are red, green, blue" in message
        parquet.write_table(pyarrow.table({"image": rows, "label": ["red", None, "red", "red"]}), "rows.parquet")
        message = refused("collect", "named_colors:with_names", "--data", "rows.parquet", *images, *out)
        assert "the column 'label' of 'rows.parquet' has no label in 1 of 4 rows (row 2 holds None)" in message
        assert "leave these rows out, or take the data without labels" in message
        parquet.write_table(pyarrow.table({"image": rows, "label": [0, None, 1, None]}), "rows.parquet")
        message = refused("collect", "named_colors:make", "--data", "rows.parquet", *images, *out)
        assert "has no label in 2 of 4 rows (row 2 holds None)" in message
        for held in ([0, -1, 1, 2], [0, np.nan, 1, 2]):
            np.savez("partly.npz", x=x, labels=held)
            message = refused("collect", "named_colors:make", "--data", "partly.npz", *out)
            assert f"'labels' of 'partly.npz' has no label in 1 of 4 rows (row 2 holds {held[1]})" in message
        Path("labels.txt").write_text("0\n-1\n1\n2\n")
        message = refused("collect", "named_colors:make", "--data", "x.npy", "--labels", "labels.txt", *out)
        assert "'labels.txt' has no label in 1 of 4 rows (row 2 holds -1)" in message

    def test_a_saved_model_has_its_names_beside_it(self, saved: Path) -> None:
        rng = np.random.default_rng(0)
        np.savez("data.npz", input=rng.normal(size=(3, 4)).astype("f4"), labels=["no", "yes", "maybe"])
        Path("model", "classes.txt").write_text("yes\nno\nmaybe\n")
        run("collect", "model", "--data", "data.npz", "--allow", SOURCE, "--out", "records.npz")
        with np.load("records.npz") as file:
            assert file["labels"].tolist() == [1, 0, 2]

    def test_a_damaged_description_of_the_inputs_is_named(self, saved: Path) -> None:
        np.savez("data.npz", input=np.zeros((3, 4), "f4"))
        Path("model", "preprocessing.json").write_text("{")
        words = ("collect", "model", "--data", "data.npz", "--allow", SOURCE, "--unlabeled", "--out", "records.npz")
        assert "preprocessing.json' is not JSON" in refused(*words)

    @pytest.mark.parametrize(
        ("arrays", "words", "message"),
        [
            ({"input": np.zeros((3, 4), "f4")}, (), "has no labels"),
            ({"x": np.zeros((3, 4), "f4"), "y": np.zeros(3, int)}, (), "holds ['x', 'y'], the network takes ['input']"),
            ({"input": np.zeros((3, 4), "f4"), "labels": np.zeros(2, int)}, (), "there are 2 labels for 3 samples"),
            ({"input": np.zeros((0, 4), "f4")}, ("--unlabeled",), "holds [0] samples"),
            ({"input": np.zeros((3, 4), "f4")}, ("--unlabeled", "--labels", "l.npy"), "leave --labels"),
        ],
    )
    def test_what_cannot_be_collected_is_said(
        self, saved: Path, arrays: dict[str, np.ndarray[Any, Any]], words: tuple[str, ...], message: str
    ) -> None:
        np.savez("data.npz", **arrays)  # type: ignore[arg-type]
        command = ("collect", "model", "--data", "data.npz", "--allow", SOURCE)
        assert message in refused(*command, *words, "--out", "r.npz")
        assert ".safetensors or .npz" in refused(*command, "--out", "r.csv")
        assert not Path("r.npz").exists()
