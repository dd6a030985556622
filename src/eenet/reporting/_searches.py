"""What `eenet.search` found: the best systems, the curve of each, what they gain, and which candidates were dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eenet.evaluation._search_result import verdict
from eenet.evaluation._style import PLAIN, REFERENCE, Style, styles
from eenet.evaluation._systems import STATIC
from eenet.reporting._charts import Chart, axis, chart, series

_BEST = "best system"
_OVER = {"runner_up": "over the runner-up", "static": "over the best that computes the same for all", "plain": "over "}


def of_search(found: Mapping[str, Any], name: str) -> tuple[list[Chart], list[str], list[dict[str, Any]]]:
    """The charts of a search, what it says, and its tables; `name` tells it apart from others, "" for the only one."""
    prefix = f"{name}-" if name else ""
    plain = found["plain"]
    notes = [
        f"Accuracies are of {found['samples']:,} samples, each answered by a system that was neither fitted to it nor "
        "chosen by it.",
        f"The plain network is the most accurate candidate by itself, {plain['name']}: {100 * plain['accuracy']:.2f} % "
        f"at {plain['cost']:.4g} {found['unit']}.",
        *map(str, found["notes"]),
    ]
    notes += verdict(found["frontier"], found["unit"])
    tables = [_best(found)]
    if found["dropped"]:
        tables.append(_dropped(found))
    return [_frontier(found, f"{prefix}search"), _gains(found, f"{prefix}search-gains")], notes, tables


def _frontier(found: Mapping[str, Any], name: str) -> Chart:
    """Accuracy against cost of every system, and the best one at each budget."""
    curves = [one for one in found["systems"] if one["kind"] not in STATIC]
    static = [one for one in found["systems"] if one["kind"] in STATIC]
    looks = styles([one["name"] for one in curves])
    rows = found["frontier"]
    drawn = [
        series(
            _BEST,
            PLAIN,
            [row["cost"] for row in rows],
            [row["accuracy"] for row in rows],
            y_error=[2 * row["accuracy_error"] for row in rows],
        )
    ]
    drawn += [series(one["name"], looks[one["name"]], one["costs"], one["accuracies"], points=False) for one in curves]
    if static:
        points = [(one["costs"][0], one["accuracies"][0], one["name"]) for one in static]
        costs, accuracies, names = zip(*points, strict=True)
        drawn.append(series("the same for all samples", REFERENCE, costs, accuracies, line=False, text=list(names)))
    return chart(
        name,
        "The best system for each budget, and the others",
        "Each curve is a system at all budgets. The best at a budget, named in the table, is chosen on other samples "
        "than it is judged on, so it may lie below a curve. Bars are two standard errors.",
        axis(f"mean cost per sample ({found['unit']})", log=True, ticks=_ticks(found)),
        axis("accuracy", percent=True),
        rules=[{"axis": "x", "at": found["plain"]["cost"], "name": f"{found['plain']['name']} by itself"}],
        kind="lines",
        series=drawn,
    )


def _gains(found: Mapping[str, Any], name: str) -> Chart:
    """How far the best system of each budget is ahead of the others that a user has."""
    titles = {key: words + (found["plain"]["name"] if key == "plain" else "") for key, words in _OVER.items()}
    looks: dict[str, Style] = styles(list(titles.values()))
    drawn = []
    for key, title in titles.items():
        rows = [(row["budget"], row["gains"][key]) for row in found["frontier"] if key in row["gains"]]
        if rows:
            drawn.append(
                series(
                    title,
                    looks[title],
                    [budget for budget, _ in rows],
                    [gain["mean"] for _, gain in rows],
                    y_error=[2 * gain["standard_error"] for _, gain in rows],
                )
            )
    return chart(
        name,
        "What the best system gains",
        "In accuracy on the same samples, with two standard errors. Where a bar holds zero, the two cannot be told "
        "apart. The plain network may cost more than the budget.",
        axis(f"budget ({found['unit']} per sample)", log=True, ticks=_ticks(found)),
        axis("gain in accuracy", percent=True),
        rules=[{"axis": "y", "at": 0.0, "name": "no gain"}],
        kind="lines",
        series=drawn,
    )


def _ticks(found: Mapping[str, Any]) -> list[float]:
    """The budgets, to two digits."""
    return sorted({float(f"{row['budget']:.2g}") for row in found["frontier"]})


def _best(found: Mapping[str, Any]) -> dict[str, Any]:
    unit = found["unit"]
    return {
        "title": "The best system for each budget",
        "open": True,
        "columns": [
            f"budget ({unit})",
            "best system",
            "accuracy",
            f"spent ({unit})",
            "points over the runner-up",
            "runner-up",
        ],
        "rows": [
            [
                f"{row['budget']:.4g}",
                str(row["name"]),
                f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_error']:.2f} %",
                f"{row['cost']:.4g}",
                *_ahead(row["gains"].get("runner_up")),
            ]
            for row in found["frontier"]
        ],
    }


def _ahead(gain: Mapping[str, Any] | None) -> tuple[str, str]:
    if gain is None:
        return "-", "-"
    return f"{100 * gain['mean'] + 0.0:+.2f} ± {100 * gain['standard_error']:.2f}", str(gain["other"])


def _dropped(found: Mapping[str, Any]) -> dict[str, Any]:
    unit = found["unit"]
    return {
        "title": "Candidates that were dropped: less accurate at no lower cost",
        "columns": ["candidate", "accuracy", f"cost ({unit})", "beside", "accuracy", f"cost ({unit})"],
        "rows": [
            [
                str(one["name"]),
                f"{100 * one['accuracy']:.2f} %",
                f"{one['cost']:.4g}",
                str(one["other"]),
                f"{100 * one['other_accuracy']:.2f} %",
                f"{one['other_cost']:.4g}",
            ]
            for one in found["dropped"]
        ],
    }
