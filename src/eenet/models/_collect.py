"""Running a multi-exit model over data to get records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    a mapping of keyword arguments. An empty batch, which not every network can run, adds nothing. The model is run in
    inference mode and left as it was.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = ImageRecords(model.task) if isinstance(model.task, Segmentation) else None
    logits: list[NDArray[np.float32]] = []
    labels: list[NDArray[Any]] = []
    with inferring(model):
        for batch in loader:
            args, kwargs, y = unpack(batch)
            args, kwargs = _to(args, device), _to(kwargs, device)
            if model.staged.batch_size_of(model.staged.flatten_inputs(*args, **kwargs)) == 0:
                if y is not None:
                    _labels_of(y, 0)
                continue
            outputs = model(*args, **kwargs)
            if images is not None:
                images.add(outputs, y)
                continue
            logits.append(torch.stack(outputs).float().cpu().numpy())
            if y is not None:
                labels.append(_labels_of(y, len(outputs[0])))
    if images is not None:
        return images.records()
    _require_batches(len(logits), len(labels))
    return ExitRecords.from_logits(np.concatenate(logits, axis=1), np.concatenate(labels) if labels else None)


def _labels_of(y: Any, samples: int) -> NDArray[Any]:
    found = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
    # Batch by batch: one label too many here and one too few there would shift all of those between.
    if found.shape[:1] != (samples,):
        raise InvalidInputError(
            f"a batch of {samples} samples has labels of shape {found.shape}; expected one label for each sample"
        )
    return found


class ImageRecords:
    """Gathers the records of images with a class per pixel, batch by batch: their logits would not fit in memory."""

    def __init__(self, task: Segmentation) -> None:
        self._task = task
        self._batches: list[list[Evidence]] = []
        self._counts: list[NDArray[np.int64]] = []

    def add(self, outputs: Sequence[Tensor], labels: Tensor | NDArray[Any] | None) -> None:
        """One batch: the logits (N, C, H, W) of the K exits, and labels (N, H, W) or None."""
        trail: list[Evidence] = []
        for logits in outputs:
            trail.append(self._task.evidence(self._task.shown(logits).float().cpu().numpy(), trail))
        self._batches.append(trail)
        if labels is not None:
            y = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
            maps = [logits.argmax(dim=1).cpu().numpy() for logits in outputs]
            self._counts.append(np.stack([self._task.pixel_counts(m, y, outputs[0].shape[1]) for m in maps]))

    def records(self) -> ExitRecords:
        """The records of all batches; raises `InvalidInputError` without any, or where only some had labels."""
        _require_batches(len(self._batches), len(self._counts))
        if not self._counts:
            return ExitRecords.from_evidence(self._batches)
        counts = np.concatenate(self._counts, axis=1)
        utility = np.stack([self._task.utility_of(of_exit) for of_exit in counts])
        return ExitRecords.from_evidence(self._batches, utility=utility, pixel_counts=counts)


def _require_batches(batches: int, labelled: int) -> None:
    if not batches:
        raise InvalidInputError("the loader gave no batch with a sample; expected at least one")
    if labelled not in (0, batches):
        raise InvalidInputError(f"{labelled} of {batches} batches have labels; give all of them labels, or none")


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
