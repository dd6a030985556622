"""The scheduler a user holds: fitted once to records and costs, and from then on the policy for any budget."""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eenet._files import write_arrays
from eenet._values import equal, short
from eenet.costs import Budget, ExitCosts, parse_budget
from eenet.errors import FallbackWarning, InvalidInputError, NotFittedError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler._abstention import Abstention
from eenet.scheduler._assignments import ASSIGNMENTS, Assignment, Calibration, Geometric, Shared, fold_numbers
from eenet.scheduler._fallback import NeverWorse, Rules, dead_exits, simple_rule
from eenet.scheduler._fitted import (
    Fitted,
    FrontierPoint,
    PlannedPolicy,
    PolicyTable,
    ThresholdFit,
)
from eenet.scheduler._policy import Bools, Ensemble, Score, ThresholdPolicy, require_whole, score_class
from eenet.scheduler._replay import Decisions, as_answered, replay
from eenet.scheduler._reports import Cheaper, DeadExit, Fallback, to_dict
from eenet.scheduler._thresholds import ScoreTable

if TYPE_CHECKING:
    from typing_extensions import Self  # not installed beside a bundle without torch

_log = logging.getLogger("eenet.scheduler")

SCHEMA = 3  # 2 where no policy abstains, which an eenet before it would not know of
TABLE = "table."
_UNSPENT = 0.01  # of the budget: what is worth a warning
_MANY = 20  # samples of one class, of which there are more, which are not so by chance

SCHEDULERS: dict[str, Callable[..., Scheduler]] = {}
"""The schedulers that take a budget, by the name the command line uses: the subclasses made with `method=`."""


@dataclass(frozen=True)
class State:
    """The result of `fit`."""

    fitted: Fitted
    policy: ThresholdPolicy | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    promises: Mapping[str, float | str] = field(default_factory=dict)
    fallback: Fallback | None = None
    left_out: tuple[DeadExit, ...] = ()
    as_it_is: bool = False
    """Whether it was fitted with `fallback=False`."""

    @property
    def compared(self) -> tuple[Any, ...]:
        """What makes two fits equal: the policy for the budget, or without one the policies for all budgets."""
        what = self.fitted.table if self.policy is None else (self.policy, dict(self.numbers))
        return self.fitted.costs, what, dict(self.promises)


