"""Accuracy against measured cost: policies as curves over budgets, the plain network and each exit as points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eenet._files import atomic_path
from eenet.errors import InvalidInputError, MissingExtraError

# Okabe and Ito's colours, which the common kinds of colour blindness keep apart; shapes repeat the difference.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "^"),
    ("#009E73", "v"),
    ("#CC79A7", "D"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
)
GREY = "#6b6b6b"


@dataclass(frozen=True)
class Point:
    """A measured cost per sample, an accuracy in [0, 1], a label beside it, and how far the cost may be off."""

    cost: float
    accuracy: float
    label: str = ""
    spread: float = 0.0


@dataclass(frozen=True)
class Curve:
    """One policy at several budgets."""

    name: str
    points: Sequence[Point]


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

    `exits` are the single exits and `plain` the network without any; with `samples`, the number of test samples, a band
    of one standard error is drawn around the plain network's accuracy. Raises `MissingExtraError` without matplotlib.
    """
    for point in (plain, *exits, *(p for curve in curves for p in curve.points)):
        if not (math.isfinite(point.cost) and math.isfinite(point.accuracy)):
            raise InvalidInputError(f"{point} cannot be drawn: expected a finite cost and accuracy; leave it out")
    figure = new_figure(8, 5.2)
    axes = figure.add_subplot()
    if samples:
        _band(axes, plain, samples)
    axes.plot(
        [p.cost for p in exits],
        [100 * p.accuracy for p in exits],
        color=GREY,
        linestyle=":",
        marker="s",
        markersize=6,
        linewidth=1,
        label="one exit for all (dotted: mixed at random)",
        zorder=2,
    )
    for point in exits:
        axes.annotate(
            point.label,
            (point.cost, 100 * point.accuracy),
            xytext=(9, -4),
            textcoords="offset points",
            va="top",
            fontsize=9,
            color=GREY,
        )
    for index, curve in enumerate(curves):
        # Later markers are smaller, so that points that fall together show as nested shapes.
        size = 11 - 5 * index / max(1, len(curves) - 1)
        _draw(axes, curve, *STYLES[index % len(STYLES)], size)
    axes.plot(
        [plain.cost],
        [100 * plain.accuracy],
        color="black",
        marker="*",
        markersize=15,
        linestyle="none",
        label="plain network",
        zorder=5,
    )
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel(cost_label)
    axes.set_ylabel("test accuracy (%)")
    dearest = max(p.cost + p.spread for p in (plain, *exits, *(p for curve in curves for p in curve.points)))
    axes.set_xlim(0, 1.12 * dearest)  # room for the label of the last exit
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower right", frameon=True, framealpha=0.95, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def require_matplotlib() -> None:
    """Raise `MissingExtraError` where figures cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"figures need matplotlib, which cannot be imported ({error}); pip install 'eenet[report]'"
        ) from error


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches."""
    require_matplotlib()
    # Not pyplot, whose figures are global and whose back end may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _band(axes: Any, plain: Point, samples: int) -> None:
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


def _draw(axes: Any, curve: Curve, colour: str, marker: str, size: float) -> None:
    points = sorted(curve.points, key=lambda p: p.cost)
    axes.plot(
        [p.cost for p in points],
        [100 * p.accuracy for p in points],
        color=colour,
        marker=marker,
        markersize=size,
        linewidth=1.4,
        markerfacecolor="none",
        markeredgewidth=1.6,
        label=curve.name,
        zorder=3,
    )
    for point in points:
        axes.plot(
            [point.cost - point.spread, point.cost + point.spread],
            [100 * point.accuracy] * 2,
            color=colour,
            linewidth=1,
            alpha=0.6,
            zorder=2.5,
        )
        axes.annotate(
            point.label,
            (point.cost, 100 * point.accuracy),
            xytext=(0, 11),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=colour,
        )
