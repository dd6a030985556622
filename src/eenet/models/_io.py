"""What goes into a network and comes out of it, batches and logits; and running it for inference."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset

from eenet._compat import pytree
from eenet.errors import InvalidInputError, kind_of
from eenet.records import require_class_numbers
from eenet.stages import modes_kept
from eenet.tasks import Segmentation, Task

_LABEL_KEYS = ("labels", "label")
_LOGITS_KEYS = ("logits", "out")


@contextmanager
def inferring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients within the block; the modes of all submodules are restored after it."""
    with modes_kept(model):
        model.eval()
        with torch.inference_mode():
            yield


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
    tensors = "; make tensors of arrays with torch.from_numpy" if isinstance(inputs, np.ndarray) else ""
    raise InvalidInputError(
        f"the inputs of a batch are of type {type(inputs).__name__}; expected (inputs, labels), a mapping with "
        f"'labels', or inputs alone, where inputs are a tensor, a tuple of arguments or a mapping of them{tensors}"
    )


def labels_of(given: Any, samples: int) -> NDArray[Any]:
    """The labels of a batch as an array, one for each sample; raises `InvalidInputError` unless they are integers.

    Batch by batch: one label too many here and one too few there would shift all of those between.
    """
    try:
        labels = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the labels of a batch are no array of integers: {error}") from error
    if labels.shape[:1] != (samples,):
        raise InvalidInputError(
            f"a batch of {samples} samples has labels of shape {labels.shape}; expected one label for each sample"
        )
    if samples:
        require_class_numbers(labels)
    return labels


def require_batches(loader: Any, example: tuple[tuple[Any, ...], dict[str, Any]], name: str = "loader") -> None:
    """Raise `InvalidInputError` for single samples, or one batch, in place of a loader of batches, called `name`."""
    if not isinstance(loader, Dataset) and not hasattr(type(loader), "__iter__"):
        raise InvalidInputError(f"{name} is {kind_of(loader)}, expected a DataLoader or a list of batches")
    _refuse_one_batch(loader, example, name)
    if not isinstance(loader, Dataset) or isinstance(loader, IterableDataset):
        return
    args, kwargs, _ = unpack(loader[0])
    first, expected = ([t for t in pytree.tree_leaves(v) if isinstance(t, Tensor)] for v in ((args, kwargs), example))
    if first and expected and first[0].ndim < expected[0].ndim:
        raise InvalidInputError(
            f"the {type(loader).__name__} gives single samples, expected batches; give "
            "torch.utils.data.DataLoader(data, batch_size=32)"
        )


def _refuse_one_batch(loader: Any, example: tuple[tuple[Any, ...], dict[str, Any]], name: str) -> None:
    """Raise `InvalidInputError` for inputs, or inputs and labels, that were not put into a list."""
    expected = [tensor for tensor in pytree.tree_leaves(example) if isinstance(tensor, Tensor)]
    if isinstance(loader, Tensor) and expected and loader.ndim == expected[0].ndim:
        raise InvalidInputError(
            f"{name} is a tensor of shape {tuple(loader.shape)}, whose items are single samples; expected batches: "
            "give [inputs], or [(inputs, labels)]"
        )
    if isinstance(loader, (tuple, list)) and len(loader) == 2 and all(isinstance(one, Tensor) for one in loader):
        inputs, labels = loader
        if inputs.ndim > labels.ndim and len(inputs) == len(labels) and not labels.is_floating_point():
            raise InvalidInputError(
                f"{name} is the pair (inputs, labels) of one batch, of shapes {tuple(inputs.shape)} and "
                f"{tuple(labels.shape)}; expected batches: give [(inputs, labels)]"
            )


def moved(values: Any, device: torch.device) -> Any:
    """Nested inputs with their tensors on a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), values)


class NamedForward:
    """The `forward` of a model, whose signature names the inputs of its network: trainers choose columns by it."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self.__doc__ = forward.__doc__

    def __get__(self, model: Any, owner: type | None = None) -> Callable[..., Any]:
        if model is None:
            return self._forward
        if torch.compiler.is_compiling():  # which follows plain methods only
            return MethodType(self._forward, model)
        return _BoundForward(self._forward, model)


