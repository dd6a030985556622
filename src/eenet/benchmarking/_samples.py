"""The samples that all systems answer: arrays in memory, with labels where there are any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.errors import InvalidInputError, kind_of

Array = NDArray[Any]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional inputs and inputs by name, as a network is called with them."""

_LABELS = ("labels", "label")
_MASK = "attention_mask"
_EXPECTED = "expected arrays, (inputs, labels), a mapping of arrays by name, or the batches of a loader"


@array_value
@dataclass(frozen=True)
class Samples:
    """N samples: arrays with the samples along dimension 0, positional or by `names`; labels (N, ...) or None.

    `tensors` says whether they came as tensors of PyTorch: functions are then given tensors too.
    """

    arrays: tuple[Array, ...]
    names: tuple[str, ...] = ()
    labels: Array | None = None
    tensors: bool = False

    def __len__(self) -> int:
        return len(self.arrays[0])

    def batch(self, start: int, size: int) -> Inputs:
        """The inputs of `size` samples from number `start` on, or of fewer at the end."""
        rows = [array[start : start + size] for array in self.arrays]
        return ((), dict(zip(self.names, rows, strict=True))) if self.names else (tuple(rows), {})


def samples_of(data: Any, labels: Any = None) -> Samples:
    """The samples in what `benchmark` accepts as data.

    Raises `InvalidInputError` where they are none, or of different lengths.
    """
    if isinstance(data, Samples):
        return data
    if _is_array(data) or isinstance(data, (tuple, Mapping)):
        batches: Iterable[Any] = [data]
    elif isinstance(data, Iterable) and not isinstance(data, str):
        batches = data
    else:
        hint = "; wrap a Dataset in a DataLoader" if hasattr(data, "__getitem__") else ""
        raise InvalidInputError(f"data is {kind_of(data)}, {_EXPECTED}{hint}")
    parts = [_parts(batch) for batch in batches]
    parts = [part for part in parts if len(part.arrays[0])]
    if not parts:
        raise InvalidInputError("data holds no sample; expected at least one")
    first = parts[0]
    if any(part.names != first.names or len(part.arrays) != len(first.arrays) for part in parts):
        raise InvalidInputError("the batches of data hold different inputs; give all of them the same ones")
    labeled = [part.labels for part in parts if part.labels is not None]
    if len(labeled) not in (0, len(parts)):
        raise InvalidInputError(f"{len(labeled)} of {len(parts)} batches have labels; give all of them labels, or none")
    if labels is not None and labeled:
        raise InvalidInputError("data holds labels, and labels=... is given too; give one of them")
    pads = any(name == _MASK or name.endswith(f"_{_MASK}") for name in first.names)  # a cascade's have prefixes
    arrays = tuple(joined([part.arrays[n] for part in parts], pads=pads) for n in range(len(first.arrays)))
    truth = joined(labeled) if labeled else None if labels is None else _array(labels)
    if truth is not None and len(truth) != len(arrays[0]):
        raise InvalidInputError(f"there are {len(truth)} labels for {len(arrays[0])} samples; give one for each sample")
    return Samples(arrays, first.names, truth, first.tensors)


def _parts(batch: Any) -> Samples:
    """One batch: inputs, (inputs, labels), or a mapping of inputs with or without "labels"."""
    labels: Any = None
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        inputs, labels = batch if len(batch) == 2 else (batch[0], None)
    else:
        inputs = batch
    names: tuple[str, ...] = ()
    if isinstance(inputs, Mapping):
        if labels is None:
            labels = next((inputs[key] for key in _LABELS if key in inputs), None)
        names = tuple(str(key) for key in inputs if key not in _LABELS)
        values: Sequence[Any] = [inputs[name] for name in names]
    else:
        values = list(inputs) if isinstance(inputs, (tuple, list)) and not np.isscalar(inputs[0]) else [inputs]
    bad = next((value for value in values if not _is_array(value)), None)
    if not values or bad is not None:
        raise InvalidInputError(f"data holds {kind_of(bad) if values else 'nothing'}, {_EXPECTED}")
    lengths = {len(value) for value in values}
    if len(lengths) != 1:
        raise InvalidInputError(f"the inputs in data hold {sorted(lengths)} samples; give each as many")
    truth = None if labels is None else _array(labels)
    if truth is not None and len(truth) not in lengths:
        raise InvalidInputError(
            f"there are {len(truth)} labels for {min(lengths)} samples; give (inputs, labels), as many of both"
        )
    return Samples(tuple(map(_array, values)), names, truth, not isinstance(values[0], np.ndarray))


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and getattr(value, "ndim", 0) >= 1


def _array(value: Any) -> Array:
    """An array on the host; of a tensor in a type that numpy lacks, as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        made: Array = value.numpy()
        return made
    array = np.asarray(value)
    if array.ndim == 0 or array.dtype == np.object_:
        raise InvalidInputError(f"data holds {type(value).__name__} values of type {array.dtype}, {_EXPECTED}")
    return array


def joined(arrays: Sequence[Array], *, pads: bool = False) -> Array:
    """Batches as one array; where a mask says what counts, shorter texts are padded with zeros."""
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1 and pads and len({len(shape) for shape in shapes}) == 1:
        widest = np.max([array.shape[1:] for array in arrays], axis=0)
        arrays = [
            np.pad(
                array, [(0, 0), *((0, int(most - size)) for most, size in zip(widest, array.shape[1:], strict=True))]
            )
            for array in arrays
        ]
    elif len(shapes) > 1:
        raise InvalidInputError(f"the batches of data have the shapes {sorted(shapes)}; give samples of one shape")
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
