"""The figures of a report in Matplotlib, for papers: each takes `ax` and returns it.

Every function draws what the analysis of the same name says, and nothing else; the report's page draws the same dict.
Nothing here uses pyplot, so no display is needed.
"""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from eenet._extras import require
from eenet._files import atomic_path
from eenet.errors import InvalidInputError
from eenet.reporting._charts import Chart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes

__all__ = ["draw", "save"]

_PAPER = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 6.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "eenet",
}
_SIZE = (4.2, 3.0)  # inches
_BESIDE = 5  # series, at most, whose legend stands within the axes
_BANDS = 3  # of more, which would cover each other, only the first is drawn
_WRAPPED = 16  # letters of a name in a line
_FORMATS = ("png", "svg", "pdf")
_MANY = 12  # cells in a row of a heat map, of which no numbers are written beyond


def draw(chart: Chart, ax: Axes | None = None, *, scheduler: str | None = None, budget: int | None = None) -> Axes:
    """Draw a chart of a report.

    Parameters
    ----------
    chart : dict
        What an analysis gave, or one of the charts in the JSON file of a report.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure at the size of a column.
    scheduler : str, optional
        Of a chart that depends on the budget: whose figure; the first by default.
    budget : int, optional
        The number of its budget among those of the report; one in the middle by default.

    Returns
    -------
    matplotlib.axes.Axes
        Its `figure` can be saved, for example as PDF.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    InvalidInputError
        For a dict that is no chart, or a scheduler or a budget that it does not have.

    Examples
    --------
    >>> import eenet
    >>> from eenet.reporting import figures
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs())
    >>> made = eenet.report(toy_records(seed=1), costs=toy_costs(), schedulers=[scheduler], budgets=3, draws=0)
    >>> ax = figures.draw(dict(made.charts)["reliability"])
    >>> ax.get_xlabel()
    'confidence: largest class probability'
    """
    require("matplotlib.figure", "report", "a figure")
    import matplotlib as mpl

    kind = chart.get("kind") if isinstance(chart, dict) else None
    if kind not in _KINDS:
        raise InvalidInputError(f"a chart of kind {kind!r} cannot be drawn; expected one of {sorted(_KINDS)}")
    chart = _framed(chart, scheduler, budget)
    if ax is not None:
        return _drawn(chart, ax)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_PAPER):
        figure = Figure(figsize=_size(chart), layout="constrained")
        FigureCanvasAgg(figure)
        return _drawn(chart, figure.subplots())


def save(chart: Chart, path: str | Path) -> None:
    """Draw a chart and write it as PNG, SVG or PDF, by the end of its name, atomically.

    Parameters
    ----------
    chart : dict
        As for `draw`.
    path : path
        Text in SVG and PDF stays text.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    InvalidInputError
        For another ending, or a dict that is no chart.

    Examples
    --------
    >>> import eenet
    >>> from eenet.reporting import figures
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs())
    >>> made = eenet.report(toy_records(seed=1), costs=toy_costs(), schedulers=[scheduler], budgets=3, draws=0)
    >>> figures.save(made.charts[0][1], "frontier.svg")
    """
    suffix = Path(path).suffix.removeprefix(".").lower()
    if suffix not in _FORMATS:
        raise InvalidInputError(f"{str(path)!r} is no figure that can be written; end it with .png, .svg or .pdf")
    figure: Any = draw(chart).figure
    import matplotlib as mpl

    stamp = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    with mpl.rc_context(_PAPER), atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=200, metadata=stamp)


def _framed(chart: Chart, scheduler: str | None, budget: int | None) -> Chart:
    """The chart of one scheduler at one budget, where it depends on them."""
    if scheduler is None and budget is None:
        return chart
    frames = chart.get("frames")
    if frames is None:
        raise InvalidInputError(f"chart {chart['name']!r} is the same for all budgets; leave out scheduler and budget")
    scheduler = next(iter(frames)) if scheduler is None else scheduler
    if scheduler not in frames:
        raise InvalidInputError(f"chart {chart['name']!r} has no scheduler {scheduler!r}; choose from {list(frames)}")
    of = frames[scheduler]
    number = 0 if len(of) == 1 else len(of) // 2 if budget is None else budget
    if not 0 <= number < len(of) or of[number] is None:
        met = [n for n, frame in enumerate(of) if frame is not None]
        raise InvalidInputError(
            f"budget {number} of {scheduler!r} has no figure; choose a number from {met[0]} to {met[-1]}"
            if met
            else f"{scheduler!r} meets no budget of this report"
        )
    return {**chart, **of[number]}


def _size(chart: Chart) -> tuple[float, float]:
    """Room for a legend beside many series, and for rows and columns."""
    width, height = _SIZE
    if chart["kind"] == "heat":
        return max(width, 1.6 + 0.34 * len(chart["columns"])), max(2.2, 1.2 + 0.2 * len(chart["rows"]))
    entries = len(chart["series"])
    if chart["kind"] == "bars":
        wide = min(max(map(len, chart["categories"]), default=0), _WRAPPED) * 0.065 + 0.1
        bars = 0.16 * (1 if chart["stacked"] else max(1, entries))
        width = max(width, 1.2 + max(wide, bars) * len(chart["categories"]))
    return (width + 1.6, max(height, 0.9 + 0.17 * entries)) if _beside(chart) else (width, height)


def _beside(chart: Chart) -> bool:
    """Whether the legend stands beside the axes: where it would cover much."""
    return len(chart["series"]) > _BESIDE or bool(chart.get("stacked"))


