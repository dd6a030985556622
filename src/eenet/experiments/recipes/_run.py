"""From data to a folder of results, in steps that can be interrupted and resumed."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from eenet._files import write_json
from eenet.errors import InfeasibleBudgetError, InvalidInputError
from eenet.experiments.data import ThreeWaySplit
from eenet.experiments.recipes._data import RecipeData
from eenet.experiments.recipes._markers import Markers
from eenet.experiments.recipes._network import checkpoint_folder, make_network
from eenet.experiments.recipes._results import (
    CALIBRATION,
    COSTS,
    SCHEDULER_FOLDER,
    SPLIT,
    TEST,
    machine,
    scheduler_file,
    schedulers,
    write_predictions,
    write_results,
)
from eenet.experiments.recipes._schema import Recipe
from eenet.experiments.recipes._smoke import DATASETS, write_smoke_files
from eenet.models import MultiExitModel, collect
from eenet.profiling import measure
from eenet.records import ExitRecords
from eenet.training import SegmentationTask, reestimate_batch_norm, train, training_device

STEPS = ("data", "train", "collect", "profile", "fit", "evaluate")
WORK = "work"
_TRAINING, _MODEL, _SMOKE = "training", "model", "smoke"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run reads and writes, and how it is run; nothing here changes what is computed.

    `data_root` may be None for a smoke run, which makes its own data. `checkpoint` and `weights` replace what the
    recipe starts from. `threads` 0 leaves torch its choice.
    """

    out: Path
    data_root: Path | None = None
    checkpoint: Path | None = None
    weights: Path | None = None
    resume: bool = False
    start_from: str | None = None
    smoke: bool = False
    download: bool = False
    on_corrupt: str = "refuse"
    threads: int = 0
    command: str = ""
    progress: bool = True


def reproduce(recipe: Recipe, place: Place, *, console: Console, steps: Sequence[str] = STEPS) -> dict[str, Any]:
    """Run the steps of a recipe that are not complete; gives what the last one found.

    `place.out` receives what is small enough to keep: metrics, predictions, the split, costs, schedulers and a README;
    `work/` in it holds checkpoints and markers of complete steps. A run that was stopped, even killed, goes on with
    `resume` where it was. Raises `InvalidInputError` where the folder holds a run with other settings.
    """
    if place.start_from is not None and place.start_from not in STEPS:
        raise InvalidInputError(f"--from {place.start_from!r} is no step; choose from {', '.join(STEPS)}")
    if place.data_root is None and not place.smoke:
        raise InvalidInputError("there is no data folder; give --data-root, or --smoke for tiny data that is made up")
    with _threads(place.threads):
        return _Run(recipe, place, console).steps(steps)


