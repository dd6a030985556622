"""Capture: torch.export of a model, with a marker in the graph where each named module ends."""

from __future__ import annotations

import contextlib
import difflib
import re
import traceback
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from eenet._compat import (
    SpecViolationError,
    out_spec_of,
    pytree,
    quiet_trace,
    recurrent_in_one,
    rename_node,
)
from eenet.errors import CutError, InvalidInputError, kind_of
from eenet.stages._example import BATCH, MODEL_ERRORS
from eenet.stages._stage import InputForm

# Recurrent layers rebuild their list of weights while traced; torch.export puts it back as it was, and warns.
_EXPORT_NOISE = (r"The tensor attributes? .*_flat_weights.* assigned during export",)


# What torch.export says where a size that should be free can only be that of the example.
_FIXED_SIZE = re.compile(
    r"You marked L\['tensors'\]\[(\d+)\]\.size\(\)\[(\d+)\] as dynamic but your code specialized it to be a constant "
    r"\((\d+)\)"
)


# The marker is an operator of its own, so that it survives tracing at its exact place among in-place operators, which a
# module's name in the metadata of the nodes would not tell. It leaves the graph again in the split.
@torch.library.custom_op("eenet::mark_exit", mutates_args=())
def _mark_exit(x: Tensor, index: int, feature: Tensor | None = None) -> Tensor:  # noqa: ARG001 (read from the graph)
    return x.clone()


@_mark_exit.register_fake
def _(x: Tensor, index: int, feature: Tensor | None = None) -> Tensor:  # noqa: ARG001
    # Same strides as x: tracing must not take another branch because of the marker.
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device)


def marked_feature(marker: fx.Node) -> fx.Node:
    """What an exit at a marker sees: the tensor marked, unless its module gave another one for that."""
    feature = marker.args[2] if len(marker.args) > 2 else None
    node = marker.args[0] if feature is None else feature
    assert isinstance(node, fx.Node)
    return node


def is_marker(node: fx.Node) -> bool:
    """Whether a node marks where a named module ends."""
    return node.op == "call_function" and node.target is torch.ops.eenet.mark_exit.default


@dataclass(frozen=True)
class Capture:
    """A traced model: its graph with one marker per name of `at`, in order, and the structure of its outputs.

    `largest` is the batch size up to which the graph holds, where the network compared it with a number.
    """

    graph_module: fx.GraphModule
    at: tuple[str, ...]
    out_spec: pytree.TreeSpec
    largest: int | None = None


def modules_to_cut(model: nn.Module, at: Sequence[str]) -> dict[str, nn.Module]:
    """The modules named in `at`; raises CutError for a name that does not exist or comes twice."""
    if isinstance(at, str):
        raise InvalidInputError(f"`at` is the string {at!r}, expected a sequence of module names, such as [{at!r}]")
    known = dict(model.named_modules(remove_duplicate=False))
    chosen: dict[str, nn.Module] = {}
    for name in at:
        if not isinstance(name, str) or not name or name not in known:
            near = difflib.get_close_matches(str(name), [key for key in known if key], n=4, cutoff=0.4)
            if f"_orig_mod.{name}" in known:
                hint = f"; torch.compile calls it '_orig_mod.{name}': attach to the network before it is compiled"
            elif near:
                hint = f"; did you mean {', '.join(repr(key) for key in near)}?"
            else:
                first = [key for key in known if key][:8]
                hint = f"; it has {', '.join(map(repr, first))}" + (" and others" if len(known) > 9 else "")
            raise CutError(f"cannot cut at {name!r}: the model has no module of that name{hint}")
        if name in chosen:
            raise CutError(f"cannot cut at {name!r} twice: each module of `at` ends one stage; remove the repeat")
        for other, module in chosen.items():
            if module is known[name]:
                raise CutError(f"cannot cut at {name!r}: it is the same module as {other!r}, which `at` names already")
        chosen[name] = known[name]
    return chosen


def capture(model: nn.Module, at: Sequence[str], form: InputForm) -> Capture:
    """Trace `model` in its present mode; leaves the model as it was. Raises CutError, which names the module."""
    modules = modules_to_cut(model, at)
    program, calls, failed = _exported(model, modules, form)
    for name, count in calls.items():
        if count == 0:
            if isinstance(modules[name], (nn.ModuleList, nn.ModuleDict)):
                hint = "it only holds other modules: name one of those"
            elif _runs_forward(model, modules[name], form):
                hint = "it runs its forward() directly; call the module itself, as in self.layer(x)"
            else:
                hint = "it is not on the path"
            raise CutError(f"cannot cut at {name!r}: the forward pass never calls it; {hint}")
        if count > 1:
            raise CutError(
                f"cannot cut at {name!r}: the forward pass calls it {count} times, so it ends at no single place; "
                "name a module that is called once"
            )
        if name in failed:
            raise CutError(
                f"cannot cut at {name!r}: its output is {failed[name]}, in which tracing sees no tensor; return a "
                "tensor, a tuple or a dict, or name a module inside it"
            )
    graph_module = _graph_of(program)
    _check_markers(graph_module, tuple(modules))
    _name_inputs(graph_module, form)
    return Capture(graph_module, tuple(modules), _out_spec(graph_module), _largest_batch(program))


