"""Section 3, can it be trusted: calibration, failure prediction, agreement, budgets kept, exits that are dead."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import EENetError
from eenet.evaluation._style import PLAIN, REFERENCE, RIGHT, WRONG, Style, exit_styles
from eenet.reporting._charts import Chart, axis, chart, numbers, series
from eenet.reporting._leaving import Scores, framed
from eenet.reporting._promises import adherence, adherence_resplits, coverage, dead
from eenet.reporting._replays import Replay, Replays
from eenet.reporting._runs import Run
from eenet.scheduler import Decisions

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

BINS = 10
_COVERAGES = 60
_CLASSES = 15
"""How many classes a confusion shows; of more, those that change most."""
ANSWERS = "the answers"
_CHANGES = {
    "both right": RIGHT,
    "the last exit mends it": Style("#009E73", "#2FD1A3", "^", "triangle-up"),
    "the last exit spoils it": WRONG,
    "both wrong": REFERENCE,
}


def binned(confidence: Floats, utility: Floats) -> dict[str, Any]:
    """Bins of equal width over [0, 1]: for each that is not empty its samples, mean confidence and mean utility.

    `error` is the standard error of the mean utility; `ece` the expected calibration error, the mean of the distances
    weighted by the samples.
    """
    number = np.clip((confidence * BINS).astype(np.intp), 0, BINS - 1)
    count = np.bincount(number, minlength=BINS)
    full = count > 0
    mean, share, square = (
        np.bincount(number, values, minlength=BINS)[full] / count[full] for values in (confidence, utility, utility**2)
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


class Confidence:
    """Largest class probabilities and their log odds (K, N) of a run, with what is not finite masked; and utility."""

    def __init__(self, replays: Replays) -> None:
        evidence = replays.records.all_evidence()
        self.finite = np.array([one.finite for one in evidence])
        self.probability = np.where(self.finite, [one.max_probability for one in evidence], np.nan)
        self.odds = np.where(self.finite, [one.log_odds for one in evidence], -np.inf)
        self.utility = replays.records.require_utility().astype(np.float64)

    def answered(self, decisions: Decisions) -> tuple[Ints, Ints, Floats]:
        """The samples that a policy answers, the exits that they leave at, and what the answers are worth."""
        assert decisions.utility is not None
        rows = np.flatnonzero(~decisions.abstained)
        return decisions.exits[rows], rows, decisions.utility[rows].astype(np.float64)


def reliability(replays: Replays, known: Confidence) -> Chart:
    """Mean accuracy against mean confidence of each exit and of the policy's answers, with their calibration errors."""

    def of(name: str, style: Style, confidence: Floats, utility: Floats) -> tuple[dict[str, Any], float]:
        finite = np.isfinite(confidence)
        found = binned(confidence[finite], utility[finite])
        x, y, error = (np.round(found[key], 5) for key in ("confidence", "accuracy", "error"))
        return series(name, style, x, y, y_error=error, samples=found["samples"]), found["ece"]

    names = replays.run.exit_titles
    looks = exit_styles(len(names))
    made, eces = [], {}
    for k in range(len(names)):
        one, eces[f"ECE of {names[k]}"] = of(names[k], looks[k], known.probability[k], known.utility[k])
        made.append(one)

    def patch(replay: Replay) -> dict[str, Any]:
        left, rows, utility = known.answered(replay.decisions)
        one, ece = of(ANSWERS, PLAIN, known.probability[left, rows], utility)
        return {"series": [*made, one], "numbers": {**eces, "ECE of the answers": ece}}

    left_out = int((~known.finite).sum())
    return chart(
        "reliability",
        "Calibration",
        "An exit on the diagonal is right as often as its confidence says; below it, it is too sure. The answers are "
        "those of the chosen scheduler, with the confidence of the exit where a sample leaves. ECE is the expected "
        f"calibration error. Points are bins of a width of {1 / BINS:g}, bars one standard error."
        + (f" {left_out} outputs that are not finite are left out." if left_out else ""),
        axis("confidence: largest class probability", percent=True, limits=(0, 1)),
        axis("accuracy", percent=True, limits=(0, 1)),
        rules=[{"axis": "diagonal", "at": 0.0, "name": "calibrated"}],
        kind="lines",
        **framed(replays, patch),
    )


