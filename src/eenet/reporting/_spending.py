"""Section 4, what it costs: times by stage and batch size, overheads, compaction, and where it does not pay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.evaluation._style import GRAY, PLAIN, Style, exit_styles, styles, title_of
from eenet.reporting._charts import Chart, axis, chart, numbers, series
from eenet.reporting._runs import Run

Floats = NDArray[np.float64]
Profile = Mapping[str, Any]

NO_SYSTEMS = (
    "Whole systems run in turns with the plain network are not in these results: eenet benchmark plain=NETWORK "
    "early=BUNDLE --data DATA --json benchmark.json, then eenet report RESULTS benchmark.json."
)
"""Said of a run where no benchmark is given beside it."""

_HEADS = Style("#E69F00", "#F5B93D", "P", "cross")
_DECISIONS = Style("#882255", "#D9679F", "s", "square")
_REST = Style(GRAY, "#a8a8a8", "o", "circle")
_LINE = {"axis": "y", "at": 1.0, "name": "plain network"}


def plain_ms(profile: Profile) -> tuple[Floats, str]:
    """The wall time of the plain network per sample, one for each batch size, and what it is.

    Profiles of early versions did not measure it; then it is that of all stages and of the last exit's output.
    """
    measured = profile.get("plain") or {}
    if "ms" in measured:
        return np.asarray(measured["ms"], dtype=np.float64), "the plain network"
    parts = _parts(profile)
    return parts[:, :, 0].sum(axis=1) + parts[:, -1, 1], "all stages without the early heads"


def _parts(profile: Profile) -> Floats:
    """Milliseconds per sample of each stage, head and, where measured, decision: (batch sizes, K, parts)."""
    return np.asarray(profile["parts_ms"], dtype=np.float64)


def exit_times(profile: Profile, run: Run) -> Chart:
    """The time per sample of the whole way to each exit over the plain network's, by batch size."""
    sizes, plain, what = profile["batch_sizes"], *plain_ms(profile)
    times, spreads = (np.asarray(profile[name]["ms"], dtype=np.float64) for name in ("costs", "spreads"))
    made = []
    for k, style in enumerate(exit_styles(times.shape[1])):
        share, half = times[:, k] / plain, times[:, k] * spreads[:, k] / plain / 2
        made.append(series(run.exit_titles[k], style, sizes, share, low=share - half, high=share + half))
    return chart(
        "exit-times",
        "Time of each exit, by batch size",
        f"Wall time per sample of the whole way to each exit, heads included, as a share of {what}. The band holds the "
        "middle half of the rounds. An exit above the line costs more than to run no exits at all.",
        axis("batch size", log=True, ticks=sizes),
        axis(f"time, of {what}", percent=True),
        rules=[{**_LINE, "name": what}],
        marker="share-y" if run.costs.unit == "ms" and run.costs.plain is not None else None,
        kind="lines",
        series=made,
    )


def batch_sizes(profile: Profile, run: Run) -> Chart:
    """Milliseconds per sample of each exit and of the plain network, by batch size."""
    sizes, plain, what = profile["batch_sizes"], *plain_ms(profile)
    times, spreads = (np.asarray(profile[name]["ms"], dtype=np.float64) for name in ("costs", "spreads"))
    made = []
    for k, style in enumerate(exit_styles(times.shape[1])):
        made.append(series(run.exit_titles[k], style, sizes, times[:, k], y_error=times[:, k] * spreads[:, k] / 2))
    made.append(series(what, PLAIN, sizes, plain))
    at = "" if run.costs.batch_size is None else f", which is of batch {run.costs.batch_size}"
    return chart(
        "batch-sizes",
        "Milliseconds per sample, by batch size",
        "Larger batches share what a call takes whatever its size. Bars hold the middle half of the rounds."
        + (f" The dotted line is the mean cost at the chosen budget{at}." if run.costs.unit == "ms" else ""),
        axis("batch size", log=True, ticks=sizes),
        axis("wall time (ms per sample)"),
        marker="cost-y" if run.costs.unit == "ms" else None,
        kind="lines",
        series=made,
    )


