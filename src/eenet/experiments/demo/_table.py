"""The demo's one table."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.table import Table

from eenet.experiments.demo._results import Results, Row, shares_text


def results_table(results: Results) -> Table:
    """Rows by budget, the plain network and the single exits first."""
    size = results.costs.batch_size
    table = Table(
        title="Early exit on 5,000 MNIST digits: what was planned and what was measured", title_justify="left"
    )
    table.add_column("policy", no_wrap=True)
    for heading in ("budget", "planned", "calibr.", "held-out"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("acc. %", justify="right", no_wrap=True)
    table.add_column("batch 1\nms/sample", justify="right", no_wrap=True)
    table.add_column(f"batch {size}\nms/sample", justify="right", no_wrap=True)
    table.add_column("speed", justify="right", no_wrap=True)
    table.add_column("exit shares %", justify="right", no_wrap=True)
    for _, rows in groupby(results.rows, key=lambda row: (row.kind, row.percent)):
        group = list(rows)
        for index, row in enumerate(group):
            table.add_row(*_cells(row, size or 1), end_section=index == len(group) - 1)
    return table


def _cells(row: Row, size: int) -> list[str]:
    budget = "" if row.percent is None else f"{row.percent}% {row.budget:.3f}"
    held_out = _number(row.held_out)
    if (row.overspend or 0) > 0:
        held_out = f"[red]{held_out}[/red]"
    times = row.speed_up[size]["times"]
    speed = f"{times:.2f}x"
    return [
        f"[bold]{row.name}[/bold]" if row.name == "EENet" else row.name,
        budget,
        _number(row.planned),
        _number(row.calibration),
        held_out,
        f"{100 * row.accuracy:.1f}",
        _timing(row.wall[1]),
        _timing(row.wall[size]),
        f"[red]{speed}[/red]" if times < 1 else speed,
        "" if row.exit_shares is None else shares_text(row.exit_shares),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _timing(wall: dict[str, Any]) -> str:
    return f"{wall['ms']:.2f} [dim]±{wall['spread']:.0%}[/dim]"