def risk_coverage(replays: Replays, known: Confidence) -> Chart:
    """The error rate of the samples that an exit, or a policy, is surest of, and the area below the curve (AURC)."""

    def of(name: str, style: Style, odds: Floats, utility: Floats, points: int) -> tuple[dict[str, Any], float]:
        risk, count = risks(odds, utility), len(odds)
        shown = np.unique(np.ceil(np.linspace(1 / points, 1, points) * count).astype(np.intp)) - 1
        x, y = np.round((shown + 1) / count, 5), np.round(risk[shown], 5)
        return series(name, style, x, y, points=False), float(risk.mean())

    names = replays.run.exit_titles
    looks = exit_styles(len(names))
    made, areas = [], {}
    for k, utility in enumerate(known.utility):
        one, areas[f"AURC of {names[k]}"] = of(names[k], looks[k], known.odds[k], utility, _COVERAGES)
        made.append(one)

    def patch(replay: Replay) -> dict[str, Any] | None:
        left, rows, utility = known.answered(replay.decisions)
        if not len(rows):
            return None
        one, area = of(ANSWERS, PLAIN, known.odds[left, rows], utility, _COVERAGES // 4)
        return {"series": [*made, one], "numbers": {**areas, "AURC of the answers": area}}

    return chart(
        "risk-coverage",
        "Errors among the surest samples",
        "How many are wrong of the share of the samples that an exit is surest of. A curve that stays low for long has "
        "errors only where the exit is unsure. The answers are those of the chosen scheduler, in order of the "
        "confidence of the exit where a sample leaves. AURC is the area below the curve.",
        axis("share of the samples, surest first", percent=True, limits=(0, 1)),
        axis("error rate", percent=True),
        kind="lines",
        **framed(replays, patch),
    )


def failure_prediction(replays: Replays, known: Confidence) -> Chart:
    """How well each scheduler's score tells right answers from wrong ones at each early exit, as AUROC."""
    utility = known.utility
    exits = range(len(utility) - 1)
    rows = {"largest probability": [auroc(known.odds[k], utility[k]) for k in exits]}
    scores = Scores(replays)
    for title, replay in middle(replays).items():
        values, finite, _ = scores.of(replay.policy.score)
        rows[title] = [auroc(of_exit, utility[k]) for k, of_exit in enumerate(np.where(finite, values, -np.inf))]

    def patch(replay: Replay) -> dict[str, Any]:
        left, samples, worth = known.answered(replay.decisions)
        return {"numbers": {"AUROC of the confidence in the answers": auroc(known.odds[left, samples], worth)}}

    return chart(
        "failure-prediction",
        "Do scores tell right from wrong answers?",
        "The chance that a right answer has a higher score than a wrong one (AUROC): 100 % tells them apart, 50 % is "
        "chance. Scores are those at a budget in the middle; the number below is of the chosen scheduler at the chosen "
        "budget. A score can schedule well without this: some predict what a later exit would gain.",
        axis("exit"),
        axis("score"),
        kind="heat",
        rows=list(rows),
        columns=list(replays.run.exit_titles[:-1]),
        values=[[None if value is None else float(value) for value in row] for row in rows.values()],
        percent=True,
        limits=[0.5, 1.0],
        **framed(replays, patch),
    )


def middle(replays: Replays) -> dict[str, Any]:
    """Of each scheduler the replay at the middle one of the budgets that it can meet."""
    found = {title: [replay for replay in of if replay is not None] for title, of in replays.of.items()}
    return {title: of[len(of) // 2] for title, of in found.items() if of}


def agreement(replays: Replays) -> Chart:
    """The share of the samples that two exits give the same answer to, and an exit and the chosen scheduler."""
    said = replays.records.predictions
    same = (said[:, None, :] == said[None, :, :]).mean(axis=2)
    names = list(replays.run.exit_titles)

    def patch(replay: Replay) -> dict[str, Any]:
        answers = (said == replay.decisions.predictions).mean(axis=1)
        return {"values": [*numbers(np.round(same, 5)), numbers(np.round(answers, 5))]}

    return chart(
        "agreement",
        "Agreement between exits",
        "The share of the samples to which both exits give the same answer. The last row has the answers of the chosen "
        "scheduler.",
        axis(""),
        axis(""),
        kind="heat",
        rows=[*names, "the answers"],
        columns=[f"exit {k}" for k in range(len(names))],  # long names there leave little room for the cells
        percent=True,
        limits=[float(same.min()), 1.0],
        **framed(replays, patch),
    )


def changes(replays: Replays, known: Confidence) -> Chart:
    """What the last exit changes: errors mended and right answers lost, of each exit's answers and of the policy's."""
    last = known.utility[-1]

    def parts(one: Floats) -> list[float]:
        both = (one * last, (1 - one) * last, one * (1 - last), (1 - one) * (1 - last))
        return [round(float(part.mean()), 5) for part in both]

    columns = [parts(one) for one in known.utility[:-1]]

    def patch(replay: Replay) -> dict[str, Any]:
        assert replay.decisions.utility is not None
        table = [*columns, parts(replay.decisions.utility.astype(np.float64))]
        return {
            "series": [
                {"name": name, "style": style.to_dict(), "values": [column[n] for column in table]}
                for n, (name, style) in enumerate(_CHANGES.items())
            ]
        }

    return chart(
        "changes",
        "What the last exit changes",
        "Samples that an early exit gets wrong and the last one right are what going on can win; those that it spoils "
        "are what leaving early wins. The last bar has the answers of the chosen scheduler.",
        axis(""),
        axis("share of the samples", percent=True, limits=(0, 1)),
        kind="bars",
        categories=[*(f"all leave at {name}" for name in replays.run.exit_titles[:-1]), "the chosen scheduler"],
        stacked=True,
        **framed(replays, patch),
    )


def confusion(run: Run) -> Chart:
    """How often the first exit says one class and the last another; of many classes those that are changed most."""
    first, last = run.records.predictions[0], run.records.predictions[-1]
    size = run.records.num_classes
    counts = np.bincount(first * size + last, minlength=size * size).reshape(size, size)
    moved = counts - np.diag(np.diag(counts))
    most = np.argsort(-(moved.sum(axis=0) + moved.sum(axis=1)), kind="stable")[:_CLASSES]
    kept = np.sort(most) if size > _CLASSES else np.arange(size)
    names = [str(run.classes[c]) for c in kept]
    shown = counts[np.ix_(kept, kept)]
    early = run.exit_titles[0]
    whole = np.maximum(counts.sum(axis=1)[kept], 1)
    return chart(
        "confusion-0",
        f"Answers of {early} and of the last exit",
        f"A row: of the samples that {early} calls this class, the share that the last exit calls each."
        + (f" The {len(kept)} of {size} classes whose answers change most." if len(kept) < size else ""),
        axis("answer of the last exit"),
        axis(f"answer of {early}"),
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
        known = Confidence(replays)
        charts += [reliability(replays, known), risk_coverage(replays, known)]
        if records.num_exits > 1:
            charts += [failure_prediction(replays, known), changes(replays, known)]
    if records.pooled:
        notes.append("An answer here is many predictions, as in segmentation: how exits agree on them is not recorded.")
    elif records.num_exits > 1:
        charts += [agreement(replays), confusion(run)]
    if replays.of:
        charts.append(adherence(replays))
    if run.comparison is not None:
        charts += adherence_resplits(run.comparison)
    else:
        notes.append(
            "Budgets over resplits need a comparison: eenet compare RECORDS --costs COSTS --out DIR, then give "
            "DIR/comparison.json to eenet report."
        )
    try:
        if replays.draws:
            charts.append(coverage(replays, replays.draws))
        else:
            notes.append("No calibration sets were simulated to see how often a guarantee holds: --draws 30.")
    except EENetError as error:
        notes.append(f"The guarantee is not simulated, since {error}.")
    return charts, notes
