"""What early exit saves on a GPU: ResNet-50, ViT-B/16 and BERT-base's shape, in float32 and half precision.

Weights are random, and 40/30/20/10 % of the samples are made to exit at the four exits (`resnet50.py` says how). For
each network, precision and batch size these take turns, batch by batch:

plain      the network itself, without exits
mix        AdaptiveModel with the 40/30/20/10 % policy, stages as they are
optimized  the same with optimize="auto": frozen stages and CUDA graphs where the measurement finds them faster
static     the stages of "optimized" with all early exits off: what freezing and graphs save without early exit
no_exit    AdaptiveModel where every head runs, every decision is made, and no sample exits early

Each time is of a call until its answer is on the device and done. `--device cpu` runs the same code without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import eenet
from eenet._extras import require
from eenet._timing import describe_machine, machine
from eenet.errors import ReliabilityWarning
from resnet50 import PLACEHOLDER, SHARES, cell, fixed, noise, spread

Inputs = dict[str, Tensor] | Tensor

VARIANTS = ("plain", "mix", "optimized", "static", "no_exit")
RATIOS = (
    ("plain / mix", "plain", "mix"),
    ("plain / optimized", "plain", "optimized"),
    ("static / optimized", "static", "optimized"),
    ("no exit / plain", "no_exit", "plain"),
)
POOL = 128
MIN_ROUNDS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print a table for each network and precision, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "float16", "bfloat16"), default=["float32", "float16"]
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--samples", type=int, default=POOL, help="at least the largest batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long to measure each batch size")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --device cpu runs the same code without one")
    if options.samples < max(options.batch_sizes):
        parser.error(f"--samples is {options.samples}, less than the largest batch, {max(options.batch_sizes)}")
    device = torch.device(options.device)
    found = machine(device)
    print(describe_machine(found) + "\n", flush=True)
    results = []
    for name in options.networks:
        for dtype in options.dtypes:
            results.append(_measure(name, dtype, device, options))
            print(_table(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": found, "results": results}, indent=1) + "\n", encoding="utf-8")
    return 0


def _resnet50() -> tuple[nn.Module, list[str], Callable[[int], Inputs]]:
    return eenet.build_network("torchvision:resnet50"), ["layer1", "layer2", "layer3"], noise


def _vit() -> tuple[nn.Module, list[str], Callable[[int], Inputs]]:
    blocks = [f"encoder.layers.encoder_layer_{number}" for number in (2, 5, 8)]
    return eenet.build_network("torchvision:vit_b_16"), blocks, noise


def _bert() -> tuple[nn.Module, list[str], Callable[[int], Inputs]]:
    transformers = require("transformers", "train", "a network of BERT-base's shape")
    network = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2))
    return network, [f"bert.encoder.layer.{number}" for number in (2, 5, 8)], _tokens


def _tokens(count: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(5, 30_000, (count, 128), generator=generator),
        "attention_mask": torch.ones(count, 128, dtype=torch.long),
    }


NETWORKS = {"resnet50": _resnet50, "vit_b_16": _vit, "bert-base": _bert}


def _measure(name: str, dtype: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    network, exits, make = NETWORKS[name]()
    network = network.eval().to(device, getattr(torch, dtype))
    samples = _moved(make(options.samples), device, getattr(torch, dtype))
    model = eenet.attach(network, exits, example=_part(samples, 0, 2)).eval()
    found: dict[str, Any] = {"network": name, "dtype": dtype, "batches": []}
    for size in options.batch_sizes:
        batches = [_part(samples, start, start + size) for start in range(0, options.samples - size + 1, size)]
        records = eenet.collect(model, batches)
        mix = fixed(records, SHARES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)  # what was chosen is printed
            fast = eenet.AdaptiveModel(
                model, mix, optimize="auto", batch_sizes=(size,), seconds=min(options.seconds, 2)
            )
        static = eenet.AdaptiveModel(model, eenet.Static(len(SHARES) - 1).fit(records, PLACEHOLDER))
        static.optimized = fast.optimized
        runners: dict[str, Callable[..., Any]] = {
            "plain": network,
            "mix": eenet.AdaptiveModel(model, mix),
            "optimized": fast,
            "static": static,
            "no_exit": eenet.AdaptiveModel(model, fixed(records, (0, 0, 0, 1))),
        }
        found["batches"].append(
            _turns(runners, batches, size, options.seconds, device) | {"chosen": str(fast.optimized)}
        )
    return found


@torch.inference_mode()
def _turns(
    runners: dict[str, Callable[..., Any]], batches: list[Inputs], size: int, seconds: float, device: torch.device
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for name in VARIANTS:  # warm-up
        timed(runners[name], batches[0], device)
    rounds: list[NDArray[np.float64]] = []
    start = time.perf_counter()
    while len(rounds) < MIN_ROUNDS or time.perf_counter() - start < seconds:
        spent = np.zeros(len(VARIANTS))
        for batch in batches:
            for turn in rng.permutation(len(VARIANTS)):
                spent[turn] += timed(runners[VARIANTS[turn]], batch, device)
        rounds.append(spent / (len(batches) * size) * 1000)
    table = np.array(rounds)
    columns = {name: table[:, number] for number, name in enumerate(VARIANTS)}
    return {
        "batch_size": size,
        "rounds": len(rounds),
        "ms_per_sample": {name: spread(values) for name, values in columns.items()},
        "ratios": {name: spread(columns[over] / columns[under]) for name, over, under in RATIOS},
    }


def timed(function: Callable[..., Any], batch: Inputs, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else _nothing
    wait()
    start = time.perf_counter()
    function(**batch) if isinstance(batch, dict) else function(batch)
    wait()
    return time.perf_counter() - start


def _nothing() -> None:
    pass


def _moved(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    if isinstance(inputs, dict):
        return {name: tensor.to(device) for name, tensor in inputs.items()}
    return inputs.to(device, dtype)


def _part(inputs: Inputs, start: int, stop: int) -> Inputs:
    if isinstance(inputs, dict):
        return {name: tensor[start:stop] for name, tensor in inputs.items()}
    return inputs[start:stop]


def _table(result: dict[str, Any]) -> str:
    lines = [f"{result['network']}, {result['dtype']}: ms per sample, median (quartiles)"]
    lines.append(f"  {'batch':>5}  " + "".join(f"{name:>24}" for name in (*VARIANTS, *[name for name, _, _ in RATIOS])))
    for row in result["batches"]:
        cells = [cell(row["ms_per_sample"][name], 3) for name in VARIANTS]
        cells += [cell(row["ratios"][name], 2) for name, _, _ in RATIOS]
        lines.append(f"  {row['batch_size']:>5}  " + "".join(f"{text:>24}" for text in cells))
        lines.append(f"         optimized: {row['chosen']}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