class Scheduler:
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
            SCHEDULERS[method] = cls

    # Parameters

    @classmethod
    def _parameters(cls) -> dict[str, Any]:
        """The parameters of the constructor and their defaults."""
        known = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {p.name: p.default for p in known if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 - scikit-learn's protocol
        """The parameters by name, as the constructor takes them."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Self:
        """Change parameters; what was fitted stays until the next `fit`. Returns itself.

        Raises `InvalidInputError` for a name or a value that the constructor refuses, and then changes nothing.
        """
        known = self.get_params()
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise InvalidInputError(f"{type(self).__name__} has no parameter {unknown[0]!r}; it has {sorted(known)}")
        type(self)(**{**known, **params})  # refuses what cannot be
        self.__dict__.update(params)
        return self

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

    def __repr__(self) -> str:
        defaults = self._parameters()
        given = {name: value for name, value in self.get_params().items() if not equal(value, defaults[name])}
        text = f"{type(self).__name__}({', '.join(f'{name}={short(value)}' for name, value in given.items())})"
        if self._state is None:
            return text
        costs, policy = self._state.fitted.costs, self._state.policy
        budget = "any budget" if policy is None else f"budget={self.budget:.4g} {costs.unit}"
        promised = "".join(
            f", {name}={value if isinstance(value, str) else f'{value:g}'}"
            for name, value in self._state.promises.items()
        )
        taken = "" if self.fallback is None else f", {self.fallback.taken} in its place"
        return f"<{text} fitted: {budget}, {len(costs)} exits{promised}{taken}>"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Scheduler)
        if not equal(_listed(self.get_params()), _listed(other.get_params())) or (self._state is None) != (
            other._state is None
        ):
            return False
        return self._state is None or other._state is None or equal(self._state.compared, other._state.compared)

    __hash__ = None  # type: ignore[assignment]

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
            When the budget cannot be met; it names the smallest that can. Where much of a budget stays unspent there is
            a `ReliabilityWarning`.
        InvalidInputError
            For records, costs or a combination of arguments that cannot be used.
        """
        _require_records(records)
        if not isinstance(costs, ExitCosts):
            raise InvalidInputError(
                f"costs are a {type(costs).__name__}, expected ExitCosts: write ExitCosts([...], unit='ms')"
            )
        costs.require_exits(records.num_exits)
        if self._refused is not None:
            raise InvalidInputError(self._refused)
        _warn_of_one_class(records)
        limit = None if budget is None else parse_budget(budget, costs)
        abstention = Abstention(abstain, max_error)
        abstention.require_possible(records, guarantee, max_accuracy_drop)
        promises: dict[str, float | str] = {}
        as_it_is = not fallback
        chosen: PlannedPolicy | None = None
        made: list[Fitted] = []

        def fit(records: ExitRecords, costs: ExitCosts) -> Fitted:
            protected = self._fit_protected(records, costs, abstains=bool(abstention.asked)) if fallback else None
            made.append(protected or self._fit(records, costs))
            return made[-1]

        if guarantee is None and max_accuracy_drop is None and unlabeled is None:
            fitted = abstention.plain(fit(records, costs), records)
        else:
            from eenet.scheduler._guarantee import Guarantee

            promise = Guarantee(guarantee, max_accuracy_drop, unlabeled, abstention)
            promise.require_possible(records)
            fallback = fallback and not issubclass(self._score_class, Ensemble)  # its answers are tested as a whole
            score = self._not_fitted()
            fitted, chosen = promise.fit(fit, score, records, costs, budget=limit, seed=self.seed)
            promises = promise.promises
        promises |= abstention.asked
        left_out = self._say_what_was_left_out(made)
        if chosen is not None and limit is None:
            limit = chosen.planned_cost
        elif limit is None and self._default_budget:
            limit = costs[-1]
        if chosen is None and limit is not None:
            chosen = fitted.plan(limit)
        self._state = State(fitted, promises=promises, left_out=left_out, as_it_is=as_it_is)
        if limit is not None and chosen is not None:
            self._take(chosen, limit)
        self._records = records
        return self

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
        answered = as_answered(scores[0], records)
        calibrations = [Calibration(score, answered, costs, live=live, seed=self.seed) for score in scores]
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
                warnings.warn(f"{self.name}: {_left_out(fitted.dead)}", FallbackWarning, stacklevel=3)
            if fitted.replaced is not None:
                said = f"{self.name}: {fitted.replaced}: MaxProbability is used instead"
                warnings.warn(said, FallbackWarning, stacklevel=3)
        return made[0].dead if made else ()

    def _not_fitted(self) -> Score | None:
        """The score, where neither it nor a choice of thresholds is fitted to labels; None where something is."""
        if type(self)._fit is not Scheduler._fit or not isinstance(self._assignment(), (Geometric, Shared)):
            return None
        if isinstance(self.score, Score):
            return self.score
        made = self._score_class
        return made() if getattr(made.fit, "__func__", None) is getattr(Score.fit, "__func__", None) else None

    def _take(self, chosen: PlannedPolicy, limit: float) -> None:
        """Decide by a policy of the fit from now on."""
        state = self._fitted_state()
        numbers = {
            "budget": limit,
            "planned_cost": chosen.planned_cost,
            "calibration_cost": chosen.calibration_cost,
        }
        if chosen.accuracy is not None:
            numbers["calibration_accuracy"] = chosen.accuracy
        taken = chosen.fallback
        self._state = replace(state, policy=chosen.policy, numbers=numbers, fallback=taken)
        # What is read from a file was said when it was fitted, and so was what could not be fitted.
        if taken is not None:
            _log.info("%s at %.6g %s: %s", self.name, limit, self.costs.unit, taken)
        if taken is not None and taken.reason != "fit" and not isinstance(state.fitted, PolicyTable):
            warnings.warn(f"{self.name} at {limit:.6g} {self.costs.unit}: {taken}", FallbackWarning, stacklevel=3)
        spendable = min(limit, self.costs[-1])
        if chosen.note is not None and chosen.calibration_cost < spendable * (1 - _UNSPENT):
            warnings.warn(
                f"{self.name}: of the budget of {limit:.6g} {self.costs.unit} only {chosen.calibration_cost:.6g} is "
                f"spent: {chosen.note}",
                ReliabilityWarning,
                stacklevel=3,
            )

    def _copy(self) -> Self:
        """The same parameters, not fitted."""
        other = type(self)(**self.get_params())
        other._name, other._refused, other._records = self._name, self._refused, self._records
        return other

    # What is fitted

    def _fitted_state(self) -> State:
        if self._state is None:
            raise NotFittedError(f"{self.name} is not fitted: call fit(records, costs, budget=...) first")
        return self._state

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
        InfeasibleBudgetError
            As `fit` does.
        """
        state = self._fitted_state()
        limit = parse_budget(budget, self.costs)
        other = self._copy()
        other._state = state
        other._take(state.fitted.plan(limit), limit)
        return other

    @property
    def calibration_records(self) -> ExitRecords | None:
        """The records it was fitted to, None where it was loaded from a file."""
        return self._records

    def frontier(self) -> tuple[FrontierPoint, ...]:
        """Budgets from the smallest feasible to the last exit's cost, with planned cost and accuracy."""
        return self.table.frontier

    @property
    def table(self) -> PolicyTable:
        """The policies of `frontier`, one for each budget; made when first asked for, and saved with the scheduler."""
        return self._fitted_state().fitted.table

    def replay(self, records: ExitRecords, costs: ExitCosts | None = None) -> Decisions:
        """What the scheduler decides for these records; costs default to those it was fitted with."""
        _require_records(records)
        return replay(self.policy, records, costs or self.costs)

    @property
    def policy(self) -> ThresholdPolicy:
        """The fitted decision rule."""
        state = self._fitted_state()
        if state.policy is None:
            raise NotFittedError(self._no_budget())
        return state.policy

    @property
    def costs(self) -> ExitCosts:
        """The costs it was fitted with."""
        return self._fitted_state().fitted.costs

    def _no_budget(self) -> str:
        return f"{self.name} is fitted for all budgets: choose one with .at(budget), such as .at('60%')"

    def _number(self, name: str) -> float:
        numbers = self._fitted_state().numbers
        if name not in numbers:
            raise NotFittedError(self._no_budget())
        return numbers[name]

    @property
    def budget(self) -> float:
        """The budget per sample, in the unit of the costs."""
        return self._number("budget")

    @property
    def planned_cost(self) -> float:
        """The mean cost per sample the method aimed at."""
        return self._number("planned_cost")

    @property
    def calibration_cost(self) -> float:
        """The mean cost per sample on the records it was fitted to, or with a guarantee on those it was tested on.

        On fresh data it will differ: see held-out cost.
        """
        return self._number("calibration_cost")

    @property
    def calibration_accuracy(self) -> float | None:
        """The accuracy on the same records; None without labels, and for files of early versions.

        What was learned or searched on these records looks better on them than on fresh data.
        """
        self._number("budget")  # raises where there is no policy
        return self._fitted_state().numbers.get("calibration_accuracy")

    @property
    def guarantee(self) -> float | str | None:
        """The probability with which what was promised holds on fresh data, or "mean", if that was asked for."""
        return None if self._state is None else self._state.promises.get("guarantee")

    @property
    def max_accuracy_drop(self) -> float | None:
        """How far below the last exit's the accuracy may be, where that was asked for."""
        drop = None if self._state is None else self._state.promises.get("max_accuracy_drop")
        return None if drop is None else float(drop)

    @property
    def abstain(self) -> float | None:
        """The share of the samples that may be handed back, where that was asked for."""
        share = None if self._state is None else self._state.promises.get("abstain")
        return None if share is None else float(share)

    @property
    def max_error(self) -> float | None:
        """The highest error rate of the samples that are answered, where that was asked for."""
        error = None if self._state is None else self._state.promises.get("max_error")
        return None if error is None else float(error)

    @property
    def fallback(self) -> Fallback | None:
        """The simple rule that its policy is, where that is better than the method's own; None where it is not."""
        return None if self._state is None else self._state.fallback

    @property
    def cheaper(self) -> Cheaper | None:
        """A smaller budget that is as accurate, within its error; None where there is none, or after loading."""
        state = self._fitted_state()
        return None if state.policy is None or state.promises else state.fitted.cheaper(self.budget)

    @property
    def left_out(self) -> tuple[DeadExit, ...]:
        """The exits at which no sample exits, since samples that would lose, and what they would lose."""
        return self._fitted_state().left_out

    # Files

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically; read it back with `load_scheduler`.

        The policy is kept exactly, and with it the parameters and a table of policies for other budgets.
        """
        state, table = self._fitted_state(), self.table
        arrays: dict[str, NDArray[Any]] = {f"{TABLE}{name}": a for name, a in table.to_arrays().items()}
        header = {
            "name": self.name,
            "class": type(self).__name__,
            "parameters": _plain(self.get_params()),
            "score": table.score_name,
            "num_classes": table.policies[0].num_classes,
            "costs": self.costs.to_dict(),
            "numbers": dict(state.numbers),
            "promises": dict(state.promises),
        }
        if table.fallbacks or state.fallback is not None:
            header["fallbacks"] = [to_dict(taken) for taken in table.fallbacks]
            header["fallback"] = to_dict(state.fallback)
        if state.as_it_is:
            header["as_it_is"] = True
        if state.left_out:
            header["left_out"] = [to_dict(dead) for dead in state.left_out]
        if isinstance(self.score, Score) and table.score_name != self.score.name:  # no policy has it
            header["given_score"] = self.score.name
            arrays |= {f"given.{name}": array for name, array in self.score.to_arrays().items()}
        if state.policy is not None:
            policy = state.policy
            header["policy_score"] = policy.score.name
            arrays |= {"thresholds": policy.thresholds, "enabled": policy.enabled.astype(np.uint8)}
            arrays |= {f"score.{name}": array for name, array in policy.score.to_arrays().items()}
            if policy.abstains_below is not None:
                arrays["abstains_below"] = np.array([policy.abstains_below])
        abstains = "abstains_below" in arrays or f"{TABLE}abstains_below" in arrays
        write_arrays(path, arrays, kind="scheduler", schema=SCHEMA if abstains else SCHEMA - 1, header=header)


def _left_out(dead: tuple[DeadExit, ...]) -> str:
    """What to say of exits that are left out."""
    one = "It is" if len(dead) == 1 else "They are"
    return f"{'; '.join(map(str, dead))}. {one} left out: no sample exits there; train the head again, or move the exit"


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON can hold them; a score that was given is None, since the file has it in its policies."""
    plain = {name: None if isinstance(value, Score) else value for name, value in parameters.items()}
    # Numbers of numpy, such as the exit that an argmax gives, are no JSON.
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in plain.items()}
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the parameters {short(dict(parameters))} cannot be saved: {error}") from error
    return plain


def _require_records(records: ExitRecords) -> None:
    if not isinstance(records, ExitRecords):
        raise InvalidInputError(
            f"records are a {type(records).__name__}, expected ExitRecords: see ExitRecords.from_probabilities"
        )


def _warn_of_one_class(records: ExitRecords) -> None:
    """Say that all labels are one class, where that is no chance: what is fitted then knows nothing of the others."""
    labels = records.labels
    if labels is not None and records.num_classes > 1 and len(labels) >= _MANY and (labels == labels[0]).all():
        warnings.warn(
            f"all {len(labels)} calibration samples are of class {int(labels[0])}: what is fitted to them says nothing "
            f"of the other {records.num_classes - 1} classes; take samples of all classes, such as a shuffled part of "
            "the data",
            ReliabilityWarning,
            stacklevel=3,
        )


def _listed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with tuples as lists: a file does not tell one from the other."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
