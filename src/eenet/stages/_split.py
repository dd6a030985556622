"""Split: one graph module per stage, from the plan of a capture.

The graph keeps in-place operators, in program order. Within a stage that is right as it stands. But a tensor that came
into the stage is not the stage's own: it is the caller's input, or the feature of an earlier exit, or it was compacted
and no longer shares memory with what it was a view of. A stage that changes such a tensor changes a copy instead: one
`clone` where it comes in. The functional variant of the operator would save a pass over the memory, but is wrong when
a view taken before the change is read after it; the clone is right for every view taken inside the stage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from eenet._compat import OpOverload, pytree, schema_of
from eenet._values import array_value
from eenet.errors import CutError
from eenet.stages._binding import set_attribute
from eenet.stages._capture import Capture, original_name
from eenet.stages._plan import Plan, is_size, mutated, source_of_size
from eenet.stages._stage import LiveTensor, Stage, walk

_KEPT_META = ("nn_module_stack", "stack_trace")


@array_value
@dataclass(frozen=True)
class Split:
    """The stages of a model in one mode, and how the last one's tensors become the model's output.

    `constants` are tensors of the graph that the model does not own; `leaves` says for each leaf of the output which
    tensor of the last stage it is, or else its value.
    """

    stages: tuple[Stage, ...]
    constants: dict[str, Tensor]
    leaves: tuple[int | Fixed, ...]
    out_spec: pytree.TreeSpec

    def __deepcopy__(self, memo: dict[int, Any]) -> Split:
        # The structure of the outputs never changes, and torch warns when one is copied.
        stages, constants = copy.deepcopy(self.stages, memo), copy.deepcopy(self.constants, memo)
        return Split(stages, constants, self.leaves, self.out_spec)

    def run(self, live: tuple[Tensor, ...], first: int = 0, last: int | None = None) -> tuple[Tensor, ...]:
        """Run stages `first` to `last` (by default to the end): the outputs of the last one run."""
        for step in walk(self.stages[first : None if last is None else last + 1], live):
            outputs = step.outputs
        return outputs

    def unflatten(self, tensors: tuple[Tensor, ...]) -> Any:
        """The model's output from the tensors of the last stage."""
        leaves = [leaf.value if isinstance(leaf, Fixed) else tensors[leaf] for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.out_spec)


@dataclass(frozen=True)
class Fixed:
    """A leaf of the output that is no tensor, such as None or a number."""

    value: Any


def split(capture: Capture, dynamic: Sequence[Mapping[int, str]]) -> Split:
    """The stages of a capture. Raises CutError, naming module and tensor, where a live tensor cannot be compacted."""
    plan = Plan(capture)
    plan.symbols.name_dynamic(plan.inputs, dynamic)
    copies = tensors_to_copy(plan)
    builder = _Builder(plan)
    stages = tuple(builder.stage(index, copies[index]) for index in range(plan.count))
    returned = plan.returned_nodes()
    leaves = tuple(returned.index(leaf) if isinstance(leaf, fx.Node) else Fixed(leaf) for leaf in plan.returned)
    return Split(stages, builder.constants, leaves, capture.out_spec)


