"""What goes into a network and comes out of it, batches and logits; and running it for inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eenet._compat import pytree
from eenet.errors import InvalidInputError
from eenet.stages import modes_kept

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
    raise InvalidInputError(
        f"a batch holds {type(batch).__name__}; expected (inputs, labels), a mapping with 'labels', or inputs alone"
    )


def moved(values: Any, device: torch.device) -> Any:
    """Nested inputs with their tensors on a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), values)


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
    return f"a {type(value).__name__}"
