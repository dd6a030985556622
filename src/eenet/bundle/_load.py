"""`load`, and the bundle that it gives: what it runs on, how it decides, and what is known of it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eenet._sizes import Inputs, Sizes, outside_table, undescribed
from eenet._timing import processor
from eenet._warn import warn
from eenet.bundle._manifest import Manifest, read_manifest
from eenet.bundle._measure import failures_of
from eenet.costs import Budget, ExitCosts
from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning
from eenet.preprocessing import Preprocessing, preprocessing_from
from eenet.records import ExitRecords
from eenet.runtime import AdaptiveOutput, StageBackend, TensorSpec, run_arrays
from eenet.runtime._backend import Array, NoStages
from eenet.scheduler import Scheduler, load_scheduler
from eenet.tasks import Task, task_from


class LoadedBundle:
    """A network with exits and the scheduler that decides on them, as exported; call it with numpy arrays.

    `backend` runs the stages, `scheduler` decides, `costs` are those its budget was planned with, and `costs_from` says
    where they were measured; `task` says what the logits mean, `class_names` (C,) or None what the classes are called,
    `preprocessing` how raw inputs become arrays, `threads` how many a stage may use, None where that is left to the
    runtime; `info` is a JSON-ready description for people.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> x = torch.randn(40, 4)
    >>> model = eenet.attach(network, ["1"], example=x[:2])
    >>> scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0]), budget=1.5)
    >>> bundle = eenet.export(model, scheduler, "bundle", example=x, measure=False)
    >>> bundle.at(1.2).scheduler.budget
    1.2
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: StageBackend,
        scheduler: Scheduler | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.threads = threads
        self.scheduler = scheduler or _scheduler(manifest)
        self.task: Task = _task(manifest)
        names = manifest.data["class_names"]
        self.class_names: tuple[str, ...] | None = None if names is None else tuple(names)
        self.preprocessing: Preprocessing = _preprocessing(manifest)
        self.exit_names: tuple[str, ...] = tuple(manifest.data["exits"])
        self._logits = TensorSpec.from_dict(manifest.data["logits"])

    def __call__(self, inputs: Mapping[str, Array] | Array) -> AdaptiveOutput[Array]:
        """Logits and exits of a batch, in its order; an empty batch gives empty answers.

        `inputs` is an array, or a mapping of the network's inputs by name. Raises `InvalidInputError`, which names the
        input, for another name, dtype or shape, which names the longest that the network takes for longer inputs, and
        for a number that is no row of a table of the network, negative ones too.
        """
        try:
            answers = run_arrays(self.backend, self.scheduler.policy, self.task, inputs)
        except InvalidInputError:
            raise
        except failures_of(self.manifest.backend) as error:
            why = self._not_taken(inputs) or outside_table(error)
            if why is None:
                raise
            raise InvalidInputError(why) from error
        if answers is not None:
            return answers
        shape = tuple(size if isinstance(size, int) else 0 for size in self._logits.shape)
        return AdaptiveOutput(np.empty(shape, dtype=self._logits.dtype), np.empty(0, dtype=np.int64), np.empty(0, bool))

    @cached_property
    def _sizes(self) -> Sizes:
        """Which sizes the network takes; raises `InvalidInputError` where it is not known which are usual."""
        described = self.manifest.data.get("example") or undescribed(self.inputs)
        backend = self.backend

        def run(inputs: Inputs) -> None:
            live = backend.enter(inputs)
            for k in range(backend.num_exits):
                live, _ = backend.run(k, live, observe=True)

        return Sizes(run, self.inputs, described, failures_of(self.manifest.backend))

    def _not_taken(self, inputs: Mapping[str, Array] | Array) -> str | None:
        """What to say of inputs that fit and on which the network failed; None where their sizes are not the reason."""
        try:
            return self._sizes.refusal(inputs)
        except InvalidInputError:  # not all stages are here, or it is not known how large its inputs usually are
            return None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The network's inputs: names, dtypes and shapes."""
        return self.manifest.stages[0].inputs

    @property
    def precision(self) -> dict[str, str]:
        """What each stage and head computes in, "fp32" or "int8", by its name: "stages.0", "heads.0"."""
        return self.manifest.precision

    @property
    def costs(self) -> ExitCosts:
        """The costs that the budget is planned with."""
        return self.scheduler.costs

    @property
    def runtime(self) -> str:
        """What runs the stages, such as "ONNX Runtime 1.23.2"."""
        name, module = _RUNTIMES[self.manifest.backend]
        return " ".join([name, *([sys.modules[module].__version__] if module in sys.modules else [])])

    @property
    def costs_from(self) -> str:
        """Where the costs were measured, and at which length of inputs where they may have several, in words."""
        costs, device = self.costs, self.costs.device
        size = "" if costs.batch_size is None else f", batches of {costs.batch_size}"
        inputs = "" if costs.of_inputs is None else f", {costs.of_inputs}"
        if "runtime" in device:
            threads = device.get("threads")
            return (
                f"measured in {device['runtime']}{size}, {threads} thread{'' if threads == 1 else 's'}, "
                f"{device.get('processor')}{inputs}"
            )
        name = _RUNTIMES[self.manifest.backend][0]
        fitted = f"measured in PyTorch {device['torch']}{size}" if "torch" in device else f"given{size}"
        return f"as the scheduler was fitted with ({fitted}{inputs}), not of {name}: {self._measure_again}"

    @property
    def measured_elsewhere(self) -> str | None:
        """What to do where the costs are of another processor or number of threads than run the bundle now."""
        return self._of_other_processor() or self.other_threads

    def _of_other_processor(self) -> str | None:
        device, here = self.costs.device, processor()
        if "runtime" not in device or (device.get("machine"), device.get("processor")) == (platform.machine(), here):
            return None
        return (
            f"the bundle's costs were measured on {device.get('processor')} ({device.get('machine')}), this is {here} "
            f"({platform.machine()}): {self._measure_again}"
        )

    @property
    def _threads_used(self) -> int | None:
        """How many threads a stage uses here: those given, or what the runtime takes; None for one for each core."""
        if self.threads is not None:
            return self.threads
        if self.manifest.backend == "onnx":
            from eenet.bundle._onnx import usual_threads

            return usual_threads()
        torch = sys.modules.get("torch")
        return None if torch is None else int(torch.get_num_threads())

    @property
    def other_threads(self) -> str | None:
        """What to do where the costs are of another number of threads than run the bundle now."""
        device, threads = self.costs.device, self._threads_used
        if "runtime" not in device or threads is None or threads == device.get("threads"):
            return None
        return (
            f"the bundle's costs were measured at threads={device.get('threads')}, it runs at {threads}: "
            f"{self._measure_again} --threads {threads}"
        )

    @property
    def _measure_again(self) -> str:
        return f"measure and plan again with eenet profile {self.manifest.root} --update"

    @property
    def records(self) -> ExitRecords | None:
        """The calibration records it carries, None where there are none."""
        name = self.manifest.data.get("records")
        if name is None:
            return None
        self.manifest.read(name)
        records = ExitRecords.load(self.manifest.path(name))
        if (records.num_exits, records.num_classes) != (self.manifest.num_exits, self.manifest.num_classes):
            raise FileFormatError(f"the records in {str(self.manifest.root)!r} are not of this bundle; export it again")
        return records

    @property
    def info(self) -> dict[str, Any]:
        """What the bundle is, for people and for a server's description of itself."""
        data = self.manifest.data
        kept = ("backend", "eenet", "exits", "num_classes", "class_names", "task", "verified", "made_with")
        return {
            "name": self.manifest.root.resolve().name,
            "digest": self.manifest.digest,
            **{key: data[key] for key in kept},
            "budgets": [
                {
                    "budget": row["budget"],
                    "planned_cost": row["planned_cost"],
                    "calibration_accuracy": row.get("accuracy"),  # which says nothing of other data
                    "handed_back": row.get("handed_back"),
                }
                for row in data["budgets"]
            ],
            "inputs": [spec.to_dict() for spec in self.inputs],
            "scheduler": self.scheduler.name,
            "budget": self.scheduler.budget,
            "costs": self.costs.to_dict(),
            "costs_from": self.costs_from,
            "measured_elsewhere": self.measured_elsewhere,
            "runtime": self.runtime,
            "preprocessing": data["preprocessing"],
            "precision": self.precision,
            "quantization": data.get("quantization"),
        }

    def at(self, budget: Budget) -> LoadedBundle:
        """The same bundle, sharing its stages, with the scheduler's policy for another budget.

        Raises `InfeasibleBudgetError` for a budget that cannot be met.
        """
        return LoadedBundle(self.manifest, self.backend, self.scheduler.at(budget), threads=self.threads)

    def __eq__(self, other: object) -> bool:
        """Whether it holds the same files, scheduler and budget; where they lie makes no difference."""
        if not isinstance(other, LoadedBundle):
            return NotImplemented
        return self.manifest.data == other.manifest.data and self.scheduler == other.scheduler

    def __hash__(self) -> int:
        return hash(str(self.manifest.data["files"]))

    def __repr__(self) -> str:
        exits = ", ".join(self.exit_names)
        where = repr(str(self.manifest.root))
        return (
            f"LoadedBundle({where}, {self.manifest.backend}, exits=[{exits}], {self.scheduler!r}, costs "
            f"{self.costs_from})"
        )