def stage_times(profile: Profile) -> Chart:
    """Milliseconds per sample of each stage, of its head and of the scheduler's decision, by batch size."""
    parts = _parts(profile)
    looks = exit_styles(parts.shape[1])
    made = []
    for k, style in enumerate(looks):
        made.append({"name": f"stage {k}", "style": style.to_dict(), "values": numbers(parts[:, k, 0])})
    made.append({"name": "heads", "style": _HEADS.to_dict(), "values": numbers(parts[:, :, 1].sum(axis=1))})
    if parts.shape[2] > 2:
        decisions = parts[:, :, 2].sum(axis=1)
        made.append({"name": "scheduler", "style": _DECISIONS.to_dict(), "values": numbers(decisions)})
    return chart(
        "stage-times",
        "Where the time goes",
        "Wall time of each stage by itself, of all heads, and where it was measured of the scheduler's decisions, for "
        "a sample that goes all the way.",
        axis("batch size"),
        axis("wall time (ms per sample)"),
        kind="bars",
        categories=[str(size) for size in profile["batch_sizes"]],
        stacked=True,
        series=made,
    )


def overheads(profile: Profile) -> Chart:
    """What heads, decisions and the cut itself add for a sample that goes all the way, of the plain network."""
    plain, what = plain_ms(profile)
    parts = _parts(profile)
    heads = parts[:, :-1, 1].sum(axis=1)
    decisions = parts[:, :, 2].sum(axis=1) if parts.shape[2] > 2 else None
    made = [{"name": "early heads", "style": _HEADS.to_dict(), "values": numbers(heads / plain)}]
    if decisions is not None:
        made.append({"name": "scheduler", "style": _DECISIONS.to_dict(), "values": numbers(decisions / plain)})
    if "ms" in (profile.get("plain") or {}):
        stages = parts[:, :, 0].sum(axis=1) + parts[:, -1, 1]
        name = "the members before" if profile.get("cascade") else "the network in stages"
        made.append({"name": name, "style": _REST.to_dict(), "values": numbers(stages / plain - 1)})
    added = (
        f"What a sample that goes all the way takes on top of {what}, which is the last member of the cascade by "
        "itself: the members before it, early heads and the scheduler's decisions."
        if profile.get("cascade")
        else f"Time added by the early heads, the scheduler's decisions and the cut into stages, as a share of {what}. "
        "Below zero, the stages run faster than the network called as a whole."
    )
    return chart(
        "overheads",
        "What exits add for a sample that takes none",
        added,
        axis("batch size"),
        axis(f"added, of {what}", percent=True),
        kind="bars",
        categories=[str(size) for size in profile["batch_sizes"]],
        stacked=False,
        series=made,
    )


def units(profile: Profile, run: Run) -> Chart:
    """What each exit costs of the last one in FLOPs and in measured time at the smallest and the largest batch."""
    costs, sizes = profile["costs"], profile["batch_sizes"]
    looks = styles(["FLOPs", *(f"batch {size}" for size in sizes)])
    columns = {"FLOPs": costs["flops"][0]} if "flops" in costs else {}
    for row in sorted({0, len(sizes) - 1}):
        columns[f"time, batch {sizes[row]}"] = costs["ms"][row]
    made = [
        {"name": name, "style": look.to_dict(), "values": numbers(np.asarray(values) / values[-1])}
        for (name, values), look in zip(columns.items(), looks.values(), strict=False)
    ]
    return chart(
        "flops-and-time",
        "FLOPs beside milliseconds",
        "The cost of each exit as a share of the last exit's. Where the bars of an exit differ, a budget in FLOPs is "
        "not a budget in time.",
        axis("exit"),
        axis("cost, of the last exit", percent=True),
        kind="bars",
        categories=list(run.exit_titles),
        stacked=False,
        series=made,
    )


def compaction(profile: Profile) -> Chart:
    """The time of a stage on the samples that are left of the largest batch, against their share."""
    sizes = np.asarray(profile["batch_sizes"], dtype=np.float64)
    order = np.argsort(sizes)
    if "parts_ms" in profile:
        stages = _parts(profile)[:, :, 0]
    else:  # a bundle's stages run with their heads
        stages = np.diff(np.asarray(profile["costs"]["ms"], dtype=np.float64), prepend=0.0, axis=1)
    whole = stages[order] * sizes[order, None]
    share = sizes[order] / sizes.max()
    made = []
    for k, style in enumerate(exit_styles(whole.shape[1])):
        if k:  # no sample has left before the first stage
            made.append(series(f"stage {k}", style, share, whole[:, k] / whole[-1, k]))
    return chart(
        "compaction",
        f"What leaving saves in a batch of {int(sizes.max())}",
        "Samples that exit are taken out of the batch, and later stages run on the rest. On the diagonal half of the "
        "samples take half of the time; above it, leaving saves less than its share.",
        axis("samples that go on", percent=True, limits=(0, 1)),
        axis("time of the stage, of a full batch", percent=True),
        rules=[{"axis": "diagonal", "at": 0.0, "name": "in proportion"}],
        marker="going-on",
        kind="lines",
        series=made,
    )


