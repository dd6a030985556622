"""Exits and int8 together: the plain network in fp32 and in int8, exits in fp32, and exits with int8, held out.

    python benchmarks/int8.py digits
    python benchmarks/int8.py cifar10-resnet20-shared=FOLDER --out results/int8

Takes networks that a recipe trained: RECIPE=FOLDER, the folder of `eenet reproduce`, or RECIPE alone, whose network
comes with the library. Exits with int8 are made with `precision="auto"`, and with all parts in int8. The calibration
part of the data chooses the parts, gives their ranges and fits the schedulers; the test part judges. Everything runs in
ONNX Runtime with one thread, in turns, on other samples in each round. Times are CPU milliseconds, which count what a
system needs also on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import eenet
import eenet.bundle.onnx
from _cascade_systems import Candidate, Graph, answers, measure, runner
from _recipe_networks import Inputs, Network, exported, read
from eenet._extras import require
from eenet._timing import describe_machine, in_turns, machine, timed
from eenet.bundle._graphs import onnx_graphs, plain_graph
from eenet.bundle._quantize import quantized
from eenet.errors import InfeasibleBudgetError, ReliabilityWarning
from eenet.models import logits_in

ROOT = Path(__file__).resolve().parents[1]
SIZES = (1, 8, 32)
FP32, AUTO, INT8 = "exits fp32", "exits auto", "exits int8"
LOOSER = "exits auto, looser"  # with the `max_exit_drop` that `auto` names
_LOW = (10, 15, 20, 25, 30, 35, 40, 50, 65)
SHARES = {FP32: (30, 40, 50, 65, 80), AUTO: _LOW, LOOSER: _LOW, INT8: _LOW}
EIGHT = "plain int8, weights of 8 bits"  # what ONNX Runtime's tools make by default
MOST = "all"  # the budget of the most expensive exit
_OPSET, _RANGES = 20, 128
_GOAL, _GOAL_BATCH = 1.5, "8"
_EQUAL = {"int8": 0.0, "near": 1.0}  # how many standard errors less accurate exits with int8 may be

Array = NDArray[Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="RECIPE[=FOLDER]", help="a recipe and the folder of its run")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to measure each batch size")
    parser.add_argument("--most", type=int, default=2000, help="use at most this many samples of either part")
    parser.add_argument("--data-root", type=Path, metavar="FOLDER", help="(default: ../shared/datasets)")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="of texts: as for eenet reproduce")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write results.json and README.md; others there stay"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    root = options.data_root or Path(os.environ.get("EENET_SHARED", ROOT.parent / "shared")) / "datasets"
    networks: dict[str, Any] = {}
    print(describe_machine(machine()), flush=True)
    for word in options.networks:
        recipe, _, folder = word.partition("=")
        networks[recipe] = compared(recipe, Path(folder) if folder else None, root, options)
        print(table(recipe, networks[recipe]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"networks": networks}, indent=1) + "\n", encoding="utf-8")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        kept = options.out / "results.json"
        before = json.loads(kept.read_text(encoding="utf-8"))["networks"] if kept.is_file() else {}
        networks = before | networks
        kept.write_text(json.dumps({"networks": networks}, indent=1) + "\n", encoding="utf-8")
        (options.out / "README.md").write_text(readme(networks, options.out.name), encoding="utf-8")
    return 0


def compared(name: str, folder: Path | None, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All systems of one network: their accuracies and times, and what was chosen."""
    network = read(name, folder, root, options.most, options.checkpoint)
    samples, labels = network.samples, network.labels
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # fallbacks, and wall times of a busy machine
        candidates, bundle = _candidates(network, Path(temporary))
        return {
            "machine": machine(),
            "title": network.recipe.title,
            "command": f"python benchmarks/int8.py {name}{'' if folder is None else '=FOLDER'}"
            + "".join(
                f" --{one} FOLDER" for one in ("data-root", "checkpoint") if getattr(options, one.replace("-", "_"))
            )
            + f" --seconds {options.seconds:g}",
            "samples": {part: len(one) for part, one in labels.items()},
            "precision": bundle.precision,
            "quantization": bundle.info["quantization"],
            "rows": _rows(candidates, samples, labels, options.seconds),
        }


