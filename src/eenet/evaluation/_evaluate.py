"""One table of what a scheduler does, next to what there is without it: the plain network, single exits, bounds."""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eenet.costs import LAST, ExitCosts, is_time
from eenet.errors import FallbackWarning, InvalidInputError, NotFittedError
from eenet.evaluation._comparison import text_table
from eenet.evaluation._oracle import best_static, oracle, random_mixture
from eenet.records import ExitRecords, require_same_network
from eenet.scheduler import Decisions, Fallback, Scheduler

_FRONTIER = 9
"""How many budgets of a scheduler for all budgets are shown."""

_PLAIN_NOTE = (
    "The plain network's accuracy is the last exit's: the same weights without the early heads, or the last network of "
    "a cascade. Trained without exits it may have another."
)


_SEEN_NOTE = (
    "The scheduler was fitted on these very samples: this says nothing about fresh data, on which accuracy is often "
    "lower and the cost above the budget. Give samples that it has not seen."
)


_TESTED_NOTE = (
    "Tested: the samples that the guarantee was tested on, which are those of the calibration samples that nothing was "
    "fitted to, or the unlabeled ones."
)


@dataclass(frozen=True)
class EvaluationRow:
    """One line of an `Evaluation`.

    Parameters
    ----------
    name : str
        What it is, in words.
    kind : str
        "plain", "exit", "single", "mixture", "oracle", "planned", "calibration", "tested", "out_of_fold", "cheaper",
        "held_out", "frontier".
        That is: the plain network; an exit that all samples take; the best of these, the best mixture of them and the
        oracle within the budget; the policy as planned, on all calibration records, on those of them that its
        guarantee was tested on (half of them where the method is fitted), on those that it was not fitted to (where a
        simple rule was taken, which was compared so) and on those given as held out; the smallest budget that is as
        accurate within its error; or the policy for one of many budgets.
    cost : float
        Mean cost per sample, in the unit of the costs.
    share : float
        The cost, of the plain network's or where that is not known of the last exit's.
    accuracy : float or None
        Where it is known, in [0, 1]; of the samples that are answered.
    cost_error, accuracy_error : float or None
        Standard errors over the samples.
    exit_shares : tuple of float or None
        What part of the samples exits where.
    budget : float or None
        Of the policy for one of many budgets, and of the smallest that is as accurate.
    handed_back : float or None
        The share of the samples that a policy hands back, since no exit is sure of them.
    """

    name: str
    kind: str
    cost: float
    share: float
    accuracy: float | None = None
    cost_error: float | None = None
    accuracy_error: float | None = None
    exit_shares: tuple[float, ...] | None = None
    budget: float | None = None
    handed_back: float | None = None

    @property
    def speed_up(self) -> float:
        """How many times cheaper than the plain network, or where that is not known than the last exit."""
        return 1 / self.share


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` gives; printing it shows the table.

    Attributes
    ----------
    rows : tuple of EvaluationRow
        The plain network where its cost is known, each exit, what the budget allows without a scheduler, the policy.
    scheduler : str
        Its name.
    costs : ExitCosts
        Of the exits.
    samples : int
        Of the records that the exits and bounds are about.
    held_out : bool
        Whether nothing was fitted to these records, as far as the scheduler knows what it was fitted to.
    budget : float or None
        In the unit of the costs; None for a scheduler for all budgets.
    notes : tuple of str
        What a reader should know beside the numbers.
    instead : str or None
        The simple rule whose policy runs at the budget in place of the scheduler's own (`Scheduler.fallback`).
    abstain, max_error : float or None
        What was asked for where samples may be handed back: the share that may be, the error of the others. The table
        then has a column of the share that is.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=2.0)
    >>> table = eenet.evaluation.evaluate(scheduler, toy_records(seed=1))
    >>> table.held_out, table.row("held_out").cost < 2.2
    (True, True)
    """

    rows: tuple[EvaluationRow, ...]
    scheduler: str
    costs: ExitCosts
    samples: int
    held_out: bool
    budget: float | None
    notes: tuple[str, ...] = ()
    instead: str | None = None
    abstain: float | None = None
    max_error: float | None = None

    def row(self, kind: str) -> EvaluationRow:
        """The first row of a kind; raises `InvalidInputError` where there is none."""
        found = next((row for row in self.rows if row.kind == kind), None)
        if found is None:
            raise InvalidInputError(f"there is no row {kind!r}; there are {sorted({row.kind for row in self.rows})}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "scheduler": self.scheduler,
            "instead": self.instead,
            "unit": self.costs.unit,
            "shares_of": self.costs.reference_name,
            "samples": self.samples,
            "held_out": self.held_out,
            "budget": self.budget,
            "abstain": self.abstain,
            "max_error": self.max_error,
            "rows": [{**asdict(row), "speed_up": row.speed_up} for row in self.rows],
            "notes": list(self.notes),
        }

    @property
    def title(self) -> str:
        """What the table is about: what runs, for which budget, on which samples."""
        n = self.samples
        what = f"{n} held-out samples" if self.held_out else f"the {n} samples that it was fitted on"
        budget = "all budgets" if self.budget is None else f"a budget of {self.costs.in_words(self.budget)}"
        runs = self.scheduler if self.instead is None else f"{self.instead}, in place of {self.scheduler},"
        return f"{runs} for {budget}, on {what}"

    def _lines(self) -> Iterator[list[str]]:
        unit = self.costs.unit
        of, less = "of last" if self.costs.plain is None else "of plain", "speed"
        if not is_time(unit):
            named = "FLOPs" if unit == "flops" else unit
            of, less = f"{of}, in {named}", f"cheaper, in {named}"
        abstains = self.abstain is not None or self.max_error is not None
        abstains = abstains or any(row.handed_back for row in self.rows)
        answered = ["accuracy\nof rest %", "handed\nback %"] if abstains else ["accuracy %"]
        yield ["", f"cost ({unit})", of, less, *answered, "exits %"]
        for row in self.rows:
            shares = "" if row.exit_shares is None else "/".join(f"{100 * share:.0f}" for share in row.exit_shares)
            yield [
                row.name,
                f"{row.cost:.4g}" + ("" if row.cost_error is None else f" ± {row.cost_error:.2g}"),
                f"{row.share:.1%}",
                f"{row.speed_up:.2f}x",
                _accuracy(row),
                *(["" if row.handed_back is None else f"{100 * row.handed_back:.2f}"] if abstains else []),
                shares,
            ]

    def __str__(self) -> str:
        return "\n".join([self.title, "", text_table(list(self._lines())), "", *self.notes])

    def _repr_html_(self) -> str:
        def cells(tag: str, line: Sequence[str]) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in line)}</tr>"

        head, *lines = self._lines()
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        rows = cells("th", head) + "".join(cells("td", line) for line in lines)
        return f"<p>{html.escape(self.title)}</p><table>{rows}</table>{notes}"


def evaluate(
    scheduler: Scheduler, held_out: ExitRecords | None = None, *, calibration: ExitRecords | None = None
) -> Evaluation:
    """One table: the plain network, each exit, what the budget allows without a scheduler, and the scheduler's policy.

    At the budget are taken: the best of the exits and the plain network, the best mixture of these, and the oracle,
    which knows the labels and chooses each sample's exit.
    What stands without a standard error is planned, or known from the fit.

    Parameters
    ----------
    scheduler : Scheduler
        Fitted for a budget, or for all: then there is a row for each of several budgets.
    held_out : ExitRecords, optional
        Records that the scheduler has not seen. Without labels only costs and exit shares are known. Where they are
        those that it was fitted to, the table and a note say so.
    calibration : ExitRecords, optional
        The records that it was fitted to. They are shown where there are no held-out ones, and give the row of the
        calibration its standard errors.

    Returns
    -------
    Evaluation

    Raises
    ------
    InvalidInputError
        Without records, or for records of other exits or classes, or of a network with other weights.

    Examples
    --------
    >>> import eenet
    >>> from eenet.evaluation import evaluate
    >>> from eenet.testing import toy_records
    >>> costs = eenet.ExitCosts([1.0, 2.0, 3.0], plain=2.8)
    >>> scheduler = eenet.MaxProbability().fit(toy_records(), costs, "60%")
    >>> table = evaluate(scheduler, toy_records(seed=1))
    >>> table.row("held_out").accuracy > table.row("single").accuracy
    True
    """
    records = held_out if held_out is not None else calibration
    if records is None:
        raise InvalidInputError("there are no records; give held_out=..., or calibration=... as eenet fit does")
    costs = scheduler.costs
    costs.require_exits(records.num_exits)
    for name, one in (("held-out", held_out), ("calibration", calibration)):
        if one is not None:
            fitted, these = "the scheduler was fitted to records", f"the {name} records have"
            require_same_network(fitted, scheduler.network, one.network, these)
    fresh = held_out is not None and not scheduler.was_fitted_to(held_out)
    utility = None if records.utility is None else records.utility.astype(np.float64)
    accuracies = [_mean(values) for values in utility] if utility is not None else [(None, None)] * len(costs)
    rows = []

    def add(name: str, kind: str, cost: float, **more: Any) -> None:
        rows.append(EvaluationRow(name, kind, cost, cost / costs.reference, **more))

    if costs.plain is not None:
        accuracy, error = accuracies[-1]
        add("plain network", "plain", costs.plain, accuracy=accuracy, accuracy_error=error)
    last, left_out = len(costs) - 1, {dead.exit_index for dead in scheduler.left_out}
    for k, (cost, (accuracy, error)) in enumerate(zip(costs.static.tolist(), accuracies, strict=True)):
        name = f"exit {k}" + (" (last)" if k == last else " (left out)" if k in left_out else "")
        add(name, "exit", cost, accuracy=accuracy, accuracy_error=error)
    notes = [f"Left out: {dead}." for dead in scheduler.left_out]
    if utility is None:
        notes.append("The records have no labels, so accuracies are not known.")
    elif costs.plain is not None:
        notes.append(_PLAIN_NOTE)
    if costs.reference_name == LAST:
        notes.append(
            "The plain network's cost is not known, so shares are of the last exit, which passes all heads: profile "
            "with eenet profile, or give --plain or ExitCosts(..., plain=...)."
        )
    if held_out is not None and not fresh:
        notes.insert(0, _SEEN_NOTE)
    budget = _budget_of(scheduler)
    if budget is None:
        taken_at: dict[str, list[str]] = {}
        instead: Fallback | None = None
        for limit in _some_budgets(scheduler):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FallbackWarning)  # the table says it
                there = scheduler.at(limit)
            if there.fallback is not None and there.fallback.reason == "fit":
                instead = there.fallback
            elif there.fallback is not None:
                taken_at.setdefault(there.fallback.taken, []).append(f"{limit:.4g}")
            policy = _of(there.replay(records))
            add(f"policy for {limit:.4g} {costs.unit}", "frontier", policy.pop("cost"), budget=limit, **policy)
        notes += [
            f"At {', '.join(limits)} {costs.unit} the policy is that of {rule}, which is no less accurate there on the "
            f"calibration samples than {scheduler.name}, or cheaper."
            for rule, limits in taken_at.items()
        ]
        if instead is not None:
            notes.insert(0, f"{instead}.")
        notes += _abstention_notes(scheduler)
        rule = None if instead is None else instead.taken
        asked = scheduler.abstain, scheduler.max_error
        return Evaluation(tuple(rows), scheduler.name, costs, len(records), fresh, None, tuple(notes), rule, *asked)
    if utility is not None:
        limit = min(budget, costs[-1])
        best = best_static(records, costs, limit)
        accuracy, error = {f"exit {k}": pair for k, pair in enumerate(accuracies)}.get(best.of[0], accuracies[-1])
        add(f"best in budget: {best.of[0]}", "single", best.cost, accuracy=accuracy, accuracy_error=error)
        mixture = random_mixture(records, costs, limit)
        add(f"best mixture: {', '.join(mixture.of)}", "mixture", mixture.cost, accuracy=mixture.accuracy)
        knowing = oracle(records, costs, limit)
        add("oracle (knows labels)", "oracle", knowing.cost, accuracy=knowing.accuracy)
    add("policy, planned", "planned", scheduler.planned_cost)
    known = {"accuracy": scheduler.calibration_accuracy, "handed_back": scheduler.calibration_handed_back}
    if calibration is not None:
        add("policy, calibration", "calibration", **_of(scheduler.replay(calibration)))
    if scheduler.guarantee is not None:
        add("policy, tested", "tested", scheduler.calibration_cost, **known)
        notes.append(_TESTED_NOTE)
    elif calibration is None:
        add("policy, calibration", "calibration", scheduler.calibration_cost, **known)
    taken = scheduler.fallback
    if taken is not None and taken.unit == costs.unit:  # else it is of other costs
        add("policy, out of fold", "out_of_fold", taken.cost, accuracy=taken.accuracy)
    if taken is not None:
        notes.insert(0, f"{taken}.")
    cheaper = scheduler.cheaper
    if cheaper is not None:
        name = f"as accurate: {cheaper.budget:.4g} {costs.unit}"
        add(name, "cheaper", cheaper.cost, accuracy=cheaper.accuracy, budget=cheaper.budget)
        notes.insert(0, f"{str(cheaper)[0].upper()}{str(cheaper)[1:]}.")
    if held_out is not None:
        decisions = scheduler.replay(held_out)
        add("policy, held out" if fresh else "policy, fitted on these", "held_out", **_of(decisions))
        what = "Held-out cost" if fresh else "Cost on the samples that it was fitted on"
        notes.insert(0, f"{what}: {_spent(decisions, budget, scheduler.planned_cost, costs.unit)}")
        if held_out.utility is not None and not decisions.abstained.all():
            notes.insert(1, _against_last(scheduler, decisions, held_out.utility[-1]))
    back = [(row.kind.replace("_", "-"), row.handed_back) for row in rows if row.handed_back]
    if back and scheduler.policy.abstains_below is not None:
        shown = ", ".join(f"{share:.2%} of the {kind} samples" for kind, share in back)
        notes.append(f"Handed back, since no exit is sure of them: {shown}; the policy's accuracy is of the others.")
    notes += _abstention_notes(scheduler)
    if scheduler.changes_predictions:
        notes.append("It changes predictions: samples are answered by the exits so far combined.")
    rule = None if taken is None else taken.taken
    asked = scheduler.abstain, scheduler.max_error
    return Evaluation(tuple(rows), scheduler.name, costs, len(records), fresh, budget, tuple(notes), rule, *asked)


def _abstention_notes(scheduler: Scheduler) -> list[str]:
    """What was asked for, where samples may be handed back."""
    asked = []
    if scheduler.abstain is not None:
        asked.append(f"at most {scheduler.abstain:.2%} handed back")
    if scheduler.max_error is not None:
        asked.append(f"an error of at most {scheduler.max_error:.2%} of those that are answered")
    if not asked:
        return []
    said = [f"Asked for: {' and '.join(asked)}."]
    if scheduler.abstain is None:
        said.append("As many are handed back as that takes; abstain (--abstain 0.02) limits how many may be.")
    return [" ".join(said)]


def _mean(values: Any) -> tuple[float, float]:
    """The mean of n numbers, and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def _of(decisions: Decisions) -> dict[str, Any]:
    """The columns of a policy."""
    cost, cost_error = _mean(decisions.sample_costs)
    accuracy, error = None, None
    if decisions.utility is not None and not decisions.abstained.all():
        accuracy, error = _mean(decisions.utility[~decisions.abstained].astype(np.float64))
    return {
        "cost": cost,
        "cost_error": cost_error,
        "accuracy": accuracy,
        "accuracy_error": error,
        "exit_shares": tuple(decisions.exit_shares.tolist()),
        "handed_back": decisions.handed_back,
    }


def _against_last(scheduler: Scheduler, decisions: Decisions, last: Any) -> str:
    """What the policy loses against the last exit on the same samples, beside what was promised of that."""
    assert decisions.utility is not None, "the records have labels"
    answered = ~decisions.abstained
    mean, error = _mean(decisions.utility[answered].astype(np.float64) - last[answered])
    said = f"Accuracy minus the last exit's, on the same samples: {100 * mean:+.2f} ± {100 * error:.2f} points"
    if scheduler.max_accuracy_drop is None:
        return f"{said}."
    level = scheduler.guarantee
    how = "promised on average over calibrations" if isinstance(level, str) else f"promised, {level:.3g} sure"
    return f"{said}; at most {100 * scheduler.max_accuracy_drop:.2f} points of loss were {how}."


def _spent(decisions: Decisions, budget: float, planned: float, unit: str) -> str:
    cost, error = _mean(decisions.sample_costs)
    return f"{cost:.4g} ± {error:.2g} {unit} of a budget of {budget:.4g} {unit}; {planned:.4g} {unit} was planned."


def _budget_of(scheduler: Scheduler) -> float | None:
    """The budget it is fitted for; None where that is any."""
    try:
        return scheduler.budget
    except NotFittedError:
        return None


def _some_budgets(scheduler: Scheduler) -> list[float]:
    """From the cheapest to the most expensive, about evenly: few enough for a table."""
    budgets = scheduler.table.budgets
    rows = np.unique(np.linspace(0, len(budgets) - 1, _FRONTIER).round().astype(np.intp))
    chosen: list[float] = budgets[rows].tolist()
    return chosen


def _accuracy(row: EvaluationRow) -> str:
    if row.accuracy is None:
        return ""
    error = "" if row.accuracy_error is None else f" ± {100 * row.accuracy_error:.2f}"
    return f"{100 * row.accuracy:.2f}{error}"
