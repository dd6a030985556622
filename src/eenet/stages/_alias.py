"""In-place operators across a boundary: which incoming tensors a stage has to copy before it changes them.

The graph keeps in-place operators, in program order. Within a stage that is right as it stands. But a tensor that came
into the stage is not the stage's own: it is the caller's input, or the feature of an earlier exit, or it was compacted
and no longer shares memory with what it was a view of. A stage that changes such a tensor changes a copy instead: one
`clone` where it comes in. The functional variant of the operator would save a pass over the memory, but is wrong when
a view taken before the change is read after it; the clone is right for every view taken inside the stage.
"""

from __future__ import annotations

from torch import Tensor, fx

from eenet._compat import schema_of
from eenet.errors import CutError
from eenet.stages._plan import Plan, mutated

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
        found: set[fx.Node] = set()
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
                found.update(incoming)
        copies.append(found)
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
    found = []
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if (everything or argument.alias_info is not None) and isinstance(value, fx.Node):
            found.append(value)
    return [value for value in found if isinstance(value.meta.get("val"), Tensor)]
