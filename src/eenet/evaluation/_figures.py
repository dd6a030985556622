"""Figures of accuracy against cost: policies as curves over budgets, single exits, bounds, and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eenet._extras import require
from eenet._files import atomic_path
from eenet.errors import InvalidInputError
from eenet.evaluation._oracle import Bound, upper_hull
from eenet.evaluation._style import GRAY, REFERENCE, Style, styles

_ROW_HEIGHT = 0.27  # inches for each scheduler in the panel of differences


@dataclass(frozen=True)
class Point:
    """A measured cost per sample, an accuracy in [0, 1], a label beside it, and how far either may be off."""

    cost: float
    accuracy: float
    label: str = ""
    spread: float = 0.0
    error: float = 0.0


@dataclass(frozen=True)
class Curve:
    """One policy at several budgets."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Gain:
    """A scheduler's mean difference to the reference, its standard error, and the differences at single budgets.

    All in [-1, 1]. A `curve` of the same name is drawn in the same style.
    """

    name: str
    mean: float
    error: float
    single: Sequence[float] = ()


def write_cost_figure(
    path: str | Path,
    curves: Sequence[Curve],
    exits: Sequence[Point],
    plain: Point,
    *,
    title: str,
    cost_label: str,
    samples: int | None = None,
) -> None:
    """Write a PNG of accuracy against cost, atomically.

    Parameters
    ----------
    path : path
        The file to write.
    curves : sequence of Curve
        Policies over budgets.
    exits : sequence of Point
        The single exits.
    plain : Point
        The network without exits.
    title, cost_label : str
        The title, and what the cost is.
    samples : int, optional
        The number of test samples: gives a band of one standard error around the plain network's accuracy.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InvalidInputError
        If a cost or an accuracy is not finite.
    """
    for point in (plain, *exits, *(p for curve in curves for p in curve.points)):
        if not (math.isfinite(point.cost) and math.isfinite(point.accuracy)):
            raise InvalidInputError(f"{point} cannot be drawn: expected a finite cost and accuracy; leave it out")
    figure, axes = _new_figure(8, 5.2)
    if samples:
        _draw_band(axes, plain, samples)
    axes.plot(
        *_coordinates(exits), color=GRAY, linestyle="none", marker="s", markersize=6, label="one exit for all", zorder=2
    )
    mixtures = upper_hull(Bound(point.accuracy, point.cost) for point in (*exits, plain))
    axes.plot(
        *_coordinates([Point(one.cost, one.accuracy) for one in mixtures]),
        color=GRAY,
        linestyle=":",
        linewidth=1,
        label="exits and plain network mixed at random",
        zorder=2,
    )
    _annotate(axes, exits, GRAY, offset=(9, -4), ha="left", va="top")
    looks = styles([curve.name for curve in curves])
    for index, curve in enumerate(curves):
        # Later markers are smaller, so that points that fall together show as nested shapes.
        size = 11 - 5 * index / max(1, len(curves) - 1)
        look = {"markersize": size, "markeredgewidth": 1.6, "linewidth": 1.4, "elinewidth": 1, "zorder": 3}
        points = _draw(axes, curve, looks, errors="x", **look)
        _annotate(axes, points, looks[curve.name].color, offset=(0, 11), ha="center", va="baseline")
    axes.plot(
        *_coordinates([plain]),
        color="black",
        marker="*",
        markersize=15,
        linestyle="none",
        label="plain network",
        zorder=5,
    )
    widest = max(p.cost + p.spread for p in (plain, *exits, *(p for curve in curves for p in curve.points)))
    axes.set_xlim(0, 1.12 * widest)  # space for the label of the last exit
    _finish(axes, title, cost_label, "test accuracy (%)")
    axes.legend(loc="lower right", frameon=True, framealpha=0.95, fontsize=9)
    _save(figure, path)


def write_panels(path: str | Path, panels: Mapping[str, Sequence[Curve]], *, cost_label: str, y_label: str) -> None:
    """Write a PNG with a panel for each title, atomically: curves, or single points, with the errors of both axes.

    A curve of the same name looks the same in all panels. Raises `MissingExtraError` without matplotlib.
    """
    figure, axes = _new_figure(max(6.4, 5.2 * len(panels)), 4.6, width_ratios=(1.0,) * len(panels))
    looks = styles([curve.name for curves in panels.values() for curve in curves])
    for panel, (title, curves) in zip(axes if len(panels) > 1 else [axes], panels.items(), strict=True):
        for curve in curves:
            look = {"markersize": 8, "markeredgewidth": 1.6, "elinewidth": 1, "capsize": 2}
            points = _draw(panel, curve, looks, errors="xy", **look)
            _annotate(panel, points, looks[curve.name].color, offset=(6, 6), ha="left", va="baseline")
        panel.set_xlim(0, 1.15 * max(p.cost + p.spread for curve in curves for p in curve.points))
        _finish(panel, title, cost_label, y_label)
        panel.legend(frameon=True, framealpha=0.95, fontsize=9)
    _save(figure, path)