class _Builder:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._source = plan.capture.graph_module
        self.constants: dict[str, Tensor] = {}

    def stage(self, index: int, copies: set[fx.Node]) -> Stage:
        plan = self._plan
        incoming = plan.live_in[index]
        last = index == plan.count - 1
        outgoing = plan.returned_nodes() if last else list(plan.live_in[index + 1])
        feature = None if last else plan.features[index]
        passed = tuple(range(len(outgoing))) if not last else ()
        if feature is not None and feature not in outgoing:
            outgoing.append(feature)
        if feature is not None and not plan.symbols.batch_dims(feature) and not plan.symbols.mixed_dims(feature):
            raise CutError(
                f"cannot cut at {plan.stage_name(index)!r}: its output {plan.describe(feature)} has no dimension of "
                "the batch size, so it does not belong to single samples"
            )
        module = self._graph_module(index, incoming, outgoing, copies)
        return Stage(
            module,
            name=plan.stage_name(index),
            inputs=tuple(self._live(node, plan.stage_name(index - 1)) for node in incoming),
            outputs=tuple(self._live(node, None if last else plan.stage_name(index)) for node in outgoing),
            feature_index=None if feature is None else outgoing.index(feature),
            passed=passed,
        )

    def _live(self, node: fx.Node, boundary: str | None) -> LiveTensor:
        """How a tensor crosses `boundary`; None for the model's own outputs, which need no single batch dimension."""
        symbols = self._plan.symbols
        dims, mixed = symbols.batch_dims(node), symbols.mixed_dims(node)
        if boundary is not None and (mixed or len(dims) > 1):
            what = (
                f"a dimension {mixed[0]} that mixes the samples with something else"
                if mixed
                else f"{len(dims)} dimensions of the batch size, so samples in it depend on each other"
            )
            raise CutError(
                f"cannot cut at {boundary!r}: the live tensor {self._plan.describe(node)} has {what}; samples cannot "
                "be selected from it. Cut at the end of an enclosing block instead"
            )
        batch_dim = dims[0] if len(dims) == 1 and not mixed else None
        return LiveTensor(node.name, symbols.shape(node), node.meta["val"].dtype, batch_dim)

    def _graph_module(
        self, index: int, incoming: list[fx.Node], outgoing: list[fx.Node], copies: set[fx.Node]
    ) -> fx.GraphModule:
        graph = fx.Graph()
        attributes: dict[str, Any] = {}
        env: dict[fx.Node, fx.Node] = {}
        for node in incoming:
            env[node] = graph.placeholder(node.name)
        for node in incoming:
            if node in copies:
                env[node] = graph.call_function(torch.ops.aten.clone.default, (env[node],))

        def lookup(node: fx.Node) -> Any:
            node = self._plan.resolve(node)
            if node in env:
                return env[node]
            if node.op == "get_attr":
                name = original_name(str(node.target))
                attributes[name] = self._attribute(str(node.target), name)
                env[node] = graph.create_node("get_attr", name, name=node.name)
            else:
                return self._rebuild(node, graph, env, incoming, lookup)
            return env[node]

        for node in self._plan.bodies[index]:
            copied = graph.node_copy(node, lookup)
            # The traced values hold on to the whole tracing session, and would be copied along with the model.
            copied.meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
            if self._plan.resolve(node) is node:
                env[node] = copied
        graph.output(tuple(lookup(node) for node in outgoing))
        graph.lint()
        return _assemble(graph, attributes, self._plan.stage_name(index))

    def _rebuild(
        self,
        node: fx.Node,
        graph: fx.Graph,
        env: dict[fx.Node, fx.Node],
        incoming: list[fx.Node],
        lookup: Callable[[fx.Node], Any],
    ) -> Any:
        """A size from before the stage, computed again from what came in: after compaction it is smaller."""
        value = node.meta.get("val")
        if isinstance(value, (int, float, bool)):
            return value
        assert is_size(node), f"{node.name} is used before it is made"
        if node.target is torch.ops.aten.sym_size.int:
            found = self._plan.symbols.provider(node, self._plan.resolve(source_of_size(node)), incoming)
            assert found is not None, f"no live tensor has the size {node.name}"
            tensor, dim = found
            env[node] = graph.call_function(torch.ops.aten.sym_size.int, (env[tensor], dim))
        else:
            env[node] = graph.node_copy(node, lookup)
            env[node].meta = {}
        return env[node]

    def _attribute(self, target: str, name: str) -> Any:
        value: Any = self._source
        for part in target.split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.constants[name] = value
        return value


def _dropped(node: fx.Node) -> Any:
    """The share that attention drops; None of other operators."""
    for place, argument in enumerate(schema_of(node.target).arguments):
        if argument.name == "dropout_p":
            given = node.args[place] if place < len(node.args) else node.kwargs.get("dropout_p")
            return argument.default_value if given is None else given
    return None


