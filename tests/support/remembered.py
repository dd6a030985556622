"""What is worked out again for each graph that is traced or exported to ONNX, and is always the same: once per process.

Most of the time of many tests is torch's, for the same networks and the same tables of operators.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn


def remember() -> None:
    """Keep the table of ONNX operators and the list of composite operators; without onnx there is nothing to keep."""
    # Of each of the 5,000 kernels that an export replaces and puts back, torch works out the annotations of a function;
    # those of `typing` are kept.
    torch._ops.Callable = typing.Callable  # type: ignore[attr-defined]
    try:
        import onnx
        from torch.onnx._internal.exporter import _registration
    except ModuleNotFoundError:
        return
    _keep_onnx_operators(_registration.ONNXRegistry)
    _keep_composite_operators()
    _keep_onnx_graphs(onnx.ModelProto)


def _keep_onnx_operators(registry: Any) -> None:
    """The table is made by parsing the source of some 500 functions, more than half of the time of an export."""
    make = cache(registry.from_torchlib)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        made = copy.copy(make(*args, **kwargs))
        made.functions = {target: list(ones) for target, ones in made.functions.items()}  # an export may add its own
        return made

    registry.from_torchlib = staticmethod(from_torchlib)


def _keep_composite_operators() -> None:
    """Torch looks for them in every library that has operators, several times for each graph."""
    from torch.export import decomp_utils, exported_program

    find, known = torch._export.utils._collect_all_valid_cia_ops, list[Any]()

    def collect() -> set[Any]:
        now = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        libraries = list(torch.ops._dir)
        if not known or known[0] != (now, libraries):
            found = find()
            libraries = list(torch.ops._dir)  # looking for operators names further libraries
            known[:] = [(now, libraries), found]
        return set(known[1])

    for module in (torch._export.utils, decomp_utils, exported_program):
        module._collect_all_valid_cia_ops = collect  # type: ignore[attr-defined]


def _keep_onnx_graphs(proto: Any) -> None:
    """The same program, with the same weights and options, is the same graph."""
    exporter: Any = torch.onnx
    export, graphs = exporter.export, dict[Any, bytes]()

    def remembered(program: Any, *args: Any, **options: Any) -> Any:
        if args or not isinstance(program, torch.export.ExportedProgram):
            return export(program, *args, **options)
        weights = hashlib.sha256()
        for name, value in sorted((*program.state_dict.items(), *program.constants.items())):
            if not isinstance(value, Tensor):
                return export(program, **options)
            weights.update(f"{name}: {_shape(value)}".encode())
            weights.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        key = str(program), weights.digest(), repr(sorted(options.items()))
        if key not in graphs:
            made = export(program, **options)
            graphs[key] = made.model_proto.SerializeToString()
            return made
        return SimpleNamespace(model_proto=proto.FromString(graphs[key]))

    exporter.export = remembered


# Networks of these do what their settings and the shapes of their weights say.
_LIBRARIES = ("torch.nn.", "torchvision.models.", "timm.", "transformers.", "eenet.networks.", "networks")
_SAYING_NOTHING = {*vars(nn.Module()), "name_or_path"}  # the folder that weights were loaded from
_UNKNOWN = "(a value that is not known)"


@dataclass(frozen=True)
class _Kept:
    """Stages that were made before, where a trace is expected."""

    made: Any
    largest: int | None


@contextlib.contextmanager
def traces() -> Iterator[None]:
    """Within the block a network like one that was cut before gets a copy of its stages, in place of another trace.

    They are bound to its own weights, and compared with it, as those of a trace are.
    """
    from eenet.stages import _staged

    staged: Any = _staged
    capture, split = staged.capture, staged.split

    def remembered_capture(model: nn.Module, at: Any, form: Any) -> Any:
        _KEYS.clear()  # of a trace that was made and then found to be of no use
        key = _key(model, tuple(at), form)
        if key in _TRACES:
            return _TRACES[key]
        captured = capture(model, at, form)
        if key is not None:
            _KEYS[id(captured)] = key
        return captured

    def remembered_split(captured: Any, dynamic: dict[int, str]) -> Any:
        key = _KEYS.pop(id(captured), None)
        if isinstance(captured, _Kept):
            return copy.deepcopy(captured.made)
        made = split(captured, dynamic)
        if key is not None:
            weights = [one for stage in made.stages for one in stage.module.parameters()]
            # Only their places are kept: stages get the weights of the network that they are bound to.
            places = {id(one): nn.Parameter(one.to("meta"), requires_grad=one.requires_grad) for one in weights}
            _TRACES[key] = _Kept(copy.deepcopy(made, places), captured.largest)
        return made

    with mock.patch.multiple(_staged, capture=remembered_capture, split=remembered_split):
        yield
    _KEYS.clear()


_TRACES: dict[Any, _Kept] = {}
_KEYS: dict[int, Any] = {}


def _key(model: nn.Module, at: tuple[str, ...], form: Any) -> str | None:
    """All that a trace depends on; None where that is not known."""
    numbers: dict[int, int] = {}  # modules and tensors that a network uses twice
    parts: list[Any] = [at, torch.export.export, torch.get_default_dtype(), form._spec, form.names, form.dynamic]
    parts += [_shape(leaf) if isinstance(leaf, Tensor) else _value(leaf) for leaf in form.leaves]
    for name, module in model.named_modules(remove_duplicate=False):
        code = [type(module), *module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if "forward" in vars(module) or not all(_of_library(one) for one in code):
            return None
        values = [(key, _value(value)) for key, value in vars(module).items() if key not in _SAYING_NOTHING]
        number = numbers.setdefault(id(module), len(numbers))
        parts.append((name, number, code, type(module).forward, module.training, values))
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    parts += [(name, _shape(one), numbers.setdefault(id(one), len(numbers))) for name, one in tensors]
    key = repr(parts)
    return None if _UNKNOWN in key else key


def _of_library(code: Any) -> bool:
    """Whether a class or a hook is one that its module defines, rather than one that a function makes."""
    name = getattr(code, "__qualname__", "<locals>")
    return "<locals>" not in name and f"{code.__module__}.".startswith(_LIBRARIES)


def _shape(tensor: Tensor) -> Any:
    return type(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _value(value: Any) -> Any:
    """A value by its repr, which may be its address: then it is like no other."""
    if isinstance(value, (Tensor, np.ndarray, nn.Module)):
        return _UNKNOWN  # their repr says too little
    if isinstance(value, (list, tuple)):
        return type(value), [_value(one) for one in value]
    if isinstance(value, dict):
        return type(value), [(key, _value(one)) for key, one in value.items()]
    if hasattr(value, "_attn_implementation"):  # a configuration of transformers, whose repr omits that
        settings = {key: one for key, one in value.to_dict().items() if key != "_name_or_path"}
        return type(value), settings, value._attn_implementation
    return repr(value)
