"""How often a guaranteed budget, or accuracy, is broken, and what the guarantee costs: a simulation on real records.

The committed records of a recipe (`results/NAME`, calibration and test together) are taken for the whole population,
whose true mean cost and accuracy are known. Calibration sets are drawn from it with replacement; on each a scheduler is
fitted with the guarantee and without, and both are judged on the population. A guarantee of 0.95 may be broken in 5 %
of the draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import eenet
from eenet._timing import describe_machine, machine
from eenet.cli._console import progress_bar
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.records import ExitRecords

ROOT = Path(__file__).resolve().parents[1]
MAKERS: dict[str, Callable[[int], eenet.Scheduler]] = {
    "stopping": lambda seed: eenet.OptimalStopping(seed=seed),
    "max_prob": lambda seed: eenet.MaxProbability(),  # noqa: ARG005 - it has no dice
    "eenet": lambda seed: eenet.EENet(seed=seed),
}
WHERE = (0.2, 0.4, 0.6, 0.8)
CHUNK = 10


@dataclass(frozen=True)
class Draw:
    """One calibration set at one budget, or for one allowed drop: costs as shares of the budget, accuracies in %."""

    samples: int
    asked: str
    broken: bool
    plainly_broken: bool | None
    spent: float
    accuracy_lost: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="cifar10-resnet56-shared", help="whose records (default: %(default)s)")
    parser.add_argument("--method", choices=sorted(MAKERS), default="stopping")
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 2000, 3300])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--guarantee", type=float, default=0.95)
    parser.add_argument("--max-accuracy-drop", type=float, default=0.01)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    found = machine()
    print(describe_machine(found) + "\n", flush=True)
    chunks = [(n, first) for n in options.samples for first in range(0, options.draws, CHUNK)]
    draws: list[Draw] = []
    with ProcessPoolExecutor(options.jobs) as pool, progress_bar() as bar:
        task = bar.add_task("draws", total=len(chunks))
        futures = [pool.submit(_chunk, options, n, first) for n, first in chunks]
        for future in as_completed(futures):
            draws += future.result()
            bar.update(task, advance=1)
    rows = _rows(draws)
    print(f"{options.results}, {options.method}, guarantee {options.guarantee:g}, {options.draws} draws")
    print(
        f"{'samples':>8} {'asked':>12} {'broken %':>9} {'without %':>10} {'spent of budget %':>18} {'points lost':>12}"
    )
    for row in rows:
        plain = "-" if row["plainly_broken"] is None else f"{100 * row['plainly_broken']:.1f}"
        print(
            f"{row['samples']:>8} {row['asked']:>12} {100 * row['broken']:>9.1f} {plain:>10} "
            f"{100 * row['spent']:>8.1f} {row['accuracy_lost']:>13.2f}"
        )
    if options.json:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"machine": found, "options": given, "rows": rows}, indent=1) + "\n")
    return 0


def population(name: str) -> tuple[ExitRecords, eenet.ExitCosts]:
    """All records of a recipe's results, and its costs."""
    folder = ROOT / "results" / name
    parts = [ExitRecords.load(folder / f"{part}.safetensors") for part in ("calibration", "test")]
    probabilities = np.concatenate([part.probabilities for part in parts], axis=1)
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    costs = json.loads((folder / "costs.json").read_text())["costs"]["cpu_ms"][0]
    return ExitRecords.from_probabilities(probabilities, labels), eenet.ExitCosts(costs, unit="cpu_ms")


def _chunk(options: argparse.Namespace, samples: int, first: int) -> list[Draw]:
    warnings.simplefilter("ignore", ReliabilityWarning)  # of budgets that the plain scheduler leaves unspent
    pool, costs = population(options.results)
    budgets = [costs[0] + where * (costs[-1] - costs[0]) for where in WHERE]
    drop, last = options.max_accuracy_drop, float(pool.accuracies[-1])
    found = []
    for number in range(first, min(first + CHUNK, options.draws)):
        rng = np.random.default_rng([samples, number])
        calibration = pool.subset(rng.integers(0, len(pool), samples))
        make = MAKERS[options.method]
        promised = make(number).fit(calibration, costs, guarantee=options.guarantee)
        plain = make(number).fit(calibration, costs)
        for where, budget in zip(WHERE, budgets, strict=True):
            one, other = promised.at(budget).replay(pool), plain.at(budget).replay(pool)
            lost = 100 * (other.accuracy - one.accuracy)
            asked = f"{where:.0%} of way"
            broken = one.mean_cost > budget
            found.append(Draw(samples, asked, broken, other.mean_cost > budget, one.mean_cost / budget, lost))
        try:
            careful = make(number).fit(calibration, costs, max_accuracy_drop=drop, guarantee=options.guarantee)
        except InvalidInputError:  # too few samples to promise anything: said so, and no promise is broken
            continue
        kept = careful.replay(pool)
        lost = last - kept.accuracy
        found.append(Draw(samples, f"drop {drop:g}", lost > drop, None, kept.mean_cost / costs[-1], 100 * lost))
    return found


def _rows(draws: Sequence[Draw]) -> list[dict[str, Any]]:
    rows = []
    for samples, asked in dict.fromkeys(
        (d.samples, d.asked) for d in sorted(draws, key=lambda d: (d.samples, d.asked))
    ):
        these = [d for d in draws if (d.samples, d.asked) == (samples, asked)]
        plain = [d.plainly_broken for d in these if d.plainly_broken is not None]
        rows.append(
            {
                **asdict(these[0]),
                "draws": len(these),
                "broken": statistics.fmean(d.broken for d in these),
                "plainly_broken": statistics.fmean(plain) if plain else None,
                "spent": statistics.fmean(d.spent for d in these),
                "accuracy_lost": statistics.fmean(d.accuracy_lost for d in these),
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
