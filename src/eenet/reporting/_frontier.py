"""Section 1, the frontier: accuracy against mean cost, and what a scheduler does at each budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from eenet.evaluation import oracle
from eenet.evaluation._oracle import static_bounds, upper_hull
from eenet.evaluation._style import MIXTURE, ORACLE, PLAIN, REFERENCE, exit_styles, styles, title_of
from eenet.records import ExitRecords
from eenet.reporting._charts import Chart, axis, chart, series
from eenet.reporting._replays import Replay, Replays
from eenet.scheduler import SCORES, Decisions, ThresholdPolicy

_NORMAL = 1.96  # of a normal distribution, 95 % lie within this number of standard deviations of the mean


def standing(replays: Replays) -> dict[str, list[dict[str, Any] | None]]:
    """For each scheduler the figures at each budget; None where the budget is too small for it.

    Costs are in the unit of the run's costs. `thresholds` are on the scale of the method's paper, None where an exit is
    off, and `limits` are the same on the scale of the score. `difference` is the accuracy minus the last exit's on the
    same samples.
    """
    return {
        title: [None if one is None else _standing(one, float(budget), replays) for one, budget in pairs]
        for title, pairs in ((title, zip(of, replays.budgets, strict=True)) for title, of in replays.of.items())
    }


def _standing(replay: Replay, budget: float, replays: Replays) -> dict[str, Any]:
    scheduler, decisions, policy = replay.scheduler, replay.decisions, replay.policy
    accuracy, error = accuracy_of(decisions)
    difference, difference_error = _difference(decisions, replays.records)
    spent = decisions.sample_costs
    taken = scheduler.fallback
    return {
        "budget": budget,
        "accuracy": accuracy,
        "accuracy_error": error,
        "difference": difference,
        "difference_error": difference_error,
        "planned_cost": scheduler.planned_cost,
        "calibration_cost": scheduler.calibration_cost,
        "cost": decisions.mean_cost,
        "cost_error": float(spent.std() / math.sqrt(len(spent))),
        "shares": decisions.exit_shares.tolist(),
        "handed_back": decisions.handed_back,
        "thresholds": _readable(policy),
        "limits": limits_of(policy),
        "score": policy.score.name,
        "speed_up": replays.costs.reference / decisions.mean_cost,
        "instead": None if taken is None else f"{taken}.",
    }


def accuracy_of(decisions: Decisions) -> tuple[float | None, float | None]:
    """The accuracy of those that are answered and its standard error; None where it is not known."""
    if decisions.utility is None or decisions.abstained.all():
        return None, None
    answered = decisions.utility[~decisions.abstained].astype(np.float64)
    return float(answered.mean()), float(answered.std() / math.sqrt(len(answered)))


def _difference(decisions: Decisions, records: ExitRecords) -> tuple[float | None, float | None]:
    """The accuracy minus the last exit's on the answered samples, and its standard error; None where not known."""
    if decisions.utility is None or records.utility is None or decisions.abstained.all():
        return None, None
    answered = ~decisions.abstained
    pairs = decisions.utility[answered].astype(np.float64) - records.utility[-1][answered]
    return float(pairs.mean()), float(pairs.std() / math.sqrt(len(pairs)))


def limits_of(policy: ThresholdPolicy) -> list[float | None]:
    """The thresholds on the scale of the score, (K - 1,), None where an exit is off."""
    pairs = zip(policy.thresholds.tolist(), policy.enabled.tolist(), strict=True)
    return [rounded(threshold) if on and math.isfinite(threshold) else None for threshold, on in pairs]


def _readable(policy: ThresholdPolicy) -> list[float | None]:
    pairs = zip(policy.thresholds.tolist(), policy.enabled.tolist(), strict=True)
    return [policy.score.readable(t) if on and math.isfinite(t) else None for t, on in pairs]


def rounded(value: float) -> float:
    """To seven digits: rounding keeps the order of a score and a threshold, so that what is shown never contradicts."""
    return float(f"{value:.7g}")


