"""The goals of the proofs, and their tables in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eenet._timing import describe_machine

if TYPE_CHECKING:
    from _cascade_proof import Proof

_POINTS = 0.02
_NEAR = 0.003
_INT8 = 1.5


def goals(proof: Proof) -> dict[str, Any]:
    """The goals at one batch size, each with the numbers that decide it; None where a set cannot decide it."""
    half = next((row for row in proof.frontier() if abs(row["share"] - 0.5) < 1e-6), None)
    plain = float(proof.plain.records["test"].accuracies[-1])
    made: dict[str, Any] = {"half": None}
    if half is not None:
        best, alone = half["all"], half["exits of one network"]
        ahead = None if alone is None else best["accuracy"] - alone["accuracy"]
        behind = best["accuracy"] - plain
        made["half"] = {
            "system": best["system"], "over_exits": ahead, "over_plain": behind,
            "reached": bool((ahead is not None and ahead >= _POINTS) or behind >= -_NEAR),
        }  # fmt: skip
    faster = proof.against("exits as accurate as smaller", "smaller")
    made["smaller"] = faster and {**faster, "reached": faster["cpu_speed"] > 1 and _no_worse(faster)}
    quick = proof.against("int8 exits as accurate as exits at half", "exits at half")
    made["int8"] = quick and {**quick, "reached": quick["cpu_speed"] >= _INT8 and _no_worse(quick)}
    above = proof.against("int8 exits as accurate as static int8", "static int8")
    made["static int8"] = above and {**above, "reached": above["cpu_speed"] > 1 and _no_worse(above)}
    return made


def _no_worse(found: Mapping[str, Any]) -> bool:
    """As accurate held out, within a standard error."""
    return bool(found["difference"] >= -found["difference_error"])


_ASKED = {
    "half": "at half the plain network's cost, 2 points above the best network with exits, or within 0.3 of plain",
    "smaller": "with exits faster than the smaller static network, as accurate",
    "int8": "with int8, exits at least 1.5 times as fast as in fp32, as accurate",
    "static int8": "exits with int8 faster than the plain network in int8, as accurate",
}


_NEEDS = {"sst2": " --models MODELS", "ag_news": " --models MODELS", "imagenet": " --models WEIGHTS"}


def joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Results with those of other batch sizes; without them where these are of candidates that answer otherwise."""
    answers = [[(one["name"], one["calibration"], one["test"]) for one in data["candidates"]] for data in (old, new)]
    if answers[0] != answers[1]:
        return dict(new)
    costs = {one["name"]: one["costs"] for one in old["candidates"]}
    candidates = [
        {**one, "costs": _by_size({**costs.get(one["name"], {}), **one["costs"]})} for one in new["candidates"]
    ]
    return {**new, "candidates": candidates, "batches": _by_size({**old["batches"], **new["batches"]})}


def _by_size(found: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(found.items(), key=lambda entry: int(entry[0])))


def readme(data: Mapping[str, Any], machine: str) -> str:
    """The README of a set."""
    folder = data["set"]
    smaller = ", ".join(f"{one['smaller']} in batches of {size}" for size, one in data["batches"].items())
    judged = data["samples"]["test"]
    lines = [
        f"# {data['title']}",
        "",
        data["about"],
        "",
        "```",
        f"python benchmarks/cascades.py {folder}{_NEEDS.get(folder, '')} --out results/cascades/{folder}",
        "```",
        "",
        f"{machine}, ONNX Runtime {data['machine']['onnxruntime']}, one thread. "
        f"{data['samples']['calibration']:,} samples choose and fit, {judged:,} judge. The plain network is "
        f"{data['plain']}. The smaller static network is the most accurate one in fp32 that costs less: {smaller}. "
        "Other programs ran meanwhile, so that wall times are long; what is judged by is CPU time. ± is one standard "
        "error; 'as accurate' is within one.",
    ]
    lines += ["", "## Goals", "", *goal_table({folder: data})]
    lines += ["", "## Candidates", "", *_candidates(data)]
    for size, one in data["batches"].items():
        lines += ["", f"## Batches of {size}", "", *_frontier(one, data), "", *_timed(one), *_methods(one)]
    return "\n".join(lines)


BEGIN, END = "<!-- written by benchmarks/cascades.py summary -->", "<!-- end -->"