def _candidates(network: Network, folder: Path) -> tuple[list[Candidate], Any]:
    """The plain network in fp32 and int8, exits in fp32 and exits with int8; and the bundle of the last."""
    model, x = network.model, network.samples["calibration"]
    content = plain_graph(model, onnx_graphs(model, _OPSET), _OPSET)
    assert content is not None, "all networks of the recipes are one graph too"
    plain, copy = folder / "plain.onnx", folder / "plain-int8.onnx"
    plain.write_bytes(content)
    ranges = np.random.default_rng(0).permutation(len(x))[:_RANGES]
    names = [one.name for one in require("onnx", "export").load(str(plain)).graph.input]  # in the order of the inputs

    def named(given: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, given.values(), strict=True))

    given = named({key: one[ranges] for key, one in x.arrays.items()})
    eenet.bundle.onnx.quantize(plain, copy, given)
    fp32, int8 = Graph(plain, named), Graph(copy, named)
    feeds = [{key: one[n : n + 16] for key, one in given.items()} for n in range(0, len(ranges), 16)]
    made, of_8_bits = quantized(content, feeds, weight_bits=8), plain.with_name("plain-int8-of-8-bits.onnx")
    assert made.content is not None, made.reason
    of_8_bits.write_bytes(made.content)

    bundles = exported(network, {precision: folder / precision for precision in ("fp32", "auto", "int8")})
    int8_exits = {AUTO: bundles["auto"], INT8: bundles["int8"]}
    looser = bundles["auto"].info["quantization"]["looser"]
    if looser is not None:
        limit = looser["max_exit_drop"]
        int8_exits[LOOSER] = exported(network, {"auto": folder / "looser"}, max_exit_drop=limit)["auto"]
    candidates = [
        Candidate("plain fp32", fp32),
        Candidate("plain int8", int8, int8=True),
        Candidate(EIGHT, Graph(of_8_bits, named), int8=True),
        *(_dynamic(model, plain, named) if "attention_mask" in x.arrays else ()),
        Candidate(FP32, bundles["fp32"], plain=fp32),
        *(Candidate(name, one, int8=True, plain=fp32) for name, one in int8_exits.items()),
    ]
    return candidates, bundles["auto"]


def _dynamic(model: eenet.MultiExitModel, plain: Path, named: Callable[[Any], Any]) -> list[Candidate]:
    """For texts: the plain network with dynamic int8, of ONNX Runtime and of PyTorch, and PyTorch in fp32.

    The range of the activations is that of the batch, so that no exits are run with it.
    """
    copy = plain.with_name("plain-dynamic.onnx")
    quantization = require("onnxruntime.quantization", "export")
    quantization.quantize_dynamic(str(plain), str(copy), weight_type=quantization.QuantType.QInt8)

    def eager(network: torch.nn.Module) -> Callable[[Any], Array]:
        def run(samples: Mapping[str, Array]) -> Array:
            args, kwargs = model.staged.call_of(tuple(torch.from_numpy(one) for one in samples.values()))
            with torch.inference_mode():
                found: Array = logits_in(network(*args, **kwargs), model.num_classes).numpy()
            return found

        return run

    network = model.backbone.eval()
    quantize: Any = torch.ao.quantization.quantize_dynamic  # it has no types
    quantized = quantize(network, {torch.nn.Linear}, dtype=torch.qint8)
    return [
        Candidate("plain dynamic int8", Graph(copy, named), int8=True),
        Candidate("PyTorch plain fp32", eager(network)),
        Candidate("PyTorch plain dynamic int8", eager(quantized), int8=True),
    ]


