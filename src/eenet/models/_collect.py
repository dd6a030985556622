"""Running a multi-exit model over data to get records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet._progress import by_itself, count_of
from eenet._warn import warn
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.models._io import inferring, labels_of, moved, require_batches, unpack
from eenet.models._multi_exit import MultiExitModel, require_exits
from eenet.models._sizes import sizes_refused
from eenet.records import (
    ExitRecords,
    are_probabilities,
    require_same_network,
    warn_of_missing_classes,
    warn_of_probabilities,
)
from eenet.tasks import Evidence, Segmentation, Task


def collect(model: MultiExitModel, loader: Iterable[Any]) -> ExitRecords:
    """The records of a model on the batches of a loader, in the loader's order.

    The model is run in inference mode and left as it was.

    Parameters
    ----------
    model
        A model with K exits.
    loader
        Batches: (inputs, labels), a mapping with "labels", or inputs alone. Inputs are a tensor, a tuple of arguments
        or a mapping of keyword arguments; labels have shape (N,), or (N, H, W) where every pixel has a class. An empty
        batch, which not every network can run, adds nothing.

    Returns
    -------
    ExitRecords
        What the K exits said of the N samples of all batches, and the labels where the batches have them. Where the
        labels lack classes of the network that are not missing by chance, or where the outputs of an exit look like
        probabilities, to which softmax would be applied again, there is a `ReliabilityWarning`. Images
        without any labeled pixel are left out, with a `ReliabilityWarning` that counts them.

    Raises
    ------
    CutError
        Where the network was changed after it was cut, so that the stages are not its own any more.
    InvalidInputError
        Where there is no sample, a batch does not fit, or only some batches have labels. Also, for a model on the CPU,
        where inputs are longer than the network takes; the message names the longest.

    Examples
    --------
    >>> import torch, eenet
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    >>> records = eenet.collect(model, [(torch.randn(5, 4), torch.zeros(5, dtype=torch.long))])
    >>> records.num_exits, len(records)
    (2, 5)
    """
    require_exits(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    gathered = Gathering(model.task)
    require_batches(loader, model.staged.example)
    model.staged.check_current()
    with inferring(model), by_itself("collecting", count_of(loader)) as show:
        for done, batch in enumerate(loader):
            show(done)
            args, kwargs, y = unpack(batch)
            args, kwargs = moved((args, kwargs), device)
            live = model.staged.flatten_inputs(*args, **kwargs)
            if model.staged.batch_size_of(live) == 0:
                if y is not None:
                    labels_of(y, 0)
                continue
            with sizes_refused(model, live):
                outputs = model(*args, **kwargs)
            gathered.add(outputs, y)
    records = gathered.records()
    records.network = digest_of(model)
    warn_of_missing_classes(records.labels, records.num_classes)
    return records


def digest_of(model: MultiExitModel, rounded: torch.dtype | None = None) -> str:
    """The same for models with the same weights, on whatever device, and in whatever dtype that holds them exactly.

    `rounded` is a dtype that the weights are rounded to first.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            exact = tensor.detach()
            if exact.is_floating_point():
                exact = (exact if rounded is None else exact.to(rounded)).float()
            digest.update(exact.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_same_weights(model: MultiExitModel, network: str | None, rounded: torch.dtype | None = None) -> None:
    """Raise `InvalidInputError` where a scheduler was fitted to records of other weights (`require_same_network`).

    `network` is the digest that the scheduler has; `rounded` what the model is to be converted to. All weights are
    read, which takes about a second for a gigabyte.
    """
    tensors = [tensor for tensor in model.state_dict().values() if isinstance(tensor, Tensor)]
    if network is not None and not any(tensor.is_meta for tensor in tensors):
        require_same_network("the scheduler was fitted to records", network, digest_of(model, rounded))


class Gathering:
    """Gathers records batch by batch from what the exits gave, whatever the task."""

    def __init__(self, task: Task) -> None:
        self._images = ImageRecords(task) if isinstance(task, Segmentation) else None
        self._logits: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[Any]] = []

    def add(self, outputs: Sequence[Tensor], labels: Any) -> None:
        """One batch: the logits of the K exits, and the labels or None."""
        if self._images is not None:
            self._images.add(outputs, labels)
            return
        self._logits.append(torch.stack(list(outputs)).float().cpu().numpy())
        if labels is not None:
            self._labels.append(labels_of(labels, len(outputs[0])))

    def records(self) -> ExitRecords:
        """The records of all batches; raises `InvalidInputError` without any, or where only some had labels."""
        if self._images is not None:
            return self._images.records()
        _require_batches(len(self._logits), len(self._labels))
        labels = np.concatenate(self._labels) if self._labels else None
        return ExitRecords.from_logits(np.concatenate(self._logits, axis=1), labels)


class ImageRecords:
    """Gathers the records of images with a class per pixel, batch by batch: their logits would not fit in memory."""

    def __init__(self, task: Segmentation) -> None:
        self._task = task
        self._batches: list[list[Evidence]] = []
        self._counts: list[NDArray[np.int64]] = []
        self._like_probabilities: list[bool] = []

    def add(self, outputs: Sequence[Tensor], labels: Tensor | NDArray[Any] | None) -> None:
        """One batch: the logits (N, C, H, W) of the K exits, and labels (N, H, W) or None."""
        self._like_probabilities = [
            so_far and are_probabilities(z.movedim(1, -1).flatten(0, -2).float().cpu().numpy())
            for z, so_far in zip(outputs, self._like_probabilities or [True] * len(outputs), strict=True)
        ]
        history: list[Evidence] = []
        for logits in outputs:
            history.append(self._task.evidence(self._task.shown(logits).float().cpu().numpy(), history))
        self._batches.append(history)
        if labels is not None:
            y = labels_of(labels, len(outputs[0]))
            maps = [logits.argmax(dim=1).cpu().numpy() for logits in outputs]
            self._counts.append(np.stack([self._task.pixel_counts(m, y, outputs[0].shape[1]) for m in maps]))

    def records(self) -> ExitRecords:
        """The records of all batches; raises `InvalidInputError` without any, or where only some had labels."""
        _require_batches(len(self._batches), len(self._counts))
        warn_of_probabilities([k for k, like in enumerate(self._like_probabilities) if like])
        if not self._counts:
            return ExitRecords.from_evidence(self._batches)
        counts = np.concatenate(self._counts, axis=1)
        utility = np.stack([self._task.utility_of(of_exit) for of_exit in counts])
        labeled = ~np.isnan(utility[0])
        if not labeled.any():
            raise InvalidInputError(
                f"none of the {len(labeled)} images has a labeled pixel: all are ignore_index={self._task.ignore_index}"
                "; give label maps of classes, or no labels"
            )
        records = ExitRecords.from_evidence(self._batches, utility=np.nan_to_num(utility), pixel_counts=counts)
        if labeled.all():
            return records
        warn(
            f"{(~labeled).sum()} of {len(labeled)} images have no labeled pixel, so nothing is known of their answers: "
            "they are left out",
            ReliabilityWarning,
        )
        return records.subset(labeled)


def _require_batches(batches: int, labeled: int) -> None:
    if not batches:
        raise InvalidInputError(
            "the loader gave no batch with a sample; expected at least one, and a generator gives its batches once"
        )
    if labeled not in (0, batches):
        raise InvalidInputError(f"{labeled} of {batches} batches have labels; give all of them labels, or none")
