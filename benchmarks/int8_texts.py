"""int8 of a text encoder: static and dynamic quantization of ONNX Runtime, dynamic quantization of PyTorch.

Takes the folder into which a recipe for texts was run, such as `sst2-minilm`. Of the plain network in each form: the
accuracy on the test part, CPU milliseconds a text in turns with one thread, and how many answers change, and by how
much the largest logit does, where a text comes with others in its batch: what exits need is that none does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eenet
from eenet._extras import require
from eenet._timing import describe_machine, in_turns, machine, timed
from eenet.bundle._graphs import onnx_graphs, plain_graph
from eenet.bundle._onnx import Session
from eenet.bundle._quantize import quantized
from eenet.experiments.data import ThreeWaySplit
from eenet.experiments.recipes import load_recipe
from eenet.experiments.recipes._data import RecipeData, checkpoint_folder

_RANGES, _ALL, _BATCH = 128, 1e12, 32
Run = Callable[[Sequence[Any]], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="such as sst2-minilm, or a file")
    parser.add_argument("folder", type=Path, help="into which it was run")
    parser.add_argument("--data-root", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "datasets")
    parser.add_argument("--model", type=Path, help="the model, by default FOLDER/work/model")
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long to measure each batch size")
    parser.add_argument("--most", type=int, default=512, help="texts of the test part")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "sizes": {}, "variants": {}}
    print(describe_machine(found["machine"]), flush=True)
    model = eenet.MultiExitModel.from_pretrained(options.model or options.folder / "work" / "model").eval()
    recipe = load_recipe(options.recipe)
    data = RecipeData(recipe, options.data_root, tokenizer=checkpoint_folder(recipe, None, download=False))
    data.use(ThreeWaySplit.load(options.folder / "split.json"))
    ranges, _ = data.samples("calibration", _ALL)
    tensors, truth = data.samples("test", _ALL)
    arrays, labels = [one[: options.most].numpy() for one in tensors], truth[: options.most].numpy()
    with tempfile.TemporaryDirectory() as folder:
        variants = made(model, [one[:_RANGES].numpy() for one in ranges], Path(folder))
    for name, run in variants.items():
        found["variants"][name] = judged(run, arrays, labels)
    for size in (1, 8, 32):
        clocks = [partial(timed, run, [one[:size] for one in arrays]) for run in variants.values()]
        times = np.median(in_turns(clocks, seconds=options.seconds, least=5, warm_up=2).cpu, axis=0) * 1000 / size
        for name, time in zip(variants, times.tolist(), strict=True):
            found["variants"][name][f"cpu_ms_{size}"] = time
    print(f"{'form':<26}{'accuracy':>10}{'batch 1':>10}{'batch 8':>10}{'batch 32':>10}{'others':>9}{'logit':>9}")
    for name, one in found["variants"].items():
        times = [one[f"cpu_ms_{size}"] for size in (1, 8, 32)]
        print(
            f"{name:<26}{100 * one['accuracy']:>10.2f}" + "".join(f"{time:>10.2f}" for time in times)
            + f"{one['changed']:>9.2%}{one['largest']:>9.2g}"
        )  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def made(model: eenet.MultiExitModel, ranges: list[Any], folder: Path) -> dict[str, Run]:
    """The plain network in each form, called with arrays in the order of its inputs."""
    tools, runtime = require("onnxruntime.quantization", "export"), require("onnxruntime", "export")
    content = plain_graph(model, onnx_graphs(model, 20), 20)
    assert content is not None
    sessions = {"ONNX Runtime, fp32": content}
    names = Session(runtime, content, "plain", 1).inputs
    feeds: list[Mapping[str, Any]] = [
        dict(zip(names, (one[n : n + 16] for one in ranges), strict=True)) for n in range(0, len(ranges[0]), 16)
    ]
    static = quantized(content, feeds).content
    assert static is not None
    sessions["ONNX Runtime, static"] = static
    (folder / "plain.onnx").write_bytes(content)
    tools.quantize_dynamic(
        folder / "plain.onnx", folder / "dynamic.onnx", per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
    )
    sessions["ONNX Runtime, dynamic"] = (folder / "dynamic.onnx").read_bytes()
    runs: dict[str, Run] = {}
    for name, graph in sessions.items():
        session = Session(runtime, graph, name, 1)
        runs[name] = partial(lambda session, given: session(tuple(given))[0], session)
    quantize = torch.ao.quantization.quantize_dynamic
    dynamic = quantize(model.plain, {torch.nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    for name, network in (("PyTorch, fp32", model.plain), ("PyTorch, dynamic", dynamic)):
        runs[name] = partial(_in_torch, model, network)
    return runs


def _in_torch(model: eenet.MultiExitModel, network: Any, given: Sequence[Any]) -> Any:
    from eenet.models import logits_in

    args, kwargs = model.staged.call_of(tuple(torch.from_numpy(one) for one in given))
    with torch.inference_mode():
        return logits_in(network(*args, **kwargs)).numpy()


def judged(run: Run, arrays: list[Any], labels: Any) -> dict[str, float]:
    """The accuracy, and what other texts in the batch change: answers, and the largest difference of a logit."""
    count = len(labels)
    rows = [np.arange(n, min(n + _BATCH, count)) for n in range(0, count, _BATCH)]
    other = np.random.default_rng(0).permutation(count)
    first = np.concatenate([run([one[r] for one in arrays]) for r in rows])
    again = np.empty_like(first)
    for r in rows:
        again[other[r]] = run([one[other[r]] for one in arrays])
    return {
        "accuracy": float((first.argmax(axis=1) == labels).mean()),
        "changed": float((first.argmax(axis=1) != again.argmax(axis=1)).mean()),
        "largest": float(np.abs(first - again).max()),
    }


if __name__ == "__main__":
    sys.exit(main())
