"""Symbolic sizes: which dimension holds the samples, and how a size is read again inside a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from eenet.errors import CutError

_SIZE_TYPES = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)


def is_size(node: fx.Node) -> bool:
    """Whether a node is a size or arithmetic on sizes, rather than a tensor."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), _SIZE_TYPES)


def source_of_size(node: fx.Node) -> fx.Node:
    """The tensor that a `sym_size` reads."""
    tensor = node.args[0]
    assert isinstance(tensor, fx.Node)
    return tensor


class Symbols:
    """The symbols of one capture: those of the batch, and the names of the others."""

    def __init__(self, inputs: Iterable[fx.Node]) -> None:
        self._names: dict[Any, str] = {}
        for node in inputs:
            expression = _expression(node.meta["val"].shape[0])
            if not isinstance(expression, int):
                self._names[expression] = "batch"

    def name_dynamic(self, inputs: Iterable[fx.Node], dynamic: Mapping[int, str]) -> None:
        """Give the symbols of the further dynamic dimensions the caller's names."""
        for node in inputs:
            shape = node.meta["val"].shape
            for dim, name in dynamic.items():
                expression = _expression(shape[dim]) if dim < len(shape) else 0
                if not isinstance(expression, int):
                    self._names.setdefault(expression, name)

    def shape(self, node: fx.Node) -> tuple[int | str, ...]:
        """The shape of a tensor, symbols by name."""
        return tuple(self._named(size) for size in node.meta["val"].shape)

    def batch_dims(self, node: fx.Node) -> list[int]:
        """The dimensions whose size is exactly the batch."""
        return [dim for dim, size in enumerate(self.shape(node)) if size == "batch"]

    def mixed_dims(self, node: fx.Node) -> list[int]:
        """The dimensions whose size is another expression of the batch, such as 64 windows per sample."""
        batch = {symbol for symbol, name in self._names.items() if name == "batch"}
        found = []
        for dim, size in enumerate(node.meta["val"].shape):
            expression = _expression(size)
            if not isinstance(expression, int) and expression not in batch and expression.free_symbols & batch:
                found.append(dim)
        return found

    def leaves(self, node: fx.Node, boundary: str) -> list[fx.Node]:
        """The `sym_size` nodes that a size is computed from; raises CutError for a size that depends on data."""
        if node.target is torch.ops.aten.sym_size.int:
            return [node]
        if not all(is_size(used) for used in node.all_input_nodes):
            raise CutError(
                f"cannot cut at {boundary!r}: the value {node.name!r} ({node.target}) crosses the boundary and is not "
                "computed from the sizes of tensors alone; cut elsewhere"
            )
        return [leaf for used in node.all_input_nodes for leaf in self.leaves(used, boundary)]

    def provider(self, leaf: fx.Node, source: fx.Node, live: Iterable[fx.Node]) -> tuple[fx.Node, int] | None:
        """A live tensor and its dimension that has the size `leaf`; where it lives, the tensor that was read."""
        dim = leaf.args[1]
        live = list(live)
        if source in live and isinstance(dim, int):
            return source, dim
        wanted = _expression(leaf.meta["val"])
        for tensor in live:
            for position, size in enumerate(tensor.meta["val"].shape):
                if not isinstance(size, int) and _expression(size) == wanted:
                    return tensor, position
        return None

    def _named(self, size: Any) -> int | str:
        expression = _expression(size)
        if isinstance(expression, int):
            return expression
        known = self._names.get(expression)
        if known is not None:
            return known
        text = str(expression)
        for symbol in sorted(expression.free_symbols, key=lambda symbol: -len(str(symbol))):
            text = text.replace(str(symbol), self._names.get(symbol, str(symbol)))
        return text


def _expression(size: Any) -> Any:
    """The sympy expression of a symbolic size, or the plain int."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if expression.is_number else expression
    return int(size)