def speeds(benchmark: Mapping[str, Any], name: str = "benchmark") -> Chart:
    """How many times as fast as the plain network every system of a benchmark ran, by batch size."""
    rows = benchmark["rows"]
    looks = styles([row["system"] for row in rows])
    titles = {_title(row): looks[row["system"]] for row in rows}
    first, made = _title(rows[0]), []
    for title, style in titles.items():
        of = sorted((row for row in rows if _title(row) == title), key=lambda row: float(row["batch_size"]))
        sizes, speed = ([row[key] for row in of] for key in ("batch_size", "speed"))
        made.append(series(title, style, sizes, speed, y_error=[row["speed_error"] or 0.0 for row in of]))
    return chart(
        f"speeds-{name}",
        f"Measured speed of {name}, by batch size",
        f"How many times as fast as {first}, which is the line at 1; bars are one standard error over the batches.",
        axis("batch size", log=True, ticks=sorted({row["batch_size"] for row in rows})),
        axis(f"times as fast as {first}"),
        rules=[{**_LINE, "name": first}],
        kind="lines",
        series=made[1:],
    )


def speed_and_accuracy(benchmark: Mapping[str, Any], size: int, name: str = "benchmark") -> Chart:
    """Accuracy, or without labels agreement, against measured speed at one batch size, a point for each system."""
    rows = [row for row in benchmark["rows"] if row["batch_size"] == size]
    which = "accuracy" if benchmark["labeled"] else "agreement"
    rows = [row for row in rows if row[which] is not None]
    names = list(dict.fromkeys(row["system"] for row in rows))
    looks, made = styles(names), []
    for system in names:
        of = sorted((row for row in rows if row["system"] == system), key=lambda row: float(row["speed"]))
        errors: dict[str, Any] = {"x_error": [row["speed_error"] or 0.0 for row in of]}
        if benchmark["labeled"]:
            errors["y_error"] = [row["accuracy_error"] or 0.0 for row in of]
        text = [row["budget"] or "" for row in of]
        made.append(
            series(system, looks[system], [r["speed"] for r in of], [r[which] for r in of], text=text, **errors)
        )
    return chart(
        f"speed-and-accuracy-{name}-{size}",
        f"Speed and accuracy of {name} at batch {size}",
        "Further right is faster, higher is more accurate; bars are one standard error.",
        axis(f"times as fast as {_title(benchmark['rows'][0])}"),
        axis("accuracy" if benchmark["labeled"] else "answers like the first system", percent=True),
        rules=[{"axis": "x", "at": 1.0, "name": ""}],
        kind="lines",
        series=made,
    )


def _title(row: Mapping[str, Any]) -> str:
    return str(row["system"]) if row["budget"] is None else f"{row['system']} {row['budget']}"


