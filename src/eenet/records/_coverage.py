"""Labels that lack classes which the network has, where that is no chance."""

from __future__ import annotations

from math import exp, lgamma, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._warn import warn
from eenet.errors import ReliabilityWarning

_RARER, _RARER_IF_SORTED = 0.1, 0.2
"""Classes that are missing may be so much rarer than the rarest that is there, where those are all alike."""
_CHANCE = 1e-3
"""What is no chance: a smaller probability."""
_PART = 0.1
"""The part of the classes that must be missing, and at least two: one among many may be as rare as anything."""
_EACH = 3
"""Samples of the rarest class: where others have one or two, the missing ones may be as rare."""
_FEW = 4  # classes, of which one is a good part
_ENOUGH, _BEYOND = 100, 3.0  # samples, and standard errors, by which an accuracy is more than chance
_FEWEST = 20  # samples of which something is said
_LOW = 0.1  # the quantile that stands for the rarest, so that a wrong label does not
_NAMED = 8  # classes
_WAY_OUT = "take samples of all classes, such as a shuffled part of the data"


def missing_classes(labels: NDArray[np.intp] | None, classes: int) -> str | None:
    """What to say where labels (N,) lack some of `classes` classes, and chance does not explain it; else None.

    By chance a class is missing where samples are few, or where it is rare. How rare the missing ones may be is taken
    from those that are there: a tenth of the rarest, and less where that is itself rarer than is usual there. In an
    order that is sorted by class the last one may be cut off, and does not count.
    """
    if labels is None or classes < 2 or len(labels) < _FEWEST:
        return None
    counts = np.bincount(labels, minlength=classes)
    absent = np.flatnonzero(counts == 0)
    present = classes - len(absent)
    if not len(absent):
        return None
    if present == 1:
        return (
            f"all {len(labels)} samples are of class {int(labels[0])}: what is fitted to them, or judged on them, says "
            f"nothing of the other {classes - 1} classes; {_WAY_OUT}"
        )
    ends = np.flatnonzero(np.append(np.diff(labels) != 0, True))
    is_sorted = len(ends) == present and _log_chance_of_order(counts) < log(_CHANCE)
    if len(absent) < max(_PART * classes, 1 if is_sorted and classes <= _FEW else 2):
        return None
    there = counts[labels[ends[:-1] if is_sorted and present > 2 else ends]] if is_sorted else counts[counts > 0]
    rarest = float(np.quantile(there, _LOW, method="lower"))
    rate = (_RARER_IF_SORTED if is_sorted else _RARER) * rarest * min(1.0, rarest / float(np.median(there)))
    if rarest < _EACH or not _beyond_chance(len(absent), classes, exp(-rate)):
        return None
    named = ", ".join(map(str, absent[:_NAMED].tolist()))
    more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
    order = " They are sorted by class, as where the first rows of a file are taken." if is_sorted else ""
    return (
        f"the labels of {len(labels)} samples lack {len(absent)} of the network's {classes} classes ({named}{more}), "
        f"which is unlikely by chance.{order} What is fitted to these samples, or judged on them, says nothing of the "
        f"missing classes; {_WAY_OUT}"
    )


def warn_of_missing_classes(labels: NDArray[np.intp] | None, classes: int) -> None:
    """Warn of what `missing_classes` says."""
    said = missing_classes(labels, classes)
    if said is not None:
        warn(said, ReliabilityWarning)


def warn_of_chance(labels: NDArray[np.intp] | None, predictions: NDArray[np.intp], classes: int) -> None:
    """Warn where the last exit's predictions (N,) are right no more often than with the labels in any order.

    Of fewer than 100 samples nothing is said. The mean and the variance over all orders are those of Hoeffding, "A
    combinatorial central limit theorem" (1951), so rare classes are counted as what they are.
    """
    if labels is None or classes < 2 or len(labels) < _ENOUGH:
        return
    n, right = len(labels), float((predictions == labels).mean())
    said, true = (np.bincount(values, minlength=classes) / n for values in (predictions, labels))
    if true.max() == 1:  # any order is the same; that all are of one class is said by itself
        return
    chance = float(said @ true)
    variance = (chance + chance**2 - float(said @ true**2) - float(said**2 @ true)) / (n - 1)
    if right > chance + _BEYOND * sqrt(max(variance, 0.0)):
        return
    warn(
        f"the last exit is right on {right:.1%} of {n} samples, no more than with the labels in any order "
        f"({chance:.1%}): are they in the order of the samples, and of the classes of this network?",
        ReliabilityWarning,
    )


def _log_chance_of_order(counts: NDArray[Any]) -> float:
    """Of the orders of labels the share in which each class is in one piece, as a logarithm."""
    there = counts[counts > 0].tolist()
    return lgamma(len(there) + 1) + sum(lgamma(count + 1) for count in there) - lgamma(sum(there) + 1)


def _beyond_chance(missing: int, classes: int, each: float) -> bool:
    """Whether this number of classes, each missing with a probability, are missing with less than `_CHANCE`."""
    from scipy.stats import binom

    return bool(binom.sf(missing - 1, classes, each) < _CHANCE)
