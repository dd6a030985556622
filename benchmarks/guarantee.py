"""How often a guaranteed budget, or accuracy, is broken, and what the guarantee costs: a simulation on real records.

The committed records of a recipe (`results/NAME`, calibration and test together), or a file of predictions, are taken
for the whole population, whose true mean cost and accuracy are known. Calibration sets are drawn from it with
replacement; on each a scheduler is fitted with the guarantee and without, and both are judged on the population. A
guarantee of 0.95 may be broken in 5 % of the draws. What the samples cannot promise is refused: "promised" is how often
it was not.

With `--attainable` no scheduler is fitted. For policies of one threshold of max probability it prints in how many draws
any valid test of that policy can promise the drop: the power of the most powerful test (Neyman and Pearson) of what the
policy truly loses and gains against the population that is hardest to tell from it and breaks the promise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import multinomial

import eenet
from eenet._timing import describe_machine, machine
from eenet.cli._console import progress
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords

ROOT = Path(__file__).resolve().parents[1]
MAKERS: dict[str, Callable[[int], eenet.Scheduler]] = {
    "stopping": lambda seed: eenet.OptimalStopping(seed=seed),
    "max_prob": lambda seed: eenet.MaxProbability(),  # noqa: ARG005 - it has no dice
    "eenet": lambda seed: eenet.EENet(seed=seed),
}
BOTH = 0.95  # the budget that is promised together with the accuracy, as a share of the last exit's cost
CHUNK = 10


@dataclass(frozen=True)
class Draw:
    """One calibration set at one budget, or for one allowed drop: costs as shares of the budget, accuracies in %."""

    samples: int
    asked: str
    broken: bool = False
    plainly_broken: bool | None = None
    spent: float = float("nan")
    accuracy_lost: float = float("nan")
    promised: bool = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="cifar10-resnet56-shared", help="whose records (default: %(default)s)")
    parser.add_argument("--predictions", type=Path, help="in place of results: an .npz of probs, labels and costs")
    parser.add_argument("--prefix", default="", help="of the arrays in it, such as val_")
    parser.add_argument("--method", choices=sorted(MAKERS), default="max_prob")
    parser.add_argument("--samples", type=int, nargs="+", default=[500])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument(
        "--budgets",
        type=float,
        nargs="*",
        default=[0.2, 0.4, 0.6, 0.8],
        metavar="SHARE",
        help="of the way from the first exit's cost to the last one's (default: %(default)s)",
    )
    parser.add_argument("--guarantee", type=float, default=0.95)
    parser.add_argument("--max-accuracy-drop", type=float, default=0.01)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--attainable", action="store_true", help="only what any test could promise")
    options = parser.parse_args(argv)
    if options.attainable:
        attainable(*population(options), options.samples[0], options.max_accuracy_drop, 1 - options.guarantee)
        return 0
    found = machine()
    print(describe_machine(found) + "\n", flush=True)
    chunks = [(n, first) for n in options.samples for first in range(0, options.draws, CHUNK)]
    draws: list[Draw] = []
    with ProcessPoolExecutor(options.jobs) as pool, progress() as bars:
        update = bars.task("draws", len(chunks))
        futures = [pool.submit(_chunk, options, n, first) for n, first in chunks]
        for done, future in enumerate(as_completed(futures), start=1):
            draws += future.result()
            update(done)
    rows = _rows(draws)
    where = options.results if options.predictions is None else options.predictions.stem
    print(f"{where}, {options.method}, guarantee {options.guarantee:g}, {options.draws} draws")
    head = ("samples", "asked", "promised %", "broken %", "without %", "spent %", "points lost")
    print("{:>8} {:>22} {:>11} {:>9} {:>10} {:>8} {:>12}".format(*head))
    for row in rows:
        plain = "-" if row["plainly_broken"] is None else f"{100 * row['plainly_broken']:.1f}"
        print(
            f"{row['samples']:>8} {row['asked']:>22} {100 * row['promised']:>11.1f} {100 * row['broken']:>9.1f} "
            f"{plain:>10} {_shown(row['spent'], 100, 1):>8} {_shown(row['accuracy_lost'], 1, 2):>12}"
        )
    if options.json:
        given = {name: value.name if isinstance(value, Path) else value for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"machine": found, "options": given, "rows": rows}, indent=1) + "\n")
    return 0


def _shown(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"


def population(options: argparse.Namespace) -> tuple[ExitRecords, eenet.ExitCosts]:
    """All records of a recipe's results, or those of a file, and their costs."""
    if options.predictions is not None:
        with np.load(options.predictions) as arrays:
            names = (f"{options.prefix}probs", f"{options.prefix}labels", "costs")
            probabilities, labels, costs = (arrays[name] for name in names)
        return ExitRecords.from_probabilities(probabilities, labels), eenet.ExitCosts(costs)
    folder = ROOT / "results" / options.results
    parts = [ExitRecords.load(folder / f"{part}.safetensors") for part in ("calibration", "test")]
    probabilities = np.concatenate([part.probabilities for part in parts], axis=1)
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    measured = json.loads((folder / "costs.json").read_text())["costs"]["cpu_ms"][0]
    return ExitRecords.from_probabilities(probabilities, labels), eenet.ExitCosts(measured, unit="cpu_ms")


