"""What a report is about: runs, each the records of one network with its costs and schedulers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eenet._files import read_json
from eenet._pretrained import find_model, hidden_model
from eenet.costs import ExitCosts
from eenet.errors import EENetError, FileFormatError, InvalidInputError, ReliabilityWarning
from eenet.evaluation._style import title_of
from eenet.records import ExitRecords, require_same_network
from eenet.reporting._samples import Samples, kept_inputs
from eenet.scheduler import SCHEDULERS, Scheduler, load_scheduler

Progress = Callable[[str], None]

DEFAULT_METHODS = ("eenet", "stopping", "max_prob", "entropy", "patience")
"""The methods that are fitted where no scheduler is given."""


@dataclass(frozen=True)
class Run:
    """One network's exits on a set of samples, what they cost, and schedulers fitted for every budget.

    Attributes
    ----------
    name : str
        What it is called in the report.
    records : ExitRecords
        Of the samples that everything is judged on.
    costs : ExitCosts
        Of the exits.
    schedulers : mapping of str to Scheduler
        By the title they have in figures; `at(budget)` works on each.
    calibration : ExitRecords, optional
        What they were fitted on.
    fresh : bool
        Whether the records are other samples than those.
    exits, classes : tuple of str
        Names; of the exits K, of the classes C.
    samples : Samples, optional
        To be shown, N of them.
    ordered : bool
        Whether the order of the records is that of their time.
    comparison : mapping, optional
        What `Comparison.to_dict` gave, for bands over resplits.
    profile : mapping, optional
        What `eenet profile --json` printed: costs at all batch sizes.
    smaller : tuple of mapping
        Smaller static networks, each with "name", "cost" in the unit of the costs, and "accuracy".
    metrics : mapping
        The metrics.json of a results folder, or nothing.
    notes : tuple of str
        What a reader must know of the run.
    """

    name: str
    records: ExitRecords
    costs: ExitCosts
    schedulers: Mapping[str, Scheduler]
    calibration: ExitRecords | None = None
    fresh: bool = True
    exits: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    samples: Samples | None = None
    ordered: bool = False
    comparison: Mapping[str, Any] | None = None
    profile: Mapping[str, Any] | None = None
    smaller: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        records = self.records
        self.costs.require_exits(records.num_exits)
        for title, scheduler in self.schedulers.items():
            if len(scheduler.costs) != records.num_exits:
                raise InvalidInputError(
                    f"scheduler {title!r} was fitted for {len(scheduler.costs)} exits, the records of {self.name!r} "
                    f"have {records.num_exits}; give one that was fitted on records of this network"
                )
            whose = f"the records of {self.name!r} have"
            require_same_network(
                f"scheduler {title!r} was fitted to records", scheduler.network, records.network, whose
            )
        names = self.exits or tuple(f"exit {k}" for k in range(records.num_exits))
        classes = self.classes or tuple(f"class {c}" for c in range(records.num_classes))
        for what, given, expected in (
            ("exits", names, records.num_exits),
            ("classes", classes, records.num_classes),
            ("samples", self.samples or (), self._expected_samples()),
        ):
            if len(given) != expected:
                raise InvalidInputError(
                    f"{len(given)} {what} are given for {self.name!r}, its records have {expected}; give one for each, "
                    "in the order of the records"
                )
        masks = None if self.samples is None else self.samples.masks
        if masks is not None and len(masks) != records.num_exits:
            raise InvalidInputError(
                f"masks are of {len(masks)} exits, the records of {self.name!r} have {records.num_exits}; give those "
                "of each exit, of shape (exits, samples, height, width)"
            )
        object.__setattr__(self, "exits", names)
        object.__setattr__(self, "classes", classes)

    @property
    def exit_titles(self) -> tuple[str, ...]:
        """The exits by number and name, such as "exit 0 (small)"."""
        usual = [f"exit {k}" for k in range(len(self.exits))]
        return tuple(one if one == name else f"{one} ({name})" for one, name in zip(usual, self.exits, strict=True))

    def _expected_samples(self) -> int:
        if self.samples is None:
            return 0
        return len(self.records) if self.samples.rows is None else len(self.samples.rows)


def make_run(
    records: ExitRecords,
    costs: ExitCosts,
    schedulers: Iterable[Scheduler] | Mapping[str, Scheduler] = (),
    *,
    calibration: ExitRecords | None = None,
    methods: Sequence[str] = (),
    name: str = "records",
    progress: Progress = lambda _: None,
    **more: Any,
) -> Run:
    """A run of records; where no scheduler is given, the usual ones are fitted.

    They are fitted on `calibration`. Without it one half of the records is fitted on, and the other half judged.
    """
    costs.require_exits(records.num_exits)
    notes = tuple(more.pop("notes", ()))
    named = dict(schedulers) if isinstance(schedulers, Mapping) else _named(schedulers)
    if not named:
        if calibration is None:
            if len(records) < 4:
                raise InvalidInputError(
                    f"{len(records)} records cannot be split into a half to fit on and a half to judge; give "
                    "calibration records, or schedulers"
                )
            first, second = records.split_rows(0.5, seed=0)
            calibration, records = records.subset(first), records.subset(second)
            samples = more.get("samples")
            if samples is not None:
                more["samples"] = samples.take(second.tolist())
            notes += (
                f"No calibration records were given: the schedulers are fitted on {len(first)} of the records, drawn "
                f"at random, and everything here is of the other {len(second)}.",
            )
        named, said = fit_usual(calibration, costs, methods or DEFAULT_METHODS, progress=progress)
        notes += said
    fresh = calibration is None or calibration != records
    fresh = fresh and not any(scheduler.was_fitted_to(records) for scheduler in named.values())
    return Run(name, records, costs, named, calibration=calibration, fresh=fresh, notes=notes, **more)


def _named(schedulers: Iterable[Scheduler]) -> dict[str, Scheduler]:
    """Schedulers by their titles, which are numbered where they repeat."""
    named: dict[str, Scheduler] = {}
    for scheduler in schedulers:
        title, number = title_of(scheduler.name), 2
        while title in named:
            title, number = f"{title_of(scheduler.name)} ({number})", number + 1
        named[title] = scheduler
    return named


def fit_usual(
    calibration: ExitRecords,
    costs: ExitCosts,
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> tuple[dict[str, Scheduler], tuple[str, ...]]:
    """The usual schedulers fitted for every budget, by title, and a note on each that could not be."""
    fitted: dict[str, Scheduler] = {}
    notes: list[str] = []
    for method in methods:
        scheduler = SCHEDULERS[method]()
        if "seed" in scheduler.get_params():
            scheduler.set_params(seed=seed)
        progress(f"fitting {title_of(method)}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ReliabilityWarning)
                fitted[title_of(method)] = scheduler.fit(calibration, costs)
        except EENetError as error:
            notes.append(f"{title_of(method)} is not shown, since it cannot be fitted: {error}.")
    if not fitted:
        raise InvalidInputError(f"no scheduler can be fitted on these records: {notes[0]}")
    return fitted, tuple(notes)


_TEST, _CALIBRATION, _METRICS = "test.safetensors", "calibration.safetensors", "metrics.json"
_PROFILE, _COSTS = "profile.json", "costs.json"  # where both are there, the first has the times at all batch sizes
FOLDER_FILES = (_TEST, _CALIBRATION, _METRICS)
"""What a folder of finished results has."""


def require_no_bundle(folder: Path) -> None:
    """Raise `InvalidInputError`, which says how to report what is in it, for a folder that `eenet.export` wrote."""
    if not (folder / "manifest.json").is_file():
        return
    records = next(folder.glob("records*.safetensors"), None)
    scheduler = next(folder.glob("scheduler*.safetensors"), None)
    way = "it carries no records: give records of eenet collect"
    if records is not None:
        way = f"the page of its calibration records: eenet report {records}"
    raise InvalidInputError(
        f"{str(folder)!r} is a bundle, expected the results of eenet reproduce, train or demo; {way} --scheduler "
        f"{scheduler}"
    )


def read_folder(
    path: str | Path, *, methods: Sequence[str] = (), progress: Progress = lambda _: None, **more: Any
) -> Run:
    """The run in a folder of `eenet reproduce`, `eenet train` or `eenet demo`, or what ships with a model of this name.

    Saved schedulers are read. Where there are none, or `methods` are named, they are fitted on the calibration records.
    """
    folder = find_model(path, holds=(_METRICS, "work"))
    if not folder.is_dir():
        raise InvalidInputError(f"{str(path)!r} is no folder; give the results of eenet reproduce, or records")
    missing = [name for name in FOLDER_FILES if not (folder / name).is_file()]
    if missing:
        require_no_bundle(folder)
        raise InvalidInputError(
            f"{str(path)!r} lacks {', '.join(missing)}, so it holds no finished results of eenet reproduce; give such "
            f"a folder, or records with --costs{hidden_model(path)}"
        )
    metrics = read_json(folder / _METRICS)
    progress(f"reading {folder}")
    test, calibration = ExitRecords.load(folder / _TEST), ExitRecords.load(folder / _CALIBRATION)
    try:
        costs = ExitCosts.from_dict(metrics["costs"])
        exits = tuple(str(row["name"]) for row in metrics["exits"])
        classes = tuple(map(str, metrics["data"].get("classes") or ()))
        seed = int(metrics.get("seed", 0))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FileFormatError(
            f"{str(folder / _METRICS)!r} is not what eenet reproduce writes ({error!r} is missing or wrong)"
        ) from error
    schedulers: dict[str, Scheduler] = {}
    saved = sorted(folder.glob("schedulers/*.safetensors"))
    order = list(SCHEDULERS)
    for file in sorted(saved, key=lambda file: order.index(m) if (m := _method(file)) in order else len(order)):
        # Each file has a table of policies for all budgets, so one for each method is enough.
        schedulers.setdefault(title_of(_method(file)), load_scheduler(file))
    notes: tuple[str, ...] = ()
    if metrics.get("smoke"):
        notes += ("This is a smoke run on tiny made-up data: the numbers mean nothing.",)
    if methods or not schedulers:
        schedulers, said = fit_usual(calibration, costs, methods or DEFAULT_METHODS, seed=seed, progress=progress)
        notes += said
    given = {
        "exits": exits,
        "classes": classes if len(classes) == test.num_classes else (),
        "comparison": metrics.get("comparison"),
        "profile": next((read_json(folder / name) for name in (_PROFILE, _COSTS) if (folder / name).is_file()), None),
        "metrics": metrics,
        "samples": kept_inputs(folder, len(test)),
        "name": str(metrics.get("recipe", folder.name)),
        "notes": notes,
    }
    return make_run(test, costs, schedulers, calibration=calibration, **{**given, **more})


def _method(file: Path) -> str:
    return file.stem.rpartition("-")[0] or file.stem
