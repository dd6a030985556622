"""What a report says is what the schedulers do: figures, shares, scores and samples against the replay."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refused, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_results import profile, write_results

import eenet
from eenet.errors import FileFormatError, InvalidInputError
from eenet.reporting import Report
from eenet.scheduler import BEEM, ZTW, Voting
from eenet.testing import toy_costs, toy_records

METHODS = [eenet.MaxProbability, eenet.Entropy, eenet.Patience, eenet.OptimalStopping, Voting, ZTW, BEEM]
RESULTS = Path(__file__).resolve().parents[2] / "results"


def made(*results: Any, **options: Any) -> Report:
    return eenet.report(*results, **{"budgets": 5, "draws": 0, "progress": lambda _: None, **options})


def section(report: Report, name: str) -> dict[str, Any]:
    return next(one for one in report.data["runs"][0]["sections"] if one["id"] == name)


def chart(report: Report, name: str) -> dict[str, Any]:
    return dict(report.charts)[name]


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
@settings(max_examples=12)
@given(
    seed=st.integers(0, 1000),
    exits=st.integers(2, 5),
    method=st.sampled_from(METHODS),
    nonfinite=st.sampled_from([0.0, 0.1]),
    abstain=st.sampled_from([None, 0.1]),
)
def test_every_number_is_that_of_the_replay(
    seed: int, exits: int, method: Any, nonfinite: float, abstain: float | None
) -> None:
    costs = toy_costs(exits)
    scheduler = method().fit(toy_records(300, exits, 4, seed), costs, fallback=False, abstain=abstain)
    records = toy_records(200, exits, 4, seed + 1, nonfinite=nonfinite)
    report = made(records, costs=costs, schedulers={"one": scheduler})
    standing = report.data["runs"][0]["standing"]["one"]
    gallery = section(report, "leaving")["gallery"]
    shown = [sample["n"] for sample in gallery["samples"]]
    decided = gallery["schedulers"]["one"]
    for at, budget in enumerate(report.data["runs"][0]["budgets"]):
        bought = scheduler.at(budget)
        decisions = bought.replay(records)
        now = standing[at]
        assert now["accuracy"] == pytest.approx(decisions.accuracy)
        answered = ~decisions.abstained
        assert decisions.utility is not None
        assert records.utility is not None
        lost = decisions.utility[answered].astype(float) - records.utility[-1][answered]
        assert now["difference"] == pytest.approx(lost.mean())
        assert now["difference_error"] == pytest.approx(lost.std() / np.sqrt(len(lost)))
        assert now["cost"] == pytest.approx(decisions.mean_cost)
        assert now["shares"] == pytest.approx(decisions.exit_shares.tolist())
        assert now["handed_back"] == pytest.approx(decisions.handed_back)
        assert now["planned_cost"] == bought.planned_cost
        heat = np.array(chart(report, "exits-by-class")["frames"]["one"][at]["values"])
        assert np.allclose(heat.sum(axis=1), 1, atol=1e-3)
        bars = chart(report, "difficulty")["frames"]["one"][at]["series"]
        assert np.allclose(np.sum([one["values"] for one in bars], axis=0), 1, atol=1e-3)
        scores = decided["scores"][decided["score_of"][at]]
        for m, n in enumerate(shown):
            exit_index = int(decisions.exits[n])
            assert int(decided["exits"][m][at], 36) == exit_index
            assert (decided.get("handed_back", ["0" * 5] * len(shown))[m][at] == "1") == bool(decisions.abstained[n])
            answer = scores["answers"][exit_index][m] if "answers" in scores else records.predictions[exit_index, n]
            assert decisions.abstained[n] or answer == decisions.predictions[n]
            for k in range(min(exit_index + 1, exits - 1)):  # what is shown never contradicts what happened
                score, limit = scores["values"][k][m], now["limits"][k]
                if k == exit_index:
                    assert score >= limit
                else:
                    assert limit is None or score is None or score <= limit
    for k in range(exits - 1):
        for at, frame in enumerate(chart(report, f"scores-exit-{k}")["frames"]["one"]):
            coming = sum(sum(one["values"]) for one in frame["series"])
            assert coming <= frame["numbers"]["come to this exit"]
            assert frame["numbers"]["leave here"] == round(standing[at]["shares"][k] * len(records))


def test_groups_say_what_the_exits_say() -> None:
    records = toy_records(500, 3, 4)
    report = made(records, costs=toy_costs(), schedulers=[eenet.MaxProbability().fit(records, toy_costs())])
    gallery = section(report, "leaving")["gallery"]
    assert sum(group["count"] for group in gallery["fates"]) == 500
    right = records.predictions == records.labels
    for sample in gallery["samples"]:
        of = right[:, sample["n"]]
        expected = {
            "easy": of.all(),
            "wasted": not of.any(),
            "rescued": not of[0] and of[-1],
            "overthought": of[:-1].any() and not of[-1],
            "other": of[0] and of[-1] and not of.all(),
        }
        assert expected[sample["fate"]]


def test_without_calibration_one_half_is_fitted_on_and_the_other_judged() -> None:
    records, texts = toy_records(400), [f"text {n}" for n in range(400)]
    report = made(records, costs=toy_costs(), methods=["max_prob"], data=texts)
    only = report.data["runs"][0]
    assert only["samples"] == 200
    assert "No calibration records were given" in only["notes"][0]
    half = records.subset(records.split_rows(0.5, seed=0)[1])
    first = records.subset(records.split_rows(0.5, seed=0)[0])
    fitted = eenet.MaxProbability().fit(first, toy_costs())
    accuracy = fitted.at(2.0).replay(half).accuracy
    (title,) = only["standing"]
    assert only["standing"][title][2]["accuracy"] == pytest.approx(accuracy)
    shown = section(report, "leaving")["gallery"]["samples"][0]
    assert shown["text"] == texts[records.split_rows(0.5, seed=0)[1][shown["n"]]]


def test_records_without_labels_have_costs_and_shares() -> None:
    labeled = toy_records(300)
    bare = eenet.ExitRecords(labeled.probabilities, labeled.predictions)
    report = made(bare, costs=toy_costs(), schedulers=[eenet.MaxProbability().fit(labeled, toy_costs())])
    (title,) = report.data["runs"][0]["standing"]
    assert report.data["runs"][0]["standing"][title][2]["accuracy"] is None
    assert report.data["runs"][0]["standing"][title][2]["difference"] is None
    names = set(dict(report.charts))
    assert {"exit-shares", "difficulty", "scores-exit-0"} <= names
    assert not {"frontier", "exits-by-class"} & names
    assert "no labels" in section(report, "frontier")["notes"][0]


def test_samples_judged_on_what_they_were_fitted_on_are_said() -> None:
    records = toy_records(300)
    report = made(records, costs=toy_costs(), calibration=records, methods=["max_prob"])
    assert "on these very samples" in section(report, "frontier")["notes"][0]


def test_over_time_is_shown_where_the_records_have_an_order() -> None:
    records = toy_records(300)
    scheduler = eenet.MaxProbability().fit(records, toy_costs())
    assert "over-time" not in dict(made(records, costs=toy_costs(), schedulers=[scheduler]).charts)
    frame = chart(made(records, costs=toy_costs(), schedulers=[scheduler], ordered=True), "over-time")
    total = np.sum([one["y"] for one in frame["series"]], axis=0)
    assert np.allclose(total, 1, atol=1e-3)


def test_images_of_many_kinds_become_small_files(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    given = [np.zeros((300, 200, 3), np.uint8), noise, np.ones((8, 8), bool), tmp_path / "one.png"]
    scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs())
    masks = np.arange(3 * 4 * 6 * 5).reshape(3, 4, 6, 5) % 7
    report = made(toy_records(4), costs=toy_costs(), schedulers=[scheduler], data=given, masks=masks)
    images, overlays = [], []
    for sample in section(report, "leaving")["gallery"]["samples"]:
        images.append(opened(sample["image"]))
        overlays.append([opened(mask) for mask in sample["masks"]])
    assert [image.size for image in images] == [(107, 160), (8, 8), (8, 8), (9, 9)]
    assert [image.format for image in images] == ["JPEG", "PNG", "PNG", "PNG"]
    for n, of in enumerate(overlays):
        assert [np.array(mask).tolist() for mask in of] == masks[:, n].tolist()


def opened(address: str) -> Any:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_several_runs_and_their_figures_have_names_of_their_own(tmp_path: Path) -> None:
    records, other = toy_records(200), toy_records(200, seed=1)
    scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs())
    report = made(records, other, costs=toy_costs(), schedulers=[scheduler])
    assert [one["name"] for one in report.data["runs"]] == ["records", "records (2)"]
    names = [name for name, _ in report.charts]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["cifar10-resnet20-shared", "camvid-hrnet"])
def test_a_folder_of_results(name: str, tmp_path: Path) -> None:
    folder = RESULTS / name
    if not folder.is_dir():
        pytest.skip(f"needs the results of the repository: there is no {folder}")
    report = made(folder, methods=["max_prob", "patience"])
    only = report.data["runs"][0]
    assert only["name"] == name
    assert only["pooled"] == (name == "camvid-hrnet")
    assert {"frontier", "resplits", "exit-shares", "difficulty"} <= set(dict(report.charts))
    records = eenet.ExitRecords.load(folder / "test.safetensors")
    exits = next(one for one in chart(report, "frontier")["series"] if one["name"] == "one exit for all")
    assert exits["y"] == pytest.approx(records.accuracies.tolist())
    report.write_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report.data


def test_a_scheduler_of_one_policy_is_a_point_where_the_others_are_lines() -> None:
    promised = eenet.MaxProbability().fit(
        toy_records(2000), toy_costs(), max_accuracy_drop=0.05, guarantee=0.9, fallback=False
    )
    free = eenet.MaxProbability().fit(toy_records(2000), toy_costs(), fallback=False)
    report = made(toy_records(500, seed=1), costs=toy_costs(), schedulers={"promised": promised, "free": free})
    drawn = {one["name"]: one for one in chart(report, "frontier")["series"]}
    of_one = {pair for pair in zip(drawn["promised"]["x"], drawn["promised"]["y"], strict=True) if None not in pair}
    decisions = promised.replay(toy_records(500, seed=1))
    assert list(of_one) == [(pytest.approx(decisions.mean_cost), pytest.approx(decisions.accuracy))]
    assert (drawn["promised"]["points"], drawn["free"]["points"]) == (True, False)


def run_folder(folder: Path) -> None:
    """A run of which 100 test samples are known, without inputs."""
    for name in ("test.safetensors", "calibration.safetensors", "work/test.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        toy_records(100).save(folder / name)
    metrics = {"costs": toy_costs().to_dict(), "exits": [{"name": f"e{k}"} for k in range(3)], "data": {"classes": []}}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_a_run_folder_shows_the_inputs_that_it_has_kept(tmp_path: Path) -> None:
    run_folder(tmp_path)
    images = np.arange(20)[:, None, None, None] * np.ones((1, 1, 4, 4)) + np.linspace(0, 0.5, 16).reshape(1, 1, 4, 4)
    np.savez(tmp_path / "work" / "samples.npz", x=images.astype(np.float32))
    leaving = section(made(tmp_path, methods=["max_prob"]), "leaving")
    assert [sample["n"] for sample in leaving["gallery"]["samples"]] == list(range(0, 100, 5))
    assert all(opened(sample["image"]).size == (4, 4) for sample in leaving["gallery"]["samples"])
    assert any("20 inputs" in note for note in leaving["notes"])


def test_kept_inputs_that_are_damaged_are_named_and_no_pickle_is_read(tmp_path: Path) -> None:
    run_folder(tmp_path)
    for write in (lambda file: file.write_bytes(b"junk"), lambda file: np.savez(file, x=np.array([object()]))):
        write(tmp_path / "work" / "samples.npz")
        with pytest.raises(FileFormatError, match=r"samples\.npz' cannot be read"):
            made(tmp_path, methods=["max_prob"])


def test_a_title_that_is_no_text_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    options = {"costs": toy_costs(), "methods": ["max_prob"], "title": "run \udcff", "classes": ["\ud800"] * 5}
    made(toy_records(50), **options, out=tmp_path / "report.html")
    assert "<title>run ?</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_benchmark_alone_has_a_page(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "system": "plain", "budget": None, "early_exit": False, "batch_size": 1, "calls": 10, "p50_ms": 2.0,
        "p95_ms": 2.5, "p99_ms": 3.0, "ms_per_sample": 2.0, "spread": 0.1, "cpu_spread": 0.1, "samples_per_second": 500,
        "cpu_ms_per_sample": 2.0, "speed": 1.0, "speed_error": 0.0, "cpu_speed": 1.0, "cpu_speed_error": 0.0,
        "agreement": 1.0, "accuracy": 0.9, "accuracy_error": 0.01, "exit_shares": [],
    }  # fmt: skip
    found = {
        "schema": 1, "samples": 100, "labeled": True, "stopped": False, "machine": {"processor": "x"}, "notes": [],
        "verdict": "early exit pays", "rows": [row, {**row, "system": "early", "early_exit": True, "speed": 1.5}],
    }  # fmt: skip
    (tmp_path / "benchmark.json").write_text(json.dumps(found))
    report = made(tmp_path / "benchmark.json", out=tmp_path / "report.html")
    assert report.data["runs"] == []
    assert report.charts
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    lacking = []
    for beside in ((), (tmp_path / "benchmark.json",)):  # what a run lacks is not said where it is given
        beside_run = made(toy_records(60), *beside, costs=toy_costs(), methods=["max_prob"])
        lacking.append("Whole systems run in turns" in json.dumps(beside_run.data))
    assert lacking == [True, False]


@pytest.mark.parametrize(
    ("results", "options", "said"),
    [
        ((), {}, "nothing to report"),
        ((toy_records(50),), {}, "records need costs"),
        (("no/such/folder",), {}, "is no folder"),
        ((toy_records(50),), {"costs": toy_costs(4)}, "4 exits"),
        ((toy_records(50),), {"costs": toy_costs(), "classes": ["a"]}, "1 classes are given"),
        ((toy_records(50),), {"costs": toy_costs(), "exits": ["a"]}, "1 exits are given"),
        ((toy_records(50),), {"costs": toy_costs(), "data": ["a"] * 7, "calibration": toy_records(60)}, "7 samples"),
        ((toy_records(50),), {"costs": toy_costs(), "budgets": 1}, "budgets is 1"),
        ((toy_records(50),), {"costs": toy_costs(), "smaller": [{"name": "a"}]}, "lacks ['cost', 'accuracy']"),
        ((toy_records(50),), {"costs": toy_costs(), "masks": np.zeros((3, 50, 2, 2), int)}, "without images"),
        ((3,), {}, "nothing that a report can be made of"),
        (({"rows": [], "verdict": "", "machine": {}},), {}, "nothing that a report can be made of"),
        (
            (toy_records(50),),
            {"costs": toy_costs(), "smaller": [{"name": "a", "cost": "x", "accuracy": 0.5}]},
            "positive cost",
        ),
        ((toy_records(50),), {"costs": toy_costs(), "data": np.zeros((50, 0, 4, 3))}, "has no pixels"),
    ],
)
def test_what_cannot_be_reported_is_said(results: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        made(*results, **{"methods": ["max_prob"], **options})
    assert said in str(caught.value)


def test_a_folder_that_is_not_finished_says_what_it_lacks(tmp_path: Path) -> None:
    toy_records(20).save(tmp_path / "test.safetensors")
    with pytest.raises(InvalidInputError, match=r"lacks calibration\.safetensors, metrics\.json"):
        made(tmp_path)
    toy_records(20).save(tmp_path / "calibration.safetensors")
    (tmp_path / "metrics.json").write_text('{"costs": {"values": [1, 2, 3], "unit": "ms"}}')
    with pytest.raises(FileFormatError, match="is not what eenet reproduce writes"):
        made(tmp_path)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = toy_records(120, classes=3)
    arrays: dict[str, Any] = {"costs": np.array([1.0, 2.0, 3.0])}
    for part in ("val_", "test_"):
        arrays |= {f"{part}probs": records.probabilities, f"{part}labels": records.labels}
    np.savez("predictions.npz", **arrays)
    Path("names.txt").write_text("cat\ndog\nbird\n")
    Path("texts.csv").write_text("id,text\n" + "".join(f'{n},"text, {n}"\n' for n in range(120)))
    result = run(
        "report", "predictions.npz", "--prefix", "test_", "--calibration", "predictions.npz", "--calibration-prefix",
        "val_", "--methods", "max_prob,entropy", "--texts", "texts.csv", "--classes", "names.txt", "--smaller",
        "tiny=1.5,40%", "--exits", "bag, MiniLM 0, MiniLM",
        "--budgets", 4, "--draws", 0, "--out", "page.html", "--json", "report.json",
    )  # fmt: skip
    assert "page.html" in result.stdout
    data = json.loads(Path("report.json").read_text())
    assert data["runs"][0]["classes"] == ["cat", "dog", "bird"]
    assert data["runs"][0]["exits"] == ["exit 0 (bag)", "exit 1 (MiniLM 0)", "exit 2 (MiniLM)"]
    assert len(data["runs"][0]["standing"]) == 2
    assert any(sample["text"] == "text, 3" for sample in data["runs"][0]["sections"][1]["gallery"]["samples"])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]))
    scheduler.save("scheduler.safetensors")
    records.save("test.safetensors")
    run("report", "test.safetensors", "--scheduler", "scheduler.safetensors", "--budgets", 3, "--draws", 0)
    assert Path("report.html").is_file()
    Path("costs.json").write_text(json.dumps(profile() | {"exits": ["members.0", "members.1", "output"]}))
    Path("texts.txt").write_text("".join(f"text\u2028{n}\n" for n in range(120)), encoding="utf-8")  # 120 lines
    words: tuple[Any, ...] = ("--costs", "costs.json", "--batch-size", 8, "--methods", "max_prob", "--budgets", 3)
    words += ("--draws", 0, "--texts", "texts.txt")
    run("report", "test.safetensors", *words, "--json", "report.json")
    assert json.loads(Path("report.json").read_text())["runs"][0]["exits"][0] == "exit 0 (members.0)"
    Path("texts.jsonl").write_text("".join(json.dumps({"review": f"review {n}"}) + "\n" for n in range(120)))
    table = (*words[:-1], "texts.jsonl", "--column", "review")
    run("report", "test.safetensors", *table, "--json", "table.json")
    (shown,) = json.loads(Path("table.json").read_text())["runs"]
    assert {
        sample["text"][:7] for part in shown["sections"] for sample in part.get("gallery", {}).get("samples", [])
    } == {"review "}
    sections = json.loads(Path("report.json").read_text())["runs"][0]["sections"]
    assert "exit-times" in [chart["name"] for section in sections for chart in section["charts"]]  # of the same file


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "is neither a folder nor the name of a model"),
        (["page.html"], "'page.html' ends in '.html', expected a folder of results, predictions"),
        ([".", "--costs", "1,2,3"], "--costs: for predictions"),
        (["test.safetensors"], "there are no costs"),
        (["test.safetensors", "--costs", "1,2,3", "--methods", "max"], "'max' is not known"),
        (["test.safetensors", "--costs", "1,2,3", "--smaller", "tiny"], "cannot be read"),
        (["test.safetensors", "--costs", "1,2,3", "--classes", "none.txt"], "none.txt"),
        (["test.safetensors", "--costs", "1,2,3", "--images", "none"], "none"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toy_records(60).save("test.safetensors")
    Path("page.html").write_text("a report")
    assert said in refused("report", *words)
    assert not Path("report.html").exists()


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("seed", "many"),
        ("comparison", {"rows": 3}),
        ("measured", [1]),
        ("exits", [1, 2, 3]),
        ("costs", {"values": "x"}),
    ],
)
def test_metrics_of_wrong_types_are_refused_by_their_file(tmp_path: Path, key: str, wrong: Any) -> None:
    metrics = write_results(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics | {key: wrong}))
    with pytest.raises((FileFormatError, InvalidInputError), match=r"run|cost"):
        eenet.report(tmp_path / "run", budgets=2, draws=0)
