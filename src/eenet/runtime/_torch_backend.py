"""TorchBackend: the stages of a model in PyTorch, numpy in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel
from eenet.optimize import Variant, eager
from eenet.runtime._adaptive import TENSORS
from eenet.runtime._backend import Array, Ints, Live
from eenet.runtime._boundaries import Boundaries, TensorSpec
from eenet.stages import LiveTensor


class TorchBackend:
    """Runs the stages and exit heads of a model, or a variant of them, on the CPU; a `StageBackend`.

    The model is put in inference mode. Live tensors share their memory with PyTorch's.

    Parameters
    ----------
    model
        The model, on the CPU.
    variant
        How it runs, of `eenet.optimize`; by default its own stages.

    Raises
    ------
    InvalidInputError
        For a model that is not on the CPU, or whose live tensors have a dtype that numpy does not know, such as
        bfloat16.
    """

    def __init__(self, model: MultiExitModel, variant: Variant | None = None) -> None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if device.type != "cpu":
            raise InvalidInputError(
                f"the model is on {device}, expected the CPU: call model.cpu(), or use AdaptiveModel"
            )
        self.model = model.eval()
        self.num_exits = model.num_exits
        self.num_classes = model.num_classes
        self._variant = variant or eager(model)
        stages = self._variant.stages
        self.inputs: tuple[LiveTensor, ...] = stages[0].inputs
        for stage in stages:
            for live in stage.inputs:
                if live.dtype not in _NUMPY:
                    raise InvalidInputError(
                        f"the live tensor {live.name!r} before stage {stage.name!r} is {live.dtype}, which numpy does "
                        "not have: call model.float()"
                    )
        self._boundaries = Boundaries([[tensor_spec(one) for one in stage.inputs] for stage in stages])

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        """The live tensors before stage 0; raises `InvalidInputError`, naming the input, where one does not fit."""
        return self._boundaries.enter(inputs)

    @torch.inference_mode()
    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        """Run stage k and, if asked, its exit head."""
        onward, logits = self._variant.run(k, _tensors(live), observe=observe)
        shown = None if logits is None else TENSORS.to_host(logits)
        return tuple([tensor.contiguous().numpy() for tensor in onward]), shown

    def size(self, k: int, live: Live) -> int:
        """The number of samples in the live tensors before stage k."""
        return self._boundaries.size(k, live)

    @torch.inference_mode()
    def take(self, k: int, live: Live, rows: Ints) -> Live:
        """The samples `rows` of the live tensors before stage k."""
        taken = self._variant.take(k, _tensors(live), np.ascontiguousarray(rows))
        return tuple([tensor.numpy() for tensor in taken])

    @torch.inference_mode()
    def join(self, k: int, parts: Sequence[Live]) -> Live:
        """The live tensors before stage k of several requests as those of one."""
        return tuple([tensor.numpy() for tensor in self._variant.join(k, [_tensors(part) for part in parts])])


def tensor_spec(live: LiveTensor) -> TensorSpec:
    """A live tensor as numpy and a manifest describe it."""
    return TensorSpec(live.name, str(live.dtype).removeprefix("torch."), live.shape, live.batch_dim)


_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    getattr(torch, name): np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def _tensors(live: Sequence[Array]) -> tuple[Tensor, ...]:
    # An array over a request's bytes cannot be written to, which PyTorch warns of; stages do not write to their inputs,
    # but a network might, so such an array is copied.
    return tuple([torch.from_numpy(array if array.flags.writeable else array.copy()) for array in live])
