"""int8 of a text encoder with exits: static and dynamic quantization of ONNX Runtime, dynamic quantization of PyTorch.

    python benchmarks/int8_texts.py sst2-phrases-minilm FOLDER

Takes the folder into which `eenet reproduce` ran a recipe for texts. Of each form: the accuracy of each exit on the
test part, CPU milliseconds a text with all exits, in turns with one thread, and how many answers change, and by how
much the largest logit does, where other texts come in the same batch: exits need that none does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import eenet
from eenet._extras import require
from eenet._timing import describe_machine, in_turns, machine, timed
from eenet.bundle._onnx import Session
from eenet.errors import ReliabilityWarning
from eenet.experiments.data import ThreeWaySplit
from eenet.experiments.recipes import load_recipe
from eenet.experiments.recipes._data import RecipeData, checkpoint_folder

ROOT = Path(__file__).resolve().parents[1]
SIZES = (1, 8, 32)
_ALL, _BATCH = 1e12, 32

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], Array]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="such as sst2-minilm, or a file")
    parser.add_argument("folder", type=Path, help="into which it was run")
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long to measure each batch size")
    parser.add_argument("--most", type=int, default=512, help="use at most so many texts of either part")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "variants": {}}
    print(describe_machine(found["machine"]), flush=True)
    model = eenet.MultiExitModel.from_pretrained(options.folder / "work" / "model").eval()
    recipe = load_recipe(options.recipe)
    root = Path(os.environ.get("EENET_SHARED", ROOT.parent / "shared")) / "datasets"
    data = RecipeData(recipe, root, tokenizer=checkpoint_folder(recipe, None, download=False))
    data.use(ThreeWaySplit.load(options.folder / "split.json"))
    parts = {}
    for part in ("calibration", "test"):
        tensors, truth = data.samples(part, _ALL)
        rows = torch.from_numpy(np.random.default_rng(0).permutation(len(truth))[: options.most])
        parts[part] = [one[rows] for one in tensors], truth[rows]
    arrays, labels = [one.numpy() for one in parts["test"][0]], parts["test"][1].numpy()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # of all parts in int8, whatever they lose
        variants = made(model, *parts["calibration"], Path(folder))
        for name, run in variants.items():
            found["variants"][name] = judged(run, arrays, labels)
        for size in SIZES:
            clocks = [partial(timed, run, [one[:size] for one in arrays]) for run in variants.values()]
            times = np.median(in_turns(clocks, seconds=options.seconds, least=5).cpu, axis=0) * 1000 / size
            for name, time in zip(variants, times.tolist(), strict=True):
                found["variants"][name][f"cpu_ms_{size}"] = time
    print(table(found["variants"], len(labels)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def made(model: eenet.MultiExitModel, tensors: Sequence[Any], labels: Any, folder: Path) -> dict[str, Run]:
    """The network with its exits in each form, called with arrays in the order of its inputs."""

    def call(some: slice) -> Any:
        args, kwargs = model.staged.call_of(tuple(one[some] for one in tensors))
        return kwargs if kwargs and not args else args

    loader = [(call(slice(n, n + _BATCH)), labels[n : n + _BATCH]) for n in range(0, len(labels), _BATCH)]
    records = eenet.collect(model, loader)
    any_costs = eenet.ExitCosts(np.arange(1.0, model.num_exits + 1))
    scheduler = eenet.MaxProbability().fit(records, any_costs, "100%")
    graphs: dict[str, dict[str, bytes]] = {}
    for name, precision in (("fp32", "fp32"), ("static", "int8")):
        bundle = eenet.export(
            model, scheduler, folder / name, example=loader[0][0], records=records, precision=precision,
            calibration=loader, measure=False, threads=1,
        )  # fmt: skip
        manifest = bundle.manifest
        files = [file for stage in manifest.stages for file in (stage.graph, stage.head) if file is not None]
        graphs[name] = {file.replace("-int8", ""): manifest.read(file) for file in files}
    graphs["dynamic"] = {file: _dynamic(content, folder) for file, content in graphs["fp32"].items()}
    stages = eenet.bundle.load(folder / "fp32", threads=1).manifest.stages
    runs: dict[str, Run] = {f"ONNX Runtime, {name}": _chain(stages, files) for name, files in graphs.items()}
    quantize = torch.ao.quantization.quantize_dynamic
    dynamic = quantize(model, {torch.nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return runs | {"PyTorch, fp32": partial(_in_torch, model), "PyTorch, dynamic": partial(_in_torch, dynamic)}


def _dynamic(content: bytes, folder: Path) -> bytes:
    """A graph by ONNX Runtime's dynamic quantization."""
    tools = require("onnxruntime.quantization", "export")
    before, after = folder / "before.onnx", folder / "after.onnx"
    before.write_bytes(content)
    tools.quantize_dynamic(before, after, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])
    return after.read_bytes()


def _chain(stages: Sequence[Any], files: dict[str, bytes]) -> Run:
    """All stages and heads, one after the other: logits (K, N, C)."""
    runtime = require("onnxruntime", "onnx")
    sessions = {file: Session(runtime, content, file, 1) for file, content in files.items()}

    def run(given: Sequence[Array]) -> Array:
        live, logits = list(given), []
        for k, stage in enumerate(stages[:-1]):
            outputs = sessions[stage.graph](live)
            live = outputs[: len(stages[k + 1].inputs)]
            feature = outputs[-1] if stage.passed_feature is None else live[stage.passed_feature]
            logits.append(sessions[stage.head]((feature,))[0])
        return np.stack([*logits, sessions[stages[-1].graph](live)[0]])

    return run


def _in_torch(model: Any, given: Sequence[Array]) -> Array:
    args, kwargs = model.staged.call_of(tuple(torch.from_numpy(one) for one in given))
    with torch.inference_mode():
        return torch.stack(list(model(*args, **kwargs))).numpy()


def judged(run: Run, arrays: list[Array], labels: Array) -> dict[str, Any]:
    """Each exit's accuracy, and what other texts in the batch change: answers, and by how much the largest logit."""
    count = len(labels)
    rows = [np.arange(n, min(n + _BATCH, count)) for n in range(0, count, _BATCH)]
    other = np.random.default_rng(1).permutation(count)
    first = np.concatenate([run([one[r] for one in arrays]) for r in rows], axis=1)
    again = np.empty_like(first)
    for r in rows:
        again[:, other[r]] = run([one[other[r]] for one in arrays])
    return {
        "accuracies": (first.argmax(axis=-1) == labels).mean(axis=1).tolist(),
        "changed": float((first.argmax(axis=-1) != again.argmax(axis=-1)).any(axis=0).mean()),
        "largest": float(np.abs(first - again).max()),
    }


def table(variants: dict[str, Any], count: int) -> str:
    """The forms as Markdown."""
    lines = [f"| form, {count} texts | accuracy of each exit % | CPU ms, batch 1 | 8 | 32 | answers that change "
             "| largest change of a logit |", "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name, one in variants.items():
        accuracies = " / ".join(f"{100 * value:.1f}" for value in one["accuracies"])
        times = " | ".join(f"{one[f'cpu_ms_{size}']:.1f}" for size in SIZES)
        lines.append(f"| {name} | {accuracies} | {times} | {one['changed']:.1%} | {one['largest']:.1g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
