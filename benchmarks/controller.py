"""The budget controller on streams of real records: traffic like the calibration records, and traffic that changes.

Reads results/*/{calibration,test}.safetensors of the repository, and predictions/*.npz in ../shared (or the folder that
EENET_SHARED names) where they are: there only the `val_*` half, divided in two. A scheduler is fitted on one part and
the stream is drawn, with replacement, from the other, in two scenarios:

- random: in random order;
- harder: in random order until the middle of the stream, from then on the harder half of the samples (those of which
  fewer exits are right) three times as likely as the other half;
- switched: the harder half three times as likely until the middle, and a third as likely after it.

Prints, over seeds: how far the running mean cost strays from the budget from 2,000 samples on, at worst and at the end.
The accuracy, and by how many points it differs from the best fixed policy in hindsight at equal realized cost (the
table's policies on the whole stream, two neighbors mixed to have the same cost); from the best of all that cost at
most the budget; and from the best pair of them, one for each half of the stream and within the budget in each, which is
about the most that can be had where the running mean keeps to the budget throughout. How far the running mean cost of
the fixed policy whose cost is nearest strays. What the policy fitted for the budget costs when it is left alone. How
often the drift test gave an alarm, and after how many samples (median).

Then how often it gives a false one, on streams of the very samples that the calibration set was drawn from; and the CPU
time of one call of `observe`.
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
from eenet._timing import describe_machine, machine
from eenet.cli._console import progress
from eenet.scheduler import replay

ROOT = Path(__file__).resolve().parents[1]
SCHEDULERS: dict[str, Callable[[], eenet.Scheduler]] = {
    "OptimalStopping": eenet.OptimalStopping,
    "MaxProbability": eenet.MaxProbability,
}
SCENARIOS = ("random", "harder", "switched")
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
    equal_cost: float
    within_budget: float
    by_halves: float
    fixed_worst: float
    left_alone_cost: float
    alarm_at: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samples", type=int, default=10_000, help="of a stream (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="samples between two observations (default: %(default)s)")
    parser.add_argument("--horizon", type=float, default=300, help="of the controller (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=40, help="of calibration sets, to count false alarms of drift")
    parser.add_argument("--budgets", nargs="+", default=["55%", "70%"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(argv)
    found = machine()
    print(describe_machine(found) + "\n", flush=True)
    results: dict[str, Any] = {"machine": found, "streams": {}, "false_alarms": {}}
    material = list(_material())
    _header(options)
    for name, calibration, stream, costs in material:
        for title, make in SCHEDULERS.items():
            scheduler = make().fit(calibration, costs, fallback=False)
            course = Course(scheduler, stream)
            for budget in options.budgets:
                for scenario in SCENARIOS:
                    outcomes = []
                    with progress() as bars:
                        update = bars.task(f"{name} {title} {budget} {scenario}", options.seeds)
                        for seed in range(options.seeds):
                            outcomes.append(course.run(budget, scenario, seed, options))
                            update(len(outcomes))
                    _row(name, title, budget, scenario, outcomes)
                    key = f"{name}/{title}/{budget}/{scenario}"
                    results["streams"][key] = [asdict(one) for one in outcomes]
    cases = len(material) * len(SCHEDULERS) * len(options.budgets)
    for scenario in SCENARIOS:
        every = [results["streams"][key] for key in results["streams"] if key.endswith(f"/{scenario}")]
        _summary(f"all {cases} cases", scenario, [[Outcome(**one) for one in case] for case in every])
    print()
    for name, _, stream, costs in material[:1] if options.draws else []:
        results["false_alarms"][name] = _false_alarms(name, stream, costs, options)
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

    def draw(self, scenario: str, samples: int, rng: np.random.Generator) -> Ints:
        """The samples of a stream, by their place in the pool."""
        halves = []
        for odds in {"random": (1.0, 1.0), "harder": (1.0, HARDER), "switched": (HARDER, 1 / HARDER)}[scenario]:
            weights = np.where(self.hard, odds, 1.0)
            halves.append(rng.choice(len(weights), samples // 2, p=weights / weights.sum()))
        return np.concatenate(halves)

    def follow(self, controller: eenet.BudgetController, samples: Ints, batch: int) -> Ints:
        """Where the samples of a stream exit under the controller, which observes `batch` samples at a time."""
        taken = np.empty(len(samples), dtype=np.intp)
        for start in range(0, len(samples), batch):
            now = slice(start, start + batch)
            taken[now] = self.exits[self.row[id(controller.policy)], samples[now]]
            controller.observe(taken[now])
        return taken

    def run(self, budget: str, scenario: str, seed: int, options: argparse.Namespace) -> Outcome:
        """One stream under a fresh controller, and under all fixed policies."""
        samples = self.draw(scenario, options.samples, np.random.default_rng(seed))
        controller = eenet.BudgetController(self.scheduler, budget, horizon=options.horizon)
        taken = self.follow(controller, samples, options.batch)
        running = _running(self.costs.values[taken], controller.budget)
        spent = self.costs.values[self.exits[:, samples]]
        right = self.utility[self.exits[:, samples], samples]
        limit, middle = controller.budget, len(samples) // 2
        halves = [_best(spent[:, h], right[:, h], limit) for h in (slice(None, middle), slice(middle, None))]
        alone = self.scheduler.table.index(limit)
        nearest = int(np.abs(spent.mean(axis=1) - controller.mean_cost).argmin())
        return Outcome(
            worst=float(np.abs(running[SETTLED - 1 :]).max()),
            final=float(running[-1]),
            accuracy=float(self.utility[taken, samples].mean()),
            equal_cost=_at(spent, right, controller.mean_cost),
            within_budget=_best(spent, right, limit),
            by_halves=float(np.mean(halves)),
            fixed_worst=float(np.abs(_running(spent[nearest], limit)[SETTLED - 1 :]).max()),
            left_alone_cost=float(spent[alone].mean() / limit - 1),
            alarm_at=controller.drift().alarm_at,
        )


def _running(spent: Floats, budget: float) -> Floats:
    """How far the mean cost of the first n samples is from the budget, relative to it, for every n."""
    far: Floats = np.cumsum(spent) / np.arange(1, len(spent) + 1) / budget - 1
    return far


def _at(spent: Floats, right: Floats, cost: float) -> float:
    """The accuracy of the two fixed policies whose mean cost is next to this one, mixed; of costs and hits (G, n)."""
    means = spent.mean(axis=1)
    order = np.argsort(means, kind="stable")
    return float(np.interp(cost, means[order], right.mean(axis=1)[order]))


def _best(spent: Floats, right: Floats, budget: float) -> float:
    """The best accuracy of a fixed policy, or of a mixture of two neighbors, within the budget."""
    within = right.mean(axis=1)[spent.mean(axis=1) <= budget]
    return max(_at(spent, right, budget), float(within.max()) if len(within) else 0.0)


def _header(options: argparse.Namespace) -> None:
    print(
        f"{options.seeds} streams of {options.samples:,} samples, observed {options.batch} at a time, horizon "
        f"{options.horizon:g}; mean (worst) over the streams\n"
    )
    print(
        f"{'':<53}{'running cost against budget':^32}{'':>7}{'accuracy, points above fixed policies':^54}\n"
        f"{'records':<26}{'scheduler':<16}{'':<4}{'stream':<9}{'at worst':>16}{'at the end':>16}{'acc.':>7}"
        f"{'at equal cost':>18}{'within budget':>18}{'one per half':>18}"
        f"{'fixed':>8}{'alone':>8}{'alarms':>8}{'after':>7}"
    )


def _row(name: str, title: str, budget: str, scenario: str, outcomes: list[Outcome]) -> None:
    def ratio(values: list[float]) -> str:
        return f"{f'{np.mean(values):.2%} ({max(values):.2%})':>16}"

    def points(reference: Callable[[Outcome], float]) -> str:
        values = [100 * (one.accuracy - reference(one)) for one in outcomes]
        return f"{f'{np.mean(values):+.2f} ({min(values):+.2f})':>18}"

    alarms = [one.alarm_at for one in outcomes if one.alarm_at is not None]
    print(
        f"{name:<26}{title:<16}{budget:<4}{scenario:<9}"
        + ratio([one.worst for one in outcomes])
        + ratio([abs(one.final) for one in outcomes])
        + f"{100 * np.mean([one.accuracy for one in outcomes]):>7.2f}"
        + points(lambda one: one.equal_cost)
        + points(lambda one: one.within_budget)
        + points(lambda one: one.by_halves)
        + f"{np.mean([one.fixed_worst for one in outcomes]):>8.1%}"
        + f"{np.mean([one.left_alone_cost for one in outcomes]):>+8.1%}{f'{len(alarms)}/{len(outcomes)}':>8}"
        + f"{f'{np.median(alarms):.0f}' if alarms else '-':>7}",
        flush=True,
    )


def _summary(name: str, scenario: str, cases: list[list[Outcome]]) -> None:
    """Over all cases: the running cost, mean and worst of all streams; accuracies, mean and the worst case's mean."""
    worst = [one.worst for case in cases for one in case]

    def points(reference: Callable[[Outcome], float]) -> str:
        means = [100 * float(np.mean([one.accuracy - reference(one) for one in case])) for case in cases]
        return f"{np.mean(means):+.2f} (worst case {min(means):+.2f})"

    alarms = sum(one.alarm_at is not None for case in cases for one in case)
    print(
        f"{name}, {scenario}: at worst {np.mean(worst):.2%} ({max(worst):.2%}); at equal cost "
        f"{points(lambda one: one.equal_cost)}; within budget {points(lambda one: one.within_budget)}; one per half "
        f"{points(lambda one: one.by_halves)}; alarms {alarms}/{len(worst)}",
        flush=True,
    )


