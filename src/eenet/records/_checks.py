"""What a user gives as outputs, labels and exit numbers: checked, with errors that name the first place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet._values import require_no_mask
from eenet._warn import warn
from eenet.errors import InvalidInputError, ReliabilityWarning, kind_of

_SUM_TOLERANCE = 1e-3
_FEWEST = 8  # rows of logits of which it is said that they look like probabilities
_AXES = "(exits, samples, classes)"


def require_same_network(what: str, fitted: str | None, network: str | None, this: str = "this one has") -> None:
    """Raise `InvalidInputError` where what was made of a network, in words, is not of this one, by both digests.

    This is the one rule for schedulers, records, models and bundles: they go together where they are of the same
    weights in the same precision, since a copy in half precision gives other outputs. Where a digest is not known, as
    of predictions of another framework, there is nothing to compare.
    """
    if None not in (fitted, network) and fitted != network:
        raise InvalidInputError(
            f"{what} of a network with other weights (digest {fitted}, {this} {network}), or with the same ones in "
            "another precision: thresholds that fit one do not fit the other; collect records of this one, and fit to "
            "them"
        )


def require_distributions(
    of_exit: NDArray[np.floating[Any]], whole: NDArray[np.floating[Any]], exit_index: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One exit's probabilities in float64 and their sums; raises where a finite row is no distribution."""
    exact = np.ascontiguousarray(of_exit, dtype=np.float64)
    negative = np.isfinite(exact) & (exact < 0)
    if negative.any():
        n, c = np.argwhere(negative)[0]
        raise InvalidInputError(
            f"probabilities[{exit_index}, {n}, {c}] is {exact[n, c]:.6g}, which is negative; for logits use from_logits"
        )
    sums = exact.sum(axis=-1)
    wrong = np.isfinite(exact).all(axis=-1) & ~(np.abs(sums - 1) <= _SUM_TOLERANCE)
    if wrong.any():
        n = int(wrong.argmax())
        raise InvalidInputError(
            f"probabilities[{exit_index}, {n}] sums to {sums[n]:.6g}, expected 1 within {_SUM_TOLERANCE}; "
            f"{_other_axis(whole) or 'apply softmax, or use from_logits'}"
        )
    return exact, sums


def are_probabilities(rows: NDArray[np.floating[Any]]) -> bool:
    """Whether logits (N, C) look like probabilities: at least 8 rows, none negative, all with the sum 1."""
    if len(rows) < _FEWEST or not _all_distributions(rows[:_FEWEST]):  # of logits the first rows say so
        return False
    return _all_distributions(rows)


def _all_distributions(rows: NDArray[np.floating[Any]]) -> bool:
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=-1, dtype=np.float64) - 1) <= _SUM_TOLERANCE).all())


def warn_of_probabilities(exits: Sequence[int]) -> None:
    """Warn of the exits whose logits look like probabilities, if there are any."""
    if exits:
        named = ", ".join(map(str, exits))
        warn(
            f"the logits of exit{'s' * (len(exits) > 1)} {named} look like probabilities: none is negative, and those "
            "of each sample sum to 1. Softmax is applied to logits, so applied twice, and confidences are wrong: "
            "remove the softmax at the end of the network or the head, or give predictions as probabilities, with "
            "from_probabilities or in an array of that name",
            ReliabilityWarning,
        )


def _other_axis(whole: NDArray[np.floating[Any]]) -> str | None:
    """What to do where probabilities sum to 1 along another axis than the last."""
    for axis in (0, 1):
        if (np.abs(whole.sum(axis=axis, dtype=np.float64) - 1) <= _SUM_TOLERANCE).all():
            return (
                f"they sum to 1 along axis {axis}, so the classes are there: of shape {whole.shape}, expected {_AXES}; "
                "reorder the axes with numpy.transpose"
            )
    return None


def require_most_probable(probabilities: NDArray[np.float32], predictions: NDArray[np.intp]) -> None:
    """Raise where a prediction is not a most probable class, which evidence takes for granted."""
    classes = probabilities.shape[2]
    for k, (of_exit, predicted) in enumerate(zip(probabilities, predictions, strict=True)):
        wrong = (predicted < 0) | (predicted >= classes)
        most = np.take_along_axis(of_exit, np.where(wrong, 0, predicted)[:, None], axis=1)[:, 0]
        wrong |= most < of_exit.max(axis=-1)
        if wrong.any():
            n = int(wrong.argmax())
            raise InvalidInputError(
                f"exit {k} predicts class {predicted[n]} for sample {n}, which is not its most probable one; make "
                "records with from_logits or from_probabilities, which predict themselves"
            )


def _array(values: ArrayLike, name: str) -> NDArray[Any]:
    require_no_mask(values, name)
    try:
        return np.asarray(values)
    # Rows of different lengths; tensors with gradients, on a GPU, or of a dtype that numpy lacks.
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInputError(
            f"{name} are {kind_of(values)} that cannot be made an array ({error}); expected numbers in rows of "
            "one length; of a tensor give tensor.detach().cpu(), of bfloat16 its float() as well"
        ) from error


def exit_cube(values: ArrayLike, name: str, least: tuple[int, int, int] = (2, 1, 2)) -> NDArray[np.floating[Any]]:
    """The array (K, N, C) of probabilities or logits, with at least `least` of each."""
    array = _array(values, name)
    if array.dtype.kind != "f":
        raise InvalidInputError(f"{name} have dtype {array.dtype}, expected a float dtype such as float32")
    plain = array.ndim == 2 and least[0] > 1
    if plain:
        array = array[None]
    if array.ndim != 3:
        raise InvalidInputError(
            f"{name} have shape {array.shape}, expected {_AXES}, or (samples, classes) of a member of a cascade"
        )
    exits, samples, classes = array.shape
    if exits < least[0] and not plain:
        raise InvalidInputError(
            f"{name} have {exits} exit, expected at least 2: with one exit there is no choice; give those of a plain "
            "network, which is a member of a cascade, as (samples, classes)"
        )
    if samples < least[1]:
        raise InvalidInputError(f"{name} have 0 samples, expected at least 1")
    if classes < least[2]:
        raise InvalidInputError(f"{name} have {classes} class, expected at least 2; give a binary output as (1 - p, p)")
    return array


