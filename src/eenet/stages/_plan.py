"""The plan of a split: which operation belongs to which stage, and which values and sizes cross each boundary."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from eenet._compat import HigherOrderOperator, OpOverload, schema_of, torch_check
from eenet.errors import CutError
from eenet.stages._capture import Capture, is_marker, marked_feature, original_name, same_place

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

    def name_dynamic(self, inputs: Iterable[fx.Node], dynamic: Iterable[Mapping[int, str]]) -> None:
        """Give the symbols of the further dynamic dimensions the caller's names.

        Sizes that need not be the same get different names: texts of two tokenizers are "sequence" and "sequence_2".
        """
        for node, dims in zip(inputs, dynamic, strict=True):
            shape = node.meta["val"].shape
            for dim, name in dims.items():
                expression = _expression(shape[dim])
                if not isinstance(expression, int) and expression not in self._names:
                    used = set(self._names.values())
                    further = (f"{name}_{count}" for count in itertools.count(2))
                    self._names[expression] = name if name not in used else next(n for n in further if n not in used)

    def shape(self, node: fx.Node) -> tuple[int | str, ...]:
        """The shape of a tensor, symbols by name."""
        return tuple(self._named(size) for size in node.meta["val"].shape)

    def batch_dims(self, node: fx.Node) -> list[int]:
        """The dimensions whose size is exactly the batch."""
        return [dim for dim, size in enumerate(self.shape(node)) if size == "batch"]

    def mixed_dims(self, node: fx.Node) -> list[int]:
        """The dimensions whose size is another expression of the batch, such as 64 windows per sample."""
        batch = {symbol for symbol, name in self._names.items() if name == "batch"}
        dims = []
        for dim, size in enumerate(node.meta["val"].shape):
            expression = _expression(size)
            if not isinstance(expression, int) and expression not in batch and expression.free_symbols & batch:
                dims.append(dim)
        return dims

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
        expression = _expression(leaf.meta["val"])
        for tensor in live:
            for position, size in enumerate(tensor.meta["val"].shape):
                if not isinstance(size, int) and _expression(size) == expression:
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


_ASSERTS = ("_assert", "sym_constrain", "_guards_fn")

# `batch_norm` updates its running statistics although its schema does not say so.
_HIDDEN_EFFECTS = ("aten::batch_norm", "aten::instance_norm")


class SameTensor(dict[fx.Node, fx.Node]):
    """For markers and operators that work in place, the node whose tensor object they return."""

    def resolve(self, node: fx.Node) -> fx.Node:
        """The node that made the tensor object of `node`."""
        while node in self:
            node = self[node]
        return node


class Plan:
    """The stages of a capture as lists of nodes; `live_in[k]` are the tensors that stage k needs from before it."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.count = len(capture.at) + 1
        nodes = list(capture.graph_module.graph.nodes)
        self.order = {node: position for position, node in enumerate(nodes)}
        self._same = SameTensor()
        self.stage_of: dict[fx.Node, int] = {}
        self.features: list[fx.Node] = []
        self.bodies: list[list[fx.Node]] = [[] for _ in range(self.count)]
        self.inputs = [node for node in nodes if node.op == "placeholder" and is_tensor(node)]
        self.symbols = Symbols(self.inputs)
        self._place(nodes)
        self.returned: list[Any] = list(returned_values(nodes[-1]))
        self._check_returned()
        self.live_in: list[list[fx.Node]] = [[] for _ in range(self.count)]
        self._find_live()

    def resolve(self, node: fx.Node) -> fx.Node:
        """The node that stands for the same tensor object: markers and in-place operators return their input."""
        return self._same.resolve(node)

    def stage_name(self, index: int) -> str:
        """The module that a stage ends at."""
        if index < 0:
            return "input"
        return self.capture.at[index] if index < len(self.capture.at) else "output"

    def uses(self, node: fx.Node) -> list[fx.Node]:
        """The values a node reads, each once, in order."""
        return list(dict.fromkeys(self.resolve(arg) for arg in node.all_input_nodes))

    def returned_nodes(self) -> list[fx.Node]:
        """The tensors that the model returns, each once, in order."""
        return list(dict.fromkeys(value for value in self.returned if isinstance(value, fx.Node)))

    def describe(self, node: fx.Node) -> str:
        """A live tensor, for a message: its name, its shape, and the module that made it."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        module = original_name(stack[-1][0]) if stack and isinstance(stack[-1], tuple) else ""
        made = f", made in {module!r}" if module else ""
        shape = ", ".join(str(size) for size in self.symbols.shape(node))
        return f"{node.name!r} of shape ({shape}){made}"

    def _place(self, nodes: list[fx.Node]) -> None:
        stage = 0
        for node in nodes:
            if is_marker(node):
                inner = node.args[0]
                assert isinstance(inner, fx.Node)
                self._same[node] = inner
                self.features.append(self.resolve(marked_feature(node)))
                stage += 1
            elif node.op == "placeholder":
                self.stage_of[node] = -1
            elif node.op == "call_function" and not is_assert(node):
                # A list never crosses a boundary: its items are taken where it is made.
                producer = node.args[0] if node.target is operator.getitem else None
                at = self.stage_of.get(producer, stage) if isinstance(producer, fx.Node) else stage
                self.stage_of[node] = max(at, 0)
                self.bodies[max(at, 0)].append(node)
                inner = returns_its_input(node)
                if inner is not None:
                    self._same[node] = inner
            elif node.op not in ("get_attr", "output") and not is_assert(node):
                raise CutError(f"cannot split the graph: unexpected node {node.format_node()}")

    def _check_returned(self) -> None:
        for position, value in enumerate(self.returned):
            if not isinstance(value, fx.Node):
                continue
            value = self.resolve(value)
            if not is_tensor(value):
                raise CutError(
                    f"cannot cut a model whose output number {position} is the size {value.name!r}, not a tensor; "
                    "wrap the model so that it returns tensors"
                )
            self.returned[position] = value

    def _find_live(self) -> None:
        needed: dict[fx.Node, None] = dict.fromkeys(self.returned_nodes())
        for stage in reversed(range(self.count)):
            if stage < self.count - 1:
                needed[self.features[stage]] = None
            sizes = self._drop_dead(stage, needed)
            if stage == 0:
                # Every tensor input comes in, used or not: the flattened inputs are the first stage's live tensors.
                self.live_in[0] = list(self.inputs)
                return
            needed = {node: None for node in needed if node.op != "get_attr" and self.stage_of[node] != stage}
            self._carry_sizes(stage, sizes, needed)
            self.live_in[stage] = sorted(needed, key=self.order.__getitem__)

    def _drop_dead(self, stage: int, needed: dict[fx.Node, None]) -> list[fx.Node]:
        """Drop what nothing uses; adds what the stage reads to `needed`, returns the sizes it reads from before it."""
        kept: list[fx.Node] = []
        sizes: list[fx.Node] = []
        alive = set(needed)
        for node in reversed(self.bodies[stage]):
            if node not in alive and not _has_effect(node):
                continue
            kept.append(node)
            for used in self.uses(node):
                alive.add(used)
                if used.op == "get_attr" or self.stage_of[used] == stage:
                    continue
                if is_size(used):
                    sizes.append(used)
                elif is_tensor(used):
                    needed[used] = None
                elif used.op != "placeholder":
                    raise CutError(
                        f"cannot cut at {self.stage_name(stage - 1)!r}: {used.name!r}, which is neither a tensor nor a "
                        "size, would cross the boundary; cut elsewhere"
                    )
        self.bodies[stage] = kept[::-1]
        if not any(not is_size(node) and node.target is not operator.getitem for node in kept):
            self._refuse_empty(stage)
        return sizes

    def _refuse_empty(self, stage: int) -> None:
        if self.count == 1:
            return
        if stage == self.count - 1:
            raise CutError(
                f"cannot cut at {self.stage_name(stage - 1)!r}: nothing comes after it, so the last stage would be "
                "empty; leave it out, the last stage ends there anyway"
            )
        if stage == 0:
            raise CutError(f"cannot cut at {self.stage_name(0)!r}: no operation comes before its end")
        raise same_place(self.stage_name(stage - 1), self.stage_name(stage))

    def _carry_sizes(self, stage: int, sizes: Iterable[fx.Node], needed: dict[fx.Node, None]) -> None:
        """Make sure that every size a stage needs can be read from a tensor that comes in."""
        for size in sizes:
            for leaf in self.symbols.leaves(size, self.stage_name(stage - 1)):
                tensor = self.resolve(source_of_size(leaf))
                if tensor.op != "get_attr" and self.symbols.provider(leaf, tensor, needed) is None:
                    needed[tensor] = None


def mutated(node: fx.Node) -> list[fx.Node]:
    """The arguments that an operator changes in place."""
    if not isinstance(node.target, OpOverload):
        return []
    nodes: list[fx.Node] = []
    for position, argument in enumerate(schema_of(node.target).arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        nodes += [
            item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, fx.Node)
        ]
    return nodes


def returns_its_input(node: fx.Node) -> fx.Node | None:
    """The argument that an in-place operator changes and returns; None for other operators."""
    changed = mutated(node)
    if len(changed) != 1 or not isinstance(node.target, OpOverload):
        return None
    returns = schema_of(node.target).returns
    if len(returns) != 1 or returns[0].alias_info is None or not returns[0].alias_info.is_write:
        return None
    before, after = changed[0].meta.get("val"), node.meta.get("val")
    # `unsqueeze_` and its like change the shape that later nodes see; those keep a node of their own.
    if isinstance(before, Tensor) and isinstance(after, Tensor) and str(before.shape) == str(after.shape):
        return changed[0]
    return None


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a tensor, rather than a size or a list."""
    return isinstance(node.meta.get("val"), Tensor)


def is_assert(node: fx.Node) -> bool:
    """Whether a node only checks sizes; stages leave those out."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.startswith(_ASSERTS) or node.target is torch_check


def _has_effect(node: fx.Node) -> bool:
    if isinstance(node.target, HigherOrderOperator):
        return True
    if not isinstance(node.target, OpOverload):
        return False
    schema = schema_of(node.target)
    # A random operator moves the generator even if its result is unused.
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return schema.is_mutable or random or not schema.returns or schema.name in _HIDDEN_EFFECTS


def returned_values(output: fx.Node) -> tuple[Any, ...]:
    """The leaves of the graph's output."""
    values = output.args[0]
    return tuple(values) if isinstance(values, (tuple, list)) else (values,)
