"""BudgetController: holds a budget in traffic, from the exits that samples take, without labels."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eenet._files import read_json, write_json
from eenet._warn import warn
from eenet.control._pacing import Alternation, DriftReport, DriftTest, Pacer, Quotas
from eenet.costs import Budget, ExitCosts, parse_budget
from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning, kind_of
from eenet.scheduler import PolicyTable, Scheduler, ThresholdPolicy
from eenet.scheduler._policy import Floats, Ints

_FORMAT, _SCHEMA = "eenet.controller", 1
_SHORTEST_HORIZON = 10
_LEARNED = ("_pacer", "_alternation", "_quotas", "_drift", "_overruled")  # what changes in traffic


class BudgetController:
    """Keeps the mean cost of traffic at a budget by moving along a scheduler's policies, from observed costs alone.

    Where the scheduler has a simple rule for the budget that is as good for less, it keeps to what that rule costs.

    Run each batch under `policy` and give the exits that its samples took to `observe`. `AdaptiveModel` takes it in
    place of a scheduler. All methods may be called from several threads; `policy` never waits.

    Parameters
    ----------
    scheduler : Scheduler
        A fitted one, or one from a file.
    budget : float or str, optional
        As in `Scheduler.fit`, by default the scheduler's own.
    horizon : float
        In samples: how soon what was spent too much or too little is paid back. A shorter one follows traffic faster, a
        longer one stays closer to the best policy.
    floor, ceiling : sequence of K floats, optional
        The smallest and the largest share of samples that take each exit. They are kept in any traffic, to within the
        samples of K batches: where the running counts fall short, all samples of the next batch take the exit that is
        owed most; exits that have too many are passed. The other batches keep the budget. In any stretch of traffic
        they are kept too, to within `horizon` samples more. A sample with evidence that is not finite goes on to the
        last exit all the same.
    false_alarms : float
        The probability, over all calibration sets and traffic like them, that `drift` ever reports an alarm.

    Raises
    ------
    InfeasibleBudgetError
        For a budget below what the scheduler's table or the quotas allow.
    NotFittedError
        For a scheduler that is not fitted.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs())
    >>> controller = eenet.BudgetController(scheduler, "60%")
    >>> controller.observe([0, 0, 1, 2], controller.policy)
    >>> controller.mean_cost
    1.75
    """

    def __init__(
        self,
        scheduler: Scheduler,
        budget: Budget | None = None,
        *,
        horizon: float = 300,
        floor: Sequence[float] | None = None,
        ceiling: Sequence[float] | None = None,
        false_alarms: float = 0.01,
    ) -> None:
        if not isinstance(scheduler, Scheduler):
            raise InvalidInputError(f"scheduler is {kind_of(scheduler)}, expected a fitted scheduler")
        table, costs = scheduler.table, scheduler.costs
        if not _is_number(horizon) or not _SHORTEST_HORIZON <= horizon < float("inf"):
            raise InvalidInputError(f"horizon={horizon!r}: expected a number of samples, {_SHORTEST_HORIZON} or more")
        if not _is_number(false_alarms) or not 0 < false_alarms < 1:
            raise InvalidInputError(f"false_alarms={false_alarms!r}: expected a probability between 0 and 1")
        self._costs, self._policies = costs, table.policies
        self._table = table
        self._horizon, self._level = float(horizon), float(false_alarms)
        self._quotas = Quotas.parse(floor, ceiling, len(costs), self._horizon)
        self._rows, self._planned = _rising(table, 1e-9 * costs[-1])
        if len(self._planned) == 1 and not (scheduler.guarantee is None and scheduler.max_accuracy_drop is None):
            warn(
                f"the scheduler has one policy, for which something was promised: it spent {self._planned[0]:.6g} "
                f"{costs.unit} on the samples that it was fitted to. This controller can neither hold that on others "
                "nor change it, and only tells of drift; for another budget, fit again",
                ReliabilityWarning,
            )
        self._budget = self._limit(scheduler.budget if budget is None else budget)
        self._pacer = Pacer(self._worth(self._budget), self._planned[0], self._planned[-1], self._horizon)
        self._alternation = Alternation(self._planned)
        self._drift = None
        if table.shares is not None and table.samples:
            self._drift = DriftTest(table.shares, table.samples, self._level)
        self._fingerprint = _fingerprint(scheduler)
        self._network = scheduler.network
        self._lock = threading.Lock()
        self._samples, self._spent = 0, 0.0
        # The step of each policy, and whether it is one of the table's. Policies are kept, so that ids stay valid.
        self._known = self._steps(self._policies, self._rows)
        self._overruled: dict[tuple[int, str], ThresholdPolicy] = {}
        self._policy = self._choose()

    @property
    def policy(self) -> ThresholdPolicy:
        """The policy for the samples that come now; it changes only with `observe`, `observe_costs`, `set_budget`."""
        return self._policy

    @property
    def costs(self) -> ExitCosts:
        """Of the exits."""
        return self._costs

    @property
    def network(self) -> str | None:
        """The digest of the weights of the network that its scheduler was fitted for; None where that is not known."""
        return self._network

    @property
    def budget(self) -> float:
        """The budget per sample, in the unit of the costs."""
        return self._budget

    @property
    def samples(self) -> int:
        """How many samples were observed since the start or the last change of the budget."""
        return self._samples

    @property
    def mean_cost(self) -> float:
        """Their mean cost, in the unit of the costs; NaN before the first."""
        with self._lock:
            return self._spent / self._samples if self._samples else float("nan")

    def set_budget(self, budget: Budget) -> None:
        """Keep to another budget from now on; what was spent before is neither paid back nor counted in `mean_cost`.

        Raises `InvalidInputError` or `InfeasibleBudgetError`, and then keeps to the one it had.
        """
        limit = self._limit(budget)
        with self._lock:
            self._budget, self._pacer.budget, self._pacer.debt = limit, self._worth(limit), 0.0
            self._samples, self._spent = 0, 0.0
            self._policy = self._choose()

    def observe(self, exits: ArrayLike, policy: ThresholdPolicy | None = None) -> None:
        """Samples have taken these exits (n,), from 0.

        They went by `policy`, by default the one in force now; name it where batches run side by side. By a policy
        that is not of this controller, they count for the cost only.
        """
        counts = self._counted(exits)
        total = int(counts.sum())
        if not total:
            return
        spent = float(counts @ self._costs.values) / total
        with self._lock:
            known = self._known.get(id(self._policy if policy is None else policy))
            if self._quotas.any:
                self._quotas.observe(counts)
            if self._drift is not None and known is not None and known[1]:
                self._drift.observe(self._rows[known[0]], counts)
            self._account(total, spent, known)

    def observe_costs(self, costs: ArrayLike, policy: ThresholdPolicy | None = None) -> None:
        """Samples have cost this much each, (n,), in the unit of the costs: for costs that were measured.

        In place of `observe`, which takes them from the scheduler's; floors, ceilings and the drift test ignore it.
        """
        values = np.asarray(costs)
        if values.ndim != 1 or values.dtype.kind not in "fiu" or not np.isfinite(values).all() or (values < 0).any():
            raise InvalidInputError(f"costs are {costs!r}, expected a list of finite numbers, one for each sample")
        if not len(values):
            return
        with self._lock:
            known = self._known.get(id(self._policy if policy is None else policy))
            self._account(len(values), float(values.mean(dtype=np.float64)), known)

    def drift(self) -> DriftReport:
        """Whether samples still take the exits that the calibration records say, since the start or `restart_drift`.

        Raises `InvalidInputError` for a scheduler from a file that does not say where they did.
        """
        with self._lock:
            return self._tested().report()

    def restart_drift(self) -> None:
        """Start the test for drift again, as after an alarm that was dealt with."""
        with self._lock:
            self._tested().restart()

    def _tested(self) -> DriftTest:
        if self._drift is None:
            raise InvalidInputError(
                "this scheduler was saved without the exit shares of its policies, so that drift cannot be seen; fit "
                "and save it again"
            )
        return self._drift

    def _limit(self, budget: Budget) -> float:
        limit = parse_budget(budget, self._costs)
        self._table.index(limit)
        self._quotas.require_affordable(limit, self._costs)
        return limit

    def _worth(self, budget: float) -> float:
        """The mean cost to keep to: the budget, or less where the scheduler's policy for it is a cheaper rule."""
        row = self._table.index(budget)
        if self._table.fallback(row) is None or self._quotas.any:
            return budget
        return min(budget, max(self._table.frontier[row].planned_cost, self._planned[0]))

    def _counted(self, exits: ArrayLike) -> Ints:
        values, last = np.asarray(exits), len(self._costs) - 1
        if values.size == 0:
            return np.zeros(last + 1, dtype=np.intp)
        if values.ndim != 1 or values.dtype.kind not in "iu" or values.min() < 0 or values.max() > last:
            raise InvalidInputError(f"exits are {exits!r}, expected a list of whole numbers from 0 to {last}")
        counts: Ints = np.bincount(values, minlength=last + 1)
        return counts

    def _account(self, samples: int, spent: float, known: tuple[int, bool] | None) -> None:
        self._samples += samples
        self._spent += samples * spent
        if known is not None:
            self._alternation.served(samples, self._pacer.aim, known[0])
        self._pacer.observe(samples, spent, None if known is None else self._planned[known[0]])
        self._policy = self._choose()

    def _choose(self) -> ThresholdPolicy:
        """The policy for the next samples."""
        step = self._alternation.choose(self._pacer.aim, self._pacer.batch)
        policy, name = self._policies[self._rows[step]], ""
        if self._quotas.any:
            name, overruled = self._quotas.overrule(policy)
            if name:  # kept, since runtimes compare policies by identity
                policy = self._overruled.setdefault((step, name), overruled)
                self._known[id(policy)] = step, False
        return policy

    def state(self) -> dict[str, Any]:
        """Everything learned so far, ready for JSON; `restore` goes on from it exactly."""
        with self._lock:
            return {
                "format": _FORMAT,
                "schema": _SCHEMA,
                "scheduler": self._fingerprint,
                "horizon": self._horizon,
                "false_alarms": self._level,
                "floor": self._quotas.floor.tolist(),
                "ceiling": self._quotas.ceiling.tolist(),
                "budget": self._budget,
                "samples": self._samples,
                "spent": self._spent,
                "pacer": self._pacer.to_dict(),
                "carry": self._alternation.carry,
                "owed": self._quotas.owed.tolist(),
                "above": self._quotas.above.tolist(),
                "drift": None if self._drift is None else self._drift.to_dict(),
            }

    @classmethod
    def restore(cls, scheduler: Scheduler, state: Mapping[str, Any]) -> BudgetController:
        """The controller whose `state` this was, on the same scheduler or one loaded from its file.

        Raises `FileFormatError` for the state of something else, damaged or newer, or of another scheduler.
        """
        if state.get("format") != _FORMAT:
            raise FileFormatError(f"the state is of {state.get('format')!r}, expected {_FORMAT!r}")
        if not isinstance(state.get("schema"), int) or state["schema"] > _SCHEMA:
            raise FileFormatError(
                f"the state has schema {state.get('schema')!r}, this eenet reads up to {_SCHEMA}: upgrade eenet"
            )
        if state.get("scheduler") != _fingerprint(scheduler):
            raise FileFormatError("the state is of a controller of another scheduler; restore it with that one")
        try:
            controller = cls(
                scheduler,
                state.get("budget", state["pacer"]["budget"]),  # the same in states of earlier versions
                horizon=state["horizon"],
                floor=state["floor"],
                ceiling=state["ceiling"],
                false_alarms=state["false_alarms"],
            )
            controller._take(state)
        except KeyError as error:
            raise FileFormatError(f"the state lacks {error.args[0]!r}; save the controller again") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise FileFormatError(f"the state is damaged ({error}); save the controller again") from error
        return controller

    def _take(self, state: Mapping[str, Any]) -> None:
        shape = (len(self._costs),)
        self._samples, self._spent = int(state["samples"]), float(state["spent"])
        self._pacer.take(state["pacer"])
        self._alternation.carry = float(state["carry"])
        self._quotas.owed = np.array(state["owed"], dtype=np.float64).reshape(shape)
        self._quotas.above = np.array(state["above"], dtype=np.float64).reshape(shape)
        if self._drift is not None and state["drift"] is not None:
            self._drift.take(state["drift"])
        self._policy = self._choose()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = self.__dict__ | {name: copy.copy(self.__dict__[name]) for name in _LEARNED}
        del state["_lock"], state["_known"]  # a lock of this process, and ids of its objects
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _known=self._steps(state["_policies"], state["_rows"]))
        self._known |= {id(policy): (step, False) for (step, _), policy in self._overruled.items()}

    @staticmethod
    def _steps(policies: Sequence[ThresholdPolicy], rows: Sequence[int]) -> dict[int, tuple[int, bool]]:
        """The step of each policy of a table by its id, and that it is one of the table's."""
        return {id(policies[row]): (step, True) for step, row in enumerate(rows)}

    def save(self, path: str | Path) -> None:
        """Write the state to a JSON file, atomically; read it back with `load`."""
        write_json(path, self.state())

    @classmethod
    def load(cls, scheduler: Scheduler, path: str | Path) -> BudgetController:
        """The controller that `save` wrote; raises `FileFormatError` as `restore` does."""
        return cls.restore(scheduler, read_json(path, "save the controller again"))

    def __repr__(self) -> str:
        mean = "nothing observed" if not self._samples else f"mean cost {self.mean_cost:.4g} of {self._samples} samples"
        return f"BudgetController(budget={self.budget:.4g} {self._costs.unit}, {mean})"


