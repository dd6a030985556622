"""What a score of one's own must give, checked at fit: its scores, and of an ensemble its answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError, kind_of
from eenet.scheduler._policy import RESOLUTION, Bools, Ensemble, ExitHistory, Floats, Score

_ASKED_AGAIN = 16  # samples for which a score is asked twice

_ROUNDING = 1e-4  # of answers, which no threshold is put between: matrix products round otherwise in another batch


def checked_scores(score: Score, history: ExitHistory) -> Floats:
    """The scores (n,) of all samples at an exit, of which it is checked that they are what a `Score` must give.

    Raises `InvalidInputError` unless they are n real numbers, finite where the evidence is, and the same when the score
    is asked again for some of the samples alone.
    """

    def ask(history: ExitHistory) -> Floats:
        found = _real(score(history), (len(history.evidence[-1]),), f"{_named(score)} at exit {history.exit_index} is")
        return found.astype(np.float64)

    found, named = ask(history), f"{_named(score)} at exit {history.exit_index} is"
    wrong = ~np.isfinite(found) & history.finite
    if wrong.any():
        raise InvalidInputError(
            f"{named} {found[wrong.argmax()]} for {int(wrong.sum())} of {len(found)} samples whose "
            "outputs are finite, expected a finite number for each; clip what is divided by and what a logarithm is of"
        )
    _require_the_same(ask, history, found, history.finite, RESOLUTION, named)
    return found


def checked_answers(score: Ensemble, history: ExitHistory) -> NDArray[np.float32]:
    """The answers (n, C) to all samples at an exit, of which it is checked that they are what an `Ensemble` must give.

    Raises `InvalidInputError` unless they are real numbers of that shape, finite as float32, and the same when the
    ensemble is asked again for some of the samples alone.
    """
    named = f"{_named(score)} answers at exit {history.exit_index} with"

    def ask(history: ExitHistory) -> NDArray[np.float32]:
        found = _real(score.answers(history), history.evidence[-1].probabilities.shape, named)
        with np.errstate(over="ignore"):
            return found.astype(np.float32, copy=False)

    found = ask(history)
    wrong = ~np.isfinite(found).all(axis=1)
    if wrong.any():
        first = found[wrong.argmax()]
        raise InvalidInputError(
            f"{named} {first[~np.isfinite(first)][0]} for {int(wrong.sum())} of {len(found)} samples, expected finite "
            "logits for each; clip what is divided by and what a logarithm is of"
        )
    _require_the_same(ask, history, found, np.ones(len(found), dtype=np.bool_), _ROUNDING, named)
    return found


def _require_the_same(
    ask: Callable[[ExitHistory], NDArray[np.floating]],
    history: ExitHistory,
    found: NDArray[np.floating],
    asked: Bools,
    rounding: float,
    named: str,
) -> None:
    """Raise `InvalidInputError` where samples get other numbers among fewer; only the `asked` matter."""
    spread = np.unique(np.linspace(0, len(found) - 1, _ASKED_AGAIN).round().astype(np.intp))
    for rows in (spread, spread[:1]):
        again, before = ask(history.take(rows)), found[rows]
        differ = ~np.isclose(again, before, rtol=rounding, atol=rounding, equal_nan=True)
        differ &= asked[rows].reshape(-1, *[1] * (differ.ndim - 1))
        if differ.any():
            at = np.unravel_index(differ.argmax(), differ.shape)
            raise InvalidInputError(
                f"{named} {before[at]:.6g} for sample {rows[at[0]]} among all {len(found)}, and "
                f"{again[at]:.6g} among {len(rows)} of them; expected the same, since a sample must exit where it does "
                "whatever is in its batch: no random numbers, and no ranks, means or sums over the samples"
            )


def _real(found: object, shape: tuple[int, ...], named: str) -> NDArray[np.generic]:
    """What was found; raises `InvalidInputError` where it is not real numbers of this shape."""
    if not isinstance(found, np.ndarray):
        came = kind_of(found)
    elif found.dtype.kind not in "fiub":
        came = f"an array of {found.dtype}"
    elif found.shape != shape:
        came = f"an array of shape {found.shape}"
    else:
        return found
    raise InvalidInputError(
        f"{named} {came} for {shape[0]} samples, expected a numpy array of real numbers of shape {shape}"
    )


def _named(score: Score) -> str:
    return f"score {(score.name or type(score).__name__)!r}"
