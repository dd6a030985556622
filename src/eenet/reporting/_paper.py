"""Section 6, the paper's own figures: its methods by their names, over budgets, exits and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eenet.evaluation._style import MIXTURE, ORACLE, exit_styles, styles, title_of
from eenet.reporting._charts import Chart, axis, chart, numbers, series
from eenet.reporting._leaving import Scores
from eenet.reporting._replays import Replay, Replays

_PARTS = 10
"""Parts of equal size that the samples are put into by their score."""
_SHARES = (0.25, 0.5, 0.75)


def named(replays: Replays) -> dict[str, str]:
    """The titles of a run's schedulers with the paper each is known from."""
    return {title: title_of(title, paper=True) for title in replays.of}


def accuracy_budget(replays: Replays) -> Chart:
    """Accuracy on the run's records against the budget, for every scheduler."""
    looks, made = styles(list(replays.of)), []
    for title, name in named(replays).items():
        known = [(budget, one.decisions) for budget, one in zip(replays.budgets, replays.of[title], strict=True) if one]
        y = [0.0 if one.utility is None else float(np.mean(one.utility)) for _, one in known]
        made.append(series(name, looks[title], [budget for budget, _ in known], y, points=False))
    return chart(
        "paper-accuracy-budget",
        "Accuracy against budget",
        "As in the paper: what was asked for on the x axis, not what was spent. Samples that are handed back count as "
        "wrong.",
        axis(f"budget ({replays.costs.unit} per sample)"),
        axis("accuracy", percent=True),
        marker="budget",
        kind="lines",
        series=made,
    )


def published(comparison: Mapping[str, Any], budgets: Sequence[float] = ()) -> Chart:
    """Accuracy against budget at the costs that the paper published: means over the resplits, with their range."""
    rows = [row for row in comparison["rows"] if row["accuracy"] is not None]
    names = list(dict.fromkeys(row["scheduler"] for row in rows))
    looks, made = styles(names), []
    made += [_over_resplits(title_of(name, paper=True), looks[name], rows, "accuracy", name) for name in names]
    for name, style, key in (("oracle", ORACLE, "oracle"), ("random mixture", MIXTURE, "random_mixture")):
        made.append({**_over_resplits(name, style, comparison["bounds"], key), "points": False})
    resplits = len({row["resplit"] for row in rows})
    return chart(
        "paper-published",
        "Accuracy against budget, at the paper's costs",
        f"Budgets in the costs that the paper published. Means over {resplits} resplits; the band is from the lowest "
        "to the highest." + (" Vertical lines are the paper's budgets." if budgets else ""),
        axis(f"budget ({comparison['unit']} per sample)"),
        axis("accuracy", percent=True),
        rules=[{"axis": "x", "at": float(budget), "name": ""} for budget in budgets],
        kind="lines",
        series=made,
    )


def _over_resplits(
    title: str, style: Any, rows: Sequence[Mapping[str, Any]], key: str, name: str | None = None
) -> dict[str, Any]:
    of = [row for row in rows if name is None or row["scheduler"] == name]
    budgets = sorted({row["budget"] for row in of})
    values = [[row[key] for row in of if row["budget"] == budget] for budget in budgets]
    low, high = ([limit(one) for one in values] for limit in (min, max))
    return series(title, style, budgets, [float(np.mean(one)) for one in values], low=low, high=high)


def distributions(replays: Replays, asked: Sequence[float] = ()) -> list[Chart]:
    """Where samples leave with every scheduler, at a few budgets: those that were asked for, or a low to a high one."""
    first, last = replays.costs[0], replays.costs[-1]
    wanted = list(asked) or [first + share * (last - first) for share in _SHARES]
    chosen = sorted({int(np.abs(replays.budgets - budget).argmin()) for budget in wanted})
    charts = []
    for g in chosen:
        budget = float(replays.budgets[g])
        known = {title: of[g] for title, of in replays.of.items() if of[g] is not None}
        shares = np.array([one.decisions.exit_shares for one in known.values() if one is not None])
        if not len(shares):
            continue
        made = [
            {"name": replays.run.exit_titles[k], "style": style.to_dict(), "values": numbers(np.round(shares[:, k], 4))}
            for k, style in enumerate(exit_styles(len(replays.costs)))
        ]
        charts.append(
            chart(
                f"paper-exits-{g}",
                f"Exit distribution at {budget:.4g} {replays.costs.unit} "
                f"({budget / replays.costs.reference:.0%} of {replays.costs.reference_name})",
                "The share of the samples that leaves at each exit.",
                axis(""),
                axis("share of the samples", percent=True, limits=(0, 1)),
                kind="bars",
                categories=[title_of(title, paper=True) for title in known],
                stacked=True,
                series=made,
            )
        )
    return charts