def class_labels(
    labels: ArrayLike, outputs: NDArray[np.floating[Any]], name: str = "probabilities"
) -> NDArray[np.intp]:
    """The labels of outputs (K, N, C)."""
    y = _array(labels, "labels")
    samples, classes = outputs.shape[1:]
    if y.shape == (samples, classes) and y.dtype.kind in "buif":
        raise InvalidInputError(
            f"labels have shape {y.shape}, expected ({samples},): one class number for each sample; of one-hot labels "
            "give labels.argmax(1)"
        )
    require_class_numbers(y, classes)
    if y.shape != (samples,):
        if y.ndim == 1 and len(y) == len(outputs):
            raise InvalidInputError(
                f"{name} have shape {outputs.shape}, expected {_AXES}: there are {len(y)} labels, so the first axis is "
                f"that of the samples; exchange the first two with numpy.swapaxes({name}, 0, 1)"
            )
        axis = f"; {name} have shape {outputs.shape}, expected {_AXES}" if y.size in outputs.shape else ""
        raise InvalidInputError(f"labels have shape {y.shape}, expected ({samples},): one for each sample{axis}")
    require_labeled(y, classes)
    bad = y >= classes
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise InvalidInputError(f"labels[{first}] is {y[first]}, expected 0 to {classes - 1}: classes count from 0")
    return y.astype(np.intp)


def missing_labels(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the labels (N,) stand for a sample without one: negative numbers, NaN, None and empty texts."""
    if labels.dtype.kind in "iuf":
        missing: NDArray[np.bool_] = (labels < 0) | np.isnan(labels)
        return missing
    return np.array([_stands_for_none(value) for value in labels.tolist()], dtype=np.bool_)


def _stands_for_none(value: Any) -> bool:
    if isinstance(value, (str, bytes)):
        return not value.strip()
    return str(value) in ("None", "nan", "<NA>") or (isinstance(value, (int, float)) and value < 0)


def require_labeled(labels: NDArray[Any], classes: int | None = None) -> None:
    """Raise `InvalidInputError`, with the ways out, where samples have no label; labels are (N,), of `classes`."""
    missing = missing_labels(labels)
    if not missing.any():
        return
    count, first = int(missing.sum()), int(missing.argmax())
    expected = "a class number from 0" if classes is None else f"0 to {classes - 1}"
    some = (
        "leave these samples out, with known = labels >= 0 outputs[:, known] and labels[known]; or "
        if count < len(labels)
        else ""
    )
    raise InvalidInputError(
        f"labels[{first}] is {labels.tolist()[first]!r}, expected {expected}: {count} of {len(labels)} samples "
        f"{'has' if count == 1 else 'have'} no label; {some}give no labels, and judge all samples by the last exit's "
        "answers with ExitRecords.judged_by_last(), or --judged-by-last on the command line"
    )


def require_class_numbers(labels: NDArray[Any], classes: int | None = None) -> None:
    """Raise `InvalidInputError`, with what makes class numbers of them, for labels that are no integers."""
    kind = labels.dtype.kind
    if kind in "iu":
        return
    if labels.ndim == 1 and kind in "fO":
        require_labeled(labels, classes)
    way = (
        "give the number of each name in the order of the classes of the outputs: with scikit-learn "
        "numpy.searchsorted(model.classes_, labels)"
    )
    if kind in "bf":
        way = "give labels.long() of a tensor, labels.astype(int) of an array"
        if labels.ndim == 2:
            way = "of one-hot labels give labels.argmax(1)"
    raise InvalidInputError(f"labels have dtype {labels.dtype}, expected integers: class numbers from 0; {way}")


def checked(values: ArrayLike, name: str, kinds: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of this shape whose dtype is of one of these kinds."""
    array = _array(values, name)
    if array.dtype.kind not in kinds:
        expected = "integers" if kinds == "iu" else "floats"
        raise InvalidInputError(f"{name} of dtype {array.dtype}, expected {expected}")
    if array.shape != shape:
        raise InvalidInputError(f"{name} of shape {array.shape}, expected {shape}")
    return array


def utilities(values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = checked(values, "utility", "fbiu", shape)
    outside = ~((array >= 0) & (array <= 1))
    if outside.any():
        k, n = np.argwhere(outside)[0]
        raise InvalidInputError(f"utility[{k}, {n}] is {array[k, n]:.6g}, expected a number from 0 to 1")
    return array.astype(np.float32, copy=False)


def kept_numbers(exits: Sequence[int], count: int, *, fewest: int, hint: str = "") -> list[int]:
    """The numbers of the exits to keep, of `count`, in order; raises `InvalidInputError` for others, with the hint."""
    given = np.asarray(exits)
    if given.ndim != 1 or given.dtype.kind not in "iu" or len(set(given.tolist())) < max(fewest, len(given)):
        few = f"{fewest} exit{'s' * (fewest > 1)}"
        raise InvalidInputError(
            f"exits are {exits!r}, expected the numbers of at least {few}, from 0 to {count - 1}, each once"
            f"{hint and f'; {hint}'}"
        )
    if given.min() < 0 or given.max() >= count:
        raise InvalidInputError(f"exits are {given.tolist()}, expected numbers from 0 to {count - 1}")
    return sorted(given.tolist())