def summary(folder: Path) -> str:
    """The goals of all sets whose results are in a folder, written into its README; the sets' own are written again."""
    found = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*/results.json"))
    }
    for name, data in found.items():
        (folder / name / "README.md").write_text(
            readme(data, describe_machine(data["machine"])) + "\n", encoding="utf-8"
        )
    reached = []
    for goal, asked in _ASKED.items():
        for size in ("1", "8", "32"):
            measured = {name: data["batches"][size] for name, data in found.items() if size in data["batches"]}
            results = {name: one["goals"][goal] for name, one in measured.items()}
            known = {name: result for name, result in results.items() if result is not None}
            if not known:
                continue
            there = [name for name, result in known.items() if result["reached"]]
            names = ", ".join(there) or "-"
            reached.append([asked, size, f"{len(there)} of {len(known)}", names])
    lines = [*_markdown(["goal", "batch", "sets that reach it", "which"], reached), "", *goal_table(found)]
    text = "\n".join(lines)
    file = folder / "README.md"
    if file.is_file() and BEGIN in (old := file.read_text(encoding="utf-8")):
        before, _, rest = old.partition(BEGIN)
        file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return text


def goal_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each set, batch size and goal."""
    rows = []
    for name, data in found.items():
        for size, one in data["batches"].items():
            for goal, result in one["goals"].items():
                if result is not None:
                    rows.append([name, size, _ASKED[goal], *_outcome(goal, result)])
    return _markdown(["set", "batch", "goal", "found", "reached"], rows)


def _outcome(goal: str, result: Mapping[str, Any]) -> list[str]:
    reached = "**yes**" if result["reached"] else "no"
    if goal == "half":
        over = "" if result["over_exits"] is None else f"{100 * result['over_exits']:+.2f} over exits, "
        return [f"{result['system']}: {over}{100 * result['over_plain']:+.2f} over plain", reached]
    return [
        f"{result['cpu_speed']:.2f} ± {result['cpu_speed_error']:.2f} times in CPU time, {result['speed']:.2f} in wall "
        f"time, {100 * result['difference']:+.2f} ± {100 * result['difference_error']:.2f} points",
        reached,
    ]


def _candidates(data: Mapping[str, Any]) -> list[str]:
    rows = []
    for one in data["candidates"]:
        costs = ["/".join(f"{c:.3g}" for c in (v if isinstance(v, list) else [v])) for v in one["costs"].values()]
        rows.append([one["name"], *("/".join(f"{100 * a:.2f}" for a in one[part]) for part in ("calibration", "test"))])
        rows[-1] += costs
    heads = [f"CPU ms, batch {size}" for size in data["batches"]]
    note = "Accuracy in % at each exit; of a network with exits the last cost is that of the network without them."
    return [*_markdown(["candidate", "calibration", "test", *heads], rows), "", note]


def _frontier(one: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    copies = any(candidate["int8"] for candidate in data["candidates"])
    shown = {"fp32": "best system, fp32", "all": "best system, int8 too"} if copies else {"all": "best system"}
    rows = []
    for row in one["frontier"]:
        cells = [f"{row['budget']:.3g} ({row['share']:.0%})"]
        for which in shown:
            best = row[which]
            accuracy = f"{100 * best['accuracy']:.2f} ± {100 * best['error']:.2f}"
            cells += [best["system"], accuracy, f"{best['cost']:.3g}"]
        for which in ("exits of one network", "static"):
            other = row[which]
            cells.append("-" if other is None else f"{other['system']}: {100 * other['accuracy']:.2f}")
        rows.append(cells)
    heads = ["budget, CPU ms"]
    for title in shown.values():
        heads += [title, "held out %", "spent"]
    heads += ["best network with exits, fp32", "best static network, fp32"]
    intro = f"What `search` chooses on {data['samples']['calibration']:,} samples, judged by the others:"
    return [intro, "", *_markdown(heads, rows)]


def _timed(one: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            row["role"], row["system"], f"{100 * row['accuracy']:.2f} ± {100 * row['error']:.2f}",
            f"{100 * row['difference']:+.2f} ± {100 * row['difference_error']:.2f}", f"{row['cpu_ms']:.3g}",
            f"{row['ms']:.3g}", f"{100 * row['as_replayed']:.1f}",
        ]
        for row in one["timed"]
    ]  # fmt: skip
    heads = ["role", "system", "accuracy %", "to plain", "CPU ms", "wall ms", "right or wrong as in the replay %"]
    return ["Real runs in turns on the samples that judge:", "", *_markdown(heads, rows)]


def _methods(one: Mapping[str, Any]) -> list[str]:
    if one["methods"] is None:
        return []
    rows = [
        [
            name,
            f"{100 * row['accuracy']:.2f}",
            f"{row['cost']:.3g}",
            f"{100 * row['difference']:+.2f} ± {100 * row['difference_error']:.2f}",
        ]
        for name, row in one["methods"]["rows"].items()
    ]
    intro = f"Methods on {one['methods']['system']}, the mean of six budgets, held out:"
    return ["", intro, "", *_markdown(["method", "accuracy %", "CPU ms", "to max probability"], rows)]


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
