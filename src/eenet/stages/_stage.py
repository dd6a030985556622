"""How a cut network runs: a call becomes live tensors, stages run on them in turn, samples are selected between two.

`Variant` has the exits with the stages: one way to run a network whose heads have been attached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eenet._compat import pytree
from eenet.errors import InvalidInputError, kind_of
from eenet.preprocessing._base import how_to_fit, no_inputs

Tensors = tuple[Tensor, ...]
Dynamic = Mapping[int, str] | Mapping[str, Mapping[int, str]]
"""Dimensions whose size may change, by name: of all inputs, or for each input by its name."""


@dataclass(frozen=True)
class _Expected:
    """What one tensor input must look like: its name for messages, kind of dtype, and sizes (None where dynamic)."""

    name: str
    dtype: torch.dtype
    kind: str
    sizes: tuple[int | None, ...]
    tail: tuple[int, ...] | None


class InputForm:
    """The structure of a model's inputs; flattens calls into tensors and refuses those that do not fit."""

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic, positional: Sequence[str]
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.dynamic: dict[Any, Any] = dict(dynamic)
        self._keys = tuple(kwargs)
        self.leaves, self._spec = pytree.tree_flatten((args, kwargs))
        # Nearly every model takes plain tensors; then flattening a call needs no pytree walk.
        plain = [*args, *kwargs.values()]
        self._plain = len(plain) == len(self.leaves) and all(a is b for a, b in zip(plain, self.leaves, strict=True))
        self._positional = tuple(positional)
        self.names = leaf_names(args, kwargs, positional)
        self.is_tensor = tuple(isinstance(leaf, Tensor) for leaf in self.leaves)
        self._all_tensors = all(self.is_tensor)
        tensors = [(name, leaf) for name, leaf in zip(self.names, self.leaves, strict=True) if isinstance(leaf, Tensor)]
        # For each tensor, in the order of `flatten`: its dimensions whose size may change, by name.
        self.dynamic_dims = tuple(dynamic_dims(name, leaf.ndim, self.dynamic) for name, leaf in tensors)
        self._expected = tuple(
            _expected(name, leaf, dims) for (name, leaf), dims in zip(tensors, self.dynamic_dims, strict=True)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> InputForm:
        # Nothing in it ever changes, so copies of a model share it.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # How trees are flattened is worked out again: its description is no stable format.
        return InputForm, (self.args, self.kwargs, self.dynamic, self._positional)

    @property
    def dynamic_names(self) -> tuple[str, ...]:
        """The names of the sizes that may change, each once."""
        return tuple(dict.fromkeys(name for dims in self.dynamic_dims for name in dims.values()))

    def resized(self, tensors: Tensors, resize: Callable[[Tensor, int], Tensor]) -> Tensors:
        """The tensors of a call with `resize(tensor, dim)` of each in each dimension whose size may change."""
        made = []
        for tensor, dims in zip(tensors, self.dynamic_dims, strict=True):
            for dim in dims:
                tensor = resize(tensor, dim)
            made.append(tensor)
        return tuple(made)

    def tensors(self) -> Tensors:
        """The tensor inputs of the example, in the order of `flatten`."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Tensor))

    def with_tensors(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example's arguments with its tensors replaced: `(args, kwargs)` of a call."""
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return tuple(args), dict(kwargs)

    def moved(self, device: torch.device | None, old: torch.dtype | None, new: torch.dtype | None) -> InputForm:
        """The same form on another device, its tensors of dtype `old` turned into `new`."""
        tensors = [
            tensor.to(device=device, dtype=new if old is not None and tensor.dtype == old else tensor.dtype)
            for tensor in self.tensors()
        ]
        args, kwargs = self.with_tensors(tensors)
        return InputForm(args, kwargs, self.dynamic, self._positional)

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensors:
        """The tensors of a call, in order; raises InvalidInputError where they differ from the example."""
        if len(args) != len(self.args) or len(kwargs) != len(self._keys):
            args, kwargs = self._as_example(args, kwargs)
        try:
            values = [*args, *[kwargs[key] for key in self._keys]] if self._keys else list(args)
        except KeyError:
            raise self._wrong_arguments(args, kwargs) from None
        if not self._plain:
            values, spec = pytree.tree_flatten((args, {key: kwargs[key] for key in self._keys}))
            if spec != self._spec:
                raise InvalidInputError(
                    f"the inputs are nested as {spec}, but the example that the model was cut with as {self._spec}; "
                    "pass them in the structure of the example"
                )
        if not self._all_tensors:
            values = self._without_settings(values)
        batch = -1
        for tensor, expected in zip(values, self._expected, strict=True):
            if not isinstance(tensor, Tensor):
                raise InvalidInputError(
                    f"input {expected.name!r} is {kind_of(tensor)}, expected a tensor, as in the example that the "
                    "model was cut with: of an optional mask give ones, or cut the model with an example without it"
                )
            shape = tensor.shape
            if (
                (tensor.dtype != expected.dtype and not _takes(expected, tensor))
                or len(shape) != len(expected.sizes)
                or (shape[1:] != expected.tail if expected.tail is not None else not _fits(shape, expected.sizes))
            ):
                raise self._misfit(tensor, expected)
            if batch < 0:
                batch = shape[0]
            elif shape[0] != batch:
                raise InvalidInputError(
                    f"input {expected.name!r} has batch size {shape[0]}, but {self._expected[0].name!r} has {batch}; "
                    "every tensor input needs the same number of samples on dimension 0"
                )
        return tuple(values)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments: the positional ones, then the keywords."""
        return (*self._positional, *self._keys)

    def _as_example(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call that names what the example gives by position, as the example gives it."""
        left = dict(kwargs)
        named = [left.pop(name) for name in self._positional[len(args) :] if name in left]
        if len(args) + len(named) != len(self.args) or sorted(left) != sorted(self._keys):
            raise self._wrong_arguments(args, kwargs)
        return (*args, *named), left

    def _without_settings(self, values: list[Any]) -> list[Any]:
        tensors = []
        for name, value, fixed, is_tensor in zip(self.names, values, self.leaves, self.is_tensor, strict=True):
            if is_tensor:
                tensors.append(value)
            elif isinstance(value, Tensor) or type(value) is not type(fixed) or value != fixed:
                shown = "a tensor" if isinstance(value, Tensor) else repr(value)
                raise InvalidInputError(
                    f"input {name!r} is {shown}, but the model was cut with {fixed!r}, which is fixed in its stages; "
                    "cut the model again with an example that has the value you need"
                )
        return tensors

    def _wrong_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> InvalidInputError:
        def shown(count: int, keys: Sequence[str]) -> str:
            return f"{count} positional and keywords [{', '.join(keys)}]"

        extra = [key for key in kwargs if key not in self.arguments]
        return InvalidInputError(
            f"{no_inputs(extra)}got {shown(len(args), list(kwargs))} arguments, but the model was cut with an example "
            f"of {shown(len(self.args), self._keys)}; pass the arguments the way the example does"
        )

    @staticmethod
    def _misfit(tensor: Tensor, expected: _Expected) -> InvalidInputError:
        if _kind(tensor.dtype) != expected.kind:
            return InvalidInputError(
                f"input {expected.name!r} has dtype {tensor.dtype}, but the model was cut with {expected.dtype}; "
                f"pass a tensor of {expected.kind} dtype"
            )
        if tensor.dtype != expected.dtype and not _takes(expected, tensor):
            return InvalidInputError(
                f"input {expected.name!r} has dtype {tensor.dtype}, but the model works in {expected.dtype}; convert "
                f"the input with .to({expected.dtype}), or the model with .to({tensor.dtype})"
            )
        sizes = ", ".join("any" if size is None else str(size) for size in expected.sizes)
        return InvalidInputError(
            f"input {expected.name!r} has shape {tuple(tensor.shape)}, expected ({sizes}); "
            + how_to_fit(tensor.shape, expected.sizes, floating=tensor.is_floating_point())
        )


def _expected(name: str, leaf: Tensor, dynamic: Mapping[int, str]) -> _Expected:
    sizes = tuple(None if dim == 0 or dim in dynamic else size for dim, size in enumerate(leaf.shape))
    tail = tuple(leaf.shape[1:]) if None not in sizes[1:] else None
    return _Expected(name, leaf.dtype, _kind(leaf.dtype), sizes, tail)


def _fits(shape: Sequence[int], sizes: tuple[int | None, ...]) -> bool:
    return all(expected is None or size == expected for size, expected in zip(shape, sizes, strict=True))


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "floating-point"
    if dtype.is_complex:
        return "complex"
    return "boolean" if dtype == torch.bool else "integer"


def _takes(expected: _Expected, tensor: Tensor) -> bool:
    """Whether a dtype that differs from the expected one can stand in for it.

    Any integer can. A float of another precision fails in the first operator that meets a parameter, or makes numbers
    of two precisions where there is none; only autocast converts them, except to and from double.
    """
    if _kind(tensor.dtype) != expected.kind:
        return False
    if expected.kind != "floating-point":
        return True
    return torch.is_autocast_enabled(tensor.device.type) and torch.float64 not in (tensor.dtype, expected.dtype)


def dynamic_dims(name: str, ndim: int, dynamic: Mapping[Any, Any]) -> dict[int, str]:
    """The dimensions of one tensor input whose size may change, by name."""
    own = dynamic.get(name, {}) if any(isinstance(key, str) for key in dynamic) else dynamic
    return {dim: called for dim, called in own.items() if dim < ndim}


def leaf_names(args: tuple[Any, ...], kwargs: dict[str, Any], positional: Sequence[str]) -> tuple[str, ...]:
    """What messages call each leaf: the name of its argument, and its place in it where that is nested."""
    roots = [*zip(positional, args, strict=True), *kwargs.items()]
    return tuple(
        name + pytree.keystr(path) for name, value in roots for path, _ in pytree.tree_flatten_with_path(value)[0]
    )


@dataclass(frozen=True)
class LiveTensor:
    """A tensor that crosses a boundary: its name, shape (symbols by name), dtype and the dimension samples lie along.

    `batch_dim` is None for a constant: a tensor that is the same whatever the batch, and that is never compacted.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> eenet.cut(network, at=["1"], example=torch.randn(2, 4)).stages[1].inputs[0].batch_dim
    0
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    batch_dim: int | None


class Stage:
    """One piece of a cut network; call it with its live input tensors, get the tuple of its output tensors.

    `module` is what runs, a graph or a module of the caller's; `inputs` and `outputs` describe its live tensors,
    `batch_dims` are those of the inputs. `name` is the module it ends at ("output" for the last), `feature_index` the
    output that is the feature at its end (None for the last), `passed` the outputs that are the next stage's inputs, in
    their order.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> [stage.name for stage in eenet.cut(network, at=["1"], example=torch.randn(2, 4)).stages]
    ['1', 'output']
    """

    __slots__ = ("batch_dims", "feature_index", "inputs", "module", "name", "outputs", "passed")

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        inputs: tuple[LiveTensor, ...],
        outputs: tuple[LiveTensor, ...],
        feature_index: int | None,
        passed: tuple[int, ...],
    ) -> None:
        self.module = module
        self.name = name
        self.inputs = inputs
        self.batch_dims = tuple(live.batch_dim for live in inputs)
        self.outputs = outputs
        self.feature_index = feature_index
        self.passed = passed

    def __call__(self, *live: Tensor) -> Tensors:
        """Run the stage on the tensors of `inputs`, in order; returns the tensors of `outputs`, in order."""
        outputs: Tensors = self.module(*live)
        return outputs

    def compact(self, live: Tensors, index: Tensor) -> Tensors:
        """The samples `index` (int64, in any order) of its live input tensors; constants stay as they are."""
        return compact(live, index, self.batch_dims)

    @property
    def feature(self) -> LiveTensor:
        """The feature at the end of the stage as a head takes it: with the samples first. Not for the last stage."""
        assert self.feature_index is not None, f"stage {self.name} has no exit"
        feature = self.outputs[self.feature_index]
        shape = list(feature.shape)
        if feature.batch_dim is not None:
            shape.insert(0, shape.pop(feature.batch_dim))
        return LiveTensor("feature", tuple(shape), feature.dtype, 0)

    def replaced(self, module: nn.Module) -> Stage:
        """The same stage with another module."""
        return Stage(
            module,
            name=self.name,
            inputs=self.inputs,
            outputs=self.outputs,
            feature_index=self.feature_index,
            passed=self.passed,
        )

    def no_outputs(self, device: torch.device) -> Tensors:
        """What it gives for no samples; nothing is run."""
        shapes = [[size if isinstance(size, int) else 0 for size in live.shape] for live in self.outputs]
        pairs = zip(shapes, self.outputs, strict=True)
        return tuple(torch.empty(shape, dtype=live.dtype, device=device) for shape, live in pairs)

    def state_dict(self) -> dict[str, Any]:
        """The parameters and buffers that this stage uses, under their names in the original model, not copied."""
        return dict(self.module.state_dict())

    def __repr__(self) -> str:
        ins = ", ".join(_describe(live) for live in self.inputs)
        outs = ", ".join(_describe(live) for live in self.outputs)
        return f"Stage({self.name!r}: ({ins}) -> ({outs}))"


class Step:
    """A stage that has run: its `outputs`, and `live`, the tensors the next stage will be run on.

    The caller may replace `live` before the next stage runs, for instance by the remaining samples of the batch.
    """

    __slots__ = ("live", "outputs", "stage")

    def __init__(self, stage: Stage, outputs: Tensors) -> None:
        self.stage = stage
        self.outputs = outputs
        self.live = tuple([outputs[i] for i in stage.passed])

    @property
    def feature(self) -> Tensor:
        """The tensor an exit head looks at, with the samples first. Not for the last stage."""
        index = self.stage.feature_index
        assert index is not None, f"stage {self.stage.name} has no exit"
        batch_dim = self.stage.outputs[index].batch_dim
        return self.outputs[index].movedim(batch_dim, 0) if batch_dim else self.outputs[index]


def walk(stages: Sequence[Stage], live: Tensors) -> Iterator[Step]:
    """Run stages in turn, each when the next step is asked for; `live` are the tensors before the first.

    This is the only loop over stages.
    """
    for stage in stages:
        step = Step(stage, stage(*live))
        yield step
        live = step.live


def _describe(live: LiveTensor) -> str:
    return f"{live.name}: {'x'.join(str(size) for size in live.shape) or 'scalar'}"


def compact(live: Tensors, index: Tensor, batch_dims: Sequence[int | None]) -> Tensors:
    """The samples `index` of live tensors, each along its batch dimension; those without one (None) as they are."""
    return tuple(
        [tensor if dim is None else _select(tensor, dim, index) for tensor, dim in zip(live, batch_dims, strict=True)]
    )


def _select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    # index_select always gives a contiguous tensor; convolutions after it would lose their channels_last layout.
    if tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        order = tensor.permute(0, 2, 3, 1)
        return order.index_select((0, 3, 1, 2)[dim], index).permute(0, 3, 1, 2)
    return tensor.index_select(dim, index)


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to run a model: its stages, what its heads are called with, and whether images come channels last.

    `final` gives the logits in the tensors of the last stage. `buckets` are the numbers of samples its stages run on
    where not every number will do; `lock` is held while a batch runs, where only one can run at a time.
    """

    name: str
    stages: tuple[Stage, ...]
    heads: tuple[Callable[[Tensor], Tensor], ...]
    final: Callable[[Tensors], Tensor]
    channels_last: bool = False
    buckets: tuple[int, ...] | None = None
    lock: AbstractContextManager[Any] = field(default_factory=nullcontext)

    @property
    def num_exits(self) -> int:
        """K, the last exit included; also the number of stages."""
        return len(self.stages)

    def entered(self, live: Tensors) -> Tensors:
        """The live tensors before stage 0 in this variant's layout."""
        if not self.channels_last:
            return live
        return tuple(
            [
                t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 and t.is_floating_point() else t
                for t in live
            ]
        )

    def run(self, k: int, live: Tensors, *, observe: bool) -> tuple[Tensors, Tensor | None]:
        """Run stage k: the live tensors before stage k + 1, and the logits of exit k if asked for, or of the last."""
        stage = self.stages[k]
        step = Step(stage, stage(*live))
        if k == len(self.stages) - 1:
            return (), self.final(step.outputs)
        return step.live, self.heads[k](step.feature) if observe else None

    def all_logits(self, live: Tensors) -> list[Tensor]:
        """The logits of every exit, from the live tensors before stage 0."""
        live, logits_of = self.entered(live), []
        for k in range(self.num_exits):
            live, logits = self.run(k, live, observe=True)
            assert logits is not None
            logits_of.append(logits)
        return logits_of

    def size(self, k: int, live: Tensors) -> int:
        """The number of samples in the live tensors before stage k."""
        return next(t.shape[dim] for t, dim in zip(live, self.stages[k].batch_dims, strict=True) if dim is not None)

    def take(self, k: int, live: Tensors, rows: NDArray[np.intp]) -> Tensors:
        """The samples `rows` of the live tensors before stage k."""
        index = torch.from_numpy(rows).to(live[0].device, non_blocking=True)
        return self.stages[k].compact(live, index)

    def join(self, k: int, parts: Sequence[Tensors]) -> Tensors:
        """The live tensors before stage k of several batches as those of one, in order."""
        return tuple(
            tensors[0] if dim is None else torch.cat(tensors, dim)
            for tensors, dim in zip(zip(*parts, strict=True), self.stages[k].batch_dims, strict=True)
        )

    def no_logits(self, device: torch.device) -> Tensor:
        """The logits of no samples. Nothing is run, since not every network can run on an empty batch."""
        return self.final(self.stages[-1].no_outputs(device))

    def replaced(self, name: str, **changes: Any) -> Variant:
        """The same variant with another name and other parts."""
        return replace(self, name=name, **changes)