def _runs_forward(model: nn.Module, module: nn.Module, form: InputForm) -> bool:
    """Whether the forward method of a module is run, though the module is not called."""
    ran = False
    own = vars(module).get("forward")
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal ran
        ran = True
        return inner(*args, **kwargs)

    module.forward = forward
    try:
        args, kwargs = form.with_tensors([tensor.clone() for tensor in form.tensors()])
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
    return ran


def capture_with_markers(
    model: nn.Module, modules: Mapping[str, nn.Module], form: InputForm
) -> tuple[fx.GraphModule, dict[str, int], dict[str, str]]:
    """Trace `model` with a marker where each of `modules` ends; its second argument is the module's position.

    Also gives how often each module was called, and for those whose output holds no tensor what it is.
    """
    program, calls, failed = _exported(model, modules, form)
    return _graph_of(program), calls, failed


def _exported(
    model: nn.Module, modules: Mapping[str, nn.Module], form: InputForm
) -> tuple[torch.export.ExportedProgram, dict[str, int], dict[str, str]]:
    calls = dict.fromkeys(modules, 0)
    failed: dict[str, str] = {}
    handles = [
        module.register_forward_hook(_marking_hook(name, index, calls, failed))
        for index, (name, module) in enumerate(modules.items())
    ]
    try:
        program = _export(model, form)
    finally:
        for handle in handles:
            handle.remove()
    return program, calls, failed


def _graph_of(program: torch.export.ExportedProgram) -> fx.GraphModule:
    graph_module = program.module()
    if not isinstance(graph_module, fx.GraphModule):
        raise CutError("torch.export gave no graph module; this version of torch is not supported")
    return graph_module


def _largest_batch(program: torch.export.ExportedProgram) -> int | None:
    """The upper bound of the batch size that the network's own comparisons gave while it was traced."""
    inputs = program.graph_signature.user_inputs
    size = next(node for node in program.graph.nodes if node.name in inputs).meta["val"].shape[0]
    found = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
    return int(found.upper) if found is not None and found.upper.is_Integer else None


def _name_inputs(graph_module: fx.GraphModule, form: InputForm) -> None:
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    names = [name for name, is_tensor in zip(form.names, form.is_tensor, strict=True) if is_tensor]
    for node, name in zip(placeholders, names, strict=True):
        rename_node(node, re.sub(r"\W+", "_", name).strip("_"))


def _out_spec(graph_module: fx.GraphModule) -> pytree.TreeSpec:
    spec = out_spec_of(graph_module)
    if not isinstance(spec, pytree.TreeSpec):
        raise CutError("torch.export did not say how the model's outputs are nested; cannot rebuild them")
    return spec


def feature_at(module: nn.Module, output: Any) -> Tensor:
    """What an exit sees of the output of the module it stands at: the first tensor.

    A module can say otherwise with a method `exit_feature` that makes one tensor of its output. That runs in stages
    alone, so the network by itself does not pay for it. Raises `CutError` where it gives something else.
    """
    feature = _own_feature(module, output)
    if feature is None:
        feature = next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)
    if feature is None:
        raise CutError(f"the output of {type(module).__name__} holds no tensor that an exit could see")
    return feature


def _own_feature(module: nn.Module, output: Any) -> Tensor | None:
    look = getattr(module, "exit_feature", None)
    if not callable(look):
        return None
    feature = look(output)
    if not isinstance(feature, Tensor):
        raise CutError(
            f"{type(module).__name__}.exit_feature gave {kind_of(feature)}, expected the tensor that an exit sees"
        )
    return feature


def _marking_hook(name: str, index: int, calls: dict[str, int], failed: dict[str, str]) -> Any:
    def hook(module: nn.Module, _args: Any, output: Any) -> Any:
        calls[name] += 1
        feature = _own_feature(module, output)
        if isinstance(output, Tensor):
            return torch.ops.eenet.mark_exit(output, index, feature)
        # Else the first tensor is the feature; for Hugging Face outputs that is `last_hidden_state`.
        leaves, spec = pytree.tree_flatten(output)
        for position, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                leaves[position] = torch.ops.eenet.mark_exit(leaf, index, feature)
                return pytree.tree_unflatten(leaves, spec)
        kind = type(output).__name__
        failed[name] = f"of type {kind}"
        if is_dataclass(output):
            failed[name] += f" (a dataclass, for which torch.export.register_dataclass({kind}) helps)"
        return output

    return hook


def same_place(first: str, second: str) -> CutError:
    """The error for two modules with nothing between their ends."""
    return CutError(
        f"cannot cut at both {first!r} and {second!r}: they end at the same place, with no operation between them; "
        "keep one of the two"
    )