_RUNTIMES = {
    "onnx": ("ONNX Runtime", "onnxruntime"),
    "torch": ("PyTorch", "torch"),
    "aoti": ("PyTorch, compiled", "torch"),
}


def _scheduler(manifest: Manifest) -> Scheduler:
    name = manifest.data["scheduler"]
    manifest.read(name)
    scheduler = load_scheduler(manifest.path(name))
    try:
        scheduler.policy.require(manifest.num_exits, manifest.num_classes, "the bundle has")
    except InvalidInputError as error:
        raise FileFormatError(f"the scheduler in {str(manifest.root)!r} is not of this bundle: {error}") from error
    return scheduler


def _task(manifest: Manifest) -> Task:
    try:
        return task_from(manifest.data["task"])
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{str(manifest.root)!r} is of a task that cannot be made here: {error}") from error


def _preprocessing(manifest: Manifest) -> Preprocessing:
    try:
        return preprocessing_from(manifest.data["preprocessing"], read=manifest.read)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"the preprocessing in {str(manifest.root)!r} cannot be read ({error}); upgrade eenet, or export again"
        ) from error


def load(
    folder: str | Path,
    *,
    threads: int | None = None,
    allow: Iterable[str] = (),
    stages: Iterable[int] | None = None,
) -> LoadedBundle:
    """Load the bundle that `eenet.export` wrote to a folder. A bundle of ONNX graphs needs no PyTorch.

    Parameters
    ----------
    folder
        The bundle.
    threads
        How many threads a stage may use; for a bundle of weights this holds for the whole process. By default as many
        as OMP_NUM_THREADS says, and without it one for each core.
    allow
        The import paths, such as "mypackage.networks:make", that may be called to build the network of a bundle of
        weights, where it is your own; see `MultiExitModel.from_pretrained`.
    stages
        The numbers of the stages that will be run, by default all. The graphs of others are not loaded. With none at
        all no weights are loaded; otherwise a bundle of weights is loaded whole.

    Returns
    -------
    LoadedBundle
        Call it with numpy arrays: `logits, exits = bundle(inputs)`.

    Raises
    ------
    InvalidInputError
        For a folder that holds no bundle.
    FileFormatError
        Where anything in it is not what was written; the message names the file.

    Warns
    -----
    ReliabilityWarning
        Where its costs were measured on another processor; the message has the command that measures again.

    Examples
    --------
    >>> import eenet
    >>> bundle = eenet.bundle.load("bundle/")  # doctest: +SKIP
    >>> logits, exits = bundle(images)  # doctest: +SKIP
    """
    manifest = read_manifest(folder)
    chosen = None if stages is None else frozenset(stages)
    if chosen is not None and not chosen:
        return LoadedBundle(manifest, NoStages([stage.inputs for stage in manifest.stages], manifest.num_classes))
    if manifest.backend == "onnx":
        from eenet.bundle._onnx import OnnxBackend

        return known(LoadedBundle(manifest, OnnxBackend(manifest, threads=threads, stages=chosen), threads=threads))
    return known(LoadedBundle(manifest, _weights(manifest, threads, allow), threads=threads))


def known(bundle: LoadedBundle) -> LoadedBundle:
    """The bundle, with a warning where its costs are of another processor."""
    note = bundle._of_other_processor()
    if note is not None:
        warn(note, ReliabilityWarning)
    return bundle


def _weights(manifest: Manifest, threads: int | None, allow: Iterable[str]) -> StageBackend:
    """The backend of a bundle of weights; `threads` is set for the whole process, as PyTorch has it."""
    import torch

    from eenet.models import MultiExitModel
    from eenet.optimize import compiled
    from eenet.runtime import TorchBackend

    manifest.check()
    model = MultiExitModel.from_pretrained(manifest.root / "model", allow=allow)
    if (model.num_exits, model.num_classes) != (manifest.num_exits, manifest.num_classes):
        raise FileFormatError(
            f"the model in {str(manifest.root)!r} has {model.num_exits} exits and {model.num_classes} classes, its "
            f"manifest says {manifest.num_exits} and {manifest.num_classes}; export the bundle again"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchBackend(model, compiled(model) if manifest.backend == "aoti" else None)