def scores_and_correctness(replays: Replays) -> list[Chart]:
    """Accuracy at each exit by the rank of the score there, for every scheduler, with its thresholds at the budget."""
    utility = replays.records.require_utility().astype(np.float64)
    known = Scores(replays)
    looks = exit_styles(len(utility))
    drawn: dict[int, list[dict[str, Any]]] = {}

    def patch(replay: Replay | None) -> dict[str, Any] | None:
        if replay is None:
            return None
        values, finite, number = known.of(replay.policy.score)
        scores = np.where(finite, values, -np.inf)
        if number not in drawn:
            drawn[number] = [
                series(replays.run.exit_titles[k], looks[k], x, y, y_error=error)
                for k, (x, y, error) in enumerate(by_rank(of_exit, utility[k]) for k, of_exit in enumerate(scores))
            ]
        policy = replay.policy
        rules = [
            {"axis": "x", "at": float((scores[k] < policy.thresholds[k]).mean()), "name": f"exit {k}"}
            for k in np.flatnonzero(policy.enabled).tolist()
        ]
        return {"series": drawn[number], "rules": rules}

    charts: list[Chart] = []
    for title, of in replays.of.items():
        frames = [patch(one) for one in of]
        shown = next((found for found in [*frames[len(frames) // 2 :], *frames] if found is not None), None)
        if shown is None:
            continue
        still: list[dict[str, Any] | None] = [{}]  # where another scheduler is chosen, this one's stay as they are
        charts.append(
            chart(
                f"paper-scores-{len(charts)}",
                f"Scores of {title_of(title, paper=True)} and correctness",
                "All samples in order of their score at an exit, in tenths; samples of one score stay together. Where "
                "the curve is steep, a threshold parts right answers from wrong ones. Lines are the thresholds: those "
                "right of them leave, if they come there. Bars are one standard error.",
                axis("rank of the score", percent=True, limits=(0, 1)),
                axis("accuracy", percent=True),
                kind="lines",
                frames={name: frames if name == title else still for name in replays.of},
                **shown,
            )
        )
    return charts


def by_rank(score: Any, utility: Any) -> tuple[list[float], list[float], list[float]]:
    """Mean rank in [0, 1], mean utility and its standard error of about equal parts by score; ties stay together."""
    _, places, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2)[places] / len(score)  # of a sample among ties: their middle
    part = np.minimum((ranks * _PARTS).astype(np.intp), _PARTS - 1)
    found = [np.flatnonzero(part == number) for number in range(_PARTS)]
    of = [(float(ranks[rows].mean()), utility[rows]) for rows in found if len(rows)]
    return (
        [rank for rank, _ in of],
        [float(values.mean()) for _, values in of],
        [float(values.std() / np.sqrt(len(values))) for _, values in of],
    )


def instead(replays: Replays, shown: Replays) -> list[str]:
    """In words: for which schedulers a simple rule stands in at some budgets, and whether the figures show that."""
    said = []
    for title, of in replays.of.items():
        known = [one.scheduler.fallback for one in of if one is not None]
        taken = [fallback for fallback in known if fallback is not None]
        if not taken:
            continue
        rules = " or ".join(sorted({title_of(fallback.taken) for fallback in taken}))
        stands = f"At {len(taken)} of {len(known)} budgets a simple rule, {rules}, stands in for {title}"
        if shown.of[title] is of:
            said.append(f"{stands}: the figures show that. Give calibration records to see the method itself.")
        else:
            said.append(f"{stands} above. Here it is the method itself, as if fitted with fallback=False.")
    return said


def paper(replays: Replays) -> tuple[list[Chart], list[str]]:
    """The paper's figures for a run, of the methods themselves where they can be fitted, and what is missing."""
    shown = replays.themselves
    metrics = replays.run.metrics
    settings = metrics.get("settings", {}).get("evaluation", {}).get("budgets", ())
    shares = [float(str(budget).removesuffix("%")) / 100 for budget in settings if str(budget).endswith("%")]
    charts: list[Chart] = []
    notes: list[str] = []
    if metrics.get("published"):
        charts.append(published(metrics["published"], metrics.get("published_budgets") or ()))
    else:
        notes.append(
            "There are no results at the costs that the paper published: only recipes of its networks have them."
        )
    if replays.records.utility is None:
        notes.append("Accuracy, and scores against correctness, need labels.")
    else:
        charts.insert(0, accuracy_budget(shown))
    notes += instead(replays, shown)
    charts += distributions(shown, [share * replays.costs.reference for share in shares])
    if replays.records.utility is not None:
        charts += scores_and_correctness(shown)
    return charts, notes
