"""The scheduler a user holds: fitted once to records and costs, and from then on the policy for any budget."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eenet._warn import warn
from eenet.costs import Budget, ExitCosts, parse_budget
from eenet.errors import FallbackWarning, InvalidInputError, ReliabilityWarning, kind_of
from eenet.records import ExitRecords, require_records, warn_of_chance, warn_of_missing_classes
from eenet.scheduler._abstention import NOTHING, AbstainingFit, Abstention
from eenet.scheduler._assignments import ASSIGNMENTS, Assignment, Calibration, Geometric, Shared, fold_numbers
from eenet.scheduler._estimator import Estimator
from eenet.scheduler._fallback import NeverWorse, Rules, dead_exits, simple_rule
from eenet.scheduler._file import write_scheduler
from eenet.scheduler._fitted import Fitted, PlannedPolicy, PolicyTable, State, ThresholdFit
from eenet.scheduler._policy import Bools, Ensemble, Floats, Score, require_free_name, require_whole, score_class
from eenet.scheduler._replay import as_answered
from eenet.scheduler._reports import DeadExit
from eenet.scheduler._thresholds import ScoreTable

if TYPE_CHECKING:
    from typing_extensions import Self  # not installed beside a bundle without torch

_log = logging.getLogger("eenet.scheduler")

_UNSPENT = 0.01  # of the budget: what is worth a warning
_SAME = 0.005  # how far the mean cost in the costs of a policy's own batches may be from that in those it was fitted in
_MOST_FITS = 6
_FASTEST = 0.8

SCHEDULERS: dict[str, Callable[..., Scheduler]] = {}
"""The schedulers that take a budget, by the name the command line uses: the subclasses made with `method=`."""


class Scheduler(Estimator):
    """Decides which sample exits where: a score, and an assignment that divides the budget over the exits.

    The usual ones have classes of their own: `EENet`, `OptimalStopping`, `MaxProbability`, `Entropy`, `Patience`,
    `SearchedThresholds`, `Static` and others. All follow scikit-learn's conventions: `get_params`, `set_params` and
    `sklearn.base.clone` work, equal parameters and equal fits compare equal.

    Parameters
    ----------
    score : str or Score
        The name of a score, such as "max_prob", "entropy" or "learned", or a fitted one (`policy.score`).
    assignment : {"geometric", "shared", "searched", "exponential", "learned"}
        How the budget becomes thresholds; see `docs/explanation/method.md`.
    seed : int
        Of the folds of scores that are fitted.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> fitted = eenet.Scheduler("entropy", "searched").fit(toy_records(), toy_costs())
    >>> fitted.at("2ms").budget
    2.0
    """

    _default_budget: ClassVar[bool] = False
    """Whether a fit without a budget is for the last exit's cost."""
    _may_fall_back: ClassVar[bool] = True
    """Whether a simple rule may be taken in place of its policy."""

    def __init__(self, score: str | Score = "max_prob", assignment: str = "geometric", *, seed: int = 0) -> None:
        self.score = score
        self.assignment = assignment
        self.seed = seed
        self._state: State | None = None
        self._records: ExitRecords | None = None
        self._name: str | None = None
        self._refused: str | None = None
        if not isinstance(seed, (int, np.integer)) or seed < 0:
            raise InvalidInputError(f"seed is {seed!r}, expected a whole number from 0 on")
        self._check()

    def __init_subclass__(cls, *, method: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if method is not None:
            require_free_name("method", method, cls, SCHEDULERS)
            SCHEDULERS[method] = cls

    def _check(self) -> None:
        if not isinstance(self.score, Score):
            score_class(self.score)
        self._assignment()

    def _assignment(self) -> Assignment:
        if self.assignment not in ASSIGNMENTS:
            raise InvalidInputError(f"assignment {self.assignment!r} is not known; choose from {sorted(ASSIGNMENTS)}")
        return ASSIGNMENTS[self.assignment]()

    @property
    def _score_class(self) -> type[Score]:
        return type(self.score) if isinstance(self.score, Score) else score_class(self.score)

    @property
    def name(self) -> str:
        """What it is called in messages, tables and files."""
        if self._name is None and type(self) is Scheduler:
            return f"Scheduler({self._score_class.name}, {self.assignment})"
        return self._name or type(self).__name__

    @property
    def whole_samples(self) -> bool:
        """Whether it reads class probabilities, and so refuses records that are pooled over the parts of a sample."""
        return self._score_class.whole_samples

    @property
    def changes_predictions(self) -> bool:
        """Whether it answers with the exits so far combined, so that a prediction need not be the exit's own."""
        if self._state is not None and self._state.policy is not None:
            return self._state.policy.ensemble is not None
        return issubclass(self._score_class, Ensemble)

    # Fitting

    def fit(
        self,
        records: ExitRecords,
        costs: ExitCosts,
        budget: Budget | None = None,
        *,
        guarantee: float | str | None = None,
        max_accuracy_drop: float | None = None,
        unlabeled: ExitRecords | None = None,
        abstain: float | None = None,
        max_error: float | None = None,
        fallback: bool = True,
    ) -> Self:
        """Fit to calibration records so that the mean cost per sample stays within the budget; returns itself.

        It is never worse than the obvious: where one exit for all samples, max probability with geometric shares or
        searched thresholds is more accurate beyond chance or in the mean over all budgets, or as accurate for clearly
        less cost, that policy is taken, with a `FallbackWarning`, and `fallback` says so. An exit that says nothing is
        left out; see `left_out`. `cheaper` names a smaller budget that would be as accurate.

        Costs with `runs`, as `eenet.profile` measures them in batches, depend on how many samples exit where: they are
        taken for the policy that is found, which is fitted again, up to six times, until the mean cost changes by at
        most 0.5 %; a `ReliabilityWarning` says where it changes more after that. `costs` then has those, and `at` plans
        other budgets in them, `fitted_at` in their own.

        The budget is met on the calibration records. With `guarantee` the true mean cost is within it with at least
        that probability over the draw of the records. A method that fits nothing, such as max probability, is tested on
        all of them, with one threshold for all exits; any other is fitted on one half and tested on the other, or,
        where `unlabeled` records are given, fitted on all and tested on those.

        Parameters
        ----------
        records : ExitRecords
            Calibration records, which the network was not trained on.
        costs : ExitCosts
            Cost of each exit.
        budget : float or str, optional
            Mean cost per sample: a number in the unit of the costs, "60%" of the plain network (where the costs
            lack it, of the last exit), or like "3.5ms".
            None: fitted for all budgets; `at` then gives the scheduler for each.
        guarantee : float or "mean", optional
            A probability, such as 0.95; or "mean": what is promised holds on average over the draws of the records.
        max_accuracy_drop : float, optional
            Such as 0.01: the cheapest policy whose true accuracy is at most this much below the last exit's, with
            probability `guarantee` (0.95 unless given). With a budget too, the most accurate policy that keeps both.
        unlabeled : ExitRecords, optional
            Records of the same population, to test a guaranteed budget.
        abstain : float, optional
            Such as 0.02: at most this share of the samples may be handed back, to a person or another system, the least
            sure of those that the last exit takes. Their prediction is -1.
        max_error : float, optional
            The highest error rate of the samples that are answered; no more are handed back than it takes. Both hold on
            the calibration records, and with `guarantee` on fresh data.
        fallback : bool
            False: the method as it is, for research, whatever its policy is worth. Where samples are handed back no
            rule is taken in its place, since one that ends before the last exit hands none back.

        Returns
        -------
        Scheduler
            Itself.

        Raises
        ------
        InfeasibleBudgetError
            When the budget cannot be met; it names the smallest that can. Where much of a budget stays unspent, or the
            labels lack classes that are not missing by chance, or the last exit is right by chance only, there is a
            `ReliabilityWarning`.
        InfeasibleError
            When what else is asked cannot be kept at the budget, or shown by the records; it says what can.
        InvalidInputError
            For records, costs or a combination of arguments that cannot be used.
        """
        require_records(records)
        if not isinstance(costs, ExitCosts):
            raise InvalidInputError(
                f"costs are {kind_of(costs)}, expected ExitCosts: write ExitCosts([...], unit='ms')"
            )
        costs.require_exits(records.num_exits)
        if self._refused is not None:
            raise InvalidInputError(self._refused)
        fit = partial(
            self._fit_once,
            records,
            budget=budget,
            guarantee=guarantee,
            max_accuracy_drop=max_accuracy_drop,
            unlabeled=unlabeled,
            abstain=abstain,
            max_error=max_error,
            fallback=fallback,
        )
        if not costs.runs:
            fit(costs)
            return self
        earlier: tuple[float, Floats] | None = None
        for _ in range(_MOST_FITS):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                fit(costs)
            if self._fitted_state().policy is None:
                break
            shares = self.replay(records).exit_shares
            planned, spent = (float(one.values @ shares) for one in (costs, costs.at_shares(shares)))
            off = spent / planned - 1
            if abs(off) <= _SAME:
                break
            ahead = shares
            if earlier is not None:  # each fit is off by the same part of the one before it: go where that ends
                rate = min(max(off / earlier[0], 0.0), _FASTEST)
                ahead = np.maximum(shares + (shares - earlier[1]) * rate / (1 - rate), 0.0)
            earlier = off, shares
            costs = costs.at_shares(ahead / ahead.sum())
        else:
            smaller = "" if budget is None or off < 0 else f"a budget that is {off / (1 + off):.1%} smaller, "
            warn(
                f"{self.name}: after {_MOST_FITS} fits the mean cost in batches of its policy is {spent:.6g} "
                f"{costs.unit}, {off:+.1%} from the {planned:.6g} that it was fitted for, expected within {_SAME:.1%}: "
                "which samples exit changes the costs, and these which samples exit. Fit with "
                f"{smaller}more records, which tie less, or costs of full batches, eenet.profile(..., "
                "full_batches=True)",
                ReliabilityWarning,
            )
        for one in said:  # of the last fit: what was said of those before it no longer holds
            warn(one.message, one.category)
        return self

    def _fit_once(
        self,
        records: ExitRecords,
        costs: ExitCosts,
        *,
        budget: Budget | None,
        guarantee: float | str | None,
        max_accuracy_drop: float | None,
        unlabeled: ExitRecords | None,
        abstain: float | None,
        max_error: float | None,
        fallback: bool,
    ) -> None:
        """Fit to records in costs that do not depend on the policy."""
        warn_of_missing_classes(records.labels, records.num_classes)
        warn_of_chance(records.labels, records.predictions[-1], records.num_classes)
        limit = None if budget is None else parse_budget(budget, costs)
        abstention: Abstention | None = None
        if abstain is not None or max_error is not None:
            abstention = Abstention(abstain, max_error)
            abstention.require_possible(records, guarantee, max_accuracy_drop)
        promises: dict[str, float | str] = {}
        as_it_is = not fallback
        chosen: PlannedPolicy | None = None
        made: list[Fitted] = []

        def fit(records: ExitRecords, costs: ExitCosts) -> Fitted:
            protected = self._fit_protected(records, costs, abstains=abstention is not None) if fallback else None
            made.append(protected or self._fit(records, costs))
            return made[-1]

        if guarantee is None and max_accuracy_drop is None and unlabeled is None:
            fitted = fit(records, costs)
            if abstention is not None:
                fitted = AbstainingFit(fitted, records, abstention)
        else:
            from eenet.scheduler._guarantee import Guarantee

            promise = Guarantee(guarantee, max_accuracy_drop, unlabeled, abstention or NOTHING)
            promise.require_possible(records)
            fallback = fallback and not issubclass(self._score_class, Ensemble)  # its answers are tested as a whole
            score = self._not_fitted()
            fitted, chosen = promise.fit(fit, score, records, costs, budget=limit, seed=self.seed)
            promises = promise.promises
        if abstention is not None:
            promises |= abstention.asked
        left_out = self._say_what_was_left_out(made)
        if chosen is not None and limit is None:
            limit = chosen.planned_cost
        elif limit is None and self._default_budget:
            limit = costs[-1]
        if chosen is None and limit is not None:
            chosen = fitted.plan(limit)
        self._state = State(fitted, promises=promises, left_out=left_out, as_it_is=as_it_is, network=records.network)
        if limit is not None and chosen is not None:
            self._take(self._state, chosen, limit)
        self._records = records

    def _fit_protected(self, records: ExitRecords, costs: ExitCosts, *, abstains: bool) -> Fitted:
        """Fit to records, for all budgets, without dead exits and never worse than the simple rules."""
        if records.utility is None or not self._may_fall_back:
            return self._fit(records, costs)
        dead = dead_exits(records, costs)
        live = ~np.isin(np.arange(len(costs) - 1), [d.exit_index for d in dead])
        fewest = 0 if isinstance(self.score, Score) else self._score_class.fewest
        if len(records) < fewest:
            why = f"{len(records)} calibration samples are too few to learn from (fewer than {fewest})"
            own: Fitted = simple_rule(records, costs, live, why)
        else:
            own = self._fit(records, costs, live)
        return NeverWorse(own, None if abstains else Rules.of(own, records, costs, live, self.seed), dead)

    def _fit(self, records: ExitRecords, costs: ExitCosts, live: Bools | None = None) -> Fitted:
        """Fit to records, for all budgets; no sample exits at an exit that is not live."""
        require_whole(self._score_class, pooled=bool(records.pooled))
        scores = self._scores(records, costs)
        calibrations = [
            Calibration(score, as_answered(score, records), costs, live=live, seed=self.seed) for score in scores
        ]
        learned = self._score_class.needs_labels and not isinstance(self.score, Score)
        held_out = partial(self._held_out, records, costs, live) if learned else None
        return ThresholdFit(calibrations, self._assignment(), held_out)

    def _held_out(self, records: ExitRecords, costs: ExitCosts, live: Bools | None) -> Calibration:
        """The scores of each of two halves from a fit to the other."""
        half = fold_numbers(records, self.seed, 2)
        if half.max() == 0:
            return Calibration(self._scores(records, costs)[0], records, costs, live=live, seed=self.seed)
        parts = [np.flatnonzero(half == number) for number in (0, 1)]
        fitted = [self._scores(records.subset(parts[1 - number]), costs)[0] for number in (0, 1)]
        answered = [as_answered(score, records.subset(rows)) for score, rows in zip(fitted, parts, strict=True)]
        tables = [ScoreTable.of(score, part, costs) for score, part in zip(fitted, answered, strict=True)]
        order = np.argsort(np.concatenate(parts))
        scores = np.concatenate([table.scores for table in tables], axis=1)[:, order]
        finite = np.concatenate([table.finite for table in tables], axis=1)[:, order]
        utility = np.concatenate([part.require_utility() for part in answered], axis=1)[:, order]
        tried = ExitRecords(records.probabilities, records.predictions, records.labels, utility)
        table = ScoreTable(scores, finite, costs, live)
        return Calibration(fitted[0], tried, costs, table, live, self.seed)

    def _scores(self, records: ExitRecords, costs: ExitCosts) -> Sequence[Score]:
        """The fitted scores."""
        if isinstance(self.score, Score):
            return (self.score,)
        return score_class(self.score).fit(records, costs, self.seed)

    def _say_what_was_left_out(self, made: Sequence[Fitted]) -> tuple[DeadExit, ...]:
        """Warn of dead exits, and of what could not be fitted; `made` is empty where nothing was fitted."""
        for fitted in made[:1]:
            if fitted.dead:
                _log.info("%s: %s", self.name, _left_out(fitted.dead))
                warn(f"{self.name}: {_left_out(fitted.dead)}", FallbackWarning)
            if fitted.replaced is not None:
                said = f"{self.name}: {fitted.replaced}: MaxProbability is used instead"
                warn(said, FallbackWarning)
        return made[0].dead if made else ()

    def _not_fitted(self) -> Score | None:
        """The score, where neither it nor a choice of thresholds is fitted to labels; None where something is."""
        if type(self)._fit is not Scheduler._fit or not isinstance(self._assignment(), (Geometric, Shared)):
            return None
        if isinstance(self.score, Score):
            return self.score
        made = self._score_class
        return made() if getattr(made.fit, "__func__", None) is getattr(Score.fit, "__func__", None) else None

    def _take(self, state: State, chosen: PlannedPolicy, limit: float) -> None:
        """Decide by a policy of a fit from now on."""
        costs = state.fitted.costs
        numbers = {
            "budget": limit,
            "planned_cost": chosen.planned_cost,
            "calibration_cost": chosen.calibration_cost,
        }
        if chosen.accuracy is not None:
            numbers["calibration_accuracy"] = chosen.accuracy
        if chosen.handed_back is not None:
            numbers["handed_back"] = chosen.handed_back
        taken = chosen.fallback
        self._state = replace(state, policy=chosen.policy, numbers=numbers, fallback=taken)
        # What is read from a file was said when it was fitted, and so was what could not be fitted.
        if taken is not None:
            _log.info("%s at %.6g %s: %s", self.name, limit, costs.unit, taken)
        if taken is not None and taken.reason != "fit" and not isinstance(state.fitted, PolicyTable):
            warn(f"{self.name} at {limit:.6g} {costs.unit}: {taken}", FallbackWarning)
        spendable = min(limit, costs[-1])
        if chosen.note is not None and chosen.calibration_cost < spendable * (1 - _UNSPENT):
            warn(
                f"{self.name}: of the budget of {limit:.6g} {costs.unit} only {chosen.calibration_cost:.6g} is "
                f"spent: {chosen.note}",
                ReliabilityWarning,
            )

    def _copy(self) -> Self:
        """The same parameters, not fitted."""
        other = type(self)(**self.get_params())
        other._name, other._refused, other._records = self._name, self._refused, self._records
        return other

    def at(self, budget: Budget) -> Self:
        """The scheduler for another budget from the same fit: a new one, this one stays as it is.

        One that was loaded from a file has a table of budgets, and takes the largest there that is not above this one.

        Parameters
        ----------
        budget : float or str
            As for `fit`.

        Returns
        -------
        Scheduler

        Raises
        ------
        InfeasibleBudgetError, InfeasibleError
            As `fit` does.
        """
        state = self._fitted_state()
        limit = parse_budget(budget, self.costs)
        other = self._copy()
        other._take(state, state.fitted.plan(limit), limit)
        return other

    def fitted_at(self, budget: Budget) -> Self:
        """The scheduler for another budget: as `at`, but fitted again where the costs depend on the policy.

        That is so where the costs have `runs` and the records are known, and nothing is promised beside the budget.

        Parameters
        ----------
        budget : float or str
            As for `fit`.

        Returns
        -------
        Scheduler

        Raises
        ------
        InfeasibleBudgetError
            As `fit` does.

        Examples
        --------
        >>> import eenet
        >>> from eenet.testing import toy_records
        >>> runs = [([4, n, n], [3.0, 1 + 0.5 * n, 1 + 0.5 * n]) for n in (1, 2, 4)]
        >>> costs = eenet.ExitCosts([0.75, 1.5, 2.25], "ms", batch_size=4, runs=runs)
        >>> fitted = eenet.MaxProbability().fit(toy_records(), costs, 1.2)
        >>> fitted.fitted_at(1.8).costs == fitted.at(1.8).costs
        False
        """
        state = self._fitted_state()
        if self._records is None or not self.costs.runs or state.promises:
            return self.at(budget)
        return self._copy().fit(self._records, self.costs, budget, fallback=not state.as_it_is)

    @property
    def calibration_records(self) -> ExitRecords | None:
        """The records it was fitted to, None where it was loaded from a file."""
        return self._records

    @property
    def network(self) -> str | None:
        """The digest of the weights of the network whose records it was fitted to; None where that is not known."""
        return self._fitted_state().network

    def was_fitted_to(self, records: ExitRecords) -> bool:
        """Whether it was fitted to these samples, in whatever order they are.

        False too for one that an eenet before 0.2 saved: its file does not say what it was fitted to.
        """
        known = self._fitted_state().fitted_to
        if self._records is not None:
            known = None if len(records) != len(self._records) else self._records.digest()
        return known is not None and records.digest() == known

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically; read it back with `load_scheduler`.

        The policy is kept exactly, and with it the parameters and a table of policies for other budgets.
        """
        described = {"name": self.name, "class": type(self).__name__}
        state = self._fitted_state()
        if self._records is not None:
            state = replace(state, fitted_to=self._records.digest())
        write_scheduler(path, described, self.get_params(), state, self.score)


def _left_out(dead: tuple[DeadExit, ...]) -> str:
    """What to say of exits that are left out."""
    one = "It is" if len(dead) == 1 else "They are"
    return (
        f"{'; '.join(map(str, dead))}. {one} left out: no sample exits there; train the head again, move the exit, or "
        "leave out the member of a cascade"
    )
