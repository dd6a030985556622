"""Trained models by name on the command line, and the page that says what they are; it is written by this file."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from commands import refused, run, served
from optional import import_or_skip, not_installed
from pages import DOCS
from waiting import PATIENCE

import eenet

for _library in ("onnx", "onnxscript", "onnxruntime", "pyarrow", "mlxtend", "PIL", "plotly"):
    pytest.importorskip(_library)

PAGE = DOCS / "howto" / "trained-models.md"
RESULTS = DOCS.parent / "results"
BEGIN, END = "<!-- models: begin -->\n", "<!-- models: end -->"
BESIDE = {
    "metrics.json", "costs.json", "calibration.safetensors", "test.safetensors", "samples.npz", "classes.txt",
    "preprocessing.json",
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings(
    "ignore::eenet.errors.ReliabilityWarning", "ignore::eenet.errors.FallbackWarning"
)


def table() -> str:
    """The models that ship, by what is beside them."""
    rows = []
    for folder in sorted(RESULTS.glob("*/model")):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        whole = metrics["costs"]["plain"]
        exits = [f"{100 * e['cost'] / whole:.0f} %: {100 * e['test_accuracy']:.1f}" for e in metrics["exits"]]
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        rows.append(f"| `{folder.parent.name}` | {metrics['title']} | {', '.join(exits)} | {size:.1f} MB |")
    return "\n".join(["| name | what | cost: accuracy | size |", "|---|---|---|---|", *rows]) + "\n"


def write_page() -> None:
    """Write the table into the page: `python tests/cli/test_trained.py`."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")


def test_the_page_lists_the_models_that_ship_with_what_they_need() -> None:
    if not RESULTS.is_dir():
        pytest.skip("needs results/, which is in the repository alone")
    for folder in RESULTS.glob("*/model"):
        held = {file.name: file.stat().st_size for file in folder.iterdir()}
        todo = "make it again: eenet reproduce NAME --from evaluate"
        # Pictures that may not be passed on are taken out.
        assert set(held) >= BESIDE - {"samples.npz"}, todo
        beside = sum(held.get(name, 0) for name in BESIDE)
        assert beside < 2.6e6, todo
        assert sum(held.values()) - beside <= 8e6
    assert (RESULTS / "digits" / "model" / "samples.npz").is_file()
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == table(), "run python tests/cli/test_trained.py"


