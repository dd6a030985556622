"""Is early exit worth it here, and against what: in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import hypot, sqrt

from eenet.benchmarking._results import BenchmarkRow, with_error

Difference = Callable[[int, int], "tuple[float, float] | None"]
"""The accuracy of one row minus that of another on the same samples, and its standard error; None where unknown."""

_FASTER = 1.03  # a speed below this is no gain worth the trouble
_RULE_OF_THREE = 3.0  # where none of n samples differs, at most 3 in n may, with 95 %
_ERRORS = 2.0  # standard errors beyond which a difference is not chance


def verdict(
    rows: Sequence[BenchmarkRow],
    difference: Difference,
    max_drop: float,
    samples: int,
    *,
    trained: Sequence[bool],
    by_cpu: bool,
    unsure: Mapping[int, str],
) -> str:
    """One paragraph on the rows of one batch size, of which the first is the reference; by wall or by CPU time.

    `trained` says of each row whether its weights are not random. Nothing can be said of the times of the rows in
    `unsure`, for the reasons there; the others are judged without them.
    """
    at = f"at batch {rows[0].batch_size}"
    if by_cpu:
        at += " (by CPU time)"
        rows = [replace(row, speed=row.cpu_speed, speed_error=row.cpu_speed_error) for row in rows]
    if 0 in unsure:
        return f"It cannot be said {at}, since all are compared with {rows[0].title}: {unsure[0]}."
    text = _judged(rows, difference, max_drop, samples, at, trained, unsure)
    judged = trained[0] and any(trained[n] for n, row in enumerate(rows) if row.early_exit and n not in unsure)
    untrained = [
        row
        for n, row in enumerate(rows)
        if n and (judged or not row.early_exit) and not trained[n] and row.speed > _FASTER and n not in unsure
    ]
    text += "".join(
        f" {row.title} is {_times(row, rows[0])}, with random weights: train it to know its accuracy."
        for row in untrained
    )
    return text + "".join(f" Of {rows[n].title} it cannot be said: {why}." for n, why in sorted(unsure.items()))


def _judged(
    rows: Sequence[BenchmarkRow],
    difference: Difference,
    max_drop: float,
    samples: int,
    at: str,
    trained: Sequence[bool],
    unsure: Mapping[int, str],
) -> str:
    first = rows[0]
    early = [n for n, row in enumerate(rows) if row.early_exit and n not in unsure]
    others = [
        n for n, row in enumerate(rows) if not row.early_exit and n and row.agreement is not None and n not in unsure
    ]
    if not any(row.early_exit for row in rows):
        return f"No system here has early exits, so there is nothing to judge {at}."
    if first.early_exit:
        return (
            f"The first system, {first.title}, has exits itself {at}: put the plain network first to judge early exit."
        )
    if not early:
        instead = "".join(f" Without exits, {_said(rows[n], first)}." for n in others)
        return f"Of early exit it cannot be said {at} whether it is worth it.{instead}"
    if not trained[0] or not any(trained[n] for n in early):
        who = f"the first system, {first.title}, with which all are compared, has" if not trained[0] else "these have"
        times = "; ".join(f"{rows[n].title} is {_times(rows[n], first)}" for n in early)
        return f"Nothing can be said of accuracies {at}: {who} random weights (untrained=). Of times: {times}."
    if first.accuracy is None:
        return _by_agreement(rows, early, others, max_drop, samples, at)

    def lost(n: int) -> float:
        return -(rows[n].difference or 0.0)

    def known(n: int) -> bool:
        return rows[n].difference is not None

    keeping = [n for n in early if known(n) and _faster(rows[n]) and lost(n) <= max_drop]
    rivals = [n for n in others if known(n) and _faster(rows[n]) and lost(n) <= max_drop]
    best = max(keeping, key=lambda n: rows[n].speed, default=None)
    rival = max(rivals, key=lambda n: rows[n].speed, default=None)
    if best is None:
        return _no_gain(rows, early, others, rival, max_drop, at)
    gained = _said(rows[best], first)
    if rival is not None and _beats(rows[rival], rows[best]):
        gain = difference(best, rival) or (0.0, 0.0)
        if gain[0] <= 0 or gain[0] <= _ERRORS * gain[1]:
            return (
                f"Not worth it {at}: {_said(rows[rival], first)}, and has no exits. The best early exit, {gained}: "
                f"{_points(*gain)} against {rows[rival].title}."
            )
        return (
            f"It depends {at}: early exit, {gained}; without exits, {_said(rows[rival], first)}. Early exit is slower, "
            f"and {_points(*gain)} better than that."
        )
    text = f"Worth it {at}: {gained}."
    text += _unless_few(_ERRORS * (rows[best].difference_error or 0.0), samples, max_drop)
    return text + "".join(_alternative(rows, n, early, difference) for n in others if rows[n].speed >= _FASTER)


def _no_gain(
    rows: Sequence[BenchmarkRow],
    early: Sequence[int],
    others: Sequence[int],
    rival: int | None,
    max_drop: float,
    at: str,
) -> str:
    """Where no early exit is faster for sure without losing accuracy."""
    first = rows[0]
    instead = "".join(f" Without exits, {_said(rows[n], first)}." for n in others if _faster(rows[n]))
    maybe = [n for n in early if rows[n].speed >= _FASTER and rows[n].difference is not None]
    kept = [n for n in maybe if -(rows[n].difference or 0.0) <= max_drop]
    if kept:
        fastest = max(kept, key=lambda n: rows[n].speed)
        said = f"{_said(rows[fastest], first)}; measure longer, or more samples"
        if rival is not None and all(_beats(rows[rival], rows[n]) for n in early):
            return (
                f"Not worth it {at}: {_said(rows[rival], first)}, and has no exits; no early exit here is as fast. "
                f"Against {first.title} it cannot be said: {said}."
            )
        return f"It cannot be said {at}: {said}.{instead}"
    if maybe:
        least = max([n for n in maybe if _faster(rows[n])] or maybe, key=lambda n: rows[n].difference or 0.0)
        return (
            f"Not worth it {at} if at most {_amount(max_drop)} of accuracy may be lost: of the faster early exits, "
            f"{_said(rows[least], first)} loses least.{instead}"
        )
    known = [n for n in early if rows[n].difference is not None]
    fastest = max(known, key=lambda n: rows[n].speed)
    return f"Not worth it {at}: {_none_faster(rows[fastest], first)}; {_said(rows[fastest], first)}.{instead}"


def _none_faster(fastest: BenchmarkRow, first: BenchmarkRow) -> str:
    """What is true of all early exits where this is the fastest."""
    by = "" if fastest.speed <= 1 else f" by {_FASTER - 1:.0%} or more"
    return f"no early exit is faster than {first.title}{by}"


def _alternative(rows: Sequence[BenchmarkRow], n: int, early: Sequence[int], difference: Difference) -> str:
    """A sentence on a system without exits beside the early exits that win."""
    row, first = rows[n], rows[0]
    text = f" Without exits, {_said(row, first)}"
    rivals = [k for k in early if _beats(rows[k], row)]
    if row.difference is None:
        return text + "."
    if not rivals and not all(_beats(row, rows[k]) for k in early):
        return text + "; whether early exit is faster than that cannot be said: measure longer, or more samples."
    if not rivals:
        return text + "; no early exit here is as fast."
    best = max(rivals, key=lambda k: rows[k].accuracy or 0.0)
    gain = difference(best, n)
    if gain is None:
        return text + "."
    return text + f"; {rows[best].title} is {rows[best].speed / row.speed:.2f} times as fast as that, {_points(*gain)}."


def _by_agreement(
    rows: Sequence[BenchmarkRow], early: Sequence[int], others: Sequence[int], max_drop: float, samples: int, at: str
) -> str:
    """Without labels: an answer that agrees with the reference's is as right as that."""
    first = rows[0]
    known = [rows[n] for n in early if rows[n].agreement is not None]
    maybe = [row for row in known if row.speed >= _FASTER]
    alike = [row for row in maybe if 1 - (row.agreement or 0) <= max_drop]
    row = max(alike or maybe or known, key=lambda row: (_faster(row), row.speed))
    differs = 1 - (row.agreement or 0)
    said = f"{row.title} is {_times(row, first)} and gives another answer on {differs:.1%} of the samples"
    instead = "".join(
        f" Without exits, {other.title} is {_times(other, first)} and differs on {1 - (other.agreement or 0):.1%}."
        for other in (rows[n] for n in others)
    )
    if not maybe:
        return f"Not worth it {at}: {_none_faster(row, first)}; {said}.{instead}"
    if alike and not _faster(row):
        return f"It cannot be said {at}: {said}; measure longer, or more samples.{instead}"
    if alike:
        text = f"Worth it {at}: {said}, so it loses no more than that on them."
        most = differs + _ERRORS * sqrt(differs * (1 - differs) / samples)
        return text + _unless_few(most, samples, max_drop) + instead
    return f"Without labels it cannot be said whether early exit is worth it {at}: {said}.{instead}"


