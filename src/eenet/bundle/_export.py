"""`export`: a model and its scheduler as a bundle, a folder that other programs and machines can run."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet._files import atomic_folder, write_json
from eenet._progress import by_itself
from eenet._sizes import described
from eenet._version import __version__
from eenet.bundle._calibration import Samples
from eenet.bundle._graphs import DEFAULT_OPSET, OPSETS, Graphs, onnx_graphs, plain_graph
from eenet.bundle._load import LoadedBundle, load
from eenet.bundle._manifest import BACKENDS, FORMAT, MANIFEST, SCHEMA, StageSpec, read_manifest, sealed
from eenet.bundle._measure import BATCH_SIZES, remaining
from eenet.bundle._plan import (
    RECORDS,
    asked_of,
    budgets_of,
    compact,
    plan_here,
    planned_again,
    require_fitting,
    require_readable,
    shares_of,
)
from eenet.bundle._precision import MAX_EXIT_DROP, Choice, Options, Precision, choose
from eenet.bundle._verify import verify
from eenet.costs import Budget
from eenet.errors import InvalidInputError, kind_of
from eenet.models import MultiExitModel, require_exits
from eenet.models._collect import digest_of
from eenet.models._io import inferring
from eenet.optimize import eager
from eenet.preprocessing import ArrayPreprocessing, Preprocessing
from eenet.records import ExitRecords, require_same_network
from eenet.runtime import TensorSpec
from eenet.runtime._adaptive import tensor_spec
from eenet.runtime._loop import require_scheduler
from eenet.scheduler import Scheduler
from eenet.stages import Example
from eenet.tasks import describe_task

SCHEDULER, MODEL, PLAIN, PLAIN_INT8 = "scheduler.safetensors", "model", "plain.onnx", "plain-int8.onnx"

_SMALL_GRAPH = 16 * 1024 * 1024
"""Up to this size a bundle carries the plain network too, so that another machine can measure it."""


def export(
    model: MultiExitModel,
    scheduler: Scheduler,
    folder: str | Path,
    *,
    example: Example,
    backend: str = "onnx",
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
    records: ExitRecords | None = None,
    keep_labels: bool = True,
    budget: Budget | None = None,
    measure: bool = True,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 1.0,
    threads: int | None = None,
    precision: Precision = "fp32",
    calibration: Iterable[Any] | None = None,
    max_exit_drop: float = MAX_EXIT_DROP,
    exit_drop_guarantee: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> LoadedBundle:
    """Write a bundle: what runs the stages, the scheduler, its costs and budgets, checksums; and load it.

    The bundle is measured in the runtime that runs it, in turns with the plain network, and its budget is planned again
    in these costs: the scheduler in it is fitted to the calibration records at the same share of the plain network's
    cost that `scheduler` has, or of the last exit's where the plain network's is not known.

    Before the bundle appears it is compared with the model on all of `example`: logits within 1e-3 in several batch
    sizes and in other batches, exits those of a replay. The folder appears as a whole or not at all, and replaces an
    earlier bundle.

    With `precision` stages and heads run in int8. Those answer differently, so the records are collected again from the
    stages as they are in the bundle, the scheduler is fitted to them, and what is compared is the bundle with a replay
    of its own answers. Exits before the first stage in int8 are compared with the model as before.

    Parameters
    ----------
    model
        The model, in float32 on the CPU.
    scheduler
        A fitted scheduler for its exits.
    folder
        Where to write.
    example
        Real samples: a tensor, a tuple of arguments or a mapping of keyword arguments.
    backend
        "onnx" runs with onnxruntime, without PyTorch; "torch" holds weights, for a network that can be built again from
        a name; "aoti" is the same, compiled where it is loaded.
    preprocessing
        How image files or texts become the network's inputs; by default it takes arrays.
    class_names
        What the C classes are called.
    opset
        The version of the ONNX operators, 18 to 23.
    records
        The calibration records, which the bundle carries, up to 32 MiB of them, so that it can be planned again on
        another machine. By default those that `scheduler` was fitted to in this process. Without any (a scheduler from
        a file) the thresholds stay, and the budget is what they cost in this runtime.
    keep_labels
        Whether the bundle carries the records' labels. Most methods cannot be fitted again without.
    budget
        Another budget, in the costs measured here: "3ms", or "60%" of the plain network.
    measure
        False keeps the scheduler and its costs as they are.
    batch_sizes, seconds
        What to measure, and about how long each. The budget is planned at the batch size of the scheduler's costs, or
        at 1.
    threads
        How many a stage may use, here and while measuring. By default as many as OMP_NUM_THREADS says, and without it
        one for each core. Give what the bundle will run with.
    precision
        "fp32", "int8" for all stages and heads, or which of them: `{"stages.2": "int8"}`. With "auto" those that are
        faster in int8 here, as long as no exit loses more than `max_exit_drop`.
    calibration
        For int8: batches of (inputs, labels), as `collect` takes them, that the model was not trained on. Some give the
        quantizer its ranges, at most a quarter and 128; the others judge the exits and give the records. All are held
        in memory.
    max_exit_drop
        How much accuracy an exit may lose under "auto": 0.005 is half a point. Otherwise where a warning begins.
    exit_drop_guarantee
        With this probability, such as 0.95, no exit loses more on fresh samples either: one half of the samples that
        judge chooses, the other one tests. Only under "auto"; that takes thousands of samples.
    progress
        Called with what is being done, in words.

    Returns
    -------
    LoadedBundle
        The bundle, loaded from the folder.

    Raises
    ------
    InvalidInputError
        For what cannot be exported.
    CutError
        Where the network was changed after it was cut; the message names the module.
    ExportError
        Where the bundle does not do what the model does, or samples are mixed.
    MissingExtraError
        Without onnx, onnxscript and onnxruntime, for the backend "onnx".

    Examples
    --------
    >>> import eenet, tempfile, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    >>> data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(3, (64,)))
    >>> records = eenet.collect(model, torch.utils.data.DataLoader(data, batch_size=16))
    >>> scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([0.4, 1.0], "ms"), "100%")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bundle = eenet.export(model, scheduler, f"{folder}/bundle", example=torch.randn(8, 4))
    ...     logits, exits = bundle(torch.randn(5, 4).numpy())
    >>> logits.shape
    (5, 3)
    """
    if backend not in BACKENDS:
        raise InvalidInputError(f"backend is {backend!r}, expected one of {list(BACKENDS)}")
    if opset not in OPSETS:
        raise InvalidInputError(f"opset is {opset!r}, expected {OPSETS[0]} to {OPSETS[-1]}")
    require_exits(model)
    require_scheduler(scheduler)
    options = Options(precision, max_exit_drop, exit_drop_guarantee)
    options.check(model, backend, calibration)
    _require_kinds(folder, example, preprocessing, class_names, records)
    if measure:
        require_readable(scheduler, budget, batch_sizes)
    scheduler = scheduler if budget is None else _started(scheduler, budget, measure)
    scheduler.policy.require(model.num_exits, model.num_classes, "the model has")
    records = scheduler.calibration_records if records is None else records
    _require_cpu_float(model)
    network = digest_of(model)
    if records is not None:
        require_fitting(records, scheduler, network)
    else:
        require_same_network("the scheduler was fitted to records", scheduler.network, network)
    model.staged.check_current()
    names = None if class_names is None else [str(name) for name in class_names]
    if names is not None and len(names) != model.num_classes:
        raise InvalidInputError(f"there are {len(names)} class names, the model has {model.num_classes} classes")
    args, kwargs = call_with(example)
    live = model.staged.flatten_inputs(*args, **kwargs)
    if model.staged.batch_size_of(live) == 0:
        raise InvalidInputError("the example has batch size 0; give real samples, on which the bundle is checked")
    with inferring(model):
        model(*args, **kwargs)  # says so where a part of the model was converted to another dtype
    inputs = tuple(tensor_spec(one) for one in model.staged.inference_stages[0].inputs)
    names_of_inputs = tuple(spec.name for spec in inputs)
    preprocessing = ArrayPreprocessing(names_of_inputs) if preprocessing is None else preprocessing.fitted(inputs)
    target = Path(folder)
    with (
        by_itself("exporting", given=progress) as show,
        atomic_folder(target, marker=MANIFEST, what="bundle") as temporary,
    ):
        report = progress or (lambda step: show(0, what=f"exporting: {step}"))
        choice: Choice | None = None
        if backend == "onnx":
            samples = None
            if calibration is not None and options.wanted(model.num_exits):
                samples = Samples(model, calibration)  # before the graphs, which take a while
            graphs = onnx_graphs(model, opset, report)
            plain = plain_graph(model, graphs, opset)
            if samples is not None:
                choice = choose(
                    model, graphs, plain, samples, options,
                    remaining=remaining(shares_of(scheduler, records), scheduler.costs.batch_size or 1),
                    seconds=seconds, threads=threads, progress=report,
                )  # fmt: skip
                graphs = choice.graphs
                if choice.any_int8:
                    network = _digest(network, graphs)
            stages = _write_graphs(graphs, temporary)
        else:
            stages, plain = _write_weights(model, temporary, report), None
        carried = {name: content for name, content in _plain_networks(plain, choice) if len(content) <= _SMALL_GRAPH}
        for name, content in carried.items():
            _write(temporary / name, content)
        for name, content in preprocessing.files().items():
            _write(temporary / name, content)
        asked = asked_of(scheduler) if budget is None else None
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "schema": SCHEMA,
            "eenet": __version__,
            "backend": backend,
            "task": describe_task(model.task),
            "num_classes": model.num_classes,
            "class_names": names,
            "exits": list(model.exit_names),
            "logits": _logits_spec(model).to_dict(),
            "stages": [stage.to_dict() for stage in stages],
            "scheduler": SCHEDULER,
            "preprocessing": preprocessing.describe(),
            "made_with": _made_with(backend, opset),
            "network": network,
            "records": None,
            "plain": PLAIN if PLAIN in carried else None,
            "example": described([tensor.numpy() for tensor in live]),
            "profile": None,
            "verified": None,
            "asked": asked,
        }
        if choice is not None:
            manifest |= {"precision": choice.precision, "quantization": choice.report}
            manifest |= {"plain_int8": PLAIN_INT8 if PLAIN_INT8 in carried else None}
        _complete(manifest, scheduler, temporary)
        bundle = load(temporary, allow=_allowed(model), threads=threads)
        if choice is not None and choice.any_int8:
            report("collecting the records of the stages in int8")
            records = choice.records(bundle.backend, model.task)
            records.network = network
            if not measure:
                scheduler = planned_again(scheduler, scheduler.costs, records, budget)
        if records is not None:
            compact(records, labels=keep_labels).save(temporary / RECORDS)
            manifest["records"] = RECORDS
        if measure:
            scheduler, manifest["profile"] = plan_here(
                bundle,
                scheduler,
                records,
                plain=plain,
                budget=budget,
                asked=asked,
                batch_size=None,
                batch_sizes=batch_sizes,
                seconds=seconds,
                progress=report,
            )
        if budget is not None:
            manifest["asked"] = asked_of(scheduler)
        _complete(manifest, scheduler, temporary)
        bundle = LoadedBundle(read_manifest(temporary), bundle.backend, threads=threads)
        report("comparing the bundle with the model")
        manifest["verified"] = verify(model, scheduler, bundle, live).to_dict()
        done = _complete(manifest, scheduler, temporary)
    return LoadedBundle(replace(bundle.manifest, root=target, data=done), bundle.backend, scheduler, threads=threads)


def _require_kinds(folder: Any, example: Any, preprocessing: Any, class_names: Any, records: Any) -> None:
    """Raise `InvalidInputError` for an argument of another kind, such as one in another's place."""
    for name, value, kinds, expected in (
        ("folder", folder, (str, Path), "a path"),
        ("example", example, (Tensor, tuple, list, Mapping), "a tensor, a tuple of arguments or a mapping of them"),
        ("preprocessing", preprocessing, Preprocessing, "one of eenet.preprocessing, such as ImagePreprocessing(224)"),
        ("class_names", class_names, (list, tuple), "a list of names"),
        ("records", records, ExitRecords, "ExitRecords: eenet.collect(model, loader)"),
    ):
        if not isinstance(value, kinds) and (value is not None or name in ("folder", "example")):
            raise InvalidInputError(f"{name} is {kind_of(value)}, expected {expected}")


