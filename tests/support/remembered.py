"""What torch works out again for each graph that it exports to ONNX, and is always the same: here once per process."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch


def remember() -> None:
    """Keep the table of ONNX operators and the list of composite operators; without onnx there is nothing to keep."""
    try:
        from torch.onnx._internal.exporter import _registration
    except ModuleNotFoundError:
        return
    _keep_onnx_operators(_registration.ONNXRegistry)
    _keep_composite_operators()


def _keep_onnx_operators(registry: Any) -> None:
    """The table is made by parsing the source of some 500 functions, more than half of the time of an export."""
    make = cache(registry.from_torchlib)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        made = copy.copy(make(*args, **kwargs))
        made.functions = {target: list(ones) for target, ones in made.functions.items()}  # an export may add its own
        return made

    registry.from_torchlib = staticmethod(from_torchlib)


def _keep_composite_operators() -> None:
    """Torch looks each of them up, once for every library that has operators, at each decomposition."""
    utils: Any = torch._export.utils
    find, found = utils._materialize_cpp_cia_ops, list[Any]()

    def materialize() -> None:
        now = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if now != found:
            find()
            found[:] = now

    utils._materialize_cpp_cia_ops = materialize