class _BoundForward(functools.partial[Any]):
    @property
    def __signature__(self) -> inspect.Signature:
        given = inspect.signature(self.func).parameters
        names = [name for name in self.args[0].staged.arguments if name.isidentifier() and name not in given]
        inputs = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        return inspect.Signature([*inputs, given["labels"]])


def joint_loss(task: Task, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The sum of the losses of the K exits, that of exit k weighted k / K: EENet, section 3.1."""
    losses = [exit_loss(task, of_exit.float(), labels) * ((k + 1) / len(logits)) for k, of_exit in enumerate(logits)]
    return torch.stack(losses).sum()


def exit_loss(task: Task, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy, the mean over the samples, or over the labeled pixels of all images (0 where there is none)."""
    labels = labels.long()
    if not isinstance(task, Segmentation):
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    total = F.cross_entropy(
        logits, labels, ignore_index=task.ignore_index, reduction="sum", label_smoothing=label_smoothing
    )
    return total / (labels != task.ignore_index).sum().clamp(min=1)


def check_labels(task: Task, logits: Tensor, labels: Tensor) -> None:
    """Raise `InvalidInputError` for labels of another shape than the logits need, of a float dtype, or no class."""
    classes = logits.shape[1]
    dense = isinstance(task, Segmentation)
    expected = (len(logits), *logits.shape[2:])
    if labels.is_floating_point() or tuple(labels.shape) != expected:
        what, of_what = ("label maps", "pixel") if dense else ("labels", "sample")
        one_hot = tuple(labels.shape) == tuple(logits.shape)
        way = "of one-hot labels give labels.argmax(1)" if one_hot else "give labels.long()"
        raise InvalidInputError(
            f"{what} have dtype {labels.dtype} and shape {tuple(labels.shape)}, expected whole numbers of shape "
            f"{expected}: one class number for each {of_what}"
            + (f"; {way}" if one_hot or tuple(labels.shape) == expected else "")
        )
    bad = (labels < 0) | (labels >= classes)
    if isinstance(task, Segmentation):
        bad &= labels != task.ignore_index
    if not bool(bad.any()):
        return
    if isinstance(task, Segmentation):
        raise InvalidInputError(
            f"a pixel has the label {int(labels[bad][0])}, expected 0 to {classes - 1}, or {task.ignore_index} for a "
            "pixel that does not count; classes count from 0"
        )
    raise InvalidInputError(
        f"a batch holds the label {int(labels[bad][0])}, expected 0 to {classes - 1}: the model has {classes} "
        "classes, which count from 0; correct the data, or attach the exits with another num_classes"
    )


def logits_in(output: Any, num_classes: int | None = None) -> Tensor:
    """The logits in a network's output: a tensor, a mapping with "logits" or "out", or a tuple with one such tensor.

    They are (N, num_classes), or (N, num_classes, H, W) where every pixel has a class; without `num_classes` of any
    number of classes. Raises `InvalidInputError`, saying what was found, where that is not clear.
    """
    found: Any = output
    if isinstance(output, Mapping):
        found = next((output[key] for key in _LOGITS_KEYS if key in output), None)
    elif isinstance(output, (tuple, list)):
        fitting = [t for t in output if _fits(t, num_classes)]
        if len(fitting) > 1:
            raise InvalidInputError(
                f"the network returns {_describe(output)}, in which {len(fitting)} tensors could be the logits; where "
                "the others are auxiliary logits, which some networks return in training only, switch them off (often "
                "aux_logits=False), or wrap the network so that it returns its logits alone"
            )
        found = fitting[0] if fitting else None
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if not isinstance(found, Tensor) or not _fits(found, num_classes):
        classes = "classes" if num_classes is None else num_classes
        raise InvalidInputError(
            f"the network returns {_describe(output)}, in which there is not one tensor of logits of shape (batch, "
            f"{classes}), or (batch, {classes}, height, width); wrap the network so that it returns them, or correct "
            "num_classes"
        )
    return found


def _fits(value: Any, num_classes: int | None) -> bool:
    if not isinstance(value, Tensor) or value.ndim not in (2, 4) or not value.is_floating_point():
        return False
    return value.shape[1] >= 2 if num_classes is None else value.shape[1] == num_classes


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a mapping of " + ", ".join(f"{k!r}: {_describe(v)}" for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return "a tuple of " + (", ".join(_describe(v) for v in value) or "nothing")
    return kind_of(value)