def _rows(
    candidates: Sequence[Candidate], samples: Mapping[str, Inputs], labels: Mapping[str, Array], seconds: float
) -> list[dict[str, Any]]:
    """A row for each system: what it answers rightly on the test part, and its times in turns, by batch size."""
    right: dict[str, Array] = {}
    for one in candidates:
        for part in ("calibration", "test"):
            logits = answers(one, samples[part])
            if one.exits:
                one.records[part] = eenet.ExitRecords.from_logits(logits, labels[part])
            elif part == "test":
                right[one.name] = logits[0].argmax(axis=1) == labels["test"]
    measure(candidates, samples["calibration"], SIZES, seconds / 2, _quiet)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        runs = {one.name: one.run for one in candidates if not one.exits}
        for one in candidates:
            for budget, scheduler in _schedulers(one, size).items():
                name = f"{one.name} {budget}"
                left = scheduler.replay(one.records["test"])
                right[name] = left.predictions == labels["test"]
                runs[name] = runner([one], scheduler, "logits")
        times = _times(list(runs.values()), samples["test"], size, seconds)
        for n, name in enumerate(runs):
            rows.append({
                "system": name, "batch": size, "accuracy": float(right[name].mean()),
                "error": float(right[name].std() / np.sqrt(len(right[name]))),
                "cpu_ms": 1000 * times[:, n].sum() / (size * len(times)),
            })  # fmt: skip
        mine = [row for row in rows if row["batch"] == size]
        for row in mine:
            if not row["system"].startswith((AUTO, INT8)):
                spent = dict(zip(runs, times.T, strict=True))
                row |= {key: _quicker(row, mine, right, spent, errors=errors) for key, errors in _EQUAL.items()}
    return rows


def _quiet(_: str) -> None:
    """No progress."""


def _schedulers(one: Candidate, size: int) -> dict[str, eenet.Scheduler]:
    """Optimal stopping at each budget that the exits can keep: per cent of the plain network in fp32."""
    if not one.exits:
        return {}
    costs = one.costs[size]
    assert isinstance(costs, eenet.ExitCosts)
    found: dict[str, eenet.Scheduler] = {}
    whole = eenet.OptimalStopping().fit(one.records["calibration"], costs, costs[-1])
    for share in SHARES[one.name]:
        if share / 100 * costs.reference < costs[-1]:
            try:
                found[f"{share}%"] = whole.at(f"{share}%")
            except InfeasibleBudgetError:
                continue
    return found | {MOST: whole}


def _times(runs: Sequence[Any], samples: Inputs, size: int, seconds: float) -> Array:
    """CPU seconds of each system in each round, (rounds, systems); each round has the next batch."""
    at = 0

    def batch() -> Any:
        start = at % (len(samples) // size) * size
        return samples[start : start + size]

    def on() -> None:
        nonlocal at
        at += 1

    clocks = [partial(lambda run: timed(run, batch()), run) for run in runs]
    return in_turns(clocks, seconds=seconds, least=10, seed=0, progress=on).cpu


def _quicker(
    row: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    right: Mapping[str, Array],
    times: Mapping[str, Array],
    *,
    errors: float,
) -> dict[str, Any] | None:
    """The quickest exits with int8 that have a row's accuracy, and how many times as fast they are.

    They may have less of it by as many standard errors of the difference as `errors` says.
    """
    fitting = []
    for one in rows:
        if one["system"].startswith((AUTO, INT8)):
            more = right[one["system"]].astype(float) - right[row["system"]]
            error = float(more.std() / np.sqrt(len(more)))
            if more.mean() >= -errors * error:
                fitting.append((float(one["cpu_ms"]), one["system"], float(more.mean()), error))
    if not fitting:
        return None
    _, system, difference, error = min(fitting)
    mine, other = times[row["system"]], times[system]
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(mine), len(mine)) for _ in range(400)]
    return {
        "system": system,
        "times": float(mine.sum() / other.sum()),
        "times_error": float(np.std([mine[n].sum() / other[n].sum() for n in drawn])),
        "difference": difference,
        "difference_error": error,
    }


# Tables


def goals(data: Mapping[str, Any], size: str = _GOAL_BATCH) -> list[tuple[str, str, bool]]:
    """The issue's goals: what was compared, what was found, whether it is reached.

    Exits in fp32 stand for their quickest row that is as accurate as the plain network; where none is, for the most
    accurate one.
    """
    rows = [row for row in data["rows"] if str(row["batch"]) == size]
    plain, static = (next(r for r in rows if r["system"] == f"plain {p}") for p in ("fp32", "int8"))
    exits = [row for row in rows if row["system"].startswith(FP32)]
    equal = [row for row in exits if row["accuracy"] >= plain["accuracy"]]
    chosen = min(equal, key=lambda r: float(r["cpu_ms"])) if equal else max(exits, key=lambda r: float(r["accuracy"]))
    return [
        goal
        for key, least in (("int8", "as accurate"), ("near", "within one standard error"))
        if key in chosen
        for goal in (
            (f"{_GOAL} times {chosen['system']}, {least}", _said(chosen, key), _speed(chosen, key) >= _GOAL),
            (f"faster than plain int8, {least}", _said(static, key), _speed(static, key) > 1),
        )
    ]