def test_the_first_of_the_samples_and_records_of_digits_are_of_all_classes() -> None:
    folder = RESULTS / "digits" / "model"
    if not folder.is_dir():
        pytest.skip("needs results/, which is in the repository alone")
    test, calibration = (eenet.ExitRecords.load(folder / f"{part}.safetensors") for part in ("test", "calibration"))
    for records in (test, calibration):
        assert records.labels is not None
        assert len(np.unique(records.labels[:100])) == 10
    with np.load(folder / "samples.npz") as arrays:
        x = torch.from_numpy(arrays["x"])
    with torch.no_grad():
        exits = eenet.from_pretrained("digits").eval()(x[:100])
    assert [logits.argmax(dim=1).tolist() for logits in exits] == test.predictions[:, :100].tolist()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with some photos."""
    from PIL import Image

    from eenet.experiments.data import load

    folder = tmp_path_factory.mktemp("trained")
    images, _ = load("digits", ".", "train", limit=5).batch(range(5))
    (folder / "photos").mkdir()
    for number, image in enumerate(images[:, 0] * 0.3081 + 0.1307):
        Image.fromarray((image.numpy() * 255).round().astype("uint8")).save(folder / "photos" / f"{number}.png")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("EENET_CACHE", str(folder / "cache"))
        yield folder


def test_the_page_runs_and_the_server_takes_the_bundle_that_is_there(work: Path) -> None:
    import_or_skip("torchvision")
    (block,) = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        run(*shlex.split(line)[1:])
    assert (work / "digits.html").stat().st_size > 1e6
    (kept,) = (work / "cache" / "bundles").iterdir()
    assert kept.name.startswith("digits-")
    assert json.loads((kept / "manifest.json").read_text(encoding="utf-8"))["backend"] == "onnx"

    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    rows = pq.read_table(work / "answers.parquet").to_pylist()
    assert [row["class_name"] for row in rows] == ["0", "2", "4", "7", "9"]
    bundle = eenet.bundle.load("digits-bundle")
    assert bundle.scheduler.budget == pytest.approx(0.6 * bundle.costs.reference)
    assert bundle.records is not None
    assert len(bundle.records) >= 500
    done = run("predict", "digits", "photos", "--out", "again.parquet", "--budget", "80%", "--json")
    assert "was made of it before (delete it to make it again)" in done.stderr
    found = json.loads(done.stdout)
    assert (found["failed"], found["items"]) == (0, 5)
    assert pq.read_table(work / "again.parquet").column("prediction").to_pylist() == [row["prediction"] for row in rows]

    source = str(Path(eenet.__file__).parents[1])  # the current folder is another one than that of the tests
    with served("digits", "--port", "0", "--no-hold", "--budget", "80%", PYTHONPATH=source) as (url, process):
        sent = (work / "photos" / "0.png").read_bytes()
        answer = httpx.post(
            f"{url}/predict", content=sent, headers={"Content-Type": "image/png"}, timeout=PATIENCE
        ).json()
        assert answer["predictions"][0]["class"] == rows[0]["prediction"]
        assert httpx.get(f"{url}/info", timeout=PATIENCE).json()["backend"] == "onnx"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_without_the_extra_export_a_bundle_is_of_weights(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    not_installed(monkeypatch, "onnx")
    done = run("predict", "digits", "photos", "--out", work / "weights.parquet", "--threads", 1, "--json")
    assert "a bundle of weights, since the extra 'export' is not installed" in done.stderr
    assert json.loads(done.stdout)["items"] == 5


def test_on_ray_the_bundle_is_measured_as_replicas_run_it(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("ray", "yaml"):
        import_or_skip(library)
    not_installed(monkeypatch, "onnx")
    run("predict", "digits", "photos", "--out", work / "one.parquet", "--threads", 1)
    done = run("serve", "digits", "--ray", "--write-yaml", work / "serve.yaml")
    assert "was made of it before" in done.stderr


def test_what_is_left_of_a_run_is_taken_as_a_folder(work: Path) -> None:
    found = json.loads(run("report", RESULTS / "digits" / "model", "--out", work / "r.html", "--json").stdout)
    assert found["runs"][0]["name"] == "digits"
    eenet.from_pretrained("digits").save_pretrained(work / "saved")
    assert "has no calibration.safetensors beside its weights" in refused("serve", work / "saved")
    assert "has no calibration.safetensors beside its weights" in refused("export", work / "saved", "--out", "b")


@pytest.mark.parametrize(
    "words",
    [
        ("report", "digit"),
        ("predict", "digit", "photos", "--out", "a.parquet"),
        ("serve", "digit"),
        ("export", "digit", "--out", "bundle"),
        ("profile", "digit"),
        ("benchmark", "digit"),
        ("fit", "digit", "--budget", "60%"),
        ("compare", "digit"),
        ("collect", "digit", "--data", "photos", "--out", "r.npz"),
    ],
    ids=lambda words: words[0],
)
def test_a_wrong_name_lists_those_there_are(work: Path, words: tuple[str, ...]) -> None:
    message = refused(*words)
    assert "'digit' is neither a folder nor the name of a model" in message
    assert "did you mean 'digits'? there are " in message
    assert all(folder.parent.name in message for folder in RESULTS.glob("*/model"))


def test_a_changed_file_makes_another_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    import pyarrow.parquet as pq

    not_installed(monkeypatch, "onnx")
    monkeypatch.setenv("EENET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RESULTS / "digits" / "model", "mine")
    few = eenet.ExitRecords.load(Path("mine") / "calibration.safetensors").subset(range(200))  # soon fitted to
    few.save(Path("mine") / "calibration.safetensors")
    module = tmp_path / "own_network_of_this_test.py"
    module.write_text("def make(): ...\n", encoding="utf-8")

    def made() -> tuple[set[str], str]:
        words = ("--out", "out.parquet", "--restart", "--allow", "own_network_of_this_test:make")
        run("predict", "mine", work / "photos", *words)
        first = pq.read_table("out.parquet").to_pylist()[0]["class_name"]
        return {folder.name for folder in (tmp_path / "cache" / "bundles").iterdir()}, str(first)

    before, name = made()
    assert (len(before), name) == (1, "0")
    assert made() == (before, name)
    classes = tmp_path / "mine" / "classes.txt"
    classes.write_text(classes.read_text(encoding="utf-8").replace("0", "zero"), encoding="utf-8")
    changed, name = made()
    assert (len(changed), name) == (2, "zero")
    module.write_text("def make(): return None\n", encoding="utf-8")
    assert len(made()[0]) == 3


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("report", "digits"), "metrics.json or work"),
        (("predict", "digits", "photos", "--out", "a.parquet"), "model.json or manifest.json"),
        (("serve", "digits"), "model.json or manifest.json"),
        (("export", "digits", "--out", "bundle"), "model.json"),
        (("profile", "digits"), "model.json"),
        (("benchmark", "digits"), "model.json"),
        (("collect", "digits", "--data", "photos", "--out", "r.npz"), "model.json"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_folder_of_the_name_is_meant_where_it_lacks_something_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], missing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "digits").mkdir()
    message = refused(*words)
    assert f"'digits' in the current folder has no {missing}; for the trained model of this name run in" in message


def test_a_saved_model_of_the_name_is_meant_without_its_records_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    eenet.from_pretrained("digits").save_pretrained("digits")
    way_out = "; for the trained model of this name run in another folder, or rename this one"
    message = refused("serve", "digits")
    assert "'digits' has no calibration.safetensors beside its weights" in message
    assert message.endswith(way_out)
    (tmp_path / "digits" / "metrics.json").write_text("{}", encoding="utf-8")
    message = refused("report", "digits")
    assert "'digits' lacks test.safetensors, calibration.safetensors" in message
    assert message.endswith(way_out)
    (tmp_path / "kept").mkdir()
    monkeypatch.chdir(tmp_path / "kept")
    eenet.from_pretrained("digits").save_pretrained(Path("digits") / "model")
    assert "'digits' has no calibration.safetensors beside its weights" in refused("serve", "digits")
    assert eenet.from_pretrained("digits").exit_names


def test_the_records_and_costs_of_a_trained_model_are_known_by_its_name(tmp_path: Path) -> None:
    beside = RESULTS / "digits" / "model"
    saved = tmp_path / "scheduler.safetensors"
    fitted = json.loads(
        run("fit", "digits", "--method", "max_prob", "--budget", "40%", "--out", saved, "--json").stdout
    )
    costs = eenet.load_costs(beside / "metrics.json")
    calibration, test = (eenet.ExitRecords.load(beside / f"{part}.safetensors") for part in ("calibration", "test"))
    expected = eenet.MaxProbability().fit(calibration, costs, "40%")
    assert fitted["budget"] == pytest.approx(0.4 * costs.reference)
    assert eenet.load_scheduler(saved).policy == expected.policy
    judged = json.loads(run("evaluate", "digits", "--scheduler", saved, "--json").stdout)
    assert judged["held_out_cost"] == pytest.approx(expected.replay(test).mean_cost)
    words = ("compare", "digits", "--methods", "max_prob,entropy", "--budgets", "30%", "--resplits", 2, "--json")
    compared = json.loads(run(*words).stdout)
    assert compared["separate"], "judged on the test records"
    assert compared["samples"] == len(test)
    assert compared["costs"]["values"] == pytest.approx(costs.values.tolist())
    shutil.copytree(beside, tmp_path / "digits-again")
    again = json.loads(run(words[0], tmp_path / "digits-again", *words[2:]).stdout)
    assert again["differences"] == compared["differences"], "a folder is read as the name is"
    other = run("compare", "digits", "--costs", "0.1,2,3", *words[2:]).stdout
    assert json.loads(other)["costs"]["values"] == [0.1, 2, 3], "costs that are given are taken"


if __name__ == "__main__":
    write_page()
