"""The model's own stages as a variant, and frozen ones.

In frozen stages batch norms are folded into the convolutions before them, and weights laid out with the channels last.
What a frozen stage holds is computed once from the model's weights; the model itself is not altered, and a later change
of its weights does not reach the frozen stages.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from eenet.errors import CutError
from eenet.models import MultiExitModel
from eenet.stages import Stage, Variant, cut, walk

Tensors = tuple[Tensor, ...]


def eager(model: MultiExitModel) -> Variant:
    """The model's own stages and heads."""
    stages = model.staged.inference_stages
    outputs = stages[-1].no_outputs(torch.device("cpu"))
    logits = model.final_logits(outputs)
    place = next((number for number, tensor in enumerate(outputs) if tensor is logits), None)
    # Usually the logits are one of the last stage's tensors, and the structure of the output need not be built.
    final = model.final_logits if place is None else itemgetter(place)
    return Variant("eager", stages, tuple(model.heads), final)


def batch_of(model: MultiExitModel, live: Tensors, size: int) -> Tensors:
    """A batch of `size` samples before stage 0: those of `live`, repeated or shortened."""
    rows = torch.arange(size, device=live[0].device) % model.staged.batch_size_of(live)
    return model.staged.compact(live, rows, 0)


_CONVOLUTIONS = (
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
)
_NORM = torch.ops.aten.batch_norm.default


def frozen(model: MultiExitModel) -> list[Variant]:
    """The frozen variants of a model, for networks with convolutions; none for other networks.

    A head that cannot be traced runs as it is.
    """
    if not model.staged.traced:
        return []
    own = eager(model)
    stages = own.stages
    with torch.no_grad(), torch.inference_mode(mode=False):
        graphs = [stage.module for stage in stages if isinstance(stage.module, fx.GraphModule)]
        heads = traced_heads(model, stages)
        if not any(_has_convolution(graph) for graph in (*graphs, *heads) if graph is not None):
            return []

        def variant(name: str, *, channels_last: bool) -> Variant:
            modules = [fold(graph, channels_last) for graph in graphs]
            traced = [None if graph is None else fold(graph, channels_last) for graph in heads]
            return own.replaced(
                name,
                stages=tuple(stage.replaced(module) for stage, module in zip(stages, modules, strict=True)),
                heads=tuple(
                    head if made is None else _call(made) for head, made in zip(own.heads, traced, strict=True)
                ),
                channels_last=channels_last,
            )

        return [variant("folded", channels_last=False), variant("folded, channels last", channels_last=True)]


def _has_convolution(graph: fx.GraphModule) -> bool:
    return any(node.target in _CONVOLUTIONS for node in graph.graph.nodes)


def fold(module: fx.GraphModule, channels_last: bool = False) -> fx.GraphModule:
    """A copy of a graph in evaluation mode with its batch norms folded into the convolutions whose output they take.

    Weights that are not changed are shared with `module`.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    made = fx.GraphModule(module, graph)
    for number, node in enumerate([node for node in graph.nodes if node.target is _NORM]):
        conv = node.args[0]
        norm = [_constant(made, argument) for argument in node.args[1:5]]
        training, eps = node.args[5], node.args[7]
        foldable = isinstance(conv, fx.Node) and conv.target in _CONVOLUTIONS and len(conv.users) == 1
        if not foldable or training or norm[2] is None or norm[3] is None:
            continue
        weight, bias = _constant(made, conv.args[1]), _constant(made, conv.args[2] if len(conv.args) > 2 else None)
        if weight is None:
            continue
        weight, bias = fuse_conv_bn_weights(weight, bias, norm[2], norm[3], float(eps), norm[0], norm[1])
        _set_weights(made, conv, number, weight.detach(), bias.detach())
        node.replace_all_uses_with(conv)
        graph.erase_node(node)
    if channels_last:
        _lay_out(made)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    graph.lint()
    made.delete_all_unused_submodules()
    made.recompile()
    return made


def _set_weights(module: fx.GraphModule, conv: fx.Node, number: int, weight: Tensor, bias: Tensor) -> None:
    args = list(conv.args)
    args += [None] * (3 - len(args))
    with module.graph.inserting_before(conv):
        for place, name, value in ((1, f"folded_weight_{number}", weight), (2, f"folded_bias_{number}", bias)):
            module.register_buffer(name, value)
            args[place] = module.graph.get_attr(name)
    conv.args = tuple(args)


def _lay_out(module: fx.GraphModule) -> None:
    """Give convolutions weights of their own whose channels lie last."""
    for number, node in enumerate([n for n in module.graph.nodes if n.target is torch.ops.aten.conv2d.default]):
        weight = _constant(module, node.args[1])
        if weight is None:
            continue
        name = f"channels_last_weight_{number}"
        module.register_buffer(name, weight.detach().contiguous(memory_format=torch.channels_last))
        with module.graph.inserting_before(node):
            node.args = (node.args[0], module.graph.get_attr(name), *node.args[2:])


def _constant(module: nn.Module, argument: Any) -> Tensor | None:
    """The parameter or buffer that an argument reads, if it is one."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    value: Any = module
    for part in str(argument.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def traced_heads(model: MultiExitModel, stages: tuple[Stage, ...]) -> list[fx.GraphModule | None]:
    """The heads as graphs; None for one that cannot be traced."""
    args, kwargs = model.staged.example
    live = model.staged.flatten_inputs(*args, **kwargs)
    traced: list[fx.GraphModule | None] = []
    for head, step in zip(model.heads, walk(stages, live), strict=False):
        feature = step.stage.feature
        dynamic = {dim: f"size{dim}" for dim, size in enumerate(feature.shape) if dim and isinstance(size, str)}
        try:
            made: nn.Module = (
                cut(head, [], step.feature.clone(), dynamic=dynamic, check=False).inference_stages[0].module
            )
        except CutError:
            made = head
        traced.append(made if isinstance(made, fx.GraphModule) else None)
    return traced


def _call(module: fx.GraphModule) -> Callable[[Tensor], Tensor]:
    def head(feature: Tensor) -> Tensor:
        logits: Tensor = module(feature)[0]
        return logits

    return head
