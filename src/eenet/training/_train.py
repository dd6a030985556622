"""`train`: joint training of all exits, or of the early exit heads alone, that can be killed and resumed.

It runs on Lightning's Fabric rather than its Trainer. Fabric brings what should not be written again (devices,
strategies, mixed precision, gradient accumulation across processes, logging) and leaves the loop here, where the
checkpoint has to be: Trainer's own are pickles, resume from more places than the end of an epoch, and would have to
be switched off piece by piece. Fabric is imported as `lightning_fabric`, the part of Lightning that holds it: the
`lightning` package imports torchmetrics, and with it torchvision where that is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError, MissingExtraError
from eenet.models import MultiExitModel
from eenet.stages import modes_kept
from eenet.training._config import TrainConfig
from eenet.training._optim import frozen
from eenet.training._report import Display, TrainResult
from eenet.training._run import FEATURES, LAST, Run
from eenet.training._seeds import seeding, warn_of_persistent_workers
from eenet.training._task import ClassificationTask, TrainingTask

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
_CACHING = 2**31  # the "epoch" whose seeds features are cached with


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

    The loaders give batches as for `eenet.collect`, with labels; the training loader has a length. `out` is a folder
    for this run: `last.safetensors` after each epoch, `best.safetensors`, `metrics.csv`, `tensorboard/`, and
    `features/` with `freeze_backbone`. With `resume` a run that was interrupted, even killed, goes on after its last
    finished epoch and on a CPU ends with the same weights, to the bit, as one that was not, provided that model,
    data and config are the same; where there is nothing to resume it starts.

    `costs` are what the frontier is measured with, counted FLOPs where not given. `teacher` is a network of the same
    classes that all exits learn from (`config.teacher_weight`), and which is put in evaluation mode. `task` is what
    is trained for, classification where not given. `features` is the folder for cached features with
    `freeze_backbone`, where not `out/features`: runs on the same backbone and data share what is in it, so that many
    heads are tried for the price of one pass through the network.

    Raises `TrainingDivergedError` when the loss is not finite, naming the step and the exit; `OutOfSpaceError` for a
    full disk; `InvalidInputError` for what does not fit together; `MissingExtraError` without Lightning. Both of the
    first keep the last good checkpoint.
    """
    config = config or TrainConfig()
    _check_arguments(model, config, teacher, out, resume=resume)
    fabric = _fabric(config)
    fabric.launch()
    folder = Path(out)
    task = task or ClassificationTask()
    shown = config.progress and fabric.is_global_zero
    warn_of_persistent_workers(train_loader)
    stopped = frozen(model.backbone.parameters()) if config.freeze_backbone else []
    try:
        with (
            modes_kept(model),
            Display(model.exit_names, config.epochs, shown=shown) as display,
            seeding(config.seed, fabric.global_rank, train_loader) as seeds,
        ):
            seeds.start(_CACHING)
            fabric.to_device(model)
            kept = folder / FEATURES if features is None else Path(features)
            run = Run(fabric, model, config, folder, task, display, teacher, kept)
            run.prepare(train_loader, validation_loader, costs, resume=resume)
            run.epochs(seeds)
            return run.finish()
    finally:
        for parameter in stopped:
            parameter.requires_grad = True


def training_device(config: TrainConfig) -> torch.device:
    """The device that `train` puts a model on with this config; with several devices, that of the first process.

    Raises as `train` does where this machine has no such device.
    """
    device: torch.device = _fabric(config).device
    return device


def _check_arguments(
    model: MultiExitModel, config: TrainConfig, teacher: nn.Module | None, out: str | Path, *, resume: bool
) -> None:
    if not isinstance(model, MultiExitModel):
        raise InvalidInputError(
            f"model is a {type(model).__name__}, expected a MultiExitModel; give it exits with eenet.attach"
        )
    if (teacher is None) != (config.teacher_weight == 0):
        given = "no teacher was given" if teacher is None else "a teacher was given"
        raise InvalidInputError(
            f"teacher_weight is {config.teacher_weight:g}, and {given}; pass both a teacher and a weight above 0"
        )
    if teacher is not None and config.freeze_backbone:
        raise InvalidInputError(
            "a teacher needs the inputs, which freeze_backbone does not keep; train without one of the two"
        )
    if not resume and (Path(out) / LAST).exists():
        raise InvalidInputError(
            f"{str(out)!r} already holds a run; pass resume=True to go on with it, or another `out`"
        )


def _fabric(config: TrainConfig) -> Any:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtraError(
            "training needs Lightning's Fabric, which is not installed: pip install 'eenet[train]'"
        ) from error
    try:
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
