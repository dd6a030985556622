"""Section 3, can it be trusted: calibration, failure prediction, agreement, budgets kept, exits that are dead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import EENetError
from eenet.evaluation._style import REFERENCE, RIGHT, WRONG, Style, exit_styles
from eenet.records import ExitRecords
from eenet.reporting._charts import Chart, axis, chart, numbers, series
from eenet.reporting._leaving import Scores
from eenet.reporting._promises import adherence, adherence_resplits, coverage, dead
from eenet.reporting._replays import Replays

Floats = NDArray[np.float64]

BINS = 10
_COVERAGES = 100
_CLASSES = 15
"""How many classes a confusion shows; of more, those that change most."""
_MENDED = Style("#009E73", "#2FD1A3", "^", "triangle-up")


def binned(confidence: Floats, utility: Floats, bins: int = BINS) -> dict[str, Any]:
    """Bins of equal width over [0, 1]: for each that is not empty its samples, mean confidence and mean utility.

    `error` is the standard error of the mean utility; `ece` the expected calibration error, the mean of the distances
    weighted by the samples.
    """
    number = np.clip((confidence * bins).astype(np.intp), 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    full = count > 0
    mean, share, square = (
        np.bincount(number, values, minlength=bins)[full] / count[full] for values in (confidence, utility, utility**2)
    )
    error = np.sqrt(np.maximum(square - share**2, 0.0) / count[full])
    ece = float((np.abs(mean - share) * count[full]).sum() / max(1, len(confidence)))
    return {"samples": count[full], "confidence": mean, "accuracy": share, "error": error, "ece": ece}


def auroc(score: Floats, utility: Floats) -> float | None:
    """How likely a right answer has the higher score than a wrong one, ties counting half; None where all are alike.

    A utility between 0 and 1 counts as that much of a right answer.
    """
    _, places = np.unique(score, return_inverse=True)
    right, wrong = (np.bincount(places, values) for values in (utility, 1 - utility))
    whole = right.sum() * wrong.sum()
    below = np.cumsum(wrong) - wrong
    return float((right * (below + wrong / 2)).sum() / whole) if whole > 0 else None


def risks(score: Floats, utility: Floats) -> Floats:
    """The mean loss of the n samples of the highest score, for n from 1 to N; tied samples share theirs."""
    _, places, counts = np.unique(-score, return_inverse=True, return_counts=True)
    loss = (np.bincount(places, 1 - utility) / counts)[np.sort(places)]
    made: Floats = np.cumsum(loss) / np.arange(1, len(score) + 1)
    return made


def reliability(records: ExitRecords, bins: int = BINS) -> Chart:
    """Mean accuracy against mean confidence at each exit, with the expected calibration error."""
    made, eces, left_out = [], {}, 0
    utility = records.require_utility().astype(np.float64)
    for k, (evidence, style) in enumerate(zip(records.all_evidence(), exit_styles(records.num_exits), strict=True)):
        finite = evidence.finite
        left_out += int((~finite).sum())
        found = binned(evidence.max_probability[finite], utility[k, finite], bins)
        eces[f"ECE of exit {k}"] = found["ece"]
        name = f"exit {k}, ECE {100 * found['ece']:.1f} %"
        errors = {"y_error": found["error"], "samples": found["samples"]}
        made.append(series(name, style, found["confidence"], found["accuracy"], **errors))
    return chart(
        "reliability",
        "Calibration of each exit",
        "An exit on the diagonal is right as often as its confidence says; below it, it is too sure. Bars are one "
        f"standard error, points are bins of a width of {1 / bins:g}."
        + (f" {left_out} outputs that are not finite are left out." if left_out else ""),
        axis("confidence: largest class probability", percent=True, limits=(0, 1)),
        axis("accuracy", percent=True, limits=(0, 1)),
        rules=[{"axis": "diagonal", "at": 0.0, "name": "calibrated"}],
        numbers=eces,
        kind="lines",
        series=made,
    )


def risk_coverage(records: ExitRecords) -> Chart:
    """The error rate of the samples that an exit is surest of, against their share, with the area below (AURC)."""
    made, areas = [], {}
    utility = records.require_utility().astype(np.float64)
    count = len(records)
    shown = np.unique(np.ceil(np.linspace(1 / _COVERAGES, 1, _COVERAGES) * count).astype(np.intp)) - 1
    for k, (evidence, style) in enumerate(zip(records.all_evidence(), exit_styles(records.num_exits), strict=True)):
        risk = risks(_surest(evidence), utility[k])
        areas[f"AURC of exit {k}"] = float(risk.mean())
        made.append(series(f"exit {k}", style, (shown + 1) / count, risk[shown], points=False))
    return chart(
        "risk-coverage",
        "Errors among the surest samples",
        "Of the share of the samples that an exit is surest of, so many are wrong. A curve that stays low for long has "
        "errors only where the exit is unsure.",
        axis("share of the samples, surest first", percent=True, limits=(0, 1)),
        axis("error rate", percent=True),
        numbers=areas,
        kind="lines",
        series=made,
    )


def _surest(evidence: Any) -> Floats:
    """The log odds of the largest probability; outputs that are not finite last."""
    odds: Floats = np.where(evidence.finite, evidence.log_odds, -np.inf)
    return odds


def failure_prediction(replays: Replays) -> Chart:
    """How well each scheduler's score tells right answers from wrong ones at each early exit, as AUROC."""
    records, utility = replays.records, replays.records.require_utility().astype(np.float64)
    evidence = records.all_evidence()
    exits = list(range(records.num_exits - 1))
    rows = {"largest probability": [auroc(_surest(evidence[k]), utility[k]) for k in exits]}
    known = Scores(replays)
    for title, replay in middle(replays).items():
        values, finite, _ = known.of(replay.policy.score)
        rows[title] = [auroc(of_exit, utility[k]) for k, of_exit in enumerate(np.where(finite, values, -np.inf))]
    return chart(
        "failure-prediction",
        "Do scores tell right from wrong answers?",
        "The chance that a right answer has a higher score than a wrong one (AUROC): 100 % tells them apart, 50 % is "
        "chance. Scores are those at a budget in the middle. A score can schedule well without this: some predict what "
        "a later exit would gain.",
        axis("exit"),
        axis("score"),
        kind="heat",
        rows=list(rows),
        columns=[f"exit {k}" for k in exits],
        values=[[None if value is None else float(value) for value in row] for row in rows.values()],
        percent=True,
        limits=[0.5, 1.0],
    )