def _false_alarms(
    name: str, pool: eenet.ExitRecords, costs: eenet.ExitCosts, options: argparse.Namespace
) -> dict[str, Any]:
    """Alarms on streams from the pool that the calibration set was drawn from as well."""
    found: dict[str, Any] = {}
    level = 0.05
    for title, make in SCHEDULERS.items():
        alarms = 0
        for draw in range(options.draws):
            rng = np.random.default_rng([1, draw])
            scheduler = make().fit(pool.subset(rng.integers(0, len(pool), 500)), costs, fallback=False)
            course = Course(scheduler, pool)
            samples = course.draw("random", options.samples, rng)
            controller = eenet.BudgetController(scheduler, "60%", horizon=options.horizon, false_alarms=level)
            course.follow(controller, samples, options.batch)
            alarms += controller.drift().alarm
        found[title] = {"draws": options.draws, "alarms": alarms, "allowed": level}
        print(
            f"false alarms, {name}, {title}, 500 calibration samples: {alarms} of {options.draws} streams "
            f"(at most {level:.0%} allowed)",
            flush=True,
        )
    return found


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
    print(f"observe, CPU time: {found['batch_1']:.0f} us for 1 sample, {found['batch_32']:.0f} us for a batch of 32")
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")  # as in the tests: a benchmark with a warning is not to be trusted
    warnings.simplefilter("default", eenet.errors.ReliabilityWarning)  # what a fit says of small sets is shown
    sys.exit(main())
