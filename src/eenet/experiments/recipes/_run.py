"""From data to a folder of results, in steps that can be interrupted and resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel

from eenet._files import write_json
from eenet._progress import Bars, Update, duration
from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, InvalidInputError, ReliabilityWarning
from eenet.experiments.data import ThreeWaySplit
from eenet.experiments.recipes._data import RecipeData, checkpoint_folder, make_network
from eenet.experiments.recipes._markers import Markers
from eenet.experiments.recipes._measured import measure_policies, undisturbed
from eenet.experiments.recipes._results import (
    CALIBRATION,
    COSTS,
    METRICS,
    SCHEDULER_FOLDER,
    SPLIT,
    TEST,
    machine,
    same_machine,
    scheduler_file,
    schedulers,
    summary,
    write_predictions,
    write_results,
)
from eenet.experiments.recipes._schema import Recipe, filled
from eenet.experiments.recipes._smoke import write_smoke_files
from eenet.models import MultiExitModel, collect
from eenet.preprocessing import ImagePreprocessing
from eenet.profiling import fingerprint, measure
from eenet.records import ExitRecords
from eenet.scheduler import EENet, Scheduler, Static, load_scheduler
from eenet.scheduler._forced import at_every_exit, scheduler_of
from eenet.training import reestimate_batch_norm, train, training_device
from eenet.training._shares import is_first_process

STEPS = ("data", "train", "collect", "profile", "fit", "evaluate")
WORK = "work"
CLASSES, SAMPLES, LABELED, PREPROCESSING = "classes.txt", "samples.npz", "calibration.npz", "preprocessing.json"
_TRAINING, _MODEL, _SMOKE = "training", "model", "smoke"
_MACHINES = "training-machines.json"
_COSTS_ARE = ("unit", "batch_size")  # the settings of the evaluation that the costs are made by
_SAMPLES_BYTES = 5_000_000
_KEPT_BYTES, _RECORDS_BYTES, _INPUTS_BYTES = 8_000_000, 2_000_000, 400_000
"""Of a model that is kept with the results, of the records beside it, and of its test inputs."""

_BEST_COMPRESSION = 20
_BEYOND_CHANCE = 4.0  # standard errors


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run reads and writes, and how it is run; nothing here changes what is computed.

    Parameters
    ----------
    out
        The folder of the results.
    data_root
        The folder that holds the data; None for data that comes with a package, and for a smoke run, which makes its
        own.
    checkpoint, weights
        Replace what the recipe starts from.
    resume
        Go on with a training that was interrupted.
    start_from
        Make this step and those after it again.
    smoke
        Run on tiny data that is made up.
    download
        Download missing data and checkpoints.
    on_corrupt
        "refuse" or "skip", for samples that cannot be read.
    threads
        For torch; 0 leaves it the choice.
    command
        What the results say they were made with.
    progress
        Whether to show what is done.

    Examples
    --------
    >>> from pathlib import Path
    >>> from eenet.experiments.recipes import RunOptions
    >>> RunOptions(out=Path("results"), smoke=True).progress
    True
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


def reproduce(recipe: Recipe, options: RunOptions, *, console: Console, steps: Sequence[str] = STEPS) -> dict[str, Any]:
    """Run the steps of a recipe that are not complete.

    Parameters
    ----------
    recipe
        What `load_recipe` gives.
    options
        `options.out` receives what is small enough to keep: metrics, predictions, the split, costs, schedulers, a
        README, and a network of at most 8 MB; `work/` in it holds checkpoints and markers of complete steps. A run that
        was stopped, even killed, goes on with `resume` where it was.
    console
        Where progress is shown.
    steps
        Some of "data", "train", "collect", "profile", "fit" and "evaluate".

    Returns
    -------
    The result of the last step: of "evaluate" the metrics. Where several processes train, all but the first end with
    the training, and give an empty mapping.

    Raises
    ------
    InvalidInputError
        Where the folder holds a run with other settings, or what the recipe names is not there.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from rich.console import Console
    >>> from eenet.experiments.recipes import RunOptions, load_recipe, reproduce
    >>> recipe = load_recipe("cifar10-resnet20-shared", smoke=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     options = RunOptions(out=Path(folder), smoke=True, progress=False)
    ...     found = reproduce(recipe, options, console=Console(quiet=True), steps=("data",))
    >>> found["samples"]["calibration"]
    50
    """
    if options.start_from is not None and options.start_from not in STEPS:
        raise InvalidInputError(f"--from {options.start_from!r} is no step; choose from {', '.join(STEPS)}")
    if options.data_root is None and not options.smoke and recipe.data.name != "digits":
        raise InvalidInputError("there is no data folder; give --data-root, or --smoke for tiny data that is made up")
    with _threads(options.threads):
        return _Run(recipe, options, console).steps(steps)


class _Run:
    """One call of `reproduce`."""

    def __init__(self, recipe: Recipe, options: RunOptions, console: Console) -> None:
        self.recipe = recipe
        self.options = options
        self.console = console
        self.out = options.out
        self.work = options.out / WORK
        self.markers = Markers(self.work / "steps")
        self._data: RecipeData | None = None
        self._model: MultiExitModel | None = None
        self._root = options.data_root or Path()
        self._checkpoint: str | None = None

    def steps(self, names: Sequence[str]) -> dict[str, Any]:
        """Run what is not complete."""
        if self.options.start_from is not None:
            self._forget(STEPS[STEPS.index(self.options.start_from) :])
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "data": self._split,
            "train": self._train,
            "collect": self._collect,
            "profile": self._profile,
            "fit": self._fit,
            "evaluate": self._evaluate,
        }
        outcome: dict[str, Any] = {}
        for number, step in enumerate(STEPS, start=1):
            if step not in names:
                continue
            title = f"{number}/{len(STEPS)} {step}"
            settings = self._settings(step)
            if self.markers.complete(step, settings):
                self._say(f"{title}: complete, skipped")
                marker = self.markers.read(step)
                assert marker is not None
                outcome = marker["result"]
                continue
            self._say(title)
            start = time.perf_counter()
            outcome = work[step]()
            if not is_first_process():
                break  # that one writes, and measures times with the machine to itself
            seconds = time.perf_counter() - start
            self.markers.write(step, settings, seconds=seconds, result=outcome)
            self._say(f"{title}: done in {duration(seconds)}")
        return outcome

    def _settings(self, step: str) -> dict[str, Any]:
        """All that a step's result depends on, the steps before it included."""
        recipe = self.recipe
        sections = {"data": recipe.data.model_dump()}
        if step != "data":
            config = recipe.config.to_dict()
            for shown in ("progress", "tensorboard"):
                del config[shown]
            given = {"checkpoint": self.options.checkpoint, "weights": self.options.weights}
            sections["model"] = recipe.model.model_dump() | {name: str(path) for name, path in given.items() if path}
            sections["train"] = recipe.train.model_dump() | config
        if step in ("profile", "fit", "evaluate"):
            sections["profile"] = recipe.profile.model_dump()
            sections["evaluation"] = recipe.evaluation.model_dump()
        if step == "profile":  # what the costs are made by
            sections["evaluation"] = {name: sections["evaluation"][name] for name in _COSTS_ARE}
        settings: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed, **sections}
        if step == "evaluate":
            settings["published"] = None if recipe.published is None else recipe.published.model_dump()
        return settings

    def _forget(self, steps: Sequence[str]) -> None:
        for step in steps:
            self.markers.remove(step)
        if "train" in steps:
            (self.work / _MACHINES).unlink(missing_ok=True)
            shutil.rmtree(self.work / _TRAINING, ignore_errors=True)
            shutil.rmtree(self.work / _MODEL, ignore_errors=True)

    def _split(self) -> dict[str, Any]:
        data = self._prepared()
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
        begun = any(folder.rglob("last.safetensors"))  # in a folder of their own while heads are trained first
        if begun and not self.options.resume:
            raise InvalidInputError(
                f"{str(self.out)!r} holds a training that is not finished; --resume goes on with it, --from train "
                "starts again"
            )
        model = make_network(recipe, data, self._root, checkpoint=self._checkpoint, weights=self.options.weights)
        device = training_device(recipe.config)
        model.to(device)
        machines = self._noted_machines(device, begun=begun)
        frozen = recipe.config.freeze_backbone
        if recipe.train.batch_norm_batches and not begun:
            self._say(f"  re-estimating batch norms on {recipe.train.batch_norm_batches} batches")
            reestimate_batch_norm(model, data.training(frozen=False), recipe.train.batch_norm_batches)
        if recipe.train.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        config = dataclasses.replace(recipe.config, progress=recipe.config.progress and self.options.progress)
        # On a CPU the gradient of the fused attention takes three times as long as that of its parts.
        attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        with attention:
            result = train(
                model,
                data.training(frozen=frozen),
                data.held_out("validation", frozen=frozen),
                config=config,
                out=folder,
                resume=begun,
                teacher=self._teacher(data),
            )
        if not is_first_process():
            return {}
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.save_pretrained(self.work / _MODEL)
        self._save_inputs(model, data)
        return {
            "exits": list(model.exit_names),
            "parameters": sum(p.numel() for p in model.parameters()),
            "best_epoch": result.best.epoch + 1,
            "stopped_early": result.stopped_early,
            "seconds": sum(report.seconds for report in result.history),
            "machines": machines,
            "history": [report.to_dict() for report in result.history],
        }

    def _teacher(self, data: RecipeData) -> torch.nn.Module | None:
        """The plain network of the saved model that teaches."""
        settings = self.recipe.train
        if settings.teacher is None:
            return None
        name = filled("train.teacher", settings.teacher, out=self.out, data=self._root)
        try:
            model = MultiExitModel.from_pretrained(name)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"train.teacher is {name!r}: {error}; run the recipe that trains it, or name another with "
                "--set train.teacher=MODEL"
            ) from error
        if model.num_classes != len(data.classes):
            raise InvalidInputError(
                f"train.teacher, {name!r}, tells {model.num_classes} classes apart and the data has "
                f"{len(data.classes)}; expected a model of the same classes"
            )
        network: torch.nn.Module = model.backbone
        if settings.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def _noted_machines(self, device: torch.device, *, begun: bool) -> list[dict[str, Any]]:
        """The machines of the training, this one the last: a training may go on where it was not begun."""
        path = self.work / _MACHINES
        noted = json.loads(path.read_text(encoding="utf-8")) if begun and path.is_file() else []
        here = machine(fingerprint(device))
        if not any(same_machine(one, here) for one in noted):
            noted.append(here)
            write_json(path, noted)
        return noted

    def _save_inputs(self, model: MultiExitModel, data: RecipeData) -> None:
        """What `eenet export` takes of this folder: class names, preprocessing, and inputs.

        Those of the test part check a bundle, those of the calibration part, with labels, give int8 its ranges.
        """
        self._model = model
        self._write_classes(self.work, data)
        for part, file in (("test", SAMPLES), ("calibration", LABELED)):
            tensors, labels = data.samples(part, _SAMPLES_BYTES)
            arrays = self._named(tensors)
            if part == "calibration":  # the others stay in the order of the test records, by which they have labels
                order = self._shuffled(len(labels))
                arrays = {name: array[order] for name, array in arrays.items()} | {"labels": labels.numpy()[order]}
            np.savez(self.work / file, **arrays)
        self._write_preprocessing(self.work, data)

    def _named(self, tensors: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Inputs as arrays, by the names that the network has for them."""
        names = [one.name for one in self._read_model().staged.inference_stages[0].inputs]
        return dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True))

    def _write_classes(self, folder: Path, data: RecipeData) -> None:
        (folder / CLASSES).write_text("\n".join(data.classes) + "\n", encoding="utf-8")

    def _write_preprocessing(self, folder: Path, data: RecipeData) -> None:
        preprocessing = data.preprocessing()
        if preprocessing is None:
            (folder / PREPROCESSING).unlink(missing_ok=True)
            return
        if isinstance(preprocessing, ImagePreprocessing):
            first = self._read_model().staged.inference_stages[0].inputs[0]
            preprocessing = dataclasses.replace(preprocessing, input=first.name)
        for name, content in preprocessing.files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        write_json(folder / PREPROCESSING, preprocessing.describe())

    def _collect(self) -> dict[str, Any]:
        data, model = self._read_data(), self._read_model()
        found: dict[str, Any] = {}
        with self._bars() as bars:
            for name, file in (("calibration", CALIBRATION), ("test", TEST)):
                loader = data.held_out(name)
                update = bars.task(f"  {name} part, batches", len(loader))
                records = collect(model, _followed(loader, update))
                records.save(self.work / file)
                found[name] = {"samples": len(records), "accuracies": records.accuracies.tolist()}
        found["notes"] = self._easy_validation(found["calibration"]["accuracies"])
        for note in found["notes"]:
            self._say(f"  {note}")
        return found

    def _easy_validation(self, calibration: Sequence[float]) -> list[str]:
        """A note where the exits are better on the validation part than on the calibration part, beyond chance.

        The best of several epochs may be better there by one or two standard errors, and there are several exits.
        """
        samples, trained = self._result("data")["samples"], self._result("train")
        if self.recipe.data.validation == "calibration":
            return []
        weights = np.array([samples["validation"], samples["calibration"]])
        validation = trained["history"][trained["best_epoch"] - 1]["accuracies"]
        for name, one, other in zip(trained["exits"], validation, calibration, strict=True):
            mean = float(np.average([one, other], weights=weights))
            if one - other > _BEYOND_CHANCE * np.sqrt(mean * (1 - mean) * (1 / weights).sum()):
                return [
                    f"The exit {name!r} has {100 * one:.1f} % on the validation part, which chose the checkpoint, and "
                    f"{100 * other:.1f} % on the calibration part. If the weights that the training started from have "
                    "seen the validation part, it favors the first epochs: set data.validation to calibration."
                ]
        return []

    def _profile(self) -> dict[str, Any]:
        data, model, settings = self._read_data(), self._read_model(), self.recipe.profile
        example, scheduler = data.typical(), None
        if settings.scheduler:
            # There must be a scheduler to time its steps, at all exits: all policies are fitted in these costs.
            flops = measure(model, example, batch_sizes=(1,), seconds=0).costs("flops", 1)
            calibration = ExitRecords.load(self.work / CALIBRATION)
            fitted = EENet(seed=self.recipe.seed, turns=1, target="right", weight_decay=1e-4)
            fitted.fit(calibration, flops, budget=float(flops[-1]), fallback=False)
            scheduler = scheduler_of(at_every_exit(fitted.policy))
        with self._bars() as bars:
            update = bars.task("  batch sizes", len(settings.batch_sizes))
            done = itertools.count(1)
            measured = measure(
                model,
                example,
                batch_sizes=settings.batch_sizes,
                scheduler=scheduler,
                seconds=settings.seconds,
                progress=lambda _size: update(next(done)),
                full_batches=settings.full_batches,
            )
        evaluation = self.recipe.evaluation
        notes: list[str] = []
        if evaluation.unit == "ms":
            measured, notes = undisturbed(measured)
        write_json(self.out / COSTS, {"schema": 1, "exits": list(model.exit_names), **measured.to_dict()})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ReliabilityWarning)
            costs = measured.costs(evaluation.unit, evaluation.batch_size)
        notes += dict.fromkeys(f"Take the cost table with care: {warning.message}." for warning in caught)
        for note in notes:
            self._say(f"  {note}")
        return {"costs": costs.to_dict(), "notes": notes, "machine": machine(measured.device)}

    def _fit(self) -> dict[str, Any]:
        calibration = ExitRecords.load(self.work / CALIBRATION)
        costs = ExitCosts.from_dict(self._result("profile")["costs"])
        infeasible: list[dict[str, Any]] = []
        shutil.rmtree(self.out / SCHEDULER_FOLDER, ignore_errors=True)
        methods, budgets = schedulers(self.recipe.seed), self.recipe.evaluation.budgets
        with self._bars() as bars:
            update, done = bars.task("  schedulers", len(methods) * len(budgets)), itertools.count(1)
            for method, make in methods.items():
                fitted = make().fit(calibration, costs, fallback=False)  # methods are compared as they are
                for budget in budgets:
                    try:
                        chosen = fitted.fitted_at(budget)
                    except InfeasibleBudgetError as error:
                        infeasible.append({"method": method, "budget": budget, "reason": str(error)})
                    else:
                        chosen.save(self.out / SCHEDULER_FOLDER / scheduler_file(method, budget))
                    update(next(done))
        return {"infeasible": infeasible}

    def _evaluate(self) -> dict[str, Any]:
        calibration, test = (ExitRecords.load(self.work / file) for file in (CALIBRATION, TEST))
        write_predictions(self.out, calibration, test)
        measured = self._measured(calibration, test) if self.recipe.evaluation.rounds else None
        with self._bars() as bars:
            update = bars.task("  comparison")
            metrics = write_results(
                self.recipe,
                self.out,
                calibration,
                test,
                steps={step: self.markers.read(step) for step in STEPS[:-1]},
                measured=measured,
                command=self.options.command,
                smoke=self.options.smoke,
                progress=update,
            )
        self._keep_model(calibration, test, metrics)
        return metrics

    def _keep_model(self, calibration: ExitRecords, test: ExitRecords, metrics: Mapping[str, Any]) -> None:
        """Keep the trained network beside the results, where it is small, with what its users need.

        That is what a model needs to be served, exported and reported on by its name: records to fit a scheduler to and
        to judge it, costs, class names, preprocessing and some test inputs. Records and inputs are shuffled, the same
        for the same seed: the first of data that are sorted by class are of few classes.
        """
        trained, kept = self.work / _MODEL, self.out / _MODEL
        shutil.rmtree(kept, ignore_errors=True)
        if sum(path.stat().st_size for path in trained.iterdir()) > _KEPT_BYTES:
            return
        shutil.copytree(trained, kept)
        orders = [self._shuffled(len(records)) for records in (calibration, test)]
        shuffled = [records.subset(order) for records, order in zip((calibration, test), orders, strict=True)]
        written = write_predictions(kept, *shuffled, limit=_RECORDS_BYTES)
        rows = orders[1][written[TEST]]
        write_json(kept / METRICS, summary(metrics, {"calibration": len(written[CALIBRATION]), "test": len(rows)}))
        shutil.copy(self.out / COSTS, kept / COSTS)
        data = self._read_data()
        self._write_classes(kept, data)
        self._write_preprocessing(kept, data)
        one = sum(tensor.numel() * tensor.element_size() for tensor in data.inputs("test", [0])[0])
        count = max(1, min(len(rows), _BEST_COMPRESSION * _INPUTS_BYTES // one))
        while True:  # how well they compress is tried
            inputs, _ = data.inputs("test", rows[np.arange(count) * len(rows) // count])
            np.savez_compressed(kept / SAMPLES, **self._named(inputs))
            size = (kept / SAMPLES).stat().st_size
            if size <= _INPUTS_BYTES or count == 1:
                return
            count = max(1, min(count - 1, int(0.95 * count * _INPUTS_BYTES / size)))

    def _shuffled(self, samples: int) -> NDArray[np.int64]:
        """The numbers of samples in a random order, which the recipe's seed fixes."""
        return np.random.default_rng([self.recipe.seed, samples]).permutation(samples)

    def _measured(self, calibration: ExitRecords, test: ExitRecords) -> dict[str, Any]:
        """Every single exit and every fitted scheduler run for real, in turns with the plain network."""
        data, model, settings = self._read_data(), self._read_model(), self.recipe.evaluation
        costs = ExitCosts.from_dict(self._result("profile")["costs"])
        policies: dict[tuple[str, str], Scheduler] = {}
        policies |= {("exit", str(k)): Static(k).fit(calibration, costs) for k in range(len(costs))}
        for budget in settings.budgets:
            for method in schedulers(self.recipe.seed):
                path = self.out / SCHEDULER_FOLDER / scheduler_file(method, budget)
                if path.is_file():
                    policies[method, budget] = load_scheduler(path)
        with self._bars() as bars:
            update = bars.task("  runs")
            return measure_policies(
                model,
                policies,
                test,
                lambda size: data.held_out("test", batch_size=size),
                batch_size=settings.batch_size,
                rounds=settings.rounds,
                seed=self.recipe.seed,
                progress=update,
            )

    def _prepare(self) -> None:
        """Find data and checkpoint; a smoke run writes them first."""
        if self.options.smoke:
            folder = self.work / _SMOKE
            self._root, checkpoint = write_smoke_files(self.recipe, folder)
            self._checkpoint = None if checkpoint is None else str(checkpoint)
            return
        self._checkpoint = checkpoint_folder(self.recipe, self.options.checkpoint, download=self.options.download)

    def _prepared(self) -> RecipeData:
        """The data, which is not split yet."""
        self._prepare()
        return RecipeData(
            self.recipe,
            self._root,
            tokenizer=self._checkpoint,
            on_corrupt=self.options.on_corrupt,
            download=self.options.download,
        )

    def _read_data(self) -> RecipeData:
        if self._data is None:
            data = self._prepared()
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
        if self.options.progress:
            self.console.print(text, markup=False, soft_wrap=True)

    def _bars(self) -> Bars:
        return Bars(self.console, shown=self.options.progress)


def _followed(loader: Iterable[Any], update: Update) -> Iterator[Any]:
    for done, batch in enumerate(loader, start=1):
        yield batch
        update(done)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
