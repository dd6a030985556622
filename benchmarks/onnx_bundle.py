"""What a bundle of ONNX graphs costs and saves: ResNet-50 at 224 px with exits after layer1, layer2 and layer3.

Weights are random and 40/30/20/10 % of the images are made to exit at the four exits, by thresholds set on their own
scores; so times are real and accuracy means nothing. All variants take turns, batch by batch in a new random order:

eager     the plain network in PyTorch
frozen    AdaptiveModel(optimize="auto") with all early exits off: folded batch norms, channels last, by measurement
whole     the plain network as one ONNX graph in ONNX Runtime, as it comes
static    the bundle with all early exits off: no head runs
no_exit   the bundle where every head runs, every decision is made, and no sample exits early
apart     the bundle's stages and heads alone, as in no_exit, without decisions
inside    the same with each head inside its stage's graph
unseen    the same graphs where no head is looked at: only the paths to the live tensors are asked for
mix       the bundle with the 40/30/20/10 % policy

And whether the cost that a bundle reports is what it takes: the bundle is measured at a batch size and planned for 70 %
of the plain network (`eenet.bundle.measure`). Then the mean cost of the images by these costs, and the plain network's,
are compared with the time that the bundle and the plain network take for them, in turns: `--only costs` alone.
"""

from __future__ import annotations

import argparse
import io
import json
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
from torch import Tensor, nn

import eenet
import eenet.bundle.onnx
from eenet._extras import require
from eenet._timing import describe_machine, machine, timed
from eenet.bundle import LoadedBundle
from eenet.errors import ReliabilityWarning
from resnet50 import PLACEHOLDER, SHARES, cell, fixed, noise, rounds_of, spread, summary, table