def _check_markers(graph_module: fx.GraphModule, names: tuple[str, ...]) -> None:
    """Each module's marker is in the graph, and in the order of `names`."""
    markers = [node for node in graph_module.graph.nodes if is_marker(node)]
    for node in markers:
        inner = node.args[0]
        if isinstance(inner, fx.Node) and is_marker(inner):
            raise same_place(*(names[index] for index in (inner.args[1], node.args[1]) if isinstance(index, int)))
    seen = [node.args[1] for node in markers]
    inside = {
        node.args[1]
        for module in graph_module.modules()
        if isinstance(module, fx.GraphModule) and module is not graph_module
        for node in module.graph.nodes
        if is_marker(node)
    }
    for index, name in enumerate(names):
        if index in inside:
            raise CutError(
                f"cannot cut at {name!r}: it runs inside a block such as torch.no_grad() or autocast, which is traced "
                "as one operation; cut before or after the block"
            )
        if index not in seen:
            raise CutError(
                f"cannot cut at {name!r}: nothing that the model returns depends on it, so it is not on the path"
            )
    for position, index in enumerate(seen):
        if index != position:
            assert isinstance(index, int)
            raise CutError(
                f"cannot cut at {names[position]!r} before {names[index]!r}: the forward pass ends {names[index]!r} "
                f"first; give `at` in the order {[names[i] for i in seen if isinstance(i, int)]}"
            )


def _export(model: nn.Module, form: InputForm) -> torch.export.ExportedProgram:
    tensors = tuple(t.index_select(0, torch.arange(BATCH, device=t.device) % len(t)) for t in form.tensors())
    dimensions = [dict.fromkeys([0, *dims], torch.export.Dim.DYNAMIC) for dims in form.dynamic_dims]
    shapes = {"tensors": tuple(dimensions)}
    try:
        # Outside any no_grad of the caller: the graph must hold the model's own switches of gradient mode, no others.
        with _quiet(), quiet_trace(), recurrent_in_one(), torch.enable_grad():
            return torch.export.export(_FlatCall(model, form), tensors, dynamic_shapes=shapes, strict=False)
    except (*MODEL_ERRORS, SpecViolationError) as error:
        fixed = _FIXED_SIZE.search(str(error))
        if fixed:
            position, dim, size = (int(group) for group in fixed.groups())
            what = "the batch size" if dim == 0 else f"dynamic dimension {dim} ({form.dynamic_dims[position].get(dim)})"
            name = [name for name, is_tensor in zip(form.names, form.is_tensor, strict=True) if is_tensor][position]
            raise CutError(
                f"torch.export cannot trace the model: in the forward pass something fixes {what} of input {name!r} to "
                f"{size}, such as a table kept from an earlier call or a size written as a number, or another input "
                "has that size where `dynamic` does not name it, such as a mask: dynamic={'x': {2: 'time'}, 'mask': "
                "{1: 'time'}} names it for each; change that step, or write the stages by hand with "
                "StagedModel.from_stages"
            ) from error
        where = _innermost_module(model, error)
        place = f" in module {where!r}" if where else ""
        raise CutError(
            f"torch.export cannot trace the model{place}: {_reason(error)}; change that step, or write the stages by "
            "hand with StagedModel.from_stages"
        ) from error


class _FlatCall(nn.Module):
    """A model as a function of its tensor inputs alone.

    torch.export loses count of nested inputs, of settings and of what a forward takes as `**kwargs` (all of Hugging
    Face) when it matches them to dynamic shapes; a flat row of tensors it handles.
    """

    def __init__(self, model: nn.Module, form: InputForm) -> None:
        super().__init__()
        self.network = model
        self._form = form

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self._form.with_tensors(tensors)
        return self.network(*args, **kwargs)


def original_name(name: str) -> str:
    """The name in the model of what is traced under `name`."""
    return name.removeprefix("network.")


def _reason(error: BaseException) -> str:
    """What went wrong and at which line of the model, without torch's advice on how to debug it."""
    text = str(error).partition("The error above occurred")[0]
    what, _, line = text.partition("The following call raised this error:")
    lines = [found.strip() for found in what.splitlines() if found.strip()]
    # Torch's own errors say what happened first; where the model's code raised, its message is one line.
    said = " ".join(lines[:2]) or "no message"
    return f"{type(error).__name__}: {said}" + (f" ({' '.join(line.split())})" if line.strip() else "")


def _innermost_module(model: nn.Module, error: BaseException) -> str | None:
    """The deepest module that was running when tracing failed, as far as the traceback shows."""
    names = {id(module): name for name, module in model.named_modules()}
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in reversed(chain):
        innermost: str | None = None
        for frame, _ in traceback.walk_tb(link.__traceback__):
            innermost = _module_of(frame, names) or innermost
        if innermost:
            return innermost
    return None


def _module_of(frame: types.FrameType, names: dict[int, str]) -> str | None:
    owner = frame.f_locals.get("self")
    return names.get(id(owner)) if isinstance(owner, nn.Module) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch.export warns about itself; the model's own warnings stay."""
    with warnings.catch_warnings():
        for message in _EXPORT_NOISE:
            warnings.filterwarnings("ignore", message=message)
        yield