def as_benchmark(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe measured of its policies, as rows of a benchmark; the errors are over its rounds."""
    rows: list[dict[str, Any]] = []
    exits = 0  # rows of single exits are in their order
    for row in measured["rows"]:
        budget, name = row["budget"], {"plain": "plain network", "exit": "one exit for all"}.get(row["method"])
        if row["method"] == "exit":
            budget, exits = f"exit {exits}", exits + 1
        for size, time in row["time"].items():
            rounds = np.asarray(time["rounds"], dtype=np.float64)
            rows.append(
                {
                    "system": name or title_of(row["method"]),
                    "budget": budget,
                    "early_exit": row["method"] not in ("plain", "exit"),
                    "batch_size": int(size),
                    "speed": time["times"],
                    "speed_error": float(rounds.std(ddof=1) / np.sqrt(len(rounds))) if len(rounds) > 1 else 0.0,
                    "accuracy": row["accuracy"],
                    "accuracy_error": float(np.sqrt(row["accuracy"] * (1 - row["accuracy"]) / measured["samples"])),
                }
            )
    return {"rows": rows, "labeled": True, "samples": measured["samples"]}


def pays(profile: Profile) -> list[str]:
    """In words: at which batch sizes early exit pays, and from which share of early exits on."""
    never, some, always = [], [], []
    plain, what = plain_ms(profile)
    for size, of, reference in zip(profile["batch_sizes"], profile["costs"]["ms"], plain.tolist(), strict=True):
        first, last = of[0], of[-1]
        if first >= reference:
            never.append(f"at batch {size} exit 0 takes {first:.3g} ms per sample, {what} {reference:.3g} ms")
        elif last > reference:
            share = (last - reference) / (last - first)
            some.append(f"{share:.0%} at batch {size} (else up to {last / reference - 1:.1%} is lost)")
        else:
            always.append(f"{size}")
    said = []
    if never:
        said.append(f"Early exit cannot pay where exit 0 costs more than {what}: {'; '.join(never)}.")
    if some:
        said.append(
            f"Early exit pays, against {what}, once more of the samples leave at exit 0 than this, if the others go "
            f"all the way: {', '.join(some)}."
        )
    if always:
        said.append(f"At batch {', '.join(always)} no exit costs more than {what}: every early exit saves time.")
    return said


def slower_systems(benchmark: Mapping[str, Any], name: str) -> list[str]:
    """In words: which early exits are slower than the first system, or not clearly faster, at each batch size."""
    said, rows = [], benchmark["rows"]
    first = _title(rows[0])
    for size in sorted({int(row["batch_size"]) for row in rows}):
        early = [row for row in rows if row["early_exit"] and row["batch_size"] == size]
        gains = [(row, row["speed"] - 1, 2 * (row["speed_error"] or 0.0)) for row in early]
        slower = [f"{_title(row)} ({row['speed']:.2f} times as fast)" for row, gain, error in gains if gain < -error]
        unclear = [_title(row) for row, gain, error in gains if abs(gain) <= error]
        at = f"In {name} at batch {size}"
        if slower:
            said.append(f"{at}, slower than {first}: {', '.join(slower)}.")
        if unclear:
            said.append(f"{at}, within two standard errors of the speed of {first}: {', '.join(unclear)}.")
        if early and not slower and not unclear:
            said.append(f"{at}, every early exit is faster than {first}.")
    return said


def spending(run: Run) -> tuple[list[Chart], list[str]]:
    """What a run's network costs: by its profile, and by what its metrics.json says was measured."""
    profile, measured = run.profile, run.metrics.get("measured")
    charts: list[Chart] = []
    notes: list[str] = []
    missing: list[str] = []
    if profile is not None and {"batch_sizes", "costs", "spreads"} <= set(profile):
        charts += [exit_times(profile, run), batch_sizes(profile, run), units(profile, run)]
        if "parts_ms" in profile:
            charts[2:2] = [stage_times(profile), overheads(profile)]
            if _parts(profile).shape[2] < 3:
                missing.append(
                    "The scheduler's own time was not measured: eenet profile TARGET --scheduler SCHEDULER --json."
                )
        else:
            missing.append("These times are of a bundle, whose stages run with their heads: parts are not known.")
        if len(profile["batch_sizes"]) > 1:
            charts.append(compaction(profile))
        else:
            missing.append("Curves over batch sizes, and what compaction does, need more: eenet profile --batch-sizes.")
        notes += pays(profile)
        if "ms" not in (profile.get("plain") or {}):
            missing.append(
                "The plain network was not measured; the sum of its stages stands for it. This version measures it: "
                "eenet profile TARGET --json."
            )
    else:
        missing.append(
            "Times by stage and batch size need a profile: eenet profile TARGET --batch-sizes 1,8,32 --json > "
            "costs.json, then give it to eenet report as --costs costs.json, or beside a results folder."
        )
    if measured:
        charts += of_benchmark(as_benchmark(measured), "this run")
        notes += slower_systems(as_benchmark(measured), "this run")
    else:
        missing.append(NO_SYSTEMS)
    return charts, [*notes, *missing]


def of_benchmark(benchmark: Mapping[str, Any], name: str) -> list[Chart]:
    """The charts of one benchmark: speed by batch size, and at each batch size speed and accuracy."""
    sizes = sorted({int(row["batch_size"]) for row in benchmark["rows"]})
    return [speeds(benchmark, name), *(speed_and_accuracy(benchmark, size, name) for size in sizes)]
