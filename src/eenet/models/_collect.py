"""Running a multi-exit model over data to get records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet.errors import InvalidInputError
from eenet.models._modes import inferring
from eenet.models._multi_exit import MultiExitModel
from eenet.records import ExitRecords
from eenet.tasks import Evidence, Segmentation

_LABEL_KEYS = ("labels", "label")


def collect(model: MultiExitModel, loader: Iterable[Any]) -> ExitRecords:
    """The records of a model on the batches of a loader, in the loader's order.

    A batch is (inputs, labels), a mapping with "labels", or inputs alone; inputs are a tensor, a tuple of arguments or
    a mapping of keyword arguments. The model is run in inference mode and left as it was.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(model.task, Segmentation):
        return _collect_images(model, model.task, loader, device)
    logits: list[NDArray[np.float32]] = []
    labels: list[NDArray[Any]] = []
    with inferring(model):
        for batch in loader:
            args, kwargs, y = unpack(batch)
            outputs = model(*_to(args, device), **_to(kwargs, device))
            logits.append(torch.stack(outputs).float().cpu().numpy())
            if y is not None:
                labels.append(np.asarray(y.cpu() if isinstance(y, Tensor) else y))
    if not logits:
        raise InvalidInputError("the loader gave no batch; expected at least one")
    if labels and len(labels) != len(logits):
        raise InvalidInputError(f"{len(labels)} of {len(logits)} batches have labels; give all of them labels, or none")
    return ExitRecords.from_logits(np.concatenate(logits, axis=1), np.concatenate(labels) if labels else None)


def _collect_images(
    model: MultiExitModel, task: Segmentation, loader: Iterable[Any], device: torch.device
) -> ExitRecords:
    """Records of images with a class per pixel: pooled batch by batch, since their logits would not fit in memory."""
    batches: list[list[Evidence]] = []
    counts: list[NDArray[np.int64]] = []
    with inferring(model):
        for batch in loader:
            args, kwargs, y = unpack(batch)
            outputs = model(*_to(args, device), **_to(kwargs, device))
            trail: list[Evidence] = []
            for logits in outputs:
                trail.append(task.evidence(task.shown(logits).float().cpu().numpy(), trail))
            batches.append(trail)
            if y is not None:
                labels = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
                maps = [logits.argmax(dim=1).cpu().numpy() for logits in outputs]
                counts.append(np.stack([task.pixel_counts(m, labels, model.num_classes) for m in maps]))
    if not batches:
        raise InvalidInputError("the loader gave no batch; expected at least one")
    if not counts:
        return ExitRecords.from_evidence(batches)
    if len(counts) != len(batches):
        raise InvalidInputError(
            f"{len(counts)} of {len(batches)} batches have labels; give all of them labels, or none"
        )
    whole = np.concatenate(counts, axis=1)
    return ExitRecords.from_evidence(
        batches, utility=np.stack([task.utility_of(exit_counts) for exit_counts in whole]), pixel_counts=whole
    )


def unpack(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Positional arguments, keyword arguments and labels (or None) of one batch of a loader."""
    labels: Any = None
    if isinstance(batch, Mapping):
        kwargs = {name: value for name, value in batch.items() if name not in _LABEL_KEYS}
        labels = next((batch[name] for name in _LABEL_KEYS if name in batch), None)
        return (), kwargs, labels
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
    elif isinstance(batch, (tuple, list)) and len(batch) == 1:
        inputs = batch[0]
    else:
        inputs = batch
    if isinstance(inputs, Mapping):
        return (), dict(inputs), labels
    if isinstance(inputs, Tensor):
        return (inputs,), {}, labels
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}, labels
    raise InvalidInputError(
        f"a batch holds {type(batch).__name__}; expected (inputs, labels), a mapping with 'labels', or inputs alone"
    )


def _to(values: Any, device: torch.device) -> Any:
    if isinstance(values, dict):
        return {name: _to(value, device) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(_to(value, device) for value in values)
    return values.to(device) if isinstance(values, Tensor) else values
