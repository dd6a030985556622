"""A scheduler's parameters, by the conventions of scikit-learn, and what it knows once it is fitted."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eenet._values import equal, short
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError, NotFittedError
from eenet.records import ExitRecords, require_records
from eenet.scheduler._fitted import FrontierPoint, PolicyTable, State
from eenet.scheduler._policy import ThresholdPolicy
from eenet.scheduler._replay import Decisions, replay
from eenet.scheduler._reports import Cheaper, DeadExit, Fallback

if TYPE_CHECKING:
    from typing_extensions import Self  # not installed beside a bundle without torch


class Estimator(ABC):
    """What every scheduler has, whatever it fits: parameters, and after `fit` a policy, costs and figures."""

    _state: State | None

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in messages, tables and files."""

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
        assert isinstance(other, Estimator)
        if not equal(_listed(self.get_params()), _listed(other.get_params())) or (self._state is None) != (
            other._state is None
        ):
            return False
        return self._state is None or other._state is None or equal(self._state.compared, other._state.compared)

    __hash__ = None  # type: ignore[assignment]

    # What is fitted

    def _fitted_state(self) -> State:
        if self._state is None:
            raise NotFittedError(f"{self.name} is not fitted: call fit(records, costs, budget=...) first")
        return self._state

    def frontier(self) -> tuple[FrontierPoint, ...]:
        """Budgets from the smallest feasible to the last exit's cost, with planned cost and accuracy."""
        return self.table.frontier

    @property
    def table(self) -> PolicyTable:
        """The policies of `frontier`, one for each budget; made when first asked for, and saved with the scheduler."""
        return self._fitted_state().fitted.table

    def replay(self, records: ExitRecords, costs: ExitCosts | None = None) -> Decisions:
        """What the scheduler decides for these records; costs default to those it was fitted with."""
        require_records(records)
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
    def calibration_handed_back(self) -> float | None:
        """The share of the same records that is handed back; None where that was not asked for, and for old files."""
        self._number("budget")
        return self._fitted_state().numbers.get("handed_back")

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


def _listed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with tuples as lists: a file does not tell one from the other."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
