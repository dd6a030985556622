"""What reaching each exit costs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet._cascades import require_several
from eenet._values import array_value
from eenet._warn import warn
from eenet.errors import InvalidInputError, ReliabilityWarning

Runs = tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
"""For each run the number of samples in each stage, and what each stage took for all of them."""

IN_RUNS = ("inputs", "selection", "outputs")
"""What is counted in runs of batches, besides stages, heads and decisions."""

PLAIN, LAST = "the plain network", "the last exit"

_UNIT = re.compile(r"[A-Za-z][A-Za-z_]*")
ROUNDING = 1e-12
_RARE = 1e-3  # the share of samples that stands for none: a stage that next to no sample reaches runs on one


@array_value
@dataclass(frozen=True, init=False, repr=False)
class ExitCosts:
    """The cost per sample of stopping at each of K exits.

    Parameters
    ----------
    values : array_like of shape (K,)
        Cumulative costs: each counts the whole way to its exit. Positive, finite and increasing.
    unit : str
        "ms" (wall time), "cpu_ms" (time of the processor), "flops", or a word of your own.
    batch_size : int, optional
        The batch size of the measurement.
    spread : array_like of shape (K,), optional
        The relative spread of the measurement.
    device : mapping, optional
        Names and versions that identify the machine of the measurement. Of a network that takes inputs of any length,
        "sizes" are those that were measured: `{"sequence": 32}`.
    includes : tuple of str
        The parts that are counted, such as "heads" and "scheduler".
    plain : float, optional
        The cost of the plain network, without exits, measured like the exits. Budgets such as "60%" are then of it.
    percentiles : mapping, optional
        "p50", "p95" and "p99" of the measured costs: K numbers each, and one more for the plain network. A budget is
        about the mean; these say how far single measurements are from it.
    runs : sequence of pairs, optional
        What the stages of a batch took in runs in which samples exited on the way: for each run how many samples were
        in each of the K stages, and what each stage took for all of them, in the unit. With these and a batch size
        `at_shares` has the costs for any policy, and `Scheduler.fit` takes those of the policy it finds.

    Raises
    ------
    InvalidInputError
        If the values are not at least two positive, finite, increasing numbers, or the unit is not a word.

    Examples
    --------
    >>> costs = ExitCosts([1.5, 2.5, 4.0], unit="ms", batch_size=32)
    >>> costs
    ExitCosts([1.5, 2.5, 4], unit='ms', batch_size=32)
    >>> len(costs), costs[-1]
    (3, 4.0)
    >>> ExitCosts([1.5, 2.5, 4.0], unit="ms", plain=3.6)
    ExitCosts([1.5, 2.5, 4], unit='ms', plain=3.6)
    """

    values: NDArray[np.float64]
    unit: str
    batch_size: int | None = None
    spread: NDArray[np.float64] | None = None
    device: Mapping[str, Any] = field(default_factory=dict)
    includes: tuple[str, ...] = ()
    plain: float | None = None
    percentiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    runs: Runs = ()

    def __init__(
        self,
        values: ArrayLike,
        unit: str = "ms",
        *,
        batch_size: int | None = None,
        spread: ArrayLike | None = None,
        device: Mapping[str, Any] | None = None,
        includes: tuple[str, ...] = (),
        plain: float | None = None,
        percentiles: Mapping[str, ArrayLike] | None = None,
        runs: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    ) -> None:
        try:
            array = np.asarray(values)
        except (ValueError, TypeError, RuntimeError):  # lists within the list; tensors with gradients or on a GPU
            array = np.empty(0, dtype=np.object_)
        if array.ndim != 1 or array.dtype.kind not in "fiu":
            raise InvalidInputError(f"costs are {values!r}, expected a list of numbers, one for each exit")
        array = array.astype(np.float64)
        if len(array) < 2:
            raise InvalidInputError(f"costs {array.tolist()} have {len(array)} exits, expected at least 2")
        if not np.isfinite(array).all() or (array <= 0).any():
            raise InvalidInputError(f"costs {array.tolist()} must be finite and above 0")
        if (np.diff(array) <= 0).any():
            k = int(np.flatnonzero(np.diff(array) <= 0)[0])
            raise InvalidInputError(
                f"costs {array.tolist()} must increase: exit {k + 1} costs {array[k + 1]:g} after {array[k]:g}; give "
                "cumulative costs (the whole way to each exit), and drop an exit that is no cheaper than a later one"
            )
        if not isinstance(unit, str) or not _UNIT.fullmatch(unit):
            raise InvalidInputError(f"unit {unit!r} is not a word; use 'ms', 'cpu_ms', 'flops' or one of your own")
        spreads = None if spread is None else np.array(spread, dtype=np.float64)
        if spreads is not None and spreads.shape != array.shape:
            raise InvalidInputError(f"spread has shape {spreads.shape}, expected {array.shape}: one for each exit")
        if plain is not None and not _is_cost(plain):
            raise InvalidInputError(
                f"plain is {plain!r}, expected the cost of the plain network in {unit}: one positive, finite number"
            )
        for numbers in (array, spreads):
            if numbers is not None:
                numbers.setflags(write=False)
        object.__setattr__(self, "values", array)
        object.__setattr__(self, "unit", unit)
        object.__setattr__(self, "batch_size", batch_size)
        object.__setattr__(self, "spread", spreads)
        object.__setattr__(self, "device", dict(device or {}))
        object.__setattr__(self, "includes", tuple(includes))
        object.__setattr__(self, "plain", None if plain is None else float(plain))
        object.__setattr__(self, "percentiles", _percentiles(percentiles or {}, len(array), plain is not None))
        object.__setattr__(self, "runs", _runs(runs, len(array), batch_size))

    @classmethod
    def cascade(
        cls, members: Sequence[ExitCosts | float] | Mapping[str, ExitCosts | float], unit: str | None = None
    ) -> ExitCosts:
        """The costs of a cascade: several models, asked one after another until one answers.

        A sample that goes on has paid for the whole of the members before: an exit costs what they cost at their last
        exits and what the exit costs in its own member. The plain network is the last member alone, which is what a
        user would run instead, so that "60%" is 60% of it.

        Parameters
        ----------
        members : sequence of ExitCosts or float, or mapping of str to them
            What each costs by itself, in the order in which they are asked: a number for a plain network or a call.
            All in one unit: milliseconds, bytes, cents. Costs have no names of exits: those of a mapping are not kept.
        unit : str, optional
            Of the costs, where all members are numbers; by default "ms".

        Raises
        ------
        InvalidInputError
            If a cost is not positive and finite, or units or batch sizes differ.

        Warns
        -----
        ReliabilityWarning
            If a member costs more than the one that is asked after it.

        Examples
        --------
        >>> ExitCosts.cascade([2.0, 9.0])
        ExitCosts([2, 11], unit='ms', plain=9)
        >>> ExitCosts.cascade([ExitCosts([1.0, 1.5, 2.0], "cents"), 9.0])
        ExitCosts([1, 1.5, 2, 11], unit='cents', plain=9)
        """
        members, _ = require_several(members)
        for number, member in enumerate(members):
            if not isinstance(member, ExitCosts) and not _is_cost(member):
                raise InvalidInputError(
                    f"member {number} costs {member!r}, expected ExitCosts, or one positive, finite number for a "
                    "plain network or a call"
                )
        measured = [member for member in members if isinstance(member, ExitCosts)]
        unit = _one_of("unit", [*([unit] if unit is not None else []), *(m.unit for m in measured)]) or "ms"
        size = _one_of("batch size", [m.batch_size for m in measured if m.batch_size is not None])
        own = [m.values if isinstance(m, ExitCosts) else np.array([float(m)]) for m in members]
        for number, (here, after) in enumerate(pairwise(own)):
            if here[-1] > after[-1]:
                warn(
                    f"member {number} costs {here[-1]:.6g} {unit} by itself, more than member {number + 1}, which is "
                    f"asked after it and costs {after[-1]:.6g}; ask the cheaper one first, or leave out the one that "
                    "is no more accurate",
                    ReliabilityWarning,
                )
        before = np.cumsum([0.0, *(values[-1] for values in own)])
        last = members[-1]
        plain = last.reference if isinstance(last, ExitCosts) else float(last)
        same_device = len(measured) == len(members) and all(m.device == measured[0].device for m in measured)
        return cls(
            np.concatenate([start + values for start, values in zip(before, own, strict=False)]),
            unit,
            batch_size=size,
            spread=_joint_spread(measured) if len(measured) == len(members) else None,
            device=measured[0].device if same_device else None,
            includes=tuple(p for p in measured[0].includes if all(p in m.includes for m in measured))
            if measured
            else (),
            plain=plain,
        )

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, exit_index: int) -> float:
        return float(self.values[exit_index])

    def __repr__(self) -> str:
        at = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        plain = "" if self.plain is None else f", plain={self.plain:.4g}"
        return f"ExitCosts([{', '.join(f'{v:.4g}' for v in self.values)}], unit={self.unit!r}{plain}{at})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made by the constructor, so that their arrays are read-only too."""
        return ExitCosts.from_dict, (self.to_dict(),)

    def require_exits(self, exits: int) -> None:
        """Raise `InvalidInputError` unless there is one cost for each of `exits` exits."""
        if len(self) != exits:
            alone = "; records of a plain network are a member of a cascade: ExitRecords.cascade([...])"
            raise InvalidInputError(
                f"costs are for {len(self)} exits, the records or the model have {exits}; give one cost for each exit"
                f"{alone if exits == 1 else ''}"
            )

    @property
    def reference(self) -> float:
        """What 100% is: the cost of the plain network where it is known, otherwise that of the last exit."""
        return self[-1] if self.plain is None else self.plain

    @property
    def reference_name(self) -> str:
        """What percentages are of: "the plain network" or "the last exit"."""
        return LAST if self.plain is None else PLAIN

    def at_shares(self, shares: ArrayLike) -> ExitCosts:
        """The costs where these shares of the samples exit at the exits, by the runs; the same costs without any.

        Of a batch each stage runs on the samples that are left, how many those are differs from batch to batch, and
        where none is left the stage does not run. What a stage takes in the mean over such batches is divided by the
        samples that reach it. So the mean cost of samples that exit in these shares is the time of a batch divided by
        its size, and that of other shares is only near it.

        Parameters
        ----------
        shares : array_like of shape (K,)
            The share of the samples that exits at each exit.

        Returns
        -------
        ExitCosts
            With the same runs. Spread and percentiles stay what they were, in proportion to the costs.

        Raises
        ------
        InvalidInputError
            If the shares are not K numbers that sum to 1.

        Examples
        --------
        Two stages of 1 ms for a call and 0.5 ms for a sample:

        >>> runs = [([4, n], [3.0, 1 + 0.5 * n]) for n in (1, 2, 3, 4)]
        >>> costs = ExitCosts([0.75, 1.5], "ms", batch_size=4, runs=runs)
        >>> costs.at_shares([0.5, 0.5])  # in 1 of 16 batches no sample gets to the second stage
        ExitCosts([0.75, 1.719], unit='ms', batch_size=4)
        """
        found = np.asarray(shares, dtype=np.float64)
        if found.shape != (len(self),) or not (found >= 0).all() or abs(found.sum() - 1) > 1e-6:
            raise InvalidInputError(f"shares are {shares!r}, expected {len(self)} numbers from 0 that sum to 1")
        if not self.runs:
            return self
        assert self.batch_size is not None
        samples, took = (np.array([run[part] for run in self.runs]) for part in (0, 1))
        values = costs_of_runs(samples, took[None], self.batch_size, found)[0]
        scale = [*(values / self.values), *([] if self.plain is None else [1.0])]
        return ExitCosts(
            values,
            self.unit,
            batch_size=self.batch_size,
            spread=self.spread,
            device=self.device,
            includes=self.includes,
            plain=self.plain,
            percentiles={name: np.array(numbers) * scale for name, numbers in self.percentiles.items()},
            runs=self.runs,
        )

    @property
    def static(self) -> NDArray[np.float64]:
        """What each exit costs where all samples take it, shape (K,): by the runs, the costs themselves without any.

        Examples
        --------
        >>> runs = [([4, n], [3.0, 1 + 0.5 * n]) for n in (1, 2, 3, 4)]
        >>> costs = ExitCosts([0.75, 1.5], "ms", batch_size=4, runs=runs).at_shares([0.9, 0.1])
        >>> costs.values.round(3).tolist(), costs.static.tolist()  # few samples are left for the second stage
        ([0.75, 2.11], [0.75, 1.5])
        """
        every = np.eye(len(self))
        return np.array([self.at_shares(every[k])[k] for k in range(len(self))]) if self.runs else self.values

    def in_words(self, cost: float) -> str:
        """A cost with its unit and its share, such as "3.1 ms (60% of the plain network)"."""
        return f"{cost:.6g} {self.unit} ({100 * cost / self.reference:.3g}% of {self.reference_name})"

    @property
    def of_inputs(self) -> str | None:
        """What inputs the costs are of, in words, where the network takes inputs of several lengths or sizes.

        Longer inputs cost more, so that a budget in these costs is one for inputs like those measured. None where
        there is one size only, and where it is not known.

        Examples
        --------
        >>> ExitCosts([1.0, 2.0], device={"sizes": {"sequence": 32}}).of_inputs
        'of inputs of length 32 (sequence); longer ones cost more'
        """
        sizes = self.device.get("sizes")
        if not isinstance(sizes, Mapping) or not sizes:
            return None
        what, more = ("length", "longer") if len(sizes) == 1 else ("size", "larger")
        return (
            f"of inputs of {what} {' and '.join(f'{n} ({name})' for name, n in sizes.items())}; {more} ones cost more"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description, read back by `from_dict`."""
        return {
            "values": self.values.tolist(),
            "unit": self.unit,
            "batch_size": self.batch_size,
            "spread": None if self.spread is None else self.spread.tolist(),
            "device": dict(self.device),
            "includes": list(self.includes),
            "plain": self.plain,
            "percentiles": {name: list(values) for name, values in self.percentiles.items()},
            "runs": [[list(samples), list(took)] for samples, took in self.runs],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExitCosts:
        """Costs from what `to_dict` gave."""
        try:
            return cls(
                data["values"],
                data["unit"],
                batch_size=data.get("batch_size"),
                spread=data.get("spread"),
                device=data.get("device"),
                includes=tuple(data.get("includes", ())),
                plain=data.get("plain"),
                percentiles=data.get("percentiles"),
                runs=data.get("runs", ()),
            )
        except KeyError as error:
            raise InvalidInputError(f"costs need {error.args[0]!r}; found {sorted(data)}") from error


def costs_of_runs(
    samples: NDArray[np.int64], took: NDArray[np.float64], size: int, shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Costs per sample, (R, K), where these shares of the samples exit at the exits.

    `samples` (P, K) were in the stages in P runs of batches of `size`, and `took` (R, P, K) is what the stages took.
    The number of samples that reach a stage is binomial, and the times between two measured numbers lie on a line.
    """
    reach = np.clip(1 - np.cumsum(shares) + shares, _RARE, 1.0)
    counts = np.arange(1, size + 1)
    each = []
    for k, share in enumerate(reach.tolist()):
        measured, which = np.unique(samples[:, k], return_inverse=True)
        times = np.stack([took[:, which == n, k].mean(axis=1) for n in range(len(measured))], axis=1)
        chances = np.exp(_log_choose(size) + counts * math.log(share) + _log_of_rest(size - counts, share))
        weights = np.array([np.interp(counts, measured, one) for one in np.eye(len(measured))]) @ chances
        each.append(times @ weights / (size * share))
    steps = np.maximum(np.stack(each, axis=1), ROUNDING)
    costs: NDArray[np.float64] = steps.cumsum(axis=1)
    return costs


def _log_choose(size: int) -> NDArray[np.float64]:
    """The logarithms of how many ways there are to choose 1 to `size` of `size`."""
    logs = np.concatenate([[0.0], np.log(np.arange(1, size + 1)).cumsum()])
    found: NDArray[np.float64] = logs[size] - logs[1:] - logs[size - 1 :: -1]
    return found


def _log_of_rest(others: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """The logarithm of the chance that the others do not reach a stage that this share of the samples reaches."""
    if share < 1:
        return np.asarray(others * math.log1p(-share), dtype=np.float64)
    return np.where(others > 0, -np.inf, 0.0)


def _runs(given: Sequence[tuple[ArrayLike, ArrayLike]], exits: int, batch_size: int | None) -> Runs:
    """Runs as tuples; raises `InvalidInputError` where they cannot be runs of batches of this size."""
    runs: Runs = tuple(
        (tuple(int(n) for n in np.asarray(samples)), tuple(float(t) for t in np.asarray(took)))
        for samples, took in given
    )
    if runs and batch_size is None:
        raise InvalidInputError("runs are of batches; give their batch_size too")
    for samples, took in runs:
        if len(samples) != exits or len(took) != exits or not all(0 < n <= (batch_size or 0) for n in samples):
            raise InvalidInputError(
                f"a run has {list(samples)} samples and times {list(took)}, expected {exits} each, one for each stage, "
                f"and from 1 to {batch_size} samples"
            )
    return runs


def _one_of(what: str, values: Sequence[Any]) -> Any:
    """The one value of all members of a cascade, None without any; raises where they differ."""
    others = [value for value in values if value != values[0]]
    if others:
        raise InvalidInputError(
            f"the {what} is {values[0]!r} for one member of the cascade and {others[0]!r} for another; give all costs "
            f"with one {what}, measured in the same way"
        )
    return values[0] if values else None


def _joint_spread(members: Sequence[ExitCosts]) -> NDArray[np.float64] | None:
    """The relative spread of sums of costs that were measured apart."""
    spreads, start, squares = [], 0.0, 0.0
    for member in members:
        if member.spread is None:
            return None
        own = (member.spread * member.values) ** 2
        spreads.append(np.sqrt(squares + own) / (start + member.values))
        start, squares = start + member[-1], squares + float(own[-1])
    return np.concatenate(spreads)


def _is_cost(value: object) -> bool:
    # A bool is a Real in Python, numpy's is not.
    return not isinstance(value, bool) and isinstance(value, Real) and 0 < float(value) < math.inf


def _percentiles(given: Mapping[str, ArrayLike], exits: int, plain: bool) -> dict[str, tuple[float, ...]]:
    made = {}
    for name, numbers in given.items():
        values = np.asarray(numbers, dtype=np.float64)
        if values.shape != (exits + plain,):
            raise InvalidInputError(
                f"percentiles[{name!r}] has shape {values.shape}, expected ({exits + plain},): one for each exit"
                f"{', and one for the plain network' if plain else ''}"
            )
        made[str(name)] = tuple(values.tolist())
    return made