def frontier(replays: Replays) -> Chart:
    """Accuracy against mean cost of every scheduler, with what there is without one."""
    run, records, costs = replays.run, replays.records, replays.costs
    looks = styles(list(replays.of))
    curves = []
    for title, of in replays.of.items():
        points = [None if one is None else one.decisions for one in of]
        accuracies = [(None, None) if one is None else accuracy_of(one) for one in points]
        y = np.array([math.nan if mean is None else mean for mean, _ in accuracies])
        spread = np.array([math.nan if error is None else _NORMAL * error for _, error in accuracies])
        x = [math.nan if one is None else one.mean_cost for one in points]
        curves.append(
            series(
                title, looks[title], x, y, points=False, low=np.maximum(y - spread, 0), high=np.minimum(y + spread, 1)
            )
        )
    exits = series("one exit for all", REFERENCE, costs.static, records.accuracies, line=False, text=list(run.exits))
    mixtures = upper_hull(static_bounds(records, costs))
    mixed = "exits mixed at random" if costs.plain is None else "exits and plain network mixed at random"
    oracles = [oracle(records, costs, float(budget)) for budget in replays.budgets]
    bounds = [
        series(mixed, MIXTURE, [b.cost for b in mixtures], [b.accuracy for b in mixtures], points=False),
        series(
            "oracle (knows the labels)", ORACLE, [b.cost for b in oracles], [b.accuracy for b in oracles], points=False
        ),
    ]
    others = []
    if costs.plain is not None:
        others.append(series("plain network", PLAIN, [costs.plain], [float(records.accuracies[-1])], line=False))
    if run.smaller:
        names = [str(one["name"]) for one in run.smaller]
        look = styles(["smaller networks"])["smaller networks"]
        at, height = ([float(one[key]) for one in run.smaller] for key in ("cost", "accuracy"))
        others.append(series("smaller networks", look, at, height, line=False, text=names))
    plain = (
        " The plain network is drawn at its own cost with the accuracy of the last exit, which stands for its own."
        if costs.plain is not None
        else ""
    )
    return chart(
        "frontier",
        "Accuracy against mean cost",
        "Each curve is one scheduler at all budgets: what it really spends on these samples, and how many of them it "
        "gets right. Higher and further left is better. A scheduler is worth its while where it lies above the dotted "
        f"line: {mixed}. No scheduler can lie above the oracle. The band is the 95 % interval of the "
        f"chosen scheduler's accuracy, for other samples of the same kind.{plain}",
        axis(f"mean cost per sample ({costs.unit})"),
        axis("accuracy", percent=True),
        marker="cost",
        kind="lines",
        series=[*curves, *bounds, exits, *others],
    )


def resplits(replays: Replays) -> Chart | None:
    """Accuracy against cost where schedulers are fitted again on parts of the calibration samples; None without."""
    comparison = replays.run.comparison
    if comparison is None:
        return None
    rows = [row for row in comparison["rows"] if row["accuracy"] is not None]
    names = list(dict.fromkeys(row["scheduler"] for row in rows))
    titles = {name: title_of(name) for name in names}
    looks = styles([titles[name] for name in names])
    curves = []
    for name in names:
        of = _by_budget(rows, name)
        costs, accuracies = (
            [np.array([row[key] for row in group]) for group in of] for key in ("held_out_cost", "accuracy")
        )
        curves.append(
            series(
                titles[name],
                looks[titles[name]],
                [group.mean() for group in costs],
                [group.mean() for group in accuracies],
                low=[group.min() for group in accuracies],
                high=[group.max() for group in accuracies],
            )
        )
    count = 1 + max(row["resplit"] for row in rows)
    return chart(
        "resplits",
        "The same, fitted again on other samples",
        f"Each of {count} times the schedulers are fitted on another {comparison['fraction']:.0%} of the calibration "
        "samples. Points are means of these, and a band goes from the worst to the best of them: how much the choice "
        "of the calibration samples matters.",
        axis(f"mean cost per sample ({comparison['unit']})"),
        axis("accuracy", percent=True),
        marker="cost" if comparison["unit"] == replays.costs.unit else None,
        kind="lines",
        series=curves,
    )


def _by_budget(rows: list[Mapping[str, Any]], name: str) -> list[list[Mapping[str, Any]]]:
    groups: dict[float, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["scheduler"] == name:
            groups.setdefault(row["budget"], []).append(row)
    return [groups[budget] for budget in sorted(groups)]


def exit_shares(replays: Replays) -> Chart:
    """The share of samples at each exit against the budget, for each scheduler."""
    run = replays.run
    looks = exit_styles(len(run.exits))

    def shares(title: str) -> dict[str, Any]:
        table = np.array(
            [np.full(len(run.exits), np.nan) if one is None else one.decisions.exit_shares for one in replays.of[title]]
        )
        return {
            "series": [
                series(run.exit_titles[k], looks[k], replays.budgets, table[:, k], points=False)
                for k in range(len(run.exits))
            ]
        }

    frames = {title: [shares(title)] for title in replays.of}
    return chart(
        "exit-shares",
        "Where samples leave, at every budget",
        "With a small budget most samples must leave at the first exit; with a large one more of them may go on. Where "
        "curves jump, a simple rule stands in for the scheduler, which the note above the figures says.",
        axis(f"budget ({replays.costs.unit})"),
        axis("share of samples", percent=True, limits=(0, 1)),
        marker="budget",
        kind="lines",
        **next(iter(frames.values()))[0],
        frames=frames,
    )


_SCORE_AXES = {
    "max_prob": "log odds of the largest class probability",
    "temperature": "log odds of the largest class probability, calibrated",
    "entropy": "minus the logarithm of the entropy",
    "margin": "minus the logarithm of 1 - margin",
    "learned": "learned exit score",
    "stopping": "advantage of stopping here",
    "patience": "256 for each exit in a row that agrees, plus log odds",
    "voting": "256 for each exit that agrees, plus log odds",
}


def score_label(name: str) -> str:
    """What a score is, on an axis."""
    return _SCORE_AXES.get(name, f"{name} score") if name in SCORES else name
