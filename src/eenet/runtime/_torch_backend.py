"""TorchBackend: the stages of a MultiExitModel in eager PyTorch, numpy in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel, feature_of
from eenet.runtime._adaptive import to_numpy
from eenet.runtime._backend import Array, Ints, Live
from eenet.stages import LiveTensor


class TorchBackend:
    """Runs the stages and exit heads of a model on the CPU; a `StageBackend`.

    The model is put in inference mode. Live tensors share their memory with PyTorch's. Raises `InvalidInputError` for a
    model that is not on the CPU or whose live tensors have a dtype that numpy does not know, such as bfloat16.
    """

    def __init__(self, model: MultiExitModel) -> None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if device.type != "cpu":
            raise InvalidInputError(
                f"the model is on {device}, expected the CPU: call model.cpu(), or use AdaptiveModel"
            )
        self.model = model.eval()
        self.num_exits = model.num_exits
        self.num_classes = model.num_classes
        self.inputs: tuple[LiveTensor, ...] = model.staged.inference_stages[0].inputs
        for stage in model.staged.inference_stages:
            for live in stage.inputs:
                if live.dtype not in _NUMPY:
                    raise InvalidInputError(
                        f"the live tensor {live.name!r} before stage {stage.name!r} is {live.dtype}, which numpy does "
                        "not have: call model.float()"
                    )

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        """The live tensors before stage 0; raises `InvalidInputError` for another name, dtype or shape."""
        names = [spec.name for spec in self.inputs]
        if not isinstance(inputs, Mapping):
            if len(names) != 1:
                raise InvalidInputError(f"one array for the inputs {names}; give a mapping of arrays by these names")
            inputs = {names[0]: inputs}
        if sorted(inputs) != sorted(names):
            raise InvalidInputError(f"the inputs are {sorted(inputs)}, expected {sorted(names)}")
        live = tuple(np.asarray(inputs[name]) for name in names)
        sizes: dict[str, int] = {}
        for spec, array in zip(self.inputs, live, strict=True):
            _check(spec, array, sizes)
        return live

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        """Run stage k and, if asked, its exit head."""
        model = self.model
        stage = model.staged.inference_stages[k]
        with torch.inference_mode():
            outputs = stage(*_tensors(live))
            if k == self.num_exits - 1:
                return (), to_numpy(model.final_logits(outputs))
            logits = to_numpy(model.heads[k](feature_of(stage, outputs))) if observe else None
            return tuple([outputs[i].numpy() for i in stage.passed]), logits

    def size(self, k: int, live: Live) -> int:
        """The number of samples in the live tensors before stage k."""
        dims = self.model.staged.inference_stages[k].batch_dims
        return int(next(array.shape[dim] for array, dim in zip(live, dims, strict=True) if dim is not None))

    def take(self, k: int, live: Live, rows: Ints) -> Live:
        """The samples `rows` of the live tensors before stage k."""
        with torch.inference_mode():
            taken = self.model.staged.compact(_tensors(live), torch.from_numpy(np.ascontiguousarray(rows)), k)
            return tuple([tensor.numpy() for tensor in taken])

    def join(self, k: int, parts: Sequence[Live]) -> Live:
        """The live tensors before stage k of several requests as those of one."""
        dims = self.model.staged.inference_stages[k].batch_dims
        with torch.inference_mode():
            return tuple(
                arrays[0] if dim is None else torch.cat(_tensors(arrays), dim).numpy()
                for arrays, dim in zip(zip(*parts, strict=True), dims, strict=True)
            )


_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    getattr(torch, name): np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def _tensors(live: Sequence[Array]) -> tuple[Tensor, ...]:
    # An array over a request's bytes cannot be written to, which PyTorch warns of; stages do not write to their inputs,
    # but a network might, so such an array is copied.
    return tuple([torch.from_numpy(array if array.flags.writeable else array.copy()) for array in live])


def _check(spec: LiveTensor, array: Array, sizes: dict[str, int]) -> None:
    """Raise unless the array is what the specification says; `sizes` are those of the symbols so far."""
    fits = array.dtype == _NUMPY[spec.dtype] and array.ndim == len(spec.shape)
    if fits:
        for wanted, size in zip(spec.shape, array.shape, strict=True):
            expected = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
            fits = fits and size == expected
    if not fits:
        shape = ", ".join(str(sizes.get(size, size) if isinstance(size, str) else size) for size in spec.shape)
        raise InvalidInputError(
            f"the input {spec.name!r} is {array.dtype} of shape {array.shape}, expected {_NUMPY[spec.dtype]} of shape "
            f"({shape})"
        )