POOLS = {1: 10, 8: 40}
VARIANTS = ("eager", "frozen", "whole", "static", "no_exit", "apart", "inside", "unseen", "mix")
RATIOS = (
    ("no exit / eager", "no_exit", "eager", "at most 0.55 at batch 1"),
    ("no exit / whole", "no_exit", "whole", "at most 1.10 at batch 1"),
    ("static / whole", "static", "whole", ""),
    ("apart / inside", "apart", "inside", ""),
    ("static / unseen", "static", "unseen", ""),
    ("whole / mix (speed)", "whole", "mix", "at least 1.9 at batch 8"),
    ("eager / mix (speed)", "eager", "mix", ""),
    ("frozen / eager", "frozen", "eager", "at most 1"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to measure each batch size")
    parser.add_argument("--threads", type=int, default=2, help="threads for PyTorch and for ONNX Runtime")
    parser.add_argument("--batch-sizes", type=int, nargs="+", choices=sorted(POOLS), default=sorted(POOLS))
    parser.add_argument("--only", choices=("costs",), help="only compare reported with measured costs")
    parser.add_argument("--network", default="torchvision:resnet50", help="for --only costs: another network")
    parser.add_argument(
        "--exits", nargs="+", default=["layer1", "layer2", "layer3"], help="for --only costs: its exits"
    )
    parser.add_argument("--size", type=int, default=224, help="for --only costs: of its images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = machine() | {"onnxruntime": require("onnxruntime", "export").__version__}
    print(describe_machine(found))
    print(f"ONNX Runtime {found['onnxruntime']}, {options.threads} threads for both\n", flush=True)

    torch.manual_seed(0)
    if options.only == "costs":
        costs = _costs(
            options.network, options.exits, options.size, options.threads, options.batch_sizes, options.seconds
        )
        if options.json:
            data = {"machine": found, "threads": options.threads, "costs": costs}
            options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        return 0
    network = eenet.build_network("torchvision:resnet50").eval()
    images = noise(max(POOLS[size] for size in options.batch_sizes))
    model = eenet.attach(network, ["layer1", "layer2", "layer3"], num_classes=1000, example=images[:2]).eval()
    whole = _whole(network, images[:3], options.threads)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = _export(model, images[:16], Path(folder) / "bundle", options.threads)
        loading = [timed(eenet.bundle.onnx.load, Path(folder) / "bundle") for _ in range(3)]
        seconds = min(wall for wall, _ in loading)
        print(
            f"loading the bundle: {seconds:.2f} s wall, {min(cpu for _, cpu in loading):.2f} s CPU, the fastest of 3 "
            "(target: at most 2 s)\n",
            flush=True,
        )
        inside = _inside(bundle, options.threads)
        for size in options.batch_sizes:
            pool = images[: POOLS[size]]
            results.append(_measure(network, model, bundle, inside, whole, pool, size, options.seconds))
            print(table(results[-1]), flush=True)
    costs = _costs(options.network, options.exits, options.size, options.threads, options.batch_sizes, options.seconds)
    if options.json:
        data = {"machine": found, "threads": options.threads, "loading_seconds": seconds, "results": results}
        data["costs"] = costs
        options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0


def _whole(network: nn.Module, images: Tensor, threads: int) -> Callable[[NDArray[Any]], Any]:
    """The plain network as one graph, with ONNX Runtime's own settings but for the number of threads."""
    runtime = require("onnxruntime", "export")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        made = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert made is not None
    file = io.BytesIO(made.model_proto.SerializeToString())
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = runtime.InferenceSession(file.getvalue(), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


def _export(model: eenet.MultiExitModel, images: Tensor, folder: Path, threads: int) -> LoadedBundle:
    records = eenet.collect(model, [images])
    eenet.export(model, fixed(records, SHARES), folder, example=images, measure=False)
    return eenet.bundle.onnx.load(folder, threads=threads)


def _costs(
    name: str, exits: Sequence[str], side: int, threads: int, sizes: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Reported and measured milliseconds per image, at each batch size."""
    network = eenet.build_network(name).eval()
    images = torch.randn(max(POOLS[size] for size in sizes), 3, side, side)
    model = eenet.attach(network, list(exits), example=images[:2]).eval()
    records = eenet.collect(model, list(torch.split(images, 8)))
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts(np.arange(1.0, model.num_exits + 1)), "70%")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        eenet.export(model, scheduler, place, example=images[:16], measure=False, records=records, threads=threads)
        print("reported and measured cost, ms per image")
        for size in sizes:
            bundle = eenet.bundle.measure(
                place, batch_sizes=[size], batch_size=size, seconds=seconds / 4, threads=threads, budget="70%"
            )
            found.append(_reported_and_measured(bundle, images[: POOLS[size]], size, seconds / 2))
            print(_costs_table(found[-1]), flush=True)
    return found


def _reported_and_measured(bundle: LoadedBundle, images: Tensor, size: int, seconds: float) -> dict[str, Any]:
    runtime = require("onnxruntime", "export")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = bundle.threads
    graph = bundle.manifest.data["plain"]
    content = bundle.manifest.read(graph) if graph is not None else None
    session = (
        None if content is None else runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    )
    batches = [batch.numpy() for batch in torch.split(images, size)]
    taken = np.concatenate([bundle(batch).exits for batch in batches])
    variants = ("bundle", *(() if session is None else ("plain",)))

    def run(variant: str, index: int) -> tuple[float, float]:
        if variant == "bundle" or session is None:
            return timed(bundle, batches[index])
        return timed(session.run, None, {session.get_inputs()[0].name: batches[index]})

    rounds = rounds_of(run, len(batches), seconds, f"batch {size}: rounds", variants) / len(images) * 1000
    profile = bundle.manifest.data["profile"]
    result: dict[str, Any] = {"batch_size": size, "exit_shares": (np.bincount(taken) / len(taken)).tolist()}
    for c, (clock, unit) in enumerate((("wall", "ms"), ("CPU", "cpu_ms"))):
        reported = {
            "bundle": float(np.array(profile["costs"][unit][0])[taken].mean()),
            "plain": profile["plain"][unit][0],
        }
        for i, variant in enumerate(variants):
            measured = spread(rounds[:, i, c])
            result[f"{variant}, {clock}"] = {"reported": reported[variant], "measured": measured}
    return result


def _costs_table(result: dict[str, Any]) -> str:
    shares = "/".join(f"{100 * share:.0f}" for share in result["exit_shares"])
    lines = [
        f"batch {result['batch_size']}, exits {shares} %",
        f"  {'':<14}{'reported':>10}{'measured':>24}{'ratio':>8}",
    ]
    for name, values in result.items():
        if isinstance(values, dict):
            ratio = values["reported"] / values["measured"]["median"]
            lines.append(f"  {name:<14}{values['reported']:>10.3f}{cell(values['measured'], 3):>24}{ratio:>8.3f}")
    return "\n".join(lines) + "\n"


def _inside(bundle: LoadedBundle, threads: int) -> Callable[..., None]:
    """The bundle's graphs with each head merged into its stage, run one after another; heads only if asked for."""
    onnx, compose = require("onnx", "export"), require("onnx.compose", "export")
    runtime = require("onnxruntime", "export")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = []
    for spec in bundle.manifest.stages:
        assert spec.graph is not None
        graph = onnx.load_from_string(bundle.manifest.read(spec.graph))
        if spec.head is not None:
            head = compose.add_prefix(onnx.load_from_string(bundle.manifest.read(spec.head)), "head_")
            feature, taken = graph.graph.output[-1].name, head.graph.input[0].name
            passed, said = [one.name for one in graph.graph.output], [one.name for one in head.graph.output]
            graph = compose.merge_models(graph, head, io_map=[(feature, taken)], outputs=[*passed, *said])
        content = graph.SerializeToString()
        sessions.append(runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"]))
    needed = runtime.RunOptions()
    needed.only_execute_path_to_fetches = True

    def run(batch: NDArray[Any], heads: bool) -> None:
        for session in sessions:
            outputs = [one.name for one in session.get_outputs()]
            given = {session.get_inputs()[0].name: batch}
            batch = session.run(outputs if heads else outputs[:1], given, None if heads else needed)[0]

    return run


def _apart(bundle: LoadedBundle, batch: NDArray[Any]) -> None:
    live = bundle.backend.enter(batch)
    for k in range(bundle.backend.num_exits):
        live, _ = bundle.backend.run(k, live, observe=True)


def _measure(
    network: nn.Module,
    model: eenet.MultiExitModel,
    bundle: LoadedBundle,
    inside: Callable[..., None],
    whole: Callable[[NDArray[Any]], Any],
    images: Tensor,
    size: int,
    seconds: float,
) -> dict[str, Any]:
    batches = list(torch.split(images, size))
    arrays = [batch.numpy() for batch in batches]
    records = eenet.collect(model, batches)
    static = eenet.Static(3).fit(records, PLACEHOLDER)
    mix = fixed(records, SHARES)
    runners: dict[str, Callable[[Any], Any]] = {
        "static": LoadedBundle(bundle.manifest, bundle.backend, static),
        "no_exit": LoadedBundle(bundle.manifest, bundle.backend, fixed(records, (0, 0, 0, 1))),
        "mix": LoadedBundle(bundle.manifest, bundle.backend, mix),
        "whole": whole,
        "apart": partial(_apart, bundle),
        "inside": partial(inside, heads=True),
        "unseen": partial(inside, heads=False),
    }
    took = np.concatenate([runners["mix"](batch).exits for batch in arrays])
    if (took != mix.replay(records).exits).any():
        raise RuntimeError("an image left the bundle elsewhere than in the replay")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        frozen = eenet.AdaptiveModel(model, static, optimize="auto", batch_sizes=(size,), seconds=seconds / 6)

    def run(variant: str, index: int) -> tuple[float, float]:
        if variant == "eager":
            return timed(network, batches[index])
        if variant == "frozen":
            return timed(frozen, batches[index])
        return timed(runners[variant], arrays[index])

    rounds = rounds_of(run, len(batches), seconds, f"batch {size}: rounds", VARIANTS)
    shares = np.bincount(took, minlength=4) / len(took)
    return summary(rounds, size, len(images), shares, VARIANTS, RATIOS) | {"optimized": str(frozen.optimized)}


if __name__ == "__main__":
    sys.exit(main())
