"""A comparison of schedulers drawn: accuracy against cost, and differences at equal cost with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eenet._files import atomic_path
from eenet.errors import InvalidInputError
from eenet.evaluation._figure import GREY, STYLES, Curve, new_figure

_LINES = ("-", "--", ":")
_HEIGHT = 0.27  # inches for each scheduler


@dataclass(frozen=True)
class Gain:
    """A scheduler's mean difference to the reference, its standard error, and the differences at single budgets.

    All in [-1, 1]. A `curve` of the same name is drawn in the same style.
    """

    name: str
    mean: float
    error: float
    single: Sequence[float] = ()


def write_comparison_figure(
    path: str | Path,
    curves: Sequence[Curve],
    bounds: Sequence[Curve],
    gains: Sequence[Gain],
    *,
    reference: str,
    title: str,
    cost_label: str,
) -> None:
    """Write a PNG of two panels, atomically: curves between `bounds` drawn in grey, and gains from best to worst.

    Raises `MissingExtraError` without matplotlib, `InvalidInputError` for numbers that cannot be drawn.
    """
    numbers = [x for c in (*curves, *bounds) for p in c.points for x in (p.cost, p.accuracy)]
    numbers += [x for gain in gains for x in (gain.mean, gain.error, *gain.single)]
    if not all(math.isfinite(x) for x in numbers):
        raise InvalidInputError("a comparison with numbers that are not finite cannot be drawn; leave those out")
    styles = {
        curve.name: (*STYLES[index % len(STYLES)], _LINES[index // len(STYLES) % len(_LINES)])
        for index, curve in enumerate(curves)
    }
    figure = new_figure(11.5, max(4.6, 1.4 + _HEIGHT * len(gains)))
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    for curve, dashes in zip(bounds, ((0, (1, 1.5)), (0, (4, 2))), strict=False):
        points = sorted(curve.points, key=lambda p: p.cost)
        left.plot(
            [p.cost for p in points],
            [100 * p.accuracy for p in points],
            color=GREY,
            linestyle=dashes,
            linewidth=1.2,
            label=curve.name,
        )
    for curve in curves:
        colour, marker, line = styles[curve.name]
        points = sorted(curve.points, key=lambda p: p.cost)
        left.plot(
            [p.cost for p in points],
            [100 * p.accuracy for p in points],
            color=colour,
            linestyle=line,
            marker=marker,
            markersize=4,
            markerfacecolor="none",
            linewidth=1,
        )
    left.set_title(title, loc="left", fontsize=11)
    left.set_xlabel(cost_label)
    left.set_ylabel("held-out accuracy (%)")
    left.legend(loc="lower right", fontsize=8)
    _draw_gains(right, gains, styles, reference)
    for axes in (left, right):
        axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _draw_gains(axes: Any, gains: Sequence[Gain], styles: dict[str, tuple[str, str, str]], reference: str) -> None:
    ordered = sorted(gains, key=lambda gain: gain.mean)
    for height, gain in enumerate(ordered):
        colour, marker, _ = styles.get(gain.name, (GREY, "o", "-"))
        axes.plot([100 * x for x in gain.single], [height] * len(gain.single), "|", color=colour, alpha=0.45)
        axes.errorbar(
            100 * gain.mean,
            height,
            xerr=100 * 2 * gain.error,
            color=colour,
            marker=marker,
            markersize=7,
            markerfacecolor="white",
            elinewidth=1.6,
            capsize=3,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(ordered)), [gain.name for gain in ordered])
    axes.set_ylim(-0.7, len(ordered) - 0.3)
    axes.set_title(f"against {reference} at the same cost", loc="left", fontsize=11)
    axes.set_xlabel("points: mean over the budgets ± 2 standard errors; strokes: single budgets")