class _Run:
    """One call of `reproduce`."""

    def __init__(self, recipe: Recipe, place: Place, console: Console) -> None:
        self.recipe = recipe
        self.place = place
        self.console = console
        self.out = place.out
        self.work = place.out / WORK
        self.markers = Markers(self.work / "steps")
        self._data: RecipeData | None = None
        self._model: MultiExitModel | None = None
        self._root = place.data_root or Path()
        self._checkpoint: str | None = None

    def steps(self, names: Sequence[str]) -> dict[str, Any]:
        """Run what is not complete."""
        if self.place.start_from is not None:
            self._forget(STEPS[STEPS.index(self.place.start_from) :])
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "data": self._split,
            "train": self._train,
            "collect": self._collect,
            "profile": self._profile,
            "fit": self._fit,
            "evaluate": self._evaluate,
        }
        found: dict[str, Any] = {}
        for number, step in enumerate(STEPS, start=1):
            if step not in names:
                continue
            title = f"{number}/{len(STEPS)} {step}"
            settings = self._settings(step)
            if self.markers.complete(step, settings):
                self._say(f"{title}: complete, skipped")
                marker = self.markers.read(step)
                assert marker is not None
                found = marker["result"]
                continue
            self._say(title)
            start = time.perf_counter()
            found = work[step]()
            seconds = time.perf_counter() - start
            self.markers.write(step, settings, seconds=seconds, result=found)
            self._say(f"{title}: done in {_duration(seconds)}")
        return found

    def _settings(self, step: str) -> dict[str, Any]:
        """All that a step's result depends on, the steps before it included."""
        recipe = self.recipe
        found: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed, "data": dataclasses.asdict(recipe.data)}
        if step == "data":
            return found
        config = recipe.config.to_dict()
        for shown in ("progress", "tensorboard"):
            del config[shown]
        given = {"checkpoint": self.place.checkpoint, "weights": self.place.weights}
        found["model"] = dataclasses.asdict(recipe.model) | {name: str(path) for name, path in given.items() if path}
        found["train"] = dataclasses.asdict(recipe.train) | config
        if step in ("train", "collect"):
            return found
        found["profile"] = dataclasses.asdict(recipe.profile)
        if step == "profile":
            return found
        found["evaluation"] = dataclasses.asdict(recipe.evaluation)
        if step == "evaluate":
            found["published"] = None if recipe.published is None else dataclasses.asdict(recipe.published)
        return found

    def _forget(self, steps: Sequence[str]) -> None:
        for step in steps:
            self.markers.remove(step)
        if "train" in steps:
            shutil.rmtree(self.work / _TRAINING, ignore_errors=True)
            shutil.rmtree(self.work / _MODEL, ignore_errors=True)

    def _split(self) -> dict[str, Any]:
        self._prepare()
        data = RecipeData(
            self.recipe,
            self._root,
            tokenizer=self._checkpoint,
            on_corrupt=self.place.on_corrupt,
            download=self.place.download,
        )
        split = data.make_split()
        split.save(self.out / SPLIT)
        data.use(split)
        self._data = data
        return {
            "samples": {name: len(data.part(name)) for name in ("train", "validation", "calibration", "test")},
            "duplicates": split.duplicates,
            "classes": list(data.classes),
        }

    def _train(self) -> dict[str, Any]:
        data, recipe, folder = self._read_data(), self.recipe, self.work / _TRAINING
        begun = (folder / "last.safetensors").is_file()
        if begun and not self.place.resume:
            raise InvalidInputError(
                f"{str(self.out)!r} holds a training that is not finished; --resume goes on with it, --from train "
                "starts anew"
            )
        model = make_network(recipe, data, self._root, checkpoint=self._checkpoint, weights=self.place.weights)
        model.to(training_device(recipe.config))
        frozen = recipe.config.freeze_backbone
        if recipe.train.batch_norm_batches and not begun:
            self._say(f"  re-estimating batch norms on {recipe.train.batch_norm_batches} batches")
            reestimate_batch_norm(model, data.training(frozen=False), recipe.train.batch_norm_batches)
        config = dataclasses.replace(recipe.config, progress=recipe.config.progress and self.place.progress)
        result = train(
            model,
            data.training(frozen=frozen),
            data.held_out("validation", frozen=frozen),
            config=config,
            out=folder,
            resume=begun,
            task=SegmentationTask() if data.task == "segmentation" else None,
        )
        model.save_pretrained(self.work / _MODEL)
        self._model = model
        return {
            "exits": list(model.exit_names),
            "parameters": sum(p.numel() for p in model.parameters()),
            "best_epoch": result.best.epoch + 1,
            "stopped_early": result.stopped_early,
            "seconds": sum(report.seconds for report in result.history),
            "history": [report.to_dict() for report in result.history],
        }

    def _collect(self) -> dict[str, Any]:
        data, model = self._read_data(), self._read_model()
        found: dict[str, Any] = {}
        with self._bar() as bar:
            for name, file in (("calibration", CALIBRATION), ("test", TEST)):
                loader = data.held_out(name)
                task = bar.add_task(f"  {name} part", total=len(loader))
                records = collect(model, _told(loader, partial(bar.advance, task)))
                records.save(self.work / file)
                found[name] = {"samples": len(records), "accuracies": records.accuracies.tolist()}
        return found

    def _profile(self) -> dict[str, Any]:
        data, model, settings = self._read_data(), self._read_model(), self.recipe.profile
        with self._bar() as bar:
            task = bar.add_task("  batch sizes", total=len(settings.batch_sizes))
            found = measure(
                model,
                data.typical(),
                batch_sizes=settings.batch_sizes,
                seconds=settings.seconds,
                progress=lambda _size: bar.advance(task),
            )
        write_json(self.out / COSTS, {"schema": 1, "exits": list(model.exit_names), **found.to_dict()})
        costs = found.costs(self.recipe.evaluation.unit, self.recipe.evaluation.batch_size)
        return {"costs": costs.to_dict(), "machine": machine(found.device)}

    def _fit(self) -> dict[str, Any]:
        from eenet.costs import ExitCosts

        calibration = ExitRecords.load(self.work / CALIBRATION)
        costs = ExitCosts.from_dict(self._result("profile")["costs"])
        infeasible: list[dict[str, Any]] = []
        shutil.rmtree(self.out / SCHEDULER_FOLDER, ignore_errors=True)
        methods, budgets = schedulers(self.recipe.seed), self.recipe.evaluation.budgets
        with self._bar() as bar:
            task = bar.add_task("  schedulers", total=len(methods) * len(budgets))
            for budget in budgets:
                for method, make in methods.items():
                    try:
                        fitted = make().fit(calibration, costs, budget=budget)
                    except InfeasibleBudgetError as error:
                        infeasible.append({"method": method, "budget": budget, "reason": str(error)})
                    else:
                        fitted.save(self.out / SCHEDULER_FOLDER / scheduler_file(method, budget))
                    bar.advance(task)
        return {"infeasible": infeasible}

    def _evaluate(self) -> dict[str, Any]:
        calibration, test = (ExitRecords.load(self.work / file) for file in (CALIBRATION, TEST))
        write_predictions(self.out, calibration, test)
        with self._bar() as bar:
            task = bar.add_task("  comparison", total=None)
            return write_results(
                self.recipe,
                self.out,
                calibration,
                test,
                steps={step: self.markers.read(step) for step in STEPS[:-1]},
                command=self.place.command,
                smoke=self.place.smoke,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )

    def _prepare(self) -> None:
        """Find data and checkpoint; a smoke run writes them first."""
        if self.place.smoke:
            folder = self.work / _SMOKE
            found = write_smoke_files(self.recipe, folder)
            self._root, self._checkpoint = folder / DATASETS, None if found is None else str(found)
            return
        self._checkpoint = checkpoint_folder(self.recipe, self.place.checkpoint, download=self.place.download)

    def _read_data(self) -> RecipeData:
        if self._data is None:
            self._prepare()
            data = RecipeData(
                self.recipe,
                self._root,
                tokenizer=self._checkpoint,
                on_corrupt=self.place.on_corrupt,
                download=self.place.download,
            )
            data.use(ThreeWaySplit.load(self.out / SPLIT))
            self._data = data
        return self._data

    def _read_model(self) -> MultiExitModel:
        if self._model is None:
            # A run that goes on after its training must measure where a run in one go does.
            device = training_device(self.recipe.config)
            self._model = MultiExitModel.from_pretrained(self.work / _MODEL).to(device)
        return self._model

    def _result(self, step: str) -> dict[str, Any]:
        marker = self.markers.read(step)
        if marker is None:
            raise InvalidInputError(f"the step {step!r} is not complete in {str(self.out)!r}; run it first")
        result: dict[str, Any] = marker["result"]
        return result

    def _say(self, text: str) -> None:
        if self.place.progress:
            self.console.print(text, markup=False, soft_wrap=True)

    def _bar(self) -> Progress:
        return Progress(console=self.console, transient=True, disable=not self.place.progress)


def _told(loader: Iterable[Any], advance: Callable[[], None]) -> Iterator[Any]:
    for batch in loader:
        yield batch
        advance()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