def _rising(table: PolicyTable, least: float) -> tuple[list[int], list[float]]:
    """The rows of a table to choose from and what they cost, which rises by more than `least`.

    A row is left out where a later one costs less and is as accurate, or costs the same and is more accurate. Of
    others that cost the same the first will do.
    """
    points = table.frontier
    rows: list[int] = []
    for row, point in enumerate(points):
        beaten = (
            point.accuracy is not None
            and other.accuracy is not None
            and (
                (other.planned_cost < point.planned_cost - least and other.accuracy >= point.accuracy)
                or (other.planned_cost <= point.planned_cost + least and other.accuracy > point.accuracy)
            )
            for other in points[row + 1 :]
        )
        if not any(beaten) and (not rows or point.planned_cost > points[rows[-1]].planned_cost + least):
            rows.append(row)
    return rows, [points[row].planned_cost for row in rows]


def _fingerprint(scheduler: Scheduler) -> str:
    """The same for a scheduler and for what its file gives."""
    table = scheduler.table
    parts: list[Floats] = [scheduler.costs.values, table.planned_costs]
    parts += [policy.thresholds for policy in table.policies]
    return hashlib.sha256(b"".join(np.ascontiguousarray(part, dtype="<f8").tobytes() for part in parts)).hexdigest()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
