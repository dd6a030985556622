"""What attaching exits costs: its CPU time, as a multiple of one `torch.export` of the same network.

ResNet-50 and ViT-B/16 of torchvision at 224 px, and a Hugging Face BERT of 6 layers with texts of any length, with
random weights and two or three early exits at named modules. Both are measured in turns, after one warm-up: the first
trace of a process imports much. `train` is the first call in training mode, which traces and checks once more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eenet
from eenet._extras import require
from eenet._timing import describe_machine, in_turns, machine, timed


@dataclass(frozen=True)
class Case:
    """A network, where its exits go, and an example of its input."""

    make: Callable[[], torch.nn.Module]
    exits: list[str]
    example: Callable[[], Any]
    dynamic: dict[int, str] | None = None


def bert() -> torch.nn.Module:
    """A BERT of 6 layers, as wide as MiniLM."""
    transformers = require("transformers", "train")
    require("transformers.models.bert.modeling_bert", "train")
    config = transformers.BertConfig(
        num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_labels=2
    )
    network: torch.nn.Module = transformers.BertForSequenceClassification(config)
    return network


def texts() -> dict[str, torch.Tensor]:
    """Two texts of 32 tokens."""
    return {"input_ids": torch.randint(1000, 2000, (2, 32)), "attention_mask": torch.ones(2, 32, dtype=torch.long)}


def images() -> torch.Tensor:
    """Two images."""
    return torch.randn(2, 3, 224, 224)


CASES = {
    "resnet50": Case(partial(eenet.build_network, "torchvision:resnet50"), ["layer1", "layer2", "layer3"], images),
    "vit_b_16": Case(
        partial(eenet.build_network, "torchvision:vit_b_16"),
        ["encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_7"],
        images,
    ),
    "bert": Case(bert, ["bert.encoder.layer.1", "bert.encoder.layer.3"], texts, {1: "sequence"}),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = machine()
    print(describe_machine(found))
    print(
        f"{'network':<10} {'export':>8} {'attach':>8} {'train':>8}   attach / export, CPU (lowest-highest)", flush=True
    )
    results = {}
    for name in options.networks:
        results[name] = measure(CASES[name], options.rounds)
        export, attach, train = (results[name][step] for step in ("export", "attach", "train"))
        ratios = np.array(attach) / export
        print(
            f"{name:<10} {np.median(export):>6.2f} s {np.median(attach):>6.2f} s {np.median(train):>6.2f} s   "
            f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": found, "results": results}, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """The CPU seconds of each step in each round."""
    torch.manual_seed(0)
    network, example = case.make().eval(), case.example()
    args, kwargs = ((), example) if isinstance(example, dict) else ((example,), {})
    dims: Any = {0: torch.export.Dim.DYNAMIC, **dict.fromkeys(case.dynamic or {}, torch.export.Dim.DYNAMIC)}
    shapes = dict.fromkeys(kwargs, dims) if kwargs else (dims,)
    made: list[eenet.MultiExitModel] = []

    def export() -> None:
        torch.export.export(network, args, kwargs, dynamic_shapes=shapes, strict=False)

    def attach() -> None:
        made[:] = [eenet.attach(network, case.exits, example=example, dynamic=case.dynamic)]

    def train() -> None:
        _ = made[0].train().staged.stages
        made[0].eval()

    timing = in_turns([partial(timed, step) for step in (export, attach, train)], seconds=0.0, least=rounds)
    return dict(zip(("export", "attach", "train"), timing.cpu.T.tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
