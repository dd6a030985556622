"""`report`: from results to a page, a JSON file and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eenet._files import atomic_path, read_json, write_json
from eenet._progress import require_progress
from eenet._values import short
from eenet._version import __version__
from eenet.costs import ExitCosts, is_time
from eenet.errors import EENetError, FileFormatError, InvalidInputError, kind_of
from eenet.records import ExitRecords
from eenet.reporting._frontier import score_label, standing
from eenet.reporting._leaving import scheduler_styles
from eenet.reporting._page import page_of, require_plotly
from eenet.reporting._replays import GRID, Replays, replay_all
from eenet.reporting._runs import Run, make_run, read_folder
from eenet.reporting._samples import samples_of
from eenet.reporting._sections import OF_ALL, OF_ONE
from eenet.reporting._spending import NO_SYSTEMS
from eenet.scheduler import Scheduler

SCHEMA = 1

_KINDS = {
    "benchmark": {"rows", "verdict", "machine"},
    "search": {"frontier", "systems", "dropped", "plain"},
    "comparison": {"rows", "bounds", "differences", "costs"},
    "profile": {"batch_sizes", "costs", "spreads"},
}
"""What tells apart the JSON of other commands."""


@dataclass(frozen=True)
class Report:
    """The result of `report`.

    Attributes
    ----------
    data : dict
        Everything that the page shows, as JSON can hold it: for each run the figures of every scheduler at every
        budget, and the sections with their charts.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs())
    >>> made = eenet.report(toy_records(seed=1), costs=toy_costs(), schedulers=[scheduler], budgets=3, draws=0)
    >>> made.write_json("report.json")
    """

    data: dict[str, Any]

    def __repr__(self) -> str:
        names = ", ".join(run["name"] for run in self.data["runs"]) or f"{len(self.data['sections'])} sections"
        return f"Report({names}; {len(self.charts)} figures)"

    @property
    def charts(self) -> list[tuple[str, dict[str, Any]]]:
        """Every chart, with a name that no other chart of the report has."""
        several = len(self.data["runs"]) > 1
        found = []
        for number, run in enumerate(self.data["runs"]):
            for section in run["sections"]:
                found += [(f"{number}-{c['name']}" if several else c["name"], c) for c in section["charts"]]
        for section in self.data["sections"]:
            found += [(c["name"], c) for c in section["charts"]]
        return found

    def write(self, path: str | Path) -> None:
        """Write the page: one HTML file that needs no network, atomically.

        Raises `MissingExtraError` without plotly.
        """
        page = page_of(self.data)
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")

    def write_json(self, path: str | Path) -> None:
        """Write `data`, atomically."""
        write_json(path, self.data)

    def write_figures(self, folder: str | Path) -> list[Path]:
        """Write every figure as PNG and SVG into a folder, and give the paths.

        Raises `MissingExtraError` without matplotlib.
        """
        from eenet.reporting import figures

        written = []
        for name, chart in self.charts:
            for ending in ("png", "svg"):
                path = Path(folder) / f"{name}.{ending}"
                figures.save(chart, path)
                written.append(path)
        return written


def report(
    *results: Any,
    costs: ExitCosts | None = None,
    schedulers: Iterable[Scheduler] | Mapping[str, Scheduler] = (),
    calibration: ExitRecords | None = None,
    methods: Sequence[str] = (),
    data: Any = None,
    masks: Any = None,
    classes: Sequence[str] = (),
    exits: Sequence[str] = (),
    smaller: Sequence[Mapping[str, Any]] = (),
    ordered: bool = False,
    title: str = "",
    budgets: int = GRID,
    draws: int = 30,
    out: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """What a network's exits and its schedulers do, as one page, as JSON and as figures.

    Parameters
    ----------
    *results : path, ExitRecords, Benchmark, Comparison or SearchResult
        Folders of `eenet reproduce`, `eenet train` or `eenet demo`; records, which need `costs`; several are compared.
        Beside them, as an object or as the JSON file of its command: a benchmark or a search, which may be alone; a
        comparison at the same costs, for figures over resplits; a profile of the network, for times at several batch
        sizes.
    costs : ExitCosts, optional
        Of the exits, for records.
    schedulers : iterable of Scheduler, or mapping of str to Scheduler, optional
        Fitted ones, with the names they are shown by. Without them EENet, optimal stopping, max probability, entropy
        and patience are fitted.
    calibration : ExitRecords, optional
        The records to fit on. Without them half of the records are fitted on, and the other half is judged.
    methods : sequence of str, optional
        Which to fit instead, by the names in `eenet.scheduler.SCHEDULERS`.
    data : sequence or ndarray, optional
        The samples of the records, to be shown: texts, images as arrays (height, width, 3), or paths of images.
    masks : array_like of int, shape (K, N, height, width), optional
        For segmentation: the classes that each exit predicts, to be shown over the images in `data`.
    classes : sequence of str, optional
        Names of the classes.
    exits : sequence of str, optional
        Names of the exits, such as the members of a cascade; by default those of the folder or of the profile.
    smaller : sequence of mapping, optional
        Smaller networks without exits, each with "name", "cost" in the unit of the costs, and "accuracy" in [0, 1].
    ordered : bool
        Whether the order of the records is that of time: then a figure shows changes.
    title : str, optional
        Of the page.
    budgets : int
        How many budgets the slider has.
    draws : int
        How many calibration sets are simulated, to see how often a guarantee holds: about 50 ms each; 0 for none.
    out : path, optional
        Where to write the page.
    progress : callable, optional
        Called with what is being done, in words.

    Returns
    -------
    Report
        With `data`, `write`, `write_json` and `write_figures`.

    Raises
    ------
    InvalidInputError
        For results that are neither of these, or that do not fit each other.
    MissingExtraError
        With `out`, without plotly.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs())
    >>> page = eenet.report(toy_records(seed=1), costs=toy_costs(), schedulers=[scheduler], budgets=5, draws=0)
    >>> [section["title"] for section in page.data["runs"][0]["sections"]][:2]
    ['The frontier', 'Which samples exit where']
    """
    if not results:
        raise InvalidInputError("there is nothing to report; give a folder of eenet reproduce, or records with costs=")
    if budgets < 2:
        raise InvalidInputError(f"budgets is {budgets}, expected at least 2")
    if draws < 0:
        raise InvalidInputError(f"draws is {draws}, expected 0 or more")
    require_progress(progress)
    if out is not None:
        require_plotly()  # now, and not when all is computed
    say: Callable[[str], None] = progress or (lambda _: None)
    runs: list[Run] = []
    measured: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in _KINDS}
    more: dict[str, Any] = {"ordered": ordered, "smaller": tuple(_smaller(one) for one in smaller)}
    fitting: dict[str, Any] = {"methods": tuple(methods), "progress": say}
    if data is not None:
        more["samples"] = samples_of(data)
    if masks is not None:
        if "samples" not in more:
            raise InvalidInputError("masks are given without images; give the images as data=")
        more["samples"] = more["samples"].with_masks(masks)
    if classes:
        more["classes"] = tuple(classes)
    if exits:
        more["exits"] = tuple(exits)
    if costs is not None and all(isinstance(one, ExitRecords) or _is_measured(one) for one in results):
        with _json_as_written(results):
            for result in filter(_is_measured, results):  # before anything is fitted
                require_compared(result, [costs])
    for result in results:
        if isinstance(result, Run):
            runs.append(result)
        elif isinstance(result, ExitRecords):
            if costs is None:
                raise InvalidInputError("records need costs: give costs=ExitCosts([...], unit='ms')")
            runs.append(make_run(result, costs, schedulers, calibration=calibration, **fitting, **more))
        elif isinstance(result, (str, Path)) and not Path(result).is_file():
            runs.append(read_folder(result, **fitting, **more))
        else:
            kind, found = _measured(result)
            measured[kind].append(found)
    with _json_as_written(results):
        runs = _attached(runs, measured["comparison"], measured["profile"])
        replayed = [replay_all(run, budgets, draws=draws, progress=say) for run in _distinct(runs)]
        say("making the figures")
        data = _data(replayed, measured, title)
    report = Report(data)
    if out is not None:
        report.write(out)
    return report


@contextmanager
def _json_as_written(results: Sequence[Any]) -> Iterator[None]:
    """Say where JSON in files is not what its command writes."""
    files = [str(result) for result in results if isinstance(result, (str, Path))]
    try:
        yield
    except EENetError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if not files:
            raise
        raise FileFormatError(
            f"{', '.join(files)}: JSON there holds what its command does not write ({error!r}): changed by hand, or "
            "of another version; run the command again"
        ) from error


def _smaller(one: Mapping[str, Any]) -> dict[str, Any]:
    missing = [key for key in ("name", "cost", "accuracy") if key not in one]
    if missing:
        raise InvalidInputError(f"a smaller network lacks {missing}; give name, cost and accuracy, found {dict(one)}")
    try:
        cost, accuracy = float(one["cost"]), float(one["accuracy"])
    except (TypeError, ValueError):
        cost = accuracy = math.nan
    if not (0 < cost < math.inf and 0 <= accuracy <= 1):
        raise InvalidInputError(f"smaller network {dict(one)}: expected a positive cost and an accuracy from 0 to 1")
    return {"name": str(one["name"]), "cost": cost, "accuracy": accuracy}


def _measured(result: Any) -> tuple[str, Mapping[str, Any]]:
    """What a benchmark, a comparison or a profile gives as JSON, of the object or its file, and which of them it is."""
    if isinstance(result, (str, Path)):
        found: Any = read_json(result)
    else:
        found = result.to_dict() if hasattr(result, "to_dict") else result
    if isinstance(found, Mapping):
        for kind, keys in _KINDS.items():
            if keys <= set(found) and _are_rows(found.get("rows", [{}])):
                return kind, found
    what = str(result) if isinstance(result, (str, Path)) else kind_of(result)
    raise InvalidInputError(
        f"{what!r} is nothing that a report can be made of; give a folder of eenet reproduce, records, or the JSON of "
        "eenet benchmark, eenet compare, eenet search or eenet profile"
    )


def _is_measured(result: Any) -> bool:
    """Whether it stands for JSON beside records or results."""
    if isinstance(result, (str, Path)):
        return Path(result).is_file()
    return not isinstance(result, (Run, ExitRecords))


def _are_rows(rows: Any) -> bool:
    return isinstance(rows, list) and len(rows) > 0 and all(isinstance(row, Mapping) for row in rows)


def _attached(
    runs: Sequence[Run], comparisons: Sequence[Mapping[str, Any]], profiles: Sequence[Mapping[str, Any]]
) -> list[Run]:
    """The runs with the comparisons of their costs, and the profiles of as many exits as they have."""
    made = list(runs)
    for comparison in comparisons:
        costs = ExitCosts.from_dict(comparison["costs"])
        require_compared(comparison, [run.costs for run in made])
        for n in (n for n, run in enumerate(made) if _same_costs(run.costs, costs)):
            made[n] = replace(made[n], comparison=comparison)
    for profile in profiles:
        exits = len(profile["costs"]["ms"][0])
        hits = [n for n, run in enumerate(made) if len(run.costs) == exits]
        if not hits:
            raise InvalidInputError(
                f"a profile is of {exits} exits, which nothing else here has; give the results or the records of the "
                "network that was profiled"
            )
        names = tuple(map(str, profile.get("exits", ())))
        for n in hits:
            unnamed = made[n].exits == tuple(f"exit {k}" for k in range(exits))
            named = names if unnamed and len(names) == exits else made[n].exits
            made[n] = replace(made[n], profile=profile, exits=named)
    return made


def require_compared(comparison: str | Path | Mapping[str, Any], costs: Sequence[ExitCosts]) -> None:
    """Raise `InvalidInputError` for a comparison at other costs than all of these; other JSON passes."""
    kind, found = _measured(comparison)
    if kind != "comparison":
        return
    its = ExitCosts.from_dict(found["costs"])
    if any(_same_costs(one, its) for one in costs):
        return
    shown = short(its.values.tolist())
    units = [one.unit for one in costs if _same_costs(its, ExitCosts(one.values, its.unit))]
    if units:
        raise InvalidInputError(
            f"the unit differs: a comparison is at the costs {shown} {its.unit}, and the records are at the same "
            f"numbers in {units[0]}; give both in one unit, such as --unit {its.unit}"
        )
    raise InvalidInputError(
        f"a comparison is at the costs {shown} {its.unit}, which nothing else here has; give the results or the "
        "records that it was made from, with the same costs"
    )


def _same_costs(one: ExitCosts, other: ExitCosts) -> bool:
    return one.unit == other.unit and len(one) == len(other) and bool(np.allclose(one.values, other.values))


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """The runs with names that do not repeat."""
    seen: dict[str, int] = {}
    made = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        made.append(run if seen[run.name] == 1 else replace(run, name=f"{run.name} ({seen[run.name]})"))
    return made


def _data(
    replayed: Sequence[Replays], measured: Mapping[str, Sequence[Mapping[str, Any]]], title: str
) -> dict[str, Any]:
    names = ", ".join(replays.run.name for replays in replayed)
    runs = [_run(replays) for replays in replayed]
    benchmarks = measured["benchmark"]
    alone = "Early exits: a benchmark" if benchmarks or not measured["search"] else "The best of several networks"
    for section in (section for run in runs for section in run["sections"] if benchmarks):
        section["notes"] = [note for note in section["notes"] if note != NO_SYSTEMS]
    return {
        "schema": SCHEMA,
        "eenet": __version__,
        "title": title or (f"Early exits of {names}" if names else alone),
        "runs": runs,
        "benchmarks": [dict(benchmark) for benchmark in benchmarks],
        "sections": [made for make in OF_ALL if (made := make(replayed, measured)) is not None],
    }


def _run(replays: Replays) -> dict[str, Any]:
    run, costs = replays.run, replays.costs
    points = standing(replays)
    names = sorted({one["score"] for of in points.values() for one in of if one is not None})
    return {
        "name": run.name,
        "title": str(run.metrics.get("title", run.name)),
        "about": str(run.metrics.get("about", "")),
        "command": str(run.metrics.get("command", "")),
        "notes": list(run.notes),
        "samples": len(run.records),
        "fresh": run.fresh,
        "pooled": bool(run.records.pooled),
        "labeled": replays.utility is not None,
        "exits": list(run.exit_titles),
        "classes": list(run.classes),
        "costs": costs.to_dict(),
        "timed": is_time(costs.unit),
        "reference": costs.reference,
        "reference_name": costs.reference_name,
        "budgets": replays.budgets.tolist(),
        "styles": scheduler_styles(replays),
        "changes_predictions": [title for title, scheduler in run.schedulers.items() if scheduler.changes_predictions],
        "standing": points,
        "score_labels": {name: score_label(name) for name in names},
        "sections": [made for make in OF_ONE if (made := make(replays)) is not None],
    }
