"""One proof: what `eenet.search` finds on one half of the samples, judged and timed on the other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import eenet
from _cascade_sets import Setting
from _cascade_systems import UNIT, Candidate, runner
from eenet._timing import timed
from eenet.errors import InfeasibleBudgetError, ReliabilityWarning
from eenet.tasks import softmax

SHARES = (0.25, 0.35, 0.5, 0.7, 1.0)
_NEAR = 0.003  # "within 0.3 points of the plain network"

Floats = NDArray[np.float64]
Report = Callable[[str], None]


@dataclass
class Chosen:
    """A system, chosen on the calibration samples: its members, and its scheduler or None."""

    role: str
    name: str
    kind: str
    members: tuple[str, ...]
    scheduler: eenet.Scheduler | None
    promised: float


class Proof:
    """Searches at one batch size, what they choose, and what the other half of the samples says."""

    def __init__(self, setting: Setting, batch: int, report: Report) -> None:
        self.setting, self.batch = setting, batch
        self.all = setting.candidates
        self.floats = {name: one for name, one in self.all.items() if not one.int8}
        self.plain = self.all[setting.plain]
        self.reference = _reference(self.plain.costs[batch])
        self.smaller = self._smaller()
        self.found: dict[str, eenet.evaluation.SearchResult] = {}
        self._judged: list[dict[str, Any]] | None = None
        for which, candidates in (("fp32", self.floats), ("all", self.all)):
            if which == "all" and len(candidates) == len(self.floats):
                self.found["all"] = self.found["fp32"]
                continue
            report(f"searching among {len(candidates)} candidates, batches of {batch}")
            costs = {name: one.costs[batch] for name, one in candidates.items()}
            least = min(c if isinstance(c, float) else c[0] for c in costs.values())
            budgets = [share * self.reference for share in SHARES if share * self.reference >= least]
            self.found[which] = eenet.search(self._records("calibration", candidates), costs, budgets, unit=UNIT)

    def _smaller(self) -> str:
        """The most accurate plain network in fp32, by the calibration samples, that costs less than the plain one."""
        less = [name for name, one in self.floats.items() if _reference(one.costs[self.batch]) < self.reference]
        return max(less, key=self._accuracy) if less else self.setting.plain

    def _records(self, part: str, candidates: Mapping[str, Candidate] | None = None) -> dict[str, eenet.ExitRecords]:
        return {name: one.records[part] for name, one in (candidates or self.all).items()}

    # Choosing, by the calibration samples alone

    def chosen(self) -> list[Chosen]:
        """The systems that are timed, the plain network first."""
        plain, smaller = self.setting.plain, self.smaller
        listed = [self._static("plain", plain), self._static("smaller", smaller)]
        listed += [self._static("static int8", name) for name in (f"{plain} int8", f"{smaller} int8")]
        half = 0.5 * self.reference
        with_exits = self._best_with_exits("exits at half", "fp32", half)
        listed += [
            self._cheapest("exits as accurate as smaller", "fp32", self._accuracy(smaller)),
            self._cheapest("exits as accurate as plain", "fp32", self._accuracy(plain)),
            with_exits,
        ]
        if self.found["all"] is not self.found["fp32"]:
            listed.append(self._at("best at half", "all", half))
            if with_exits is not None:
                listed.append(self._cheapest("int8 exits as accurate as exits at half", "all", with_exits.promised))
            copy = f"{plain} int8"
            if copy in self.all:
                listed.append(self._cheapest("int8 exits as accurate as static int8", "all", self._accuracy(copy)))
        return [one for one in listed if one is not None]

    def _accuracy(self, name: str) -> float:
        return float(self.all[name].records["calibration"].accuracies[-1])

    def _static(self, role: str, name: str) -> Chosen | None:
        if name not in self.all:
            return None
        return Chosen(role, name, "plain network", (name,), None, self._accuracy(name))

    def _at(self, role: str, which: str, budget: float) -> Chosen | None:
        try:
            system = self.found[which].at(budget)
        except InfeasibleBudgetError:
            return None
        return Chosen(role, system.name, system.kind, system.members, system.scheduler, system.accuracy)

    def _curves(self, which: str) -> list[dict[str, Any]]:
        systems: list[dict[str, Any]] = self.found[which].to_dict()["systems"]
        return [one for one in systems if one["kind"] in ("exits", "cascade")]

    def _cheapest(self, role: str, which: str, accuracy: float) -> Chosen | None:
        """The system with exits that has an accuracy, out of fold, at the least cost; None where none has."""
        best: tuple[float, dict[str, Any]] | None = None
        for one in self._curves(which):
            cost = _cost_of(one["costs"], one["accuracies"], accuracy)
            if cost is not None and (best is None or cost < best[0]):
                best = cost, one
        return None if best is None else self._fitted(role, best[1], best[0], accuracy)

    def _best_with_exits(self, role: str, which: str, budget: float) -> Chosen | None:
        """The most accurate system with exits at a budget, out of fold."""
        best: tuple[float, dict[str, Any]] | None = None
        for one in self._curves(which):
            if one["costs"][0] <= budget:
                accuracy = float(np.interp(budget, one["costs"], one["accuracies"]))
                if best is None or accuracy > best[0]:
                    best = accuracy, one
        return None if best is None else self._fitted(role, best[1], budget, best[0])

    def _fitted(self, role: str, system: Mapping[str, Any], budget: float, accuracy: float) -> Chosen | None:
        whole, priced = self._whole(system["members"], "calibration")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)
            try:
                scheduler = eenet.OptimalStopping().fit(whole, priced, min(budget, priced[-1]))
            except InfeasibleBudgetError as error:
                scheduler = eenet.OptimalStopping().fit(whole, priced, error.smallest)
        return Chosen(role, system["name"], system["kind"], tuple(system["members"]), scheduler, accuracy)

    # Judging, by the others

    def frontier(self) -> list[dict[str, Any]]:
        """For each budget the best systems with and without int8, and those a user has without a search, held out."""
        if self._judged is not None:
            return self._judged
        test = self._records("test")
        rows = []
        for number, system in enumerate(self.found["all"].frontier):
            budget = system.budget
            row: dict[str, Any] = {"budget": budget, "share": budget / self.reference}
            for which in ("fp32", "all"):
                one = self.found[which].frontier[number]
                decided = one.replay(test)
                row[which] = {
                    "system": one.name, "kind": one.kind, "promised": one.accuracy, "accuracy": decided.accuracy,
                    "error": _error(decided.utility), "cost": decided.mean_cost,
                }  # fmt: skip
            row["exits of one network"] = self._alone(budget)
            row["static"] = self._best_static(budget)
            rows.append(row)
        self._judged = rows
        return rows

    def _alone(self, budget: float) -> dict[str, Any] | None:
        """The best network in fp32 with exits at a budget, by the calibration samples."""
        curves = [one for one in self._curves("fp32") if one["kind"] == "exits" and one["costs"][0] <= budget]
        if not curves:
            return None
        best = max(curves, key=lambda one: np.interp(budget, one["costs"], one["accuracies"]))
        made = self._fitted("", best, budget, 0.0)
        assert made is not None
        assert made.scheduler is not None
        decided = made.scheduler.replay(self.all[made.members[0]].records["test"])
        return {"system": made.name, "accuracy": decided.accuracy, "cost": decided.mean_cost}

    def _best_static(self, budget: float) -> dict[str, Any] | None:
        """The most accurate plain network in fp32 that a budget allows, by the calibration samples."""
        fits = [n for n, one in self.floats.items() if _reference(one.costs[self.batch]) <= budget * (1 + 1e-9)]
        if not fits:
            return None
        name = max(fits, key=self._accuracy)
        records = self.all[name].records["test"]
        return {
            "system": name, "accuracy": float(records.accuracies[-1]),
            "cost": _reference(self.all[name].costs[self.batch]),
        }  # fmt: skip

    def methods(self) -> dict[str, Any] | None:
        """How the methods that learn do on the best cascade at half the plain network's cost, against max probability.

        Each is fitted at several budgets; differences are of the mean accuracy over these, sample by sample.
        """
        half = 0.5 * self.reference
        cascades = [one for one in self._curves("all") if one["kind"] == "cascade" and one["costs"][0] <= half]
        if not cascades:
            return None
        best = max(cascades, key=lambda one: np.interp(half, one["costs"], one["accuracies"]))
        calibration, costs = self._whole(best["members"], "calibration")
        test, _ = self._whole(best["members"], "test")
        spent, right = {}, {}
        for make in (eenet.MaxProbability, eenet.OptimalStopping, eenet.EENet):
            name = make.__name__
            fitted = make().fit(calibration, costs)
            decided = [fitted.at(budget).replay(test) for budget in np.linspace(costs[0], costs[-1], 8)[1:-1].tolist()]
            right[name] = np.mean([_utility(one) for one in decided], axis=0)
            spent[name] = float(np.mean([one.mean_cost for one in decided]))
        rows = {}
        for name, values in right.items():
            ahead = values - right["MaxProbability"]
            rows[name] = {
                "accuracy": float(values.mean()),
                "cost": spent[name],
                "difference": float(ahead.mean()),
                "difference_error": _error(ahead),
            }
        return {"system": best["name"], "rows": rows}

    def _whole(self, names: Sequence[str], part: str) -> tuple[eenet.ExitRecords, eenet.ExitCosts]:
        """The records and costs of a network with exits, or of a cascade."""
        members = [self.all[name] for name in names]
        costs = [one.costs[self.batch] for one in members]
        if len(members) == 1:
            assert isinstance(costs[0], eenet.ExitCosts)
            return members[0].records[part], costs[0]
        records = eenet.ExitRecords.cascade([one.records[part] for one in members])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)
            return records, eenet.ExitCosts.cascade(costs, None if _measured(costs) else UNIT)

    def timed(self, report: Report) -> list[dict[str, Any]]:
        """All chosen systems in turns on samples that judge, batch by batch; accuracies are of all of these."""
        chosen = self.chosen()
        setting, size = self.setting, self.batch
        samples, labels = setting.samples["test"], setting.labels["test"][: setting.timed]
        runs = [runner([self.all[name] for name in one.members], one.scheduler, setting.outputs) for one in chosen]
        count = len(labels) // size
        times = np.zeros((count, len(runs), 2))
        right = np.zeros((count * size, len(runs)), dtype=bool)
        rng = np.random.default_rng(0)
        report(f"running {len(runs)} systems in turns, {count} batches of {size}")
        for number in [0, 0, *range(count)]:  # the first twice more, to warm up
            rows = slice(number * size, (number + 1) * size)
            batch = samples[rows]
            for n in rng.permutation(len(runs)).tolist():
                kept: list[Any] = []
                times[number, n] = timed(_keep, runs[n], batch, kept)
                right[rows, n] = _classes(kept[0]) == labels[rows]
        spent = 1000 * times / size
        replayed = np.stack([self._replayed(one) for one in chosen], axis=1)
        made = []
        for n, one in enumerate(chosen):
            known = replayed[:, n]
            ahead = known.astype(float) - replayed[:, 0]
            made.append(
                {
                    "role": one.role, "system": one.name, "kind": one.kind, "members": list(one.members),
                    "promised": one.promised, "accuracy": float(known.mean()), "error": _error(known),
                    "difference": float(ahead.mean()), "difference_error": _error(ahead),
                    "ms": float(spent[:, n, 0].mean()), "cpu_ms": float(spent[:, n, 1].mean()),
                    "as_replayed": float((right[:, n] == known[: count * size]).mean()),
                }
            )  # fmt: skip
        self.right, self.spent, self.roles = replayed, spent, [one.role for one in chosen]
        return made

    def _replayed(self, one: Chosen) -> NDArray[np.bool_]:
        """Which samples a replay answers right."""
        records = [self.all[name].records["test"] for name in one.members]
        if one.scheduler is None:
            return np.asarray(records[0].require_utility()[-1] > 0)
        whole = records[0] if len(records) == 1 else eenet.ExitRecords.cascade(records)
        return _utility(one.scheduler.replay(whole)) > 0

    def against(self, role: str, other: str) -> dict[str, Any] | None:
        """How many times as fast one timed system is as another, and how much more accurate, with standard errors."""
        if role not in self.roles or other not in self.roles:
            return None
        n, m = self.roles.index(role), self.roles.index(other)
        ahead = self.right[:, n].astype(float) - self.right[:, m]
        rng = np.random.default_rng(0)
        draws = rng.integers(len(self.spent), size=(500, len(self.spent)))
        found: dict[str, Any] = {"difference": float(ahead.mean()), "difference_error": _error(ahead)}
        for unit, clock in (("", 0), ("cpu_", 1)):
            times = self.spent[:, :, clock]
            found[f"{unit}speed"] = float(times[:, m].mean() / times[:, n].mean())
            drawn = times[draws][..., m].mean(axis=1) / times[draws][..., n].mean(axis=1)
            found[f"{unit}speed_error"] = float(drawn.std())
        return found


def records_of(setting: Setting, answered: Callable[[Candidate, str], NDArray[Any]]) -> None:
    """The records of all candidates on both halves."""
    for part, labels in setting.labels.items():
        for one in setting.candidates.values():
            said = answered(one, part)
            if setting.outputs == "probabilities" and one.exits:
                said = softmax(said)
            make = (
                eenet.ExitRecords.from_logits if setting.outputs == "logits" else eenet.ExitRecords.from_probabilities
            )
            one.records[part] = make(said if one.exits else said[0], labels)


def _utility(decided: eenet.Decisions) -> NDArray[np.floating[Any]]:
    assert decided.utility is not None
    return decided.utility


def _keep(run: Callable[[Any], Any], batch: Any, kept: list[Any]) -> None:
    kept.append(run(batch))


def _classes(output: Any) -> NDArray[np.intp]:
    answers = output.logits if hasattr(output, "logits") else output
    found: NDArray[np.intp] = np.asarray(answers).argmax(axis=1)
    return found


def _reference(costs: eenet.ExitCosts | float) -> float:
    return costs.reference if isinstance(costs, eenet.ExitCosts) else costs


def _measured(costs: Sequence[Any]) -> bool:
    return any(isinstance(one, eenet.ExitCosts) for one in costs)


def _error(values: Any) -> float:
    values = np.asarray(values, dtype=np.float64)
    return float(values.std() / math.sqrt(len(values)))


def _cost_of(costs: Sequence[float], accuracies: Sequence[float], wanted: float) -> float | None:
    """The least cost at which a curve reaches an accuracy; None where it does not."""
    for n, accuracy in enumerate(accuracies):
        if accuracy < wanted:
            continue
        if n == 0:
            return costs[0]
        share = (wanted - accuracies[n - 1]) / (accuracy - accuracies[n - 1])
        return costs[n - 1] + share * (costs[n] - costs[n - 1])
    return None