def _drawn(chart: Chart, ax: Axes) -> Axes:
    _KINDS[chart["kind"]](chart, ax)
    for rule in chart["rules"]:
        _rule(rule, ax)
    ax.set_title(_plain(chart["title"]), loc="left")
    for which in ("x", "y"):
        said = chart[which]
        getattr(ax, f"set_{which}label")(_plain(said["label"]))
        if said["log"]:
            getattr(ax, f"set_{which}scale")("log", base=2)
        if said["ticks"] is not None:
            getattr(ax, f"set_{which}ticks")(said["ticks"], [f"{tick:g}" for tick in said["ticks"]])
            ax.minorticks_off()
        if said["range"] is not None:
            getattr(ax, f"set_{which}lim")(*said["range"])
        if said["percent"] and chart["kind"] != "heat":
            from matplotlib.ticker import PercentFormatter

            getattr(ax, f"{which}axis").set_major_formatter(PercentFormatter(1.0))
    if chart["kind"] != "heat":
        ax.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        handles, labels = ax.get_legend_handles_labels()
        if _beside(chart):
            ax.legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        elif handles:
            ax.legend(handles, labels, loc="best", framealpha=0.9)
    return ax


def _lines(chart: Chart, ax: Axes) -> None:
    sparse = len(chart["series"]) > _BESIDE  # then a few markers on each line tell the lines apart
    banded = [one for one in chart["series"] if "low" in one]
    for one in chart["series"]:
        style, x, y = one["style"], _floats(one["x"]), _floats(one["y"])
        if "low" in one and (len(banded) <= _BANDS or one is banded[0]):
            band = zip(x, _floats(one["low"]), _floats(one["high"]), strict=True)
            across = sorted(point for point in band if all(map(math.isfinite, point)))
            if across:
                at, low, high = zip(*across, strict=True)
                ax.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
        look: dict[str, Any] = {
            "color": style["color"],
            "linestyle": _dashes(style) if one["line"] else "none",
            "marker": style["marker"] if one["points"] or (sparse and one["line"]) else "",
            "markevery": 1 if one["points"] else max(1, len(x) // 7),
            "markerfacecolor": "none",
            "label": _plain(one["name"]),
        }
        if "x_error" in one or "y_error" in one:
            errors: dict[str, Any] = {
                f"{which}err": _floats(one[f"{which}_error"]) for which in "xy" if f"{which}_error" in one
            }
            ax.errorbar(x, y, elinewidth=0.8, capsize=1.5, **errors, **look)
        else:
            ax.plot(x, y, **look)
        for n, text in enumerate(one.get("text", ())):
            if text:
                place: dict[str, Any] = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": "small"}
                ax.annotate(_plain(text), (x[n], y[n]), color=style["color"], **place)


def _steps(chart: Chart, ax: Axes) -> None:
    for one in chart["series"]:
        style = one["style"]
        look = {"color": style["color"], "linestyle": _dashes(style), "label": _plain(one["name"])}
        ax.stairs(_floats(one["values"]), _floats(one["edges"]), linewidth=1.2, **look)
        ax.stairs(_floats(one["values"]), _floats(one["edges"]), fill=True, color=style["color"], alpha=0.15)


def _bars(chart: Chart, ax: Axes) -> None:
    import numpy as np

    count, places = len(chart["series"]), np.arange(len(chart["categories"]))
    below = np.zeros(len(places))
    width = 0.8 if chart["stacked"] else 0.8 / max(1, count)
    for n, one in enumerate(chart["series"]):
        values = np.array(_floats(one["values"]))
        at = places if chart["stacked"] else places + (n - (count - 1) / 2) * width
        look: dict[str, Any] = {"color": one["style"]["color"], "label": _plain(one["name"])}
        if "errors" in one:
            look |= {"yerr": _floats(one["errors"]), "error_kw": {"elinewidth": 0.8}}
        ax.bar(at, values, width, bottom=below if chart["stacked"] else None, edgecolor="white", linewidth=0.4, **look)
        below = below + np.nan_to_num(values)
    ax.set_xticks(places, [fill(_plain(name), _WRAPPED) for name in chart["categories"]])


def _heat(chart: Chart, ax: Axes) -> None:
    import numpy as np

    values = np.array([_floats(row) for row in chart["values"]], dtype=np.float64)
    known = values[np.isfinite(values)]
    low, high = chart["limits"]
    ax.imshow(np.ma.masked_invalid(values), cmap="cividis", vmin=low, vmax=high, aspect="auto")
    columns, rows = ([_plain(name) for name in chart[which]] for which in ("columns", "rows"))
    turned = len(columns) * max(map(len, columns), default=0) > 60
    ax.set_xticks(range(len(columns)), columns, rotation=45 if turned else 0, ha="right" if turned else "center")
    ax.set_yticks(range(len(rows)), rows)
    if len(columns) > _MANY or not len(known):
        return
    middle = (low + high) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{100 * value:.0f}" if chart["percent"] else f"{value:.3g}"
            dark = value < middle
            ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")


def _rule(rule: Mapping[str, Any], ax: Axes) -> None:
    look: dict[str, Any] = {
        "color": "#6b6b6b",
        "linewidth": 0.8,
        "linestyle": (0, (4, 2)),
        "label": _plain(rule["name"]) or None,
    }
    if rule["axis"] == "diagonal":
        ax.axline((0, 0), slope=1, **look)
    elif rule["axis"] == "x":
        ax.axvline(rule["at"], **look)
    else:
        ax.axhline(rule["at"], **look)


_KINDS: dict[str, Callable[[Chart, Axes], None]] = {"lines": _lines, "steps": _steps, "bars": _bars, "heat": _heat}


def _plain(text: str) -> str:
    """Text as it stands: a dollar sign in a name is no formula."""
    return str(text).replace("$", r"\$")


def _dashes(style: Mapping[str, Any]) -> Any:
    return (0, tuple(style["dashes"])) if style["dashes"] else "-"


def _floats(values: Any) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]
