"""Evidence, which is what an exit shows of n samples; and what a task is, with that of one class for each sample.

Everything here works row by row: a sample's numbers do not depend on the other samples of its batch, in any bit. So a
replay over all records and a run over the samples that are left agree. It rules out BLAS products (their order of
summation depends on the shape) and strided reductions; `sum` along the last axis of a contiguous array is safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from eenet._values import equal, hash_of
from eenet.errors import InvalidInputError

POOLED = ("max_probability", "log_odds", "entropy", "vote_share", "streak")
"""The quantities that are means over the parts of a sample, where it has parts, such as the pixels of an image."""

VOTES = ("vote_share", "streak")
"""Those that depend on the exits before: NaN where exits were joined or left out, since then they are not known."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]

LOG_ODDS_LIMIT = 103.0
"""The log of the smallest positive float32: log odds are clipped here, so a probability of 0 or 1 stays finite."""

# The reductions themselves: the methods of an array cost a microsecond more, and a decision should take few of those.
_max, _sum, _all = np.maximum.reduce, np.add.reduce, np.logical_and.reduce

_TINY = float(np.exp(-LOG_ODDS_LIMIT))

_KEPT = 2**20
"""At most this many numbers are kept for a second use; more are computed again, to save memory."""

_TAME = 1e30  # logits below this size have differences that float32 can hold
_TRUE: Bools = np.ones(1, dtype=np.bool_)
_TRUE.flags.writeable = False  # it is part of much evidence

_NOT_ROWS = ("_earlier", "is_pooled")  # of what evidence holds, what has no row for each sample


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Class probabilities (n, C) of logits (n, C); a row with NaN or +inf, or with nothing but -inf, becomes NaN."""
    return _softmax(logits)[0]


def _softmax(logits: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """And what they were divided by, (n, 1), which is finite where they are."""
    with np.errstate(invalid="ignore", over="ignore"):
        z = np.ascontiguousarray(logits, dtype=np.float32)
        e: NDArray[np.float32] = z - _max(z, -1, keepdims=True)
        np.exp(e, out=e)
        total: NDArray[np.float32] = _sum(e, -1, keepdims=True)
        e /= total
    return e, total


T = TypeVar("T")


class UnknownVotesError(InvalidInputError):
    """On how many parts of a sample exits agree is asked of records that do not say it."""


class _Once(Generic[T]):
    """A property that is computed once; `functools.cached_property` takes a lock, a good part of a decision's time."""

    def __init__(self, compute: Callable[[Evidence], T]) -> None:
        self._compute, self._name = compute, compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, evidence: None, owner: type) -> _Once[T]: ...

    @overload
    def __get__(self, evidence: Evidence, owner: type) -> T: ...

    def __get__(self, evidence: Evidence | None, owner: type) -> T | _Once[T]:
        if evidence is None:
            return self
        value = evidence.__dict__[self._name] = self._compute(evidence)
        return value


