"""Stages written by hand: modules that run one after another, for networks that cannot be traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from eenet._compat import pytree, version_of
from eenet.errors import CutError, InvalidInputError, kind_of
from eenet.stages._samples import sample_inputs, undisturbed
from eenet.stages._split import Fixed, Split
from eenet.stages._stage import InputForm, LiveTensor, Stage

# Two batch sizes that no other dimension is likely to follow from: a dimension that goes along with both is the batch.
_BATCHES = (3, 5)


class StageSequence(nn.Module):
    """The caller's stages as one network: each is called with what the one before it returns.

    A stage returns a tensor, or a tuple of tensors which are the arguments of the next one; the last may return what a
    network returns. The first tensor of each is the feature that an exit looks at.
    """

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the last stage returns."""
        first, *others = self.named_children()
        name, stage = first
        output = stage(*args, **kwargs)
        for following, stage in others:
            output = stage(*tensors_of(output, name))
            name = following
        return output


def named_stages(stages: Sequence[nn.Module] | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The stages by name; those of a sequence are called stage0, stage1 and so on. Raises InvalidInputError."""
    if isinstance(stages, nn.ModuleDict):
        stages = dict(stages.items())
    if isinstance(stages, Mapping):
        named = dict(stages)
    else:
        if not isinstance(stages, (list, tuple, nn.ModuleList, nn.Sequential)):
            raise InvalidInputError(
                f"stages is {kind_of(stages)}, expected a list of modules, or a mapping from names to modules"
            )
        named = {f"stage{number}": stage for number, stage in enumerate(stages)}
    if not named:
        raise InvalidInputError("there are no stages; expected at least one module")
    seen: dict[int, str] = {}
    for name, stage in named.items():
        if not isinstance(stage, nn.Module):
            raise InvalidInputError(f"stage {name!r} is {kind_of(stage)}, expected a torch.nn.Module")
        if not isinstance(name, str) or not name or "." in name or name == "output" or hasattr(nn.Module, name):
            raise InvalidInputError(
                f"a stage cannot be called {name!r}: expected a name without dots that is not 'output' and not an "
                "attribute of torch.nn.Module"
            )
        if id(stage) in seen:
            raise InvalidInputError(
                f"stage {name!r} is the same module as {seen[id(stage)]!r}; give each stage its own"
            )
        seen[id(stage)] = name
    return named


def tensors_of(output: Any, name: str) -> tuple[Tensor, ...]:
    """The tensors that a stage hands on; raises CutError, which names the stage, for anything else."""
    values = tuple(output) if isinstance(output, (tuple, list)) else (output,)
    for value in values:
        if not isinstance(value, Tensor):
            raise CutError(
                f"stage {name!r} returns {kind_of(output)}"
                + (f" that holds {kind_of(value)}" if value is not output else "")
                + "; expected a tensor or a tuple of tensors, which the next stage is called with"
            )
    if not values:
        raise CutError(f"stage {name!r} returns an empty tuple; expected at least one tensor")
    return values


def sequence_split(sequence: StageSequence, form: InputForm) -> Split:
    """The stages of a sequence in its present mode.

    Where the samples lie in each tensor is found by running the stages at two batch sizes. Raises CutError, which names
    the stage and the tensor, where the remaining samples could not be selected.
    """
    names = [name for name, _ in sequence.named_children()]
    with undisturbed(sequence):
        runs = [_Run(sequence, form, sample_inputs(form, batch)) for batch in _BATCHES]
        shorter = _Run(sequence, form, _shorter(form)) if form.dynamic else None
    taken = [name for name, is_tensor in zip(form.names, form.is_tensor, strict=True) if is_tensor]
    inputs = _described(taken, [run.inputs for run in runs], None if shorter is None else shorter.inputs, form)
    stages = []
    for number, (name, module) in enumerate(sequence.named_children()):
        last = number == len(names) - 1
        outputs = _described(
            [f"{name}_{position}" for position in range(len(runs[0].outputs[number]))],
            [run.outputs[number] for run in runs],
            None if shorter is None else shorter.outputs[number],
            form,
        )
        if not last:
            for live in outputs:
                _refuse_mixed(name, live)
            if outputs[0].batch_dim is None:
                raise CutError(
                    f"the first tensor of stage {name!r}, of shape {outputs[0].shape}, has no dimension of the batch "
                    "size; return the feature that the exit looks at first"
                )
        stages.append(
            Stage(
                _Called(name, module, form=None if number else form, changed=runs[0].changed[number], last=last),
                name="output" if last else name,
                inputs=inputs,
                outputs=outputs,
                feature_index=None if last else 0,
                passed=() if last else tuple(range(len(outputs))),
            )
        )
        inputs = outputs
    return Split(tuple(stages), {}, runs[0].leaves, runs[0].out_spec)


class _Called(nn.Module):
    """A stage as a function of its live tensors; copies those that it would change in place."""

    def __init__(
        self, name: str, module: nn.Module, *, form: InputForm | None, changed: frozenset[int], last: bool
    ) -> None:
        super().__init__()
        self.add_module(name, module)
        self._name = name
        self._form = form
        self._changed = changed
        self._last = last

    def forward(self, *live: Tensor) -> tuple[Tensor, ...]:
        module = self.get_submodule(self._name)
        if self._changed:
            live = tuple(tensor.clone() if n in self._changed else tensor for n, tensor in enumerate(live))
        args: tuple[Any, ...] = live
        kwargs: dict[str, Any] = {}
        if self._form is not None:
            args, kwargs = self._form.with_tensors(live)
        output = module(*args, **kwargs)
        if not self._last:
            return tensors_of(output, self._name)
        return (output,) if isinstance(output, Tensor) else _returned(pytree.tree_leaves(output))


class _Run:
    """One run through all stages: what each was called with and gave, and which arguments it changed in place."""

    def __init__(self, sequence: StageSequence, form: InputForm, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        self.outputs: list[tuple[Tensor, ...]] = []
        self.changed: list[frozenset[int]] = []
        live = tuple(tensor.clone() for tensor in inputs)
        args, kwargs = form.with_tensors(live)
        stages = list(sequence.named_children())
        for number, (name, stage) in enumerate(stages):
            versions = [version_of(tensor) for tensor in live]
            try:
                output = stage(*args, **kwargs)
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
                raise CutError(
                    f"stage {name!r} fails at batch size {inputs[0].shape[0]}, called with {_shapes(live)}: {error}"
                ) from error
            self.changed.append(frozenset(n for n, tensor in enumerate(live) if version_of(tensor) != versions[n]))
            if number == len(stages) - 1:
                leaves, self.out_spec = pytree.tree_flatten(output)
                live = _returned(leaves)
                if not live:
                    raise CutError(f"the last stage, {name!r}, returns {kind_of(output)}, which holds no tensor")
                order = {id(tensor): place for place, tensor in enumerate(live)}
                self.leaves: tuple[int | Fixed, ...] = tuple(
                    order[id(leaf)] if isinstance(leaf, Tensor) else Fixed(leaf) for leaf in leaves
                )
            else:
                live = tensors_of(output, name)
            args, kwargs = live, {}
            # Copies: a later stage may change them in place.
            self.outputs.append(tuple(tensor.clone() for tensor in live))


def _returned(leaves: Sequence[Any]) -> tuple[Tensor, ...]:
    """The tensors among the leaves of an output, each once."""
    return tuple(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Tensor)))


def _shorter(form: InputForm) -> tuple[Tensor, ...]:
    inputs = sample_inputs(form, _BATCHES[0])
    return form.resized(inputs, lambda tensor, dim: tensor.narrow(dim, 0, tensor.shape[dim] - 1))


def _described(
    names: Sequence[str], runs: Sequence[tuple[Tensor, ...]], shorter: tuple[Tensor, ...] | None, form: InputForm
) -> tuple[LiveTensor, ...]:
    small, large = runs
    if len(small) != len(large) or any(a.ndim != b.ndim for a, b in zip(small, large, strict=True)):
        raise CutError(f"the number or rank of the tensors {list(names)} depends on the batch size; it must not")
    described = []
    for position, (name, one, other) in enumerate(zip(names, small, large, strict=True)):
        shape: list[int | str] = []
        for dim in range(one.ndim):
            sizes = (one.shape[dim], other.shape[dim])
            if sizes == _BATCHES:
                shape.append("batch")
            elif sizes[0] == sizes[1]:
                varies = shorter is not None and shorter[position].shape[dim] != sizes[0]
                shape.append(_called(sizes[0], form) if varies else sizes[0])
            else:
                shape.append(_per_batch(*sizes))
        dims = [dim for dim, size in enumerate(shape) if size == "batch"]
        mixed = any("batch" in str(size) and size != "batch" for size in shape)
        described.append(LiveTensor(name, tuple(shape), one.dtype, dims[0] if len(dims) == 1 and not mixed else None))
    return tuple(described)


def _called(size: int, form: InputForm) -> str:
    """The name of a size that follows a dynamic dimension."""
    for tensor, dims in zip(form.tensors(), form.dynamic_dims, strict=True):
        for dim, name in dims.items():
            if tensor.shape[dim] == size:
                return name
    return f"f({', '.join(form.dynamic_names)})"


def _per_batch(small: int, large: int) -> str:
    slope, rest = divmod(large - small, _BATCHES[1] - _BATCHES[0])
    return f"{slope}*batch" if not rest and small == slope * _BATCHES[0] else "f(batch)"


def _refuse_mixed(name: str, live: LiveTensor) -> None:
    mixed = [size for size in live.shape if "batch" in str(size)]
    if live.batch_dim is None and mixed:
        raise CutError(
            f"stage {name!r} hands on {live.name!r} of shape ({', '.join(map(str, live.shape))}), in which samples lie "
            "along no single dimension of the batch size; samples cannot be selected from it. Reshape it so that one "
            "dimension is the batch, or move the end of the stage"
        )


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{tuple(tensor.shape)}" for tensor in tensors)
