"""The modules of a network that is cut: their modes, put back after use, and the tensors its stages share with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from eenet._compat import put_tensor
from eenet.errors import CutError


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """After the block every submodule is in training or evaluation mode as it was before, whatever was called.

    Not through `train()`, which a module may override to do more than set its mode.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def set_evaluation(module: nn.Module) -> None:
    """Set evaluation mode in every part, not through `eval()`, which a module may override."""
    for part in module.modules():
        part.training = False


def set_attribute(root: nn.Module, target: str, value: Any, *, persistent: bool = True) -> None:
    """Put a tensor or module at a dotted name, without copying it; `persistent` as for buffers."""
    *path, leaf = target.split(".")
    owner = root
    for part in path:
        child = getattr(owner, part, None)
        if not isinstance(child, nn.Module):
            child = nn.Module()
            owner.add_module(part, child)
        owner = child
    if not isinstance(value, Tensor):
        setattr(owner, leaf, value)
        return
    put_tensor(owner, leaf, value, parameter=isinstance(value, nn.Parameter), persistent=persistent)


def bind(module: fx.GraphModule, backbone: nn.Module, constants: Mapping[str, Tensor]) -> None:
    """Make the tensors of a stage those of `backbone` at present; tensors it lacks are taken from `constants`."""
    parameters = dict(backbone.named_parameters(remove_duplicate=False))
    buffers = dict(backbone.named_buffers(remove_duplicate=False))
    kept = backbone.state_dict(keep_vars=True).keys()
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        name = str(node.target)
        value = parameters.get(name, buffers.get(name, constants.get(name)))
        if value is not None:
            set_attribute(module, name, value, persistent=name in kept)
        elif not isinstance(_attribute(module, name), nn.Module):
            raise CutError(
                f"the model no longer has the parameter or buffer {name!r} that its stages use; cut it again after "
                "changing its modules"
            )


def move_constants(module: fx.GraphModule, old: torch.device, new: torch.device) -> None:
    """Rewrite the device that tracing baked into a stage, such as that of a `zeros`, from `old` to `new`."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == old.type:
            return new
        return value

    for inner in module.modules():
        if not isinstance(inner, fx.GraphModule):
            continue
        changed = False
        for node in inner.graph.nodes:
            args, kwargs = fx.node.map_aggregate(node.args, moved), fx.node.map_aggregate(node.kwargs, moved)
            if args != node.args or kwargs != node.kwargs:
                node.args, node.kwargs = args, kwargs
                changed = True
        if changed:
            inner.recompile()


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's first parameter or buffer; None for a model that has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The dtype of a model's first floating-point parameter or buffer; None for a model that has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return None


def _attribute(root: Any, target: str) -> Any:
    for part in target.split("."):
        root = getattr(root, part, None)
    return root