def attainable(pool: ExitRecords, costs: eenet.ExitCosts, samples: int, drop: float, error: float) -> None:
    """Print for policies by their cost in what part of the draws a test that errs so often can promise the drop."""
    fitted = eenet.Scheduler("max_prob", "shared").fit(pool, costs, fallback=False)
    print(f"a drop of {drop:g} at {1 - error:g} from {samples} samples: in how many draws any test can promise it")
    print(f"{'cost, of the last exit':>22} {'lost %':>8} {'gained %':>9} {'draws %':>8}")
    utility = pool.require_utility()
    for share in (0.97, 0.95, 0.93, 0.91, 0.89, 0.87, 0.85):
        decided = fitted.at(share * costs[-1]).replay(pool)
        assert decided.utility is not None
        change = decided.utility - utility[-1]
        lost, gained = float((change < 0).mean()), float((change > 0).mean())
        power = min(_power(samples, lost, gained, drop, q, error) for q in np.linspace(0, 0.05, 121))
        print(
            f"{decided.mean_cost / costs[-1]:>22.3f} {100 * lost:>8.2f} {100 * gained:>9.2f} {100 * power:>8.1f}",
            flush=True,
        )


def _power(samples: int, lost: float, gained: float, drop: float, gained_else: float, error: float) -> float:
    """Of the most powerful test of these shares of losses and gains against others that lose the drop."""
    most = np.arange(60)
    a, b = (grid.ravel() for grid in np.meshgrid(most, most, indexing="ij"))
    counts = np.stack([a, b, samples - a - b], axis=1)
    true = multinomial.logpmf(counts, samples, [lost, gained, 1 - lost - gained])
    other = multinomial.logpmf(counts, samples, [gained_else + drop, gained_else, 1 - drop - 2 * gained_else])
    with np.errstate(invalid="ignore"):  # what neither can give counts for nothing
        order = np.argsort(-np.nan_to_num(true - other, nan=-np.inf), kind="stable")
    at_most = np.cumsum(np.exp(other[order]))
    sure = int(np.searchsorted(at_most, error, side="right"))
    power = np.exp(true[order[:sure]]).sum()
    if sure < len(order):  # the next outcome by lot, so that the whole of the error is used
        left = error - (at_most[sure - 1] if sure else 0.0)
        power += np.exp(true[order[sure]]) * left / np.exp(other[order[sure]])
    return float(min(power, 1.0))


def _chunk(options: argparse.Namespace, samples: int, first: int) -> list[Draw]:
    warnings.simplefilter("ignore", UserWarning)  # of budgets that the plain scheduler leaves unspent, and the like
    pool, costs = population(options)
    budgets = [costs[0] + where * (costs[-1] - costs[0]) for where in options.budgets]
    found = []
    for number in range(first, min(first + CHUNK, options.draws)):
        rng = np.random.default_rng([samples, number])
        calibration = pool.subset(rng.integers(0, len(pool), samples))
        make, level = MAKERS[options.method], options.guarantee
        both = (None, BOTH * costs[-1])
        found += [_of_accuracy(make(number), calibration, pool, costs, budget, options) for budget in both]
        if not budgets:
            continue
        promised = make(number).fit(calibration, costs, guarantee=level)
        plain = make(number).fit(calibration, costs)
        for where, budget in zip(options.budgets, budgets, strict=True):
            one, other = promised.at(budget).replay(pool), plain.at(budget).replay(pool)
            lost = 100 * (other.accuracy - one.accuracy)
            asked = f"{where:.0%} of way"
            broken = one.mean_cost > budget
            found.append(Draw(samples, asked, broken, other.mean_cost > budget, one.mean_cost / budget, lost))
    return found


def _of_accuracy(
    scheduler: eenet.Scheduler,
    calibration: ExitRecords,
    pool: ExitRecords,
    costs: eenet.ExitCosts,
    budget: float | None,
    options: argparse.Namespace,
) -> Draw:
    """One promise of an accuracy, alone or together with a budget."""
    drop = options.max_accuracy_drop
    asked = f"drop {drop:g}" if budget is None else f"drop {drop:g}, cost {BOTH:.0%}"
    try:
        scheduler.fit(calibration, costs, budget, max_accuracy_drop=drop, guarantee=options.guarantee)
    except InvalidInputError:  # too few samples to promise it: said so, and no promise is broken
        return Draw(len(calibration), asked, promised=False)
    kept = scheduler.replay(pool)
    lost = float(pool.accuracies[-1]) - kept.accuracy
    broken = lost > drop or (budget is not None and kept.mean_cost > budget)
    spent = kept.mean_cost / costs[-1]
    return Draw(len(calibration), asked, broken, None, spent, 100 * lost)


def _rows(draws: Sequence[Draw]) -> list[dict[str, Any]]:
    rows = []
    for samples, asked in sorted({(d.samples, d.asked) for d in draws}):
        these = [d for d in draws if (d.samples, d.asked) == (samples, asked)]
        plain = [d.plainly_broken for d in these if d.plainly_broken is not None]
        kept = [d for d in these if d.promised]
        rows.append(
            {
                "samples": samples,
                "asked": asked,
                "draws": len(these),
                "promised": len(kept) / len(these),
                "broken": sum(d.broken for d in these) / len(these),
                "plainly_broken": statistics.fmean(plain) if plain else None,
                "spent": statistics.fmean(d.spent for d in kept) if kept else None,
                "accuracy_lost": statistics.fmean(d.accuracy_lost for d in kept) if kept else None,
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