def middle(replays: Replays) -> dict[str, Any]:
    """Of each scheduler the replay at the middle one of the budgets that it can meet."""
    found = {title: [replay for replay in of if replay is not None] for title, of in replays.of.items()}
    return {title: of[len(of) // 2] for title, of in found.items() if of}


def agreement(records: ExitRecords) -> Chart:
    """The share of the samples that two exits give the same answer to."""
    said = records.predictions
    same = (said[:, None, :] == said[None, :, :]).mean(axis=2)
    names = [f"exit {k}" for k in range(len(said))]
    return chart(
        "agreement",
        "Agreement between exits",
        "The share of the samples to which both exits give the same answer.",
        axis(""),
        axis(""),
        kind="heat",
        rows=names,
        columns=names,
        values=numbers(same),
        percent=True,
        limits=[float(same.min()), 1.0],
    )


def changes(records: ExitRecords) -> Chart:
    """What the last exit changes for the samples of each earlier one: errors mended, right answers lost."""
    utility = records.require_utility().astype(np.float64)
    last = utility[-1]
    gray = REFERENCE
    parts = {
        "both right": (RIGHT, [float((one * last).mean()) for one in utility[:-1]]),
        "last exit mends it": (_MENDED, [float(((1 - one) * last).mean()) for one in utility[:-1]]),
        "last exit spoils it": (WRONG, [float((one * (1 - last)).mean()) for one in utility[:-1]]),
        "both wrong": (gray, [float(((1 - one) * (1 - last)).mean()) for one in utility[:-1]]),
    }
    return chart(
        "changes",
        "What the last exit changes",
        "Samples that an early exit gets wrong and the last one right are what going on can win; those that it spoils "
        "are what leaving early wins.",
        axis("if all samples left at"),
        axis("share of the samples", percent=True, limits=(0, 1)),
        kind="bars",
        categories=[f"exit {k}" for k in range(records.num_exits - 1)],
        stacked=True,
        series=[{"name": name, "style": style.to_dict(), "values": values} for name, (style, values) in parts.items()],
    )


def confusion(records: ExitRecords, classes: Sequence[str], exit_index: int = 0) -> Chart:
    """How often an exit says one class and the last exit another; of many classes those that are changed most."""
    first, last = records.predictions[exit_index], records.predictions[-1]
    size = records.num_classes
    counts = np.bincount(first * size + last, minlength=size * size).reshape(size, size)
    moved = counts - np.diag(np.diag(counts))
    most = np.argsort(-(moved.sum(axis=0) + moved.sum(axis=1)), kind="stable")[:_CLASSES]
    kept = np.sort(most) if size > _CLASSES else np.arange(size)
    names = [str(classes[c]) for c in kept]
    shown = counts[np.ix_(kept, kept)]
    whole = np.maximum(counts.sum(axis=1)[kept], 1)
    return chart(
        f"confusion-{exit_index}",
        f"Answers of exit {exit_index} and of the last exit",
        f"A row: of the samples that exit {exit_index} calls this class, the share that the last exit calls each."
        + (f" The {len(kept)} of {size} classes whose answers change most." if len(kept) < size else ""),
        axis("answer of the last exit"),
        axis(f"answer of exit {exit_index}"),
        kind="heat",
        rows=names,
        columns=names,
        values=numbers(shown / whole[:, None]),
        percent=True,
        limits=[0.0, 1.0],
        counts=shown.tolist(),
    )


def trust(replays: Replays) -> tuple[list[Chart], list[str]]:
    """Charts, what they say of dead exits, and what is missing."""
    run, records = replays.run, replays.records
    charts: list[Chart] = []
    notes = dead(replays)
    if records.utility is None:
        notes.append("Calibration, failure prediction and what the last exit changes need labels.")
    else:
        charts += [reliability(records), risk_coverage(records)]
        if records.num_exits > 1:
            charts += [failure_prediction(replays), changes(records)]
    if records.num_exits > 1:
        charts += [agreement(records), confusion(records, run.classes)]
    if replays.of:
        charts.append(adherence(replays))
    if run.comparison is not None:
        charts += adherence_resplits(run.comparison)
    else:
        notes.append("Budgets over resplits need a comparison: eenet compare RECORDS --costs COSTS --out DIR.")
    try:
        charts.append(coverage(replays))
    except EENetError as error:
        notes.append(f"The guarantee is not simulated, since {error}.")
    return charts, notes
