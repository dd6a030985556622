"""What an epoch runs over: batches through the whole model, or cached features through the early exit heads alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from eenet._compat import BatchNorm
from eenet._warn import warn
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.models import MultiExitModel
from eenet.models._io import inferring, unpack
from eenet.models._sizes import sizes_refused
from eenet.records import ExitRecords
from eenet.training._cache import CachedFeatures, batch_size_of, cached_features
from eenet.training._config import TrainConfig
from eenet.training._loss import ScaledExits, TrainingTask, targets_of
from eenet.training._report import Display
from eenet.training._seeding import EpochSeeds, mixed
from eenet.training._shares import share_of, tell_epoch

_CACHING = 2**31  # the "epoch" whose seeds features are cached with, and those after it for further readings

Batch = tuple[tuple[Any, ...], dict[str, Any], Tensor]
"""Positional and keyword arguments of a program's module, and the targets, all on the device."""


class Program(Protocol):
    """`module` gives the logits of all exits for the arguments of a batch; `batches` is how many an epoch has."""

    module: nn.Module
    batches: int

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; the module is left in training mode."""
        ...

    def evaluate(self, task: TrainingTask) -> ExitRecords:
        """The records of the validation data with the present weights."""
        ...


class JointProgram:
    """All exits and the backbone together."""

    def __init__(
        self, fabric: Any, model: MultiExitModel, train_loader: Any, validation_loader: Any, config: TrainConfig
    ) -> None:
        self.module: nn.Module = ScaledExits(model, config.gradient_scaling)
        self._fabric = fabric
        self._model = model
        self._validation = validation_loader
        self._loader = train_loader
        if fabric.world_size > 1:
            self._loader = share_of(train_loader, fabric.global_rank, fabric.world_size, config.seed)
        self.batches = _length(self._loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The loader's batches, in the order that the epoch's seeds give."""
        self._training_mode()
        tell_epoch(self._loader, epoch)
        for batch in self._loader:
            args, kwargs, labels = unpack(batch)
            args, kwargs = self._fabric.to_device((args, kwargs))
            yield args, kwargs, targets_of(labels, self._fabric.device)

    def _training_mode(self) -> None:
        training_mode(self._model)

    def evaluate(self, task: TrainingTask) -> ExitRecords:
        """Records of the validation loader."""
        with inferring(self._model):
            return task.records(self._outputs())

    def _outputs(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        for batch in self._validation:
            args, kwargs, labels = unpack(batch)
            args, kwargs = self._fabric.to_device((args, kwargs))
            live = self._model.staged.flatten_inputs(*args, **kwargs)
            with self._fabric.autocast(), sizes_refused(self._model, live):
                logits = self._model(*args, **kwargs)
            yield [z.float() for z in logits], targets_of(labels, self._fabric.device)


class HeadsProgram(JointProgram):
    """The early exit heads alone, on features that are computed in every epoch, since they cannot be cached."""

    def __init__(
        self, fabric: Any, model: MultiExitModel, train_loader: Any, validation_loader: Any, config: TrainConfig
    ) -> None:
        super().__init__(fabric, model, train_loader, validation_loader, replace(config, gradient_scaling="none"))

    def _training_mode(self) -> None:
        self._model.eval()
        training_mode(self._model.heads)


class CachedHeads(nn.Module):
    """The early exit heads on cached features; the last exit's logits are cached too and pass through."""

    def __init__(self, heads: nn.ModuleList) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """Logits of every exit for K-1 features and the last exit's logits."""
        *features, last = tensors
        return [*(head(feature) for head, feature in zip(self.heads, features, strict=True)), last]


class FrozenProgram:
    """The early exit heads alone, on features that are computed once (`freeze_backbone`)."""

    def __init__(
        self,
        fabric: Any,
        model: MultiExitModel,
        train_loader: Any,
        validation_loader: Any,
        config: TrainConfig,
        folder: Path,
        display: Display,
        seeds: EpochSeeds,
    ) -> None:
        self.module: nn.Module = CachedHeads(model.heads)
        self._fabric = fabric
        self._seed = config.seed
        self._batch_size = batch_size_of(train_loader)

        def cached(loader: Any, what: str, reading: int = 0) -> CachedFeatures:
            return cached_features(
                model,
                loader,
                folder,
                dtype=config.cache_dtype,
                reading=reading,
                start=lambda: seeds.start(_CACHING + reading, alike=True),  # one cache for all processes
                announce=display.say,
                advance=display.task(f"features of the {what} data"),
            )

        if not fabric.is_global_zero:
            fabric.barrier()  # the first process writes, the others find what it wrote
        self._readings = [cached(train_loader, "training", reading) for reading in range(config.cache_crops)]
        self._validation = cached(validation_loader, "validation")
        if fabric.is_global_zero:
            fabric.barrier()
        self._each = len(self._readings[0]) // fabric.world_size  # the same for all, so that none waits for another
        self.batches = max(self._each // self._batch_size + (self._each % self._batch_size > 1), 1)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of shuffled samples; one that would have a single sample is left out, for batch norm's sake."""
        training_mode(self.module)
        generator = torch.Generator().manual_seed(mixed(self._seed, epoch))
        train = self._readings[epoch % len(self._readings)]
        order = torch.randperm(len(train), generator=generator).numpy()
        order = order[self._fabric.global_rank :: self._fabric.world_size][: self._each]
        for batch in range(self.batches):
            # Sorted, so that the disk is read in one direction; within a batch the order does not matter.
            rows = np.sort(order[batch * self._batch_size : (batch + 1) * self._batch_size])
            tensors, targets = self._fabric.to_device(train.rows(rows))
            yield tuple(tensors), {}, targets

    def evaluate(self, task: TrainingTask) -> ExitRecords:
        """Records of the cached validation data."""
        with inferring(self.module):
            return task.records(self._outputs())

    def _outputs(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        for start in range(0, len(self._validation), self._batch_size):
            rows = np.arange(start, min(start + self._batch_size, len(self._validation)))
            tensors, targets = self._fabric.to_device(self._validation.rows(rows))
            with self._fabric.autocast():
                logits = self.module(*tensors)
            yield [z.float() for z in logits], targets


def training_mode(module: nn.Module) -> None:
    """Training mode, in which batch norms of what is frozen stay in inference mode.

    Otherwise their statistics would move, and with them the answers of a network that was frozen by `requires_grad`.
    One without weights is frozen with the smallest module around it that has any.
    """
    module.train()
    for name, part in module.named_modules():
        if not isinstance(part, BatchNorm):
            continue
        path = name.split(".")
        around = (module.get_submodule(".".join(path[:depth])) for depth in range(len(path), -1, -1))
        learn = next((found for one in around if (found := [p.requires_grad for p in one.parameters()])), [True])
        if not any(learn):
            part.eval()


def _length(loader: Any) -> int:
    try:
        count = len(loader)
    except TypeError as error:
        raise InvalidInputError(
            "train_loader has no length, which the learning rate's schedule needs; give a DataLoader over a data set "
            "with a length"
        ) from error
    if count == 0:
        raise InvalidInputError("train_loader has no batches: the data set is empty, or smaller than a dropped batch")
    return count


def warn_of_persistent_workers(loader: Any) -> None:
    """Warn where a loader's workers live on between epochs, with random states that cannot be restored.

    Those of `experiments.data.loader` draw nothing from such states: they get the epoch along with the samples.
    """
    if getattr(loader, "persistent_workers", False) and not hasattr(getattr(loader, "sampler", None), "in_order"):
        warn(
            "train_loader has persistent_workers=True: their random states live on between epochs, so a resumed run "
            "would augment images otherwise than an uninterrupted one; use persistent_workers=False",
            ReliabilityWarning,
        )