def _complete(manifest: dict[str, Any], scheduler: Scheduler, folder: Path) -> dict[str, Any]:
    """Write the scheduler, and the manifest with its costs and budgets and the checksums of all files."""
    scheduler.save(folder / SCHEDULER)
    manifest |= {"costs": scheduler.costs.to_dict(), "budgets": budgets_of(scheduler), "files": _files(folder)}
    data: dict[str, Any] = json.loads(json.dumps(manifest, allow_nan=False))
    write_json(folder / MANIFEST, sealed(data))
    return data


def _started(scheduler: Scheduler, budget: Budget, measure: bool) -> Scheduler:
    """The scheduler with a policy: for this budget, or where that is one in costs not measured yet, with any."""
    if not measure:
        return scheduler.at(budget)
    return scheduler if scheduler._fitted_state().policy is not None else scheduler.at(scheduler.costs[-1])


def call_with(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call from a tensor, a tuple of arguments or a mapping of keyword arguments."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return ((example,), {}) if isinstance(example, Tensor) else (tuple(example), {})


def _require_cpu_float(model: MultiExitModel) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise InvalidInputError(f"{name!r} is on {tensor.device}; export the model from the CPU: model.cpu()")
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise InvalidInputError(
                f"{name!r} is of {tensor.dtype}, which numpy and the CPU backends do not run; export model.float()"
            )


def _write_graphs(graphs: Graphs, folder: Path) -> tuple[StageSpec, ...]:
    for name, content in graphs.files.items():
        _write(folder / name, content)
    return graphs.stages


def _write_weights(model: MultiExitModel, folder: Path, report: Callable[[str], None]) -> tuple[StageSpec, ...]:
    report("writing the weights")
    model.save_pretrained(folder / MODEL)
    return tuple(
        StageSpec(stage.name, tuple(tensor_spec(one) for one in stage.inputs), None, None, None)
        for stage in model.staged.inference_stages
    )


def _plain_networks(plain: bytes | None, choice: Choice | None) -> list[tuple[str, bytes]]:
    """The plain network as graphs by the names of their files: in fp32 and, beside stages in int8, in int8."""
    found = [(PLAIN, plain), (PLAIN_INT8, None if choice is None else choice.plain)]
    return [(name, content) for name, content in found if content is not None]


def _digest(network: str, graphs: Graphs) -> str:
    """A digest for a network of which some stages are in int8: their answers, and records, are others."""
    digest = hashlib.blake2b(network.encode(), digest_size=16)
    for name in sorted(graphs.files):
        digest.update(name.encode() + graphs.files[name])
    return digest.hexdigest()


def _allowed(model: MultiExitModel) -> list[str]:
    """The import path of the caller's own network, which is trusted by exporting it."""
    return [] if model.source is None else list(model.source.paths)


def _logits_spec(model: MultiExitModel) -> TensorSpec:
    logits = eager(model).no_logits(torch.device("cpu"))
    dtype = str(logits.dtype).removeprefix("torch.")
    return TensorSpec("logits", dtype, ("batch", *logits.shape[1:]), 0)


def _made_with(backend: str, opset: int) -> dict[str, Any]:
    libraries = ("torch", "numpy", *(("onnx", "onnxscript", "onnxruntime") if backend == "onnx" else ()))
    versions: dict[str, Any] = {name: _version(name) for name in libraries} | {"python": platform.python_version()}
    return versions | ({"opset": opset} if backend == "onnx" else {})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file so far."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return entries
