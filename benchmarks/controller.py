"""The budget controller on streams of real records: traffic like the calibration records, and traffic that changes.

Reads results/*/{calibration,test}.safetensors of the repository, and predictions/*.npz in ../shared (or the folder that
EENET_SHARED names) where they are: there only the `val_*` half, divided in two. A scheduler is fitted on one part and
the stream is drawn, with replacement, from the other, in two scenarios:

- random: in random order;
- shifted: the harder half of the samples (those of which fewer exits are right) three times as likely as the other half
  until the middle of the stream, and a third as likely after it.

Prints, over seeds: how far the running mean cost strays from the budget from 2,000 samples on, at worst and at the end;
the accuracy against the best fixed policy in hindsight (the table's policies on the whole stream, interpolated to the
budget); the same for the policy fitted for the budget and left alone; how often the drift test gave an alarm and, where
all did, after how many samples; and the CPU time of one call of `observe`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import eenet
from _machine import describe, machine, progress_bar
from eenet.scheduler import replay

ROOT = Path(__file__).resolve().parents[1]
SCHEDULERS: dict[str, Callable[[], eenet.Scheduler]] = {
    "OptimalStopping": eenet.OptimalStopping,
    "MaxProbability": eenet.MaxProbability,
}
SCENARIOS = ("random", "shifted")
SETTLED = 2000  # samples from which on the running mean is held against the budget
HARDER = 3.0

Ints = NDArray[np.intp]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """One stream under the controller, in shares of the budget and of all samples."""

    worst: float
    """Largest distance of the running mean cost from the budget, from 2,000 samples on."""

    final: float
    accuracy: float
    hindsight: float
    left_alone_cost: float
    left_alone_accuracy: float
    alarm_at: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samples", type=int, default=10_000, help="of a stream (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="samples between two observations (default: %(default)s)")
    parser.add_argument("--horizon", type=float, default=200, help="of the controller (default: %(default)s)")
    parser.add_argument("--budgets", nargs="+", default=["55%", "70%"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    found = machine()
    print(describe(found) + "\n", flush=True)
    results: dict[str, Any] = {"machine": found, "streams": {}}
    _header(options)
    for name, calibration, stream, costs in _material():
        for title, make in SCHEDULERS.items():
            scheduler = make().fit(calibration, costs)
            course = Course(scheduler, stream)
            for budget in options.budgets:
                for scenario in SCENARIOS:
                    with progress_bar() as bar:
                        seeds = bar.track(range(options.seeds), description=f"{name} {title} {budget} {scenario}")
                        outcomes = [course.run(budget, scenario, seed, options) for seed in seeds]
                    _row(name, title, budget, scenario, outcomes)
                    key = f"{name}/{title}/{budget}/{scenario}"
                    results["streams"][key] = [asdict(one) for one in outcomes]
    results["observe_us"] = _speed()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _material() -> Iterator[tuple[str, eenet.ExitRecords, eenet.ExitRecords, eenet.ExitCosts]]:
    for folder in sorted((ROOT / "results").iterdir()):
        parts = [folder / f"{part}.safetensors" for part in ("calibration", "test")]
        if all(part.is_file() for part in parts):
            measured = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
            costs = eenet.ExitCosts(measured["costs"]["cpu_ms"][0], unit="cpu_ms")
            calibration, stream = (eenet.ExitRecords.load(part) for part in parts)
            yield folder.name, calibration, stream, costs
    shared = Path(os.environ.get("EENET_SHARED", ROOT.parent / "shared")) / "predictions"
    files = sorted(shared.glob("*.npz"))
    if not files:
        print(f"no predictions in {shared}: only the repository's own records; name another folder with EENET_SHARED")
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:  # the test_* half is left for the very end of a study
            records = eenet.ExitRecords.from_probabilities(arrays["val_probs"], arrays["val_labels"])
            costs = eenet.ExitCosts(arrays["costs"], unit="cpu_ms")
        calibration, stream = records.split(0.5, seed=0)
        yield file.stem, calibration, stream, costs


class Course:
    """All policies of a scheduler on the records that streams are drawn from."""

    def __init__(self, scheduler: eenet.Scheduler, pool: eenet.ExitRecords) -> None:
        self.scheduler, self.costs = scheduler, scheduler.costs
        self.exits: Ints = np.stack([replay(p, pool, self.costs).exits for p in scheduler.table.policies])
        self.utility = pool.require_utility().astype(np.float64)
        self.row = {id(policy): row for row, policy in enumerate(scheduler.table.policies)}
        # By how many exits are right, then by the first exit's largest probability: who is hard has nothing to do with
        # where a scheduler sends them.
        order = np.lexsort([-pool.probabilities[0].max(axis=1), -self.utility.sum(axis=0)])
        self.hard = np.zeros(len(pool), dtype=np.bool_)
        self.hard[order[len(pool) // 2 :]] = True

    def limit(self, budget: str) -> float:
        """In the unit of the costs."""
        return float(budget.removesuffix("%")) / 100 * self.costs[-1]

    def draw(self, scenario: str, samples: int, rng: np.random.Generator) -> Ints:
        """The samples of a stream, by their place in the pool."""
        if scenario == "random":
            return rng.integers(0, len(self.hard), samples)
        halves = []
        for odds in (HARDER, 1 / HARDER):
            weights = np.where(self.hard, odds, 1.0)
            halves.append(rng.choice(len(weights), samples // 2, p=weights / weights.sum()))
        return np.concatenate(halves)

    def run(self, budget: str, scenario: str, seed: int, options: argparse.Namespace) -> Outcome:
        """One stream under a fresh controller, and under all fixed policies."""
        samples = self.draw(scenario, options.samples, np.random.default_rng(seed))
        controller = eenet.BudgetController(self.scheduler, budget, horizon=options.horizon)
        taken = np.empty(len(samples), dtype=np.intp)
        for start in range(0, len(samples), options.batch):
            batch = samples[start : start + options.batch]
            taken[start : start + options.batch] = self.exits[self.row[id(controller.policy)], batch]
            controller.observe(taken[start : start + options.batch])
        running = np.cumsum(self.costs.values[taken]) / np.arange(1, len(samples) + 1) / controller.budget - 1
        fixed = self.exits[:, samples]
        spent, accuracy = self.costs.values[fixed].mean(axis=1), self.utility[fixed, samples].mean(axis=1)
        alone = self.scheduler.table.index(controller.budget)
        return Outcome(
            worst=float(np.abs(running[SETTLED - 1 :]).max()),
            final=float(running[-1]),
            accuracy=float(self.utility[taken, samples].mean()),
            hindsight=_best(spent, accuracy, controller.budget),
            left_alone_cost=float(spent[alone] / controller.budget - 1),
            left_alone_accuracy=float(accuracy[alone]),
            alarm_at=controller.drift().alarm_at,
        )


def _best(spent: Floats, accuracy: Floats, budget: float) -> float:
    """The best accuracy of a fixed policy, or of a mixture of two neighbours, within the budget."""
    within = accuracy[spent <= budget]
    order = np.argsort(spent, kind="stable")
    between = float(np.interp(budget, spent[order], accuracy[order]))
    return max(between, float(within.max()) if len(within) else 0.0)


def _header(options: argparse.Namespace) -> None:
    print(
        f"{options.seeds} streams of {options.samples:,} samples, observed {options.batch} at a time; "
        f"mean (worst) over the streams\nrunning mean cost from {SETTLED:,} samples on against the budget; accuracy "
        "against the best fixed policy in hindsight, in points; the fitted policy left alone; drift alarms\n"
    )
    print(
        f"{'records':<21}{'scheduler':<17}{'budget':<8}{'stream':<9}{'cost, at worst':>18}{'at the end':>18}"
        f"{'accuracy':>10}{'hindsight':>18}{'left alone':>12}{'alarms':>8}{'after':>7}"
    )


def _row(name: str, title: str, budget: str, scenario: str, outcomes: list[Outcome]) -> None:
    worst = [one.worst for one in outcomes]
    final = [abs(one.final) for one in outcomes]
    behind = [100 * (one.accuracy - one.hindsight) for one in outcomes]
    alarms = [one.alarm_at for one in outcomes if one.alarm_at is not None]
    after = f"{np.median(alarms):.0f}" if alarms else "-"
    print(
        f"{name:<21}{title:<17}{budget:<8}{scenario:<9}"
        f"{f'{np.mean(worst):.2%} ({max(worst):.2%})':>18}{f'{np.mean(final):.2%} ({max(final):.2%})':>18}"
        f"{100 * np.mean([one.accuracy for one in outcomes]):>10.2f}"
        f"{f'{np.mean(behind):+.2f} ({min(behind):+.2f})':>18}"
        f"{np.mean([one.left_alone_cost for one in outcomes]):>+12.2%}{f'{len(alarms)}/{len(outcomes)}':>8}{after:>7}",
        flush=True,
    )


def _speed(rounds: int = 20_000) -> dict[str, float]:
    """Microseconds of CPU time of one `observe`, for batches of 1 and 32."""
    from eenet.testing import toy_costs, toy_records

    scheduler = eenet.MaxProbability().fit(toy_records(2000), toy_costs(), "60%")
    found = {}
    rng = np.random.default_rng(0)
    for size in (1, 32):
        controller = eenet.BudgetController(scheduler)
        batches = rng.integers(0, 3, (rounds, size))
        start = time.process_time()
        for exits in batches:
            controller.observe(exits)
        found[f"batch_{size}"] = (time.process_time() - start) / rounds * 1e6
    print(f"\nobserve, CPU time: {found['batch_1']:.0f} us for 1 sample, {found['batch_32']:.0f} us for a batch of 32")
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")  # as in the tests: a benchmark with a warning is not to be trusted
    sys.exit(main())