def _speed(row: Mapping[str, Any], key: str) -> float:
    return 0.0 if row[key] is None else float(row[key]["times"])


def _said(row: Mapping[str, Any], key: str = "int8") -> str:
    found = row[key]
    if found is None:
        return f"no exits with int8 have its {100 * row['accuracy']:.2f} %"
    return (
        f"{found['system']}: {found['times']:.2f} ± {found['times_error']:.2f} times as fast, "
        f"{100 * found['difference']:+.2f} ± {100 * found['difference_error']:.2f} points"
    )


def table(name: str, data: Mapping[str, Any]) -> str:
    """A network's systems by batch size, as Markdown, and which goals it reaches."""
    parts = [part for part, precision in data["precision"].items() if precision == "int8"]
    looser = data["quantization"]["looser"]
    kept = [f"{row['part']}: {row['why']}" for row in data["quantization"]["parts"] if "why" in row]
    lines = [
        f"## {name}", "", f"{data['title']}. {data['samples']['test']} samples judge, {data['samples']['calibration']} "
        f"calibrate. `auto` took in int8: {', '.join(parts) or 'nothing'}."
        + (f" It kept {'; '.join(kept)}." if kept else "")
        + (f" It said: {looser['text']}" if looser else ""),
        "", f"`{data['command']}`; {describe_machine(data['machine']).replace(chr(10), '; ')}",
    ]  # fmt: skip
    for size in SIZES:
        lines += ["", f"| batches of {size} | accuracy % | CPU ms | exits with int8, at least as accurate |"]
        lines += ["| --- | --- | --- | --- |"]
        for row in data["rows"]:
            if row["batch"] == size:
                error = f"{100 * row['accuracy']:.2f} ± {100 * row['error']:.2f}"
                said = _said(row) if "int8" in row else ""
                lines.append(f"| {row['system']} | {error} | {row['cpu_ms']:.3g} | {said} |")
    lines += ["", f"| goal, batches of {_GOAL_BATCH} | found | reached |", "| --- | --- | --- |"]
    lines += [f"| {goal} | {found} | {'**yes**' if yes else 'no'} |" for goal, found, yes in goals(data)]
    return "\n".join(lines)


def readme(networks: Mapping[str, Any], out: str) -> str:
    """The page of all networks, in the folder of that name in `results`."""
    found = {name: goals(data) for name, data in networks.items()}
    lines = [
        "# Exits and int8 together", "",
        "The plain network in fp32 and in int8 (`eenet.bundle.onnx.quantize`), exits in fp32, exits with the "
        "stages and heads in int8 that [`precision=\"auto\"`](../../docs/howto/quantize.md) takes, and exits with "
        f"all in int8; where `auto` names a looser limit, also with that one (`{LOOSER}`). Budgets are per cent of "
        "the plain network in fp32; `all` has no limit. Schedulers are "
        "`OptimalStopping`, fitted to CPU milliseconds per sample of each system and batch size. One thread of "
        "ONNX Runtime, in turns, other samples in each round, other programs meanwhile. ± is one standard error. "
        "Weights in int8 have 7 bits, so that their sums overflow on no processor; "
        f"`{EIGHT}` is with all 8. `dynamic int8` is what ONNX Runtime's and PyTorch's own tools make of texts: an "
        "answer depends on which others are in its batch, so that no exits run with it. In the last column stand the "
        "quickest exits with int8 whose accuracy on the test part is at least that of the row. Goals are judged by "
        "that, and also by the quickest that are at most one standard error of the difference less accurate.", "",
        "```", f"python benchmarks/int8.py digits --out results/{out}",
        f"python benchmarks/int8.py RECIPE=FOLDER --out results/{out}  # FOLDER of eenet reproduce RECIPE --out FOLDER",
        "```", "",
        f"| network | goal, batches of {_GOAL_BATCH} | found | reached |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, ones in found.items():
        lines += [f"| {name} | {goal} | {said} | {'**yes**' if yes else 'no'} |" for goal, said, yes in ones]
    return "\n".join([*lines, "", *(table(name, data) + "\n" for name, data in networks.items())])


if __name__ == "__main__":
    sys.exit(main())
