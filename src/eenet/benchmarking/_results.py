"""What a benchmark found: rows as data, as tables, CSV, JSON and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from eenet._files import atomic_path, write_json
from eenet._timing import describe_machine
from eenet.evaluation import Curve, Point, write_panels

_WIDTH = 80  # where there is no terminal; a table that is wider is written in parts
_NAME = 24  # characters of a system's name that are not folded
_GAP = 2  # characters between columns


@dataclass(frozen=True)
class BenchmarkRow:
    """One system, at one budget and one batch size.

    Attributes
    ----------
    system, budget, batch_size
        The name, the budget where several were asked for, and the samples in a call.
    early_exit : bool
        Whether it says at which exit samples left.
    calls : int
        The calls that were timed.
    p50_ms, p95_ms, p99_ms : float
        Quantiles of the wall time of a call, which is one batch.
    ms_per_sample, cpu_ms_per_sample, samples_per_second : float
        Of the medians for each batch; CPU time is that of all threads.
    spread, cpu_spread : float or None
        The middle half of the times of one batch over their median, of wall and of CPU times; None where each batch had
        one turn.
    speed, speed_error : float
        How many times as fast as the first system, and its standard error over the batches.
    cpu_speed, cpu_speed_error : float
        The same in CPU time.
    accuracy, accuracy_error : float or None
        The mean over all samples, and its standard error; None without labels or for random weights.
    difference, difference_error : float or None
        The accuracy minus the first system's on the same samples, and its standard error.
    agreement : float or None
        The share of samples with the first system's answer.
    exit_shares : tuple of float (K,)
        The share of all samples that left at each exit; empty without exits.
    handed_back : float
        The share of samples that got no answer.
    unit, cost_limit, plain_cost, planned_cost, realized_cost
        The budget, the plain network's cost where the costs have it, what the scheduler planned to spend and what these
        samples' exits cost, in the costs' unit.
    measured_over_planned : float or None
        The measured time over the planned one, where the costs are a time at this batch size.
    weight_bytes : int or None
        Of parameters and buffers, of a bundle's graphs, or of an ONNX graph and the files of weights that it names; of
        one exit alone those that it runs.
        Peak memory is not shown: all systems share one process.
    """

    system: str
    budget: str | None
    early_exit: bool
    batch_size: int
    calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    ms_per_sample: float
    spread: float | None
    cpu_spread: float | None
    samples_per_second: float
    cpu_ms_per_sample: float
    speed: float
    speed_error: float
    cpu_speed: float
    cpu_speed_error: float
    agreement: float | None = None
    accuracy: float | None = None
    accuracy_error: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    exit_shares: tuple[float, ...] = ()
    handed_back: float = 0.0
    unit: str | None = None
    cost_limit: float | None = None
    plain_cost: float | None = None
    planned_cost: float | None = None
    realized_cost: float | None = None
    measured_over_planned: float | None = None
    weight_bytes: int | None = None

    @property
    def title(self) -> str:
        """The name with the budget."""
        return self.system if self.budget is None else f"{self.system} {self.budget}"


@dataclass(frozen=True)
class Benchmark:
    """The result of `benchmark`; print it.

    Attributes
    ----------
    rows : tuple of BenchmarkRow
        By batch size, then in the order of the systems.
    verdict : str
        A line for each batch size: whether early exit is worth it here, and against what.
    notes : tuple of str
        How it was measured, and what to know of it.
    samples : int
        The samples that all systems answered.
    labeled : bool
        Whether there were labels.
    machine : mapping
        Processor, threads and versions, and the load before the measurement.
    stopped : bool
        Whether it was stopped, as by Ctrl-C, and so is not all that was asked for.

    Examples
    --------
    >>> import numpy as np
    >>> import eenet
    >>> x = np.random.default_rng(0).normal(size=(64, 8))
    >>> systems = {"one": lambda x: x[:, :3], "other": lambda x: x[:, 3:6]}
    >>> result = eenet.benchmark(systems, x, batch_sizes=[8], seconds=0.1)
    >>> result.batch_sizes, result.labeled
    ((8,), False)
    """

    rows: tuple[BenchmarkRow, ...]
    verdict: str
    notes: tuple[str, ...]
    samples: int
    labeled: bool
    machine: Mapping[str, Any]
    stopped: bool = False

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that were measured."""
        return tuple(dict.fromkeys(row.batch_size for row in self.rows))

    def __repr__(self) -> str:
        names = ", ".join(row.title for row in self.rows if row.batch_size == self.rows[0].batch_size)
        return f"Benchmark({names}; batch sizes {list(self.batch_sizes)}, {self.samples} samples)"

    def __str__(self) -> str:
        text = io.StringIO()
        from rich.console import Console

        Console(file=text, width=_WIDTH, color_system=None, highlight=False, markup=False).print(self)
        return text.getvalue().rstrip("\n")

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """Two kinds of tables: answers, and times for each batch size; then the notes, the verdict last."""
        from rich.console import Group
        from rich.constrain import Constrain
        from rich.text import Text

        width = options.max_width if options.is_terminal else min(options.max_width, _WIDTH)
        parts: list[Any] = [Text(describe_machine(self.machine))]
        for table in (self._answers(width), *(self._times(size, width) for size in self.batch_sizes)):
            for part in table:
                parts += [Text(""), part]
        parts += [Text(""), *(Text(f"- {note}") for note in self.notes), Text(""), Text(self.verdict)]
        yield Constrain(Group(*parts), width)

    def _answers(self, width: int) -> Iterator[Any]:
        """What does not depend on the batch size."""
        rows = [row for row in self.rows if row.batch_size == self.rows[0].batch_size]
        unit = next((row.unit for row in rows if row.unit is not None), "")
        columns = {
            "accuracy %": [_pair(row.accuracy, row.accuracy_error, sign="") for row in rows],
            "difference\nin points": ["", *(_pair(r.difference, r.difference_error) for r in rows[1:])],
            "same answer\n%": [f"{100 * row.agreement:.1f}" if row.agreement is not None else "" for row in rows],
            "exits\n%": ["/".join(f"{100 * share:.0f}" for share in row.exit_shares) for row in rows],
            "handed\nback %": [f"{100 * row.handed_back:.1f}" if row.handed_back else "" for row in rows],
            f"budget\n{unit}": [_budget(row) for row in rows],
            "planned": [_number(row.planned_cost) for row in rows],
            "realized": [_number(row.realized_cost) for row in rows],
            "weights\nMB": [f"{row.weight_bytes / 1e6:.2f}" if row.weight_bytes is not None else "" for row in rows],
        }
        return _tables(f"answers to {self.samples:,} samples", rows, columns, width)

    def _times(self, size: int, width: int) -> Iterator[Any]:
        rows = [row for row in self.rows if row.batch_size == size]
        columns = {
            "p50 ms\na call": [f"{row.p50_ms:.3g}" for row in rows],
            "p95 ms": [f"{row.p95_ms:.3g}" for row in rows],
            "p99 ms": [f"{row.p99_ms:.3g}" for row in rows],
            "spread": ["" if row.spread is None else f"{row.spread:.0%}" for row in rows],
            "CPU ms\na sample": [f"{row.cpu_ms_per_sample:.3g}" for row in rows],
            "samples\na second": [f"{row.samples_per_second:,.0f}" for row in rows],
            "times\nas fast": [_speed(row.speed, row.speed_error) if n else "1" for n, row in enumerate(rows)],
            "in CPU\ntime": [_speed(row.cpu_speed, row.cpu_speed_error) if n else "1" for n, row in enumerate(rows)],
            "measured /\nplanned": [_number(row.measured_over_planned) for row in rows],
        }
        return _tables(f"batch {size}: times of {rows[0].calls} calls of each", rows, columns, width)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "schema": 1,
            "samples": self.samples,
            "labeled": self.labeled,
            "stopped": self.stopped,
            "machine": dict(self.machine),
            "rows": [{**asdict(row), "exit_shares": list(row.exit_shares)} for row in self.rows],
            "notes": list(self.notes),
            "verdict": self.verdict,
        }

    def write_json(self, path: str | Path) -> None:
        """Write `to_dict`, atomically."""
        write_json(path, self.to_dict())

    def write_csv(self, path: str | Path) -> None:
        """Write the rows as CSV, atomically; exit shares are joined with slashes."""
        names = [field.name for field in fields(BenchmarkRow)]
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, names, lineterminator="\n")
            writer.writeheader()
            for row in self.rows:
                writer.writerow({**asdict(row), "exit_shares": "/".join(f"{share:.6g}" for share in row.exit_shares)})

    def write_figure(self, path: str | Path) -> None:
        """Write a PNG of accuracy, or without labels agreement, against time, a panel for each batch size.

        Raises `MissingExtraError` without matplotlib.
        """
        panels: dict[str, list[Curve]] = {}
        for size in self.batch_sizes:
            curves: dict[str, list[Point]] = {}
            for row in self.rows:
                height = row.accuracy if self.labeled else row.agreement
                if row.batch_size == size and height is not None:
                    spread = row.ms_per_sample * row.speed_error / row.speed
                    point = Point(row.ms_per_sample, height, row.budget or "", spread, row.accuracy_error or 0.0)
                    curves.setdefault(row.system, []).append(point)
            panels[f"batch {size}"] = [Curve(name, points) for name, points in curves.items()]
        what = "accuracy (%)" if self.labeled else f"samples answered as {self.rows[0].title} does (%)"
        write_panels(path, panels, cost_label="measured time (ms per sample)", y_label=what)


