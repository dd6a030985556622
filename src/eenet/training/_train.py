"""`train`: joint training of all exits, or of the early exit heads alone, that can be killed and resumed.

It runs on Lightning's Fabric rather than its Trainer. Fabric brings what should not be written again (devices,
strategies, mixed precision, gradient accumulation across processes, logging) and leaves the loop here, where the
checkpoint has to be: Trainer's own are pickles, resume from more places than the end of an epoch, and would have to
be switched off piece by piece. Fabric is imported as `lightning_fabric`, the part of Lightning that holds it: the
`lightning` package imports torchmetrics, and with it torchvision where that is installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from eenet._compat import BatchNorm, no_precision_hint
from eenet._extras import install
from eenet._timing import in_turns, timed
from eenet._warn import warn
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError, MissingExtraError, ReliabilityWarning, kind_of
from eenet.models import MultiExitModel
from eenet.models._io import moved, require_batches, unpack
from eenet.models._multi_exit import require_exits
from eenet.stages import feature_at, modes_kept
from eenet.training._config import TrainConfig, frozen
from eenet.training._loss import TrainingTask, task_of
from eenet.training._mixing import mixer_of
from eenet.training._programs import warn_of_persistent_workers
from eenet.training._report import Display, TrainResult
from eenet.training._run import FEATURES, LAST, Run, require_tensorboard
from eenet.training._seeding import seeding

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
_HEADS = "heads"
_SLOWER = 2.0  # times as slow as float32: a mixed precision that is slower than this is warned of


def train(
    model: MultiExitModel,
    train_loader: Any,
    validation_loader: Iterable[Any],
    *,
    config: TrainConfig | None = None,
    out: str | Path,
    resume: bool = False,
    costs: ExitCosts | None = None,
    teacher: nn.Module | None = None,
    task: TrainingTask | None = None,
    features: str | Path | None = None,
) -> TrainResult:
    """Train all exits of a model; it ends with the weights of the epoch whose exits give the best frontier.

    Parameters
    ----------
    model
        A model with K exits; it is trained in place.
    train_loader, validation_loader
        Batches as for `eenet.collect`, with labels; the training loader has a length.
    config
        The settings, by default `TrainConfig()`.
    out
        The folder of this run: `last.safetensors` after each epoch, `best.safetensors`, `metrics.csv`, `tensorboard/`,
        and `features/` with `freeze_backbone`, `heads/` with `head_epochs`.
    resume
        Go on after the last finished epoch of a run that was interrupted, even killed. On a CPU it ends with the same
        weights, to the bit, as one that was not, provided that model, data and config are the same. Where there is
        nothing to resume, the run starts.
    costs
        What the frontier is measured with, by default counted FLOPs.
    teacher
        A network of the same classes that all exits learn from (`config.teacher_weight`); it is put in evaluation mode.
    task
        What is trained for, by default what `model.task` says: a class per sample or a class per pixel.
    features
        The folder of cached features with `freeze_backbone`, by default `out/features`. Runs on the same backbone and
        data share what is in it.

    Returns
    -------
    TrainResult
        A report of each epoch, the best one, and the checkpoints.

    Raises
    ------
    TrainingDivergedError
        When the loss is not finite, naming the step and the exit; the last good checkpoint is kept.
    OutOfSpaceError
        For a full disk; the last good checkpoint is kept.
    InvalidInputError
        For what does not fit together.
    MissingExtraError
        Without Lightning.

    Examples
    --------
    >>> import tempfile, torch, eenet
    >>> from eenet.training import TrainConfig
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    >>> x = torch.randn(64, 4)
    >>> batches = [(x, (x.sum(1) > 0).long())]
    >>> config = TrainConfig(epochs=2, accelerator="cpu", progress=False, tensorboard=False)
    >>> result = eenet.train(model, batches, batches, config=config, out=tempfile.mkdtemp())
    >>> len(result.history), len(result.best.accuracies)
    (2, 2)
    """
    config = TrainConfig() if config is None else config
    _check_kinds(config, costs, out)
    _check_arguments(model, config, teacher, task, out, resume=resume)
    if config.tensorboard:
        require_tensorboard()
    fabric = _fabric(config)
    with no_precision_hint():
        _launch(fabric, config)
    if fabric.device.type == "cpu":
        _warn_of_emulation(config.precision)
    folder = Path(out)
    task = task or task_of(model, config.label_smoothing)
    for loader in (train_loader, validation_loader):
        require_batches(loader, model.staged.example)
    warn_of_persistent_workers(train_loader)
    model.staged.check_current()
    mixer = mixer_of(config, task, model.num_classes)  # what it refuses is refused before the heads are trained
    if mixer is not None:
        mixer.require_images(*model.staged.example)
    if config.head_epochs and not (resume and (folder / LAST).is_file()):
        first = folder / _HEADS
        kept = first / FEATURES if features is None else Path(features)
        with _run(fabric, model, _of_heads(config), first, task, None, kept, train_loader) as run:
            run.prepare(train_loader, validation_loader, costs, resume=resume, must_cache=False)
            run.epochs()
            run.load_best()
        if features is None and fabric.is_global_zero:
            shutil.rmtree(kept, ignore_errors=True)
    kept = folder / FEATURES if features is None else Path(features)
    with _run(fabric, model, config, folder, task, teacher, kept, train_loader) as run:
        run.prepare(train_loader, validation_loader, costs, resume=resume)
        run.epochs()
        return run.finish()


@contextmanager
def _run(
    fabric: Any,
    model: MultiExitModel,
    config: TrainConfig,
    folder: Path,
    task: TrainingTask,
    teacher: nn.Module | None,
    features: Path,
    train_loader: Any,
) -> Iterator[Run]:
    """A run within the block; after it modes, gradients and generators are as they were."""
    stopped = frozen(model.backbone.parameters()) if config.freeze_backbone else []
    shown = config.progress and fabric.is_global_zero
    try:
        with (
            modes_kept(model),
            Display(model.exit_names, config.epochs, shown=shown) as display,
            seeding(config.seed, fabric.global_rank, train_loader) as seeds,
        ):
            fabric.to_device(model)
            yield Run(fabric, model, config, folder, task, display, teacher, features, seeds)
    finally:
        for parameter in stopped:
            parameter.requires_grad = True


def _of_heads(config: TrainConfig) -> TrainConfig:
    """The settings of the epochs of the heads alone, before those of everything."""
    return replace(
        config,
        epochs=config.head_epochs,
        head_epochs=0,
        freeze_backbone=True,
        mixup=0.0,
        cutmix=0.0,
        teacher_weight=0.0,
        warmup_epochs=0.0,
        patience=None,
    )


def training_device(config: TrainConfig) -> torch.device:
    """The device that `train` puts a model on with this config; with several devices, that of the first process.

    Raises as `train` does where this machine has no such device.
    """
    device: torch.device = _fabric(config).device
    return device


def reestimate_batch_norm(model: MultiExitModel, loader: Iterable[Any], batches: int) -> int:
    """Replace the running statistics of all batch norms by plain means over some batches of a loader.

    The running averages of training lag behind the weights, and those of a frozen or averaged network may be of other
    weights altogether. Dropout and the rest stay in inference mode, no weight changes.

    Parameters
    ----------
    model
        A model with exits; the batch norms of its heads count too.
    loader
        Batches as for `eenet.collect`.
    batches
        How many of them, at least 1.

    Returns
    -------
    int
        The number of batch norms.

    Raises
    ------
    InvalidInputError
        Where the loader has fewer batches; then, as where the loader or the network raises, nothing is changed.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> from eenet.training import reestimate_batch_norm
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> model = eenet.attach(network, ["2"], example=torch.randn(4, 4))
    >>> reestimate_batch_norm(model, [(torch.randn(32, 4), torch.zeros(32))], batches=1)
    1
    """
    if batches < 1:
        raise InvalidInputError(f"batches is {batches}, expected at least 1")
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    run = _NormsAlone(model, norms)
    with modes_kept(model), _restored_unless_complete(norms):
        # In a mapping, since update_bn takes the first part of a pair for the inputs.
        update_bn(({"batch": batch} for batch in islice(loader, batches)), run)
        if run.done < batches:
            raise InvalidInputError(
                f"the loader gave {run.done} batches, expected {batches}; ask for fewer, or give more data"
            )
    return len(norms)


@contextmanager
def _restored_unless_complete(norms: list[Any]) -> Iterator[None]:
    """Where the block raises, batch norms are as they were: `update_bn` leaves them reset and without momentum."""
    before = [(norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers()}) for norm in norms]
    complete = False
    try:
        yield
        complete = True
    finally:
        if not complete:
            for norm, (momentum, buffers) in zip(norms, before, strict=True):
                norm.momentum = momentum
                for name, buffer in norm.named_buffers():
                    buffer.copy_(buffers[name])


class _NormsAlone(nn.Module):
    """A model as `update_bn` runs it: `train` reaches the batch norms alone, and batches are those of a loader.

    The network itself runs, not its stages: a momentum of None, for a plain mean, is counted in Python, which a trace
    would fix at its first value.
    """

    def __init__(self, model: MultiExitModel, norms: list[Any]) -> None:
        super().__init__()
        self.model = model
        self.norms = norms
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.done = 0

    def train(self, mode: bool = True) -> _NormsAlone:
        self.model.eval()
        for norm in self.norms:
            norm.train(mode)
        return self

    def forward(self, batch: Mapping[str, Any]) -> None:
        features: dict[int, Tensor] = {}

        def keep(index: int) -> Any:
            def hook(module: nn.Module, _args: Any, output: Any) -> None:
                features[index] = feature_at(module, output).clone()  # a later in-place operator would change it

            return hook

        args, kwargs, _ = unpack(batch["batch"])
        args, kwargs = moved((args, kwargs), self.device)
        with ExitStack() as stack:
            for index, name in enumerate(self.model.staged.at):
                hooked = self.model.backbone.get_submodule(name)
                stack.callback(hooked.register_forward_hook(keep(index)).remove)
            self.model.backbone(*args, **kwargs)
        for index, head in enumerate(self.model.heads):
            head(features[index])
        self.done += 1


def _check_kinds(config: Any, costs: Any, out: Any) -> None:
    for name, value, kinds, expected in (
        ("config", config, TrainConfig, "a TrainConfig, such as TrainConfig(epochs=20)"),
        ("costs", costs, (ExitCosts, type(None)), "what eenet.profile gives, or ExitCosts([1.0, 2.0])"),
        ("out", out, (str, os.PathLike), "the folder that the run is written to"),
    ):
        if not isinstance(value, kinds):
            raise InvalidInputError(f"{name} is {kind_of(value)}, expected {expected}")


def _check_arguments(
    model: MultiExitModel,
    config: TrainConfig,
    teacher: nn.Module | None,
    task: TrainingTask | None,
    out: str | Path,
    *,
    resume: bool,
) -> None:
    require_exits(model)
    if (teacher is None) != (config.teacher_weight == 0):
        given = "no teacher was given" if teacher is None else "a teacher was given"
        raise InvalidInputError(
            f"teacher_weight is {config.teacher_weight:g}, and {given}; pass both a teacher and a weight above 0"
        )
    if teacher is not None and config.freeze_backbone:
        raise InvalidInputError(
            "a teacher needs the inputs, which freeze_backbone does not keep; train without one of the two"
        )
    if task is not None and config.label_smoothing:
        raise InvalidInputError(
            f"label_smoothing is {config.label_smoothing:g}, and the task was given; give one that smooths labels "
            f"itself, such as ClassificationTask(label_smoothing={config.label_smoothing:g}), and leave it at 0 here"
        )
    if not resume and ((Path(out) / LAST).exists() or (Path(out) / _HEADS / LAST).exists()):
        raise InvalidInputError(
            f"{str(out)!r} already holds a run; pass resume=True to go on with it, or another `out`"
        )


def _warn_of_emulation(precision: str) -> None:
    """Warn of a mixed precision that this processor has no instructions for: it is right, and many times as slow."""
    if precision == "32":
        return
    whole = torch.ones(128, 128)
    half = whole.to(torch.bfloat16 if precision == "bf16" else torch.float16)
    fp32, mixed = in_turns([partial(timed, torch.mm, one, one) for one in (whole, half)], seconds=0.05).shortest
    if mixed > _SLOWER * fp32:
        warn(
            f"a matrix product takes {mixed / fp32:.0f} times as long with precision={precision!r} as in float32: this "
            "processor has no instructions for it; give precision='32' (of a recipe: --set train.precision=32)",
            ReliabilityWarning,
        )


def _launch(fabric: Any, config: TrainConfig) -> None:
    try:
        fabric.launch()
    except TypeError as error:  # of a strategy that starts a function, not the script, in each process
        raise InvalidInputError(
            f"strategy={config.strategy!r} cannot be used with devices={config.devices!r} here: {error} Put the "
            "training into a script, and give strategy='ddp', which starts the script once for each device"
        ) from error


def _fabric(config: TrainConfig) -> Any:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtraError(
            f"training needs Lightning's Fabric, which is not installed: {install('train')}"
        ) from error
    try:
        with no_precision_hint():
            fabric: Any = Fabric(
                accelerator=config.accelerator,
                strategy=config.strategy,
                devices=config.devices,
                precision=_PRECISION[config.precision],  # type: ignore[arg-type]
            )
    # What Fabric raises for a combination that does not exist, or that this machine has not.
    except (ValueError, RuntimeError, TypeError, ImportError) as error:
        raise InvalidInputError(
            f"accelerator={config.accelerator!r}, devices={config.devices!r}, strategy={config.strategy!r} cannot be "
            f"used on this machine: {error}"
        ) from error
    return fabric