def _unless_few(loss: float, samples: int, max_drop: float) -> str:
    """What to add where this number of samples does not exclude a larger loss; `loss` is what chance may hide."""
    if max(loss, _RULE_OF_THREE / samples) <= max_drop:
        return ""
    return f" {samples} samples cannot rule out a larger loss than {_amount(max_drop)}: give more to be certain."


def _faster(row: BenchmarkRow) -> bool:
    """Whether it is faster than the reference, beyond its error and by what is worth the trouble."""
    return row.speed >= _FASTER and row.speed - _ERRORS * row.speed_error > 1


def _beats(row: BenchmarkRow, other: BenchmarkRow) -> bool:
    """Whether one system is faster than another, beyond the errors of both."""
    error = hypot(row.speed_error / row.speed, other.speed_error / other.speed)
    return row.speed / other.speed * (1 - _ERRORS * error) > 1


def _said(row: BenchmarkRow, first: BenchmarkRow) -> str:
    """A row against the reference."""
    if row.difference is None:
        return f"{row.title} is {_times(row, first)} (its accuracy is not known)"
    return f"{row.title} is {_times(row, first)}, accuracy {_points(row.difference, row.difference_error or 0.0)}"


def _times(row: BenchmarkRow, first: BenchmarkRow) -> str:
    return f"{with_error(row.speed, row.speed_error, 2)} times as fast as {first.title}"


def _amount(share: float) -> str:
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"


def _points(mean: float, error: float) -> str:
    if mean == 0 and error == 0:
        return "the same"
    chance = "beyond chance" if abs(mean) > _ERRORS * error else "not beyond chance"
    return f"{with_error(100 * mean, 100 * error, 1, '+')} points ({chance})"