def _tables(
    title: str, rows: Sequence[BenchmarkRow], columns: Mapping[str, Sequence[str]], width: int
) -> Iterator[Any]:
    """The columns in which anything is said, in as many tables below each other as they need."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    widths = {
        heading: _GAP + max(len(line) for text in (heading, *cells) for line in text.split("\n"))
        for heading, cells in shown.items()
    }
    names = min(max(len("system"), *(len(row.title) for row in rows)), _NAME)
    parts: list[list[str]] = [[]]
    for heading in shown:
        if parts[-1] and names + sum(widths[one] for one in parts[-1]) + widths[heading] > width:
            parts.append([])
        parts[-1].append(heading)
    for number, part in enumerate(parts):
        table = Table(
            title=None if number else title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False,
            padding=(0, 1, 0, 0),
        )  # fmt: skip
        table.add_column("system", overflow="fold")
        for heading in part:
            table.add_column(heading, justify="right", no_wrap=True)
        for n, row in enumerate(rows):
            table.add_row(row.title, *(shown[heading][n] for heading in part))
        yield table


def with_error(value: float, error: float, places: int, sign: str = "") -> str:
    """A number with its standard error, which is never shown as zero: without one where it is exactly that."""
    shown, least = f"{error:.{places}f}", 10.0**-places
    words = f"{value:{sign}.{places}f}"
    if error == 0:
        return words
    return f"{words} ± {shown if float(shown) else f'<{least:.{places}f}'}"


def _pair(value: float | None, error: float | None, sign: str = "+") -> str:
    return "" if value is None else with_error(100 * value, 100 * (error or 0), 1, sign)


def _budget(row: BenchmarkRow) -> str:
    share = "" if not row.plain_cost or row.cost_limit is None else f" = {row.cost_limit / row.plain_cost:.0%}"
    return _number(row.cost_limit) + share


def _speed(value: float, error: float) -> str:
    return with_error(value, error, 2)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
