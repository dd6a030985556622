"""Charts as data: what an analysis gives, and what the page and the Matplotlib twin both draw.

A chart is a JSON-ready dict. All of them have

- `name` (of its files, unique in a report), `title`, `about` (a sentence on how to read it), `kind`;
- `x` and `y`: an axis each, `{"label", "percent", "range", "log", "ticks"}`; values are fractions where `percent` is
  true, and `ticks` are the only ones where they are given;
- `rules`: straight lines, `{"axis": "x" | "y" | "diagonal", "at", "name"}`;
- `marker`: what the budget slider moves: "cost" or "budget" along the x axis; "cost-y", or "share-y" of the reference,
  along the y axis; "going-on", the shares of the samples that go on, along the x axis; or None;
- `numbers`: figures to show beside it, by name.

- `frames`, where a chart depends on the budget: for each scheduler a patch of the chart for each budget of the slider,
  None where the budget is too small for it. The chart itself has one of the patches applied.

By kind:

- "lines": `series` of `{"name", "style", "x", "y", "line", "points"}`, and where known `x_error`, `y_error`, `low`,
  `high` (a band) and `text` (a label at each point);
- "steps": `series` of `{"name", "style", "edges", "values"}`, histograms;
- "bars": `categories`, `stacked`, and `series` of `{"name", "style", "values"}`, and where known `errors`;
- "heat": `rows`, `columns`, `values` (rows of numbers or None), `limits` of the colors, and `percent`; its axes name
  rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eenet.evaluation._style import Style

Chart = dict[str, Any]


def axis(
    label: str,
    *,
    percent: bool = False,
    limits: tuple[float, float] | None = None,
    log: bool = False,
    ticks: Sequence[float] | None = None,
) -> dict[str, Any]:
    """An axis; a percentage holds fractions."""
    return {
        "label": label,
        "percent": percent,
        "range": None if limits is None else list(limits),
        "log": log,
        "ticks": None if ticks is None else list(ticks),
    }


def chart(
    name: str,
    title: str,
    about: str,
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    *,
    rules: Sequence[Mapping[str, Any]] = (),
    marker: str | None = None,
    numbers: Mapping[str, Any] | None = None,
    **kind: Any,
) -> Chart:
    """A chart of one kind; `kind` holds `kind` and what belongs to it."""
    return {
        "name": name,
        "title": title,
        "about": about,
        "x": dict(x),
        "y": dict(y),
        "rules": [dict(rule) for rule in rules],
        "marker": marker,
        "numbers": dict(numbers or {}),
        **kind,
    }


def series(
    name: str, style: Style, x: ArrayLike, y: ArrayLike, *, line: bool = True, points: bool = True, **more: Any
) -> dict[str, Any]:
    """One series of a chart of lines; arrays among `more` become lists. A line of one point is drawn as that point."""
    given = numbers(x), numbers(y)
    places = {pair for pair in zip(*given, strict=True) if None not in pair}
    return {
        "name": name,
        "style": style.to_dict(),
        "x": given[0],
        "y": given[1],
        "line": line,
        "points": points or len(places) == 1,
        **{key: value if key == "text" else numbers(value) for key, value in more.items() if value is not None},
    }


def numbers(values: ArrayLike) -> list[Any]:
    """An array as JSON holds it: lists, with None for what is not finite."""
    found: list[Any] = np.asarray(values, dtype=np.float64).tolist()
    return [_number(value) for value in found]


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(one) for one in value]
    return value if math.isfinite(value) else None
