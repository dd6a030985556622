"""What early exit costs and saves at run time: a ResNet at 224 px with exits after layer1, layer2 and layer3.

Weights are random and 40/30/20/10 % of the images are made to exit at the four exits, by thresholds set on their own
scores; so times are real and accuracy means nothing. For each batch size all variants take turns, batch by batch in
a new random order, in one run:

plain     the network itself, without exits
mix       AdaptiveModel with the 40/30/20/10 % policy
ideal     the mix's stages and heads alone, each timed by itself on exactly the samples that reach it in the mix,
          without decisions, compaction and reordering
no_exit   AdaptiveModel where every head runs, every decision is made, and no sample exits early
staged    the stages and heads of no_exit alone, without decisions
static    AdaptiveModel with all early exits off: no head runs
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import eenet
from eenet._timing import Clock, describe_machine, in_turns, machine, timed
from eenet.cli._console import progress
from eenet.scheduler import ThresholdPolicy

SHARES = (0.4, 0.3, 0.2, 0.1)
POOLS = {1: 10, 8: 40, 32: 64}
"""Images per batch size: enough that the shares come out, whole batches."""

VARIANTS = ("plain", "mix", "ideal", "no_exit", "staged", "static")
RATIOS = (
    ("mix / ideal", "mix", "ideal", "at most 1.10"),
    ("no exit / plain", "no_exit", "plain", "at most 1.04 at batch 1"),
    ("no exit / staged", "no_exit", "staged", ""),
    ("static / plain", "static", "plain", ""),
    ("plain / mix (speed)", "plain", "mix", "at least 1.5 at batch 8"),
)


class FixedShares(eenet.MaxProbability):
    """Lets given shares of the calibration samples exit at each exit, whatever the budget."""

    shares: Sequence[float] = ()

    @property
    def policy(self) -> ThresholdPolicy:
        return self._of_shares

    def fit(self, records: eenet.ExitRecords, *args: Any, **options: Any) -> FixedShares:
        super().fit(records, *args, **{"fallback": False, **options})
        running, thresholds = np.arange(len(records)), []
        for k, share in enumerate(self.shares[:-1]):
            scores = np.sort(records.all_evidence()[k].log_odds[running])[::-1]
            count = min(round(share * len(records)), len(scores))
            # Where no sample exits the exit is on all the same: the threshold is above all scores.
            high = scores[count - 1] if count else scores.max(initial=0.0) + 2e3
            low = scores[count] if count < len(scores) else high - 1
            thresholds.append((high + low) / 2 if count else high)
            running = running[records.all_evidence()[k].log_odds[running] < thresholds[-1]]
        self._of_shares = replace(
            super().policy, thresholds=np.array(thresholds), enabled=np.ones(len(thresholds), dtype=np.bool_)
        )
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("resnet18", "resnet50"), default="resnet50")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to measure each batch size")
    parser.add_argument("--threads", type=int, help="threads for torch (default: torch's own choice)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", choices=sorted(POOLS), default=sorted(POOLS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    found = machine()
    print(describe_machine(found))
    about = f"about {options.seconds:g} s for each batch size"
    print(f"{options.network}, 224 px, exits {SHARES} asked for, {about}\n", flush=True)

    torch.manual_seed(0)
    network = eenet.build_network(f"torchvision:{options.network}").eval()
    images = noise(max(POOLS[size] for size in options.batch_sizes))
    model = eenet.attach(network, ["layer1", "layer2", "layer3"], num_classes=1000, example=images[:2]).eval()
    results = []
    for size in options.batch_sizes:
        results.append(_measure(network, model, images[: POOLS[size]], size, options.seconds))
        print(table(results[-1]), flush=True)
    if options.json:
        text = json.dumps({"machine": found, "network": options.network, "results": results}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def noise(count: int) -> Tensor:
    # Noise of different contrast, so that even random heads distinguish the images.
    generator = torch.Generator().manual_seed(0)
    contrast = torch.rand(count, 1, 1, 1, generator=generator) + 0.5
    return torch.randn(count, 3, 224, 224, generator=generator) * contrast


def _measure(
    network: torch.nn.Module, model: eenet.MultiExitModel, images: Tensor, size: int, seconds: float
) -> dict[str, Any]:
    batches = list(torch.split(images, size))
    records = eenet.collect(model, [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in batches])
    mix = fixed(records, SHARES)
    runners = {
        "mix": eenet.AdaptiveModel(model, mix),
        "no_exit": eenet.AdaptiveModel(model, fixed(records, (0, 0, 0, 1))),
        "static": eenet.AdaptiveModel(model, eenet.Static(3).fit(records, PLACEHOLDER)),
    }
    expected = mix.replay(records).exits
    took = np.concatenate([runners["mix"](batch).exits.numpy() for batch in batches])
    if (took != expected).any():
        raise RuntimeError(f"{int((took != expected).sum())} of {len(took)} images exited elsewhere than in the replay")
    per_batch = [took[start : start + size] for start in range(0, len(took), size)]

    def run(variant: str, index: int) -> Clock:
        if variant == "plain":
            return timed(network, batches[index])
        if variant == "ideal":
            return _parts(model, batches[index], per_batch[index])
        if variant == "staged":
            return _parts(model, batches[index], np.full(len(batches[index]), 3))
        return timed(runners[variant], batches[index])

    rounds = rounds_of(run, len(batches), seconds, f"batch {size}: rounds")
    return summary(rounds, size, len(images), np.bincount(took, minlength=4) / len(took))


PLACEHOLDER = eenet.ExitCosts([1, 2, 3, 4], unit="stages")  # the forced policies do not look at costs


def fixed(records: eenet.ExitRecords, shares: Sequence[float]) -> eenet.Scheduler:
    scheduler = FixedShares()
    scheduler.shares = shares
    return scheduler.fit(records, PLACEHOLDER, budget="100%")


def rounds_of(
    run: Callable[[str, int], Clock], batches: int, seconds: float, name: str, variants: Sequence[str] = VARIANTS
) -> NDArray[np.float64]:
    """(rounds, variants, wall and CPU) seconds of `run(variant, batch)`, all batches together."""
    clocks = [partial(run, variant, index) for index in range(batches) for variant in variants]
    with torch.inference_mode(), progress() as bars:
        update, done = bars.task(f"{name}, rounds"), itertools.count(1)
        timing = in_turns(clocks, seconds=seconds, seed=0, progress=lambda: update(next(done)))
    table = np.stack([timing.wall, timing.cpu], axis=-1)
    found: NDArray[np.float64] = table.reshape(len(table), batches, len(variants), 2).sum(axis=1)
    return found


def _parts(model: eenet.MultiExitModel, batch: Tensor, exits: NDArray[np.intp]) -> Clock:
    """The sum of the stages' and heads' own times at the number of samples that reach them."""
    total = np.zeros(2)
    steps = model.staged.walk((batch,), model.staged.inference_stages)
    for k in range(model.num_exits):
        results: list[Any] = []
        total += timed(lambda out=results: out.append(next(steps)))
        step = results[0]
        if k == model.num_exits - 1:
            break
        total += timed(model.heads[k], step.feature)
        running = exits[exits >= k]
        staying = np.flatnonzero(running > k)
        if len(staying) == 0:
            break
        if len(staying) < len(running):
            step.live = model.staged.compact(step.live, torch.from_numpy(staying), k + 1)
    return float(total[0]), float(total[1])


def summary(
    rounds: NDArray[np.float64],
    size: int,
    images: int,
    shares: NDArray[np.float64],
    variants: Sequence[str] = VARIANTS,
    ratios: Sequence[tuple[str, str, str, str]] = RATIOS,
) -> dict[str, Any]:
    """`rounds` is (rounds, variants, wall and CPU) seconds for all images."""
    clocks = ("wall", "cpu")
    per_image = rounds / images * 1000
    found: dict[str, Any] = {"batch_size": size, "images": images, "rounds": len(rounds)}
    found["exit_shares"] = shares.tolist()
    found["ms_per_image"] = {
        variant: {clock: spread(per_image[:, i, c]) for c, clock in enumerate(clocks)}
        for i, variant in enumerate(variants)
    }
    found["ratios"] = {}
    for name, over, under, target in ratios:
        a, b = rounds[:, variants.index(over)], rounds[:, variants.index(under)]
        found["ratios"][name] = {clock: spread(a[:, c] / b[:, c]) for c, clock in enumerate(clocks)}
        minima = {clock: float(a[:, c].min() / b[:, c].min()) for c, clock in enumerate(clocks)}
        found["ratios"][name] |= {"of_minima": minima, "target": target}
    return found


def spread(values: NDArray[np.float64]) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(middle), "lower_quartile": float(low), "upper_quartile": float(high)}


def table(result: dict[str, Any]) -> str:
    shares = "/".join(f"{100 * share:.0f}" for share in result["exit_shares"])
    lines = [
        f"batch {result['batch_size']}: {result['images']} images, exits {shares} %, {result['rounds']} rounds; "
        "median (quartiles)",
        *([f"  frozen stages: {result['optimized']}"] if "optimized" in result else []),
        f"  {'ms per image':<22}{'wall':>24}{'CPU':>24}",
    ]
    for variant, clocks in result["ms_per_image"].items():
        lines.append(f"  {variant:<22}{cell(clocks['wall'], 1):>24}{cell(clocks['cpu'], 1):>24}")
    lines.append(f"  {'ratio, round by round':<22}{'wall':>24}{'CPU':>24}{'of minima: wall, CPU':>22}  target")
    for name, ratio in result["ratios"].items():
        minima = f"{ratio['of_minima']['wall']:.3f}, {ratio['of_minima']['cpu']:.3f}"
        cells = f"{cell(ratio['wall'], 3):>24}{cell(ratio['cpu'], 3):>24}{minima:>22}"
        lines.append(f"  {name:<22}{cells}  {ratio['target']}".rstrip())
    return "\n".join(lines) + "\n"


def cell(spread: dict[str, float], digits: int) -> str:
    low, middle, high = (f"{spread[k]:.{digits}f}" for k in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle} ({low}-{high})"


if __name__ == "__main__":
    sys.exit(main())