def write_comparison_figure(
    path: str | Path,
    curves: Sequence[Curve],
    bounds: Sequence[Curve],
    gains: Sequence[Gain],
    *,
    statics: Sequence[Point] = (),
    reference: str,
    title: str,
    cost_label: str,
) -> None:
    """Write a PNG, atomically: curves between `bounds` drawn in gray, and beside it gains from best to worst.

    Bars are one standard error of an accuracy. `statics` are what is the same for all samples: the exits and the plain
    network, by their labels. Without gains there is one panel.

    Raises `MissingExtraError` without matplotlib, `InvalidInputError` for numbers that cannot be drawn.
    """
    numbers = [x for c in (*curves, *bounds) for p in c.points for x in (p.cost, p.accuracy)]
    numbers += [x for gain in gains for x in (gain.mean, gain.error, *gain.single)]
    if not all(math.isfinite(x) for x in numbers):
        raise InvalidInputError("a comparison with numbers that are not finite cannot be drawn; leave those out")
    height = max(4.6, 1.4 + _ROW_HEIGHT * max(len(gains), len(curves) + len(bounds) + 2))
    if gains:
        figure, (left, right) = _new_figure(12.5, height, width_ratios=(1.35, 1.0))
    else:
        figure, left = _new_figure(7.5, height)
    for curve, dashes in zip(bounds, ((0, (1, 1.5)), (0, (4, 2))), strict=False):
        points = sorted(curve.points, key=lambda p: p.cost)
        left.plot(*_coordinates(points), color=GRAY, linestyle=dashes, linewidth=1.2, label=curve.name)
    looks = styles([curve.name for curve in curves])
    for curve in curves:
        _draw(left, curve, looks, errors="y", markersize=4, linewidth=1, elinewidth=0.8, capsize=2)
    for what, marker, color in (("one exit for all", "s", GRAY), ("plain network", "*", "black")):
        points = [p for p in statics if (p.label == "plain") == (marker == "*")]
        if points:
            left.errorbar(
                *_coordinates(points),
                yerr=[100 * p.error for p in points],
                color=color,
                linestyle="none",
                marker=marker,
                markersize=9 if marker == "*" else 5,
                elinewidth=0.8,
                capsize=2,
                label=what,
            )
    _finish(left, title, cost_label, "held-out accuracy (%); bars: one standard error")
    left.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    if not gains:
        _save(figure, path)
        return
    ordered = sorted(gains, key=lambda gain: gain.mean)
    for height, gain in enumerate(ordered):
        style = looks.get(gain.name, REFERENCE)
        right.plot([100 * x for x in gain.single], [height] * len(gain.single), "|", color=style.color, alpha=0.45)
        right.errorbar(
            100 * gain.mean,
            height,
            xerr=100 * 2 * gain.error,
            color=style.color,
            marker=style.marker,
            markersize=7,
            markerfacecolor="white",
            elinewidth=1.6,
            capsize=3,
        )
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(range(len(ordered)), [gain.name for gain in ordered])
    right.set_ylim(-0.7, len(ordered) - 0.3)
    label = "points: mean over the budgets ± 2 standard errors;\nstrokes: single budgets"
    _finish(right, f"against {reference} at the same cost", label)
    _save(figure, path)


def _draw(axes: Any, curve: Curve, looks: Mapping[str, Style], *, errors: str, **look: float) -> list[Point]:
    """Draw a curve in its style, with the errors of the axes that `errors` names; gives its points in order."""
    style = looks[curve.name]
    points = sorted(curve.points, key=lambda p: p.cost)
    axes.errorbar(
        *_coordinates(points),
        xerr=[p.spread for p in points] if "x" in errors else None,
        yerr=[100 * p.error for p in points] if "y" in errors else None,
        color=style.color,
        linestyle=(0, style.dashes) if style.dashes else "-",
        marker=style.marker,
        markerfacecolor="none",
        label=curve.name,
        **look,
    )
    return points


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [p.cost for p in points], [100 * p.accuracy for p in points]


def _annotate(axes: Any, points: Sequence[Point], color: str, *, offset: tuple[int, int], ha: str, va: str) -> None:
    for point in points:
        axes.annotate(
            point.label,
            (point.cost, 100 * point.accuracy),
            xytext=offset,
            textcoords="offset points",
            ha=ha,
            va=va,
            fontsize=9,
            color=color,
        )


def _draw_band(axes: Any, plain: Point, samples: int) -> None:
    error = 100 * math.sqrt(plain.accuracy * (1 - plain.accuracy) / samples)
    axes.axhspan(
        100 * plain.accuracy - error,
        100 * plain.accuracy + error,
        color="black",
        alpha=0.07,
        linewidth=0,
        label="plain ± 1 standard error",
        zorder=1,
    )


def _new_figure(width: float, height: float, width_ratios: Sequence[float] = (1.0,)) -> tuple[Any, Any]:
    """An empty matplotlib figure of a size in inches, and its panels side by side."""
    require("matplotlib.figure", "report", "a figure")
    # Not pyplot, whose figures are global and whose back end may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, len(width_ratios), width_ratios=width_ratios)


def _finish(axes: Any, title: str, x_label: str, y_label: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Any, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