def random_steps(module: nn.Module) -> Iterator[str]:
    """Where a stage draws random numbers, for a message: the operator and the module that it is in."""
    for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
        if not isinstance(node.target, OpOverload):
            continue
        is_random = torch.Tag.nondeterministic_seeded in node.target.tags
        # Dropout has an argument that says whether it is on, attention a share that is dropped.
        if is_random and not any(value is False for value in node.args) and _dropped(node) != 0.0:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            name = original_name(stack[-1][0]) if stack else ""
            yield f": {schema_of(node.target).name.partition('::')[2]!r}" + (f" in module {name!r}" if name else "")


def _assemble(graph: fx.Graph, attributes: dict[str, Any], name: str) -> fx.GraphModule:
    root = nn.Module()
    for target, value in attributes.items():
        set_attribute(root, target, value)
    return fx.GraphModule(root, graph, class_name=f"Stage_{name.replace('.', '_')}")


# Operators that may return their input itself although their schema does not say so (dropout when not training).
_MAY_RETURN_INPUT = {
    "aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout", "aten::type_as",
    "aten::einsum", "aten::pad", "aten::rrelu",
}  # fmt: skip


def tensors_to_copy(plan: Plan) -> list[set[fx.Node]]:
    """For each stage, the incoming tensors it changes in place; raises CutError where a copy would not be enough."""
    groups = _memory_groups(plan)
    copies: list[set[fx.Node]] = []
    for stage in range(plan.count):
        nodes: set[fx.Node] = set()
        for node in plan.bodies[stage]:
            for argument in mutated(node):
                target = plan.resolve(argument)
                group = groups.get(target)
                # Parameters and buffers are meant to change: the counters of batch norm.
                if group is None or any(member.op == "get_attr" for member in group):
                    continue
                incoming = [tensor for tensor in plan.live_in[stage] if tensor in group]
                if len(incoming) > 1:
                    _refuse_if_seen_later(plan, stage, node, target, incoming, group)
                    incoming = [target]
                nodes.update(incoming)
        copies.append(nodes)
    return copies


def _refuse_if_seen_later(
    plan: Plan, stage: int, node: fx.Node, target: fx.Node, incoming: list[fx.Node], group: set[fx.Node]
) -> None:
    others = group - {target}
    after = plan.order[node]
    later = [user for body in plan.bodies[stage:] for user in body if plan.order[user] > after]
    seen = any(other in plan.uses(user) for user in later for other in others)
    seen = seen or any(value in others for value in plan.returned_nodes())
    if target not in incoming or seen:
        names = " and ".join(plan.describe(tensor) for tensor in incoming)
        raise CutError(
            f"cannot cut at {plan.stage_name(stage - 1)!r}: {names} share memory, cross the boundary, and "
            f"{node.name!r} changes them in place after it; cut elsewhere, or use inplace=False there"
        )


def _memory_groups(plan: Plan) -> dict[fx.Node, set[fx.Node]]:
    """The nodes that share memory with each node, as far as tracing and the operators' schemas tell."""
    groups: dict[fx.Node, set[fx.Node]] = {}
    by_storage: dict[int, fx.Node] = {}

    def join(first: fx.Node, second: fx.Node) -> None:
        a, b = groups.setdefault(first, {first}), groups.setdefault(second, {second})
        if a is not b:
            a |= b
            for member in b:
                groups[member] = a

    for node in plan.order:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        key = value.untyped_storage()._cdata
        join(plan.resolve(node), plan.resolve(by_storage.setdefault(key, node)))
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        returns_view = any(result.alias_info is not None for result in schema.returns)
        if returns_view or schema.name in _MAY_RETURN_INPUT:
            for argument in _viewed(node, everything=not returns_view):
                join(plan.resolve(node), plan.resolve(argument))
    return groups


def _viewed(node: fx.Node, everything: bool) -> list[fx.Node]:
    schema = schema_of(node.target)
    nodes = []
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if (everything or argument.alias_info is not None) and isinstance(value, fx.Node):
            nodes.append(value)
    return [value for value in nodes if isinstance(value.meta.get("val"), Tensor)]