class Evidence:
    """What is known of n samples at one exit: class probabilities, and what is computed from them when asked for.

    A row that is not finite has `finite` False and counts as uniform everywhere else. `is_pooled` says whether the
    quantities are means over the parts of each sample.

    Parameters
    ----------
    probabilities : ndarray of shape (n, C), float32
        Class probabilities.
    predictions : ndarray of shape (n,), intp
        The predicted classes.
    earlier : sequence of Evidence
        The evidence of the same n samples at the exits before.

    Examples
    --------
    >>> evidence = Evidence.from_logits(np.array([[2.0, 0.0], [0.0, np.nan]], dtype=np.float32))
    >>> evidence
    Evidence(2 samples, 2 classes)
    >>> evidence.finite, evidence.max_probability.round(3)
    (array([ True, False]), array([0.881, 0.5  ]))
    """

    is_pooled = False

    def __init__(self, probabilities: NDArray[np.float32], predictions: Ints, earlier: Sequence[Evidence] = ()) -> None:
        # Rows must be contiguous: over another layout numpy sums in an order that depends on the batch.
        probabilities = np.ascontiguousarray(probabilities)
        self._set(probabilities, np.isfinite(_sum(probabilities, -1)), predictions, earlier)

    def _set(
        self, probabilities: NDArray[np.float32], finite: Bools, predictions: Ints, earlier: Sequence[Evidence]
    ) -> None:
        if not _all(finite):
            probabilities = np.where(finite[:, None], probabilities, np.float32(1 / probabilities.shape[1]))
        self.finite: Bools = finite
        self.probabilities = probabilities
        self.predictions = predictions
        self._earlier = tuple(earlier)

    @classmethod
    def from_logits(cls, logits: NDArray[np.floating], earlier: Sequence[Evidence] = ()) -> Evidence:
        """Evidence of logits (n, C), which are taken as float32, as records keep them."""
        if logits.dtype != np.float32:  # before the largest is sought: of two that round to one it is the first
            with np.errstate(over="ignore"):
                logits = logits.astype(np.float32)
        if len(logits) == 1:
            one = cls._from_one(logits, earlier)
            if one is not None:
                return one
        probabilities, total = _softmax(logits)
        evidence = cls.__new__(cls)
        evidence._set(probabilities, np.isfinite(total[:, 0]), logits.argmax(axis=-1), earlier)
        return evidence

    @classmethod
    def _from_one(cls, logits: NDArray[np.floating], earlier: Sequence[Evidence]) -> Evidence | None:
        """The evidence of one sample, the same bits in less time; None where its logits need more care."""
        predictions = logits.argmax(axis=-1)
        z = np.ascontiguousarray(logits)
        if not -_TAME < z.item(predictions.item()) < _TAME:  # NaN is not below
            return None
        top = predictions.item()
        e: NDArray[np.float32] = z - z[:, top : top + 1]
        np.exp(e, out=e)
        e /= _sum(e, -1, keepdims=True)
        evidence = cls.__new__(cls)
        evidence.finite = _TRUE
        evidence.probabilities = e
        evidence.predictions = predictions
        evidence._earlier = tuple(earlier)
        return evidence

    @classmethod
    def pooled(cls, probabilities: NDArray[np.float32], **quantities: NDArray[Any]) -> Evidence:
        """Evidence of samples that hold many predictions, such as images: all quantities are means over those.

        `probabilities` (n, C) and each of `quantities`, by the name it has here, (n, ...). They are kept in place of
        what would be computed from the probabilities. Of `VOTES`, what is not given, or is NaN, cannot be read.
        """
        evidence = cls(probabilities, probabilities.argmax(axis=-1))
        evidence.is_pooled = True
        for name, values in quantities.items():
            if not evidence.finite.all() and values.dtype.kind == "f":
                values = np.where(evidence.finite, values, 0.0)
            if name not in VOTES or not np.isnan(values).any():
                evidence.__dict__[name] = values
        # Of parts, the share of exits that vote as this one does is what is pooled as the vote share.
        if "vote_share" in evidence.__dict__:
            evidence.__dict__["agreement"] = evidence.__dict__["vote_share"]
        return evidence

    def __len__(self) -> int:
        return len(self.finite)

    def __repr__(self) -> str:
        exits = f", after {len(self._earlier)} exits" if self._earlier else ""
        return f"Evidence({len(self)} samples, {self.probabilities.shape[1]} classes{exits})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Evidence) and equal(self._content(), other._content())

    def __hash__(self) -> int:
        return hash_of(self._content()[:3])

    def __getstate__(self) -> dict[str, Any]:
        # Computed again when needed, to the same bits: to another process it would be two thirds of what is sent.
        return {name: value for name, value in self.__dict__.items() if name != "others"}

    def _content(self) -> tuple[object, ...]:
        """What it was made of, and not what was computed from that since."""
        given = (*POOLED, "label_map") if self.is_pooled else ()
        quantities = {name: self.__dict__[name] for name in given if name in self.__dict__}
        return self.finite, self.probabilities, self.predictions, quantities, self._earlier

    def take(self, rows: Ints, earlier: Sequence[Evidence]) -> Evidence:
        """The evidence of some rows; `earlier` is the earlier evidence, already taken."""
        taken = Evidence.__new__(Evidence)
        taken._earlier = tuple(earlier)
        for name, value in self.__dict__.items():
            if name not in _NOT_ROWS:
                taken.__dict__[name] = value[rows]
        if self.is_pooled:
            taken.is_pooled = True
        return taken

    @classmethod
    def join(cls, parts: Sequence[Evidence], earlier: Sequence[Evidence]) -> Evidence:
        """The evidence of several groups of samples as one, in order; `earlier` is the earlier evidence, joined."""
        joined = cls.__new__(cls)
        joined._earlier = tuple(earlier)
        # What only some of the groups were asked for is computed again when needed, to the same bits: row by row.
        for name in parts[0].__dict__:
            if name not in _NOT_ROWS and all(name in part.__dict__ for part in parts):
                joined.__dict__[name] = np.concatenate([part.__dict__[name] for part in parts])
        if parts[0].is_pooled:
            joined.is_pooled = True
        return joined

    @_Once
    def label_map(self) -> NDArray[np.int32]:
        """The prediction for each part of a sample, (n, parts); for a class per sample, (n, 1)."""
        return self.predictions[:, None].astype(np.int32)

    @_Once
    def max_probability(self) -> Floats:
        """The largest class probability, (n,)."""
        if len(self.finite) == 1:  # the same, in less time, here and below
            return np.array([self.probabilities.item(self.predictions.item())], dtype=np.float64)
        largest: Floats = _max(self.probabilities, -1).astype(np.float64)
        return largest

    @property
    def _others(self) -> NDArray[np.float64]:
        others: NDArray[np.float64] | None = self.__dict__.get("others")
        if others is None:
            others = self._all_but_the_largest()
            if others.size <= _KEPT:
                self.__dict__["others"] = others
        return others

    def _all_but_the_largest(self) -> NDArray[np.float64]:
        # Summing the other classes keeps what 1 - max(p) loses: float32 has no numbers between 1 - 6e-8 and 1.
        others = self.probabilities.astype(np.float64)
        top = self.predictions
        if len(top) == 1:
            others[0, top[0]] = 0.0  # the same, in less time
        else:
            others[np.arange(len(top)), top] = 0.0
        return others

    @_Once
    def _rest(self) -> Floats:
        rest: Floats = _sum(self._others, -1)
        return rest

    @_Once
    def log_odds(self) -> Floats:
        """log(max p / (1 - max p)), (n,): orders samples as max p does, without saturating at 1."""
        if len(self.finite) == 1:
            of_one = np.log(self.max_probability.item()) - np.log(max(self._rest.item(), _TINY))
            return np.array([min(of_one, LOG_ODDS_LIMIT)])
        odds: Floats = np.log(self.max_probability)
        odds -= np.log(np.maximum(self._rest, _TINY))
        return np.minimum(odds, LOG_ODDS_LIMIT, out=odds)

    @_Once
    def entropy(self) -> Floats:
        """Entropy divided by log C, (n,), in [0, 1]; exact also where max p rounds to 1."""
        others = self._others
        terms = np.log(np.maximum(others, _TINY))
        terms *= others
        if len(self.finite) == 1:
            largest, rest = self.max_probability.item(), self._rest.item()
            of_one = _sum(terms, -1).item() + largest * np.log1p(-min(rest, 1 - 1e-9))
            of_one /= -math.log(self.probabilities.shape[1])
            return np.array([min(of_one, 1.0) if of_one > 0 else 0.0])  # -0.0 is 0.0
        nats: Floats = _sum(terms, -1)
        nats += self.max_probability * np.log1p(-np.minimum(self._rest, 1 - 1e-9))
        nats /= -math.log(self.probabilities.shape[1])
        return np.minimum(np.maximum(nats, 0.0, out=nats), 1.0, out=nats)

    def _require_votes(self) -> None:
        if self.is_pooled:
            raise UnknownVotesError(
                "on how many parts of a sample, such as pixels, the exits agree is not known for records that "
                "ExitRecords.cascade joined or keep_exits cut; collect those of the cascade, or of the model with the "
                "exits that are kept, by eenet.collect, or choose a scheduler that does not count agreement: "
                "MaxProbability, Entropy or SearchedThresholds (max_prob, entropy, searched)"
            )

    @_Once
    def vote_share(self) -> Floats:
        """The largest share of the exits so far that predict one class, (n,)."""
        self._require_votes()
        if len(self.finite) == 1:
            of_one = [evidence.predictions.item() for evidence in (*self._earlier, self)]
            return np.array([max(map(of_one.count, of_one)) / len(of_one)])
        if len(self._earlier) < 2:  # the same as below, in less time
            share: Floats = np.ones(len(self))
            if self._earlier:
                share[self._earlier[0].predictions != self.predictions] = 0.5
            return share
        votes = np.stack([e.predictions for e in (*self._earlier, self)])
        same = votes[:, None, :] == votes[None, :, :]
        of_all: Floats = same.sum(axis=0).max(axis=0) / len(votes)
        return of_all

    @_Once
    def agreement(self) -> Floats:
        """The share of the exits so far, this one included, that predict what this one predicts, (n,)."""
        self._require_votes()
        agreeing = np.ones(len(self))
        for earlier in self._earlier:
            agreeing += earlier.predictions == self.predictions
        share: Floats = agreeing / (len(self._earlier) + 1)
        return share

    @_Once
    def streak(self) -> Ints | Floats:
        """For how many exits in a row, this one included, the prediction has been the same, (n,)."""
        self._require_votes()
        if len(self.finite) == 1:
            predicted, of_one = self.predictions.item(), 1
            for evidence in reversed(self._earlier):
                if evidence.predictions.item() != predicted:
                    break
                of_one += 1
            return np.array([of_one], dtype=np.intp)
        length = np.ones(len(self), dtype=np.intp)
        unbroken = np.ones(len(self), dtype=np.bool_)
        for earlier in reversed(self._earlier):
            unbroken &= earlier.predictions == self.predictions
            length += unbroken
        return length


Array = TypeVar("Array")


class Task(Protocol):
    """What the logits (N, C, ...) of an exit mean.

    Examples
    --------
    >>> from eenet.tasks import Classification, Task
    >>> task: Task = Classification()
    >>> task.name == "classification"
    True
    """

    @property
    def name(self) -> str:
        """The field's word for the task."""
        ...

    def shown(self, logits: Array) -> Array:
        """The part of the logits that the scheduler looks at; of a tensor or an array."""
        ...

    def evidence(self, shown: NDArray[np.floating], earlier: Sequence[Evidence]) -> Evidence:
        """The evidence in that part, given the evidence of the same samples at the exits before."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class for each sample: logits (N, C).

    Examples
    --------
    >>> evidence = Classification().evidence(np.array([[2.0, 0.0], [0.0, 0.5]]), earlier=[])
    >>> evidence.predictions, evidence.max_probability.round(3)
    (array([0, 1]), array([0.881, 0.622]))
    """

    name: str = "classification"

    def shown(self, logits: Array) -> Array:
        """All of the logits."""
        return logits

    def evidence(self, shown: NDArray[np.floating], earlier: Sequence[Evidence]) -> Evidence:
        """Evidence of logits (n, C)."""
        return Evidence.from_logits(shown, earlier)
