"""Variants of the stages: one way to run them, the model's own, and frozen stages.

In frozen stages batch norms are folded into the convolutions before them, and weights laid out with the channels last.
What a frozen stage holds is computed once from the model's weights; the model itself is not altered, and a later change
of its weights does not reach the frozen stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from eenet.errors import CutError
from eenet.models import MultiExitModel
from eenet.stages import Stage, Step, cut, walk

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to run a model: its stages, what its heads are called with, and whether images come channels last.

    `final` gives the logits in the tensors of the last stage. `buckets` are the numbers of samples its stages run on
    where not every number will do; `lock` is held while a batch runs, where only one can run at a time.
    """

    name: str
    stages: tuple[Stage, ...]
    heads: tuple[Callable[[Tensor], Tensor], ...]
    final: Callable[[Tensors], Tensor]
    channels_last: bool = False
    buckets: tuple[int, ...] | None = None
    lock: AbstractContextManager[Any] = field(default_factory=nullcontext)

    @property
    def num_exits(self) -> int:
        """K, the last exit included; also the number of stages."""
        return len(self.stages)

    def entered(self, live: Tensors) -> Tensors:
        """The live tensors before stage 0 in this variant's layout."""
        if not self.channels_last:
            return live
        return tuple(
            [
                t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 and t.is_floating_point() else t
                for t in live
            ]
        )

    def run(self, k: int, live: Tensors, *, observe: bool) -> tuple[Tensors, Tensor | None]:
        """Run stage k: the live tensors before stage k + 1, and the logits of exit k if asked for, or of the last."""
        stage = self.stages[k]
        step = Step(stage, stage(*live))
        if k == len(self.stages) - 1:
            return (), self.final(step.outputs)
        return step.live, self.heads[k](step.feature) if observe else None

    def all_logits(self, live: Tensors) -> list[Tensor]:
        """The logits of every exit, from the live tensors before stage 0."""
        live, logits_of = self.entered(live), []
        for k in range(self.num_exits):
            live, logits = self.run(k, live, observe=True)
            assert logits is not None
            logits_of.append(logits)
        return logits_of

    def size(self, k: int, live: Tensors) -> int:
        """The number of samples in the live tensors before stage k."""
        return next(t.shape[dim] for t, dim in zip(live, self.stages[k].batch_dims, strict=True) if dim is not None)

    def take(self, k: int, live: Tensors, rows: NDArray[np.intp]) -> Tensors:
        """The samples `rows` of the live tensors before stage k."""
        index = torch.from_numpy(rows).to(live[0].device, non_blocking=True)
        return self.stages[k].compact(live, index)

    def join(self, k: int, parts: Sequence[Tensors]) -> Tensors:
        """The live tensors before stage k of several batches as those of one, in order."""
        return tuple(
            tensors[0] if dim is None else torch.cat(tensors, dim)
            for tensors, dim in zip(zip(*parts, strict=True), self.stages[k].batch_dims, strict=True)
        )

    def no_logits(self, device: torch.device) -> Tensor:
        """The logits of no samples. Nothing is run, since not every network can run on an empty batch."""
        return self.final(_no_outputs(self.stages[-1], device))

    def replaced(self, name: str, **changes: Any) -> Variant:
        """The same variant with another name and other parts."""
        return replace(self, name=name, **changes)


def eager(model: MultiExitModel) -> Variant:
    """The model's own stages and heads."""
    stages = model.staged.inference_stages
    outputs = _no_outputs(stages[-1], torch.device("cpu"))
    logits = model.final_logits(outputs)
    place = next((number for number, tensor in enumerate(outputs) if tensor is logits), None)
    # Usually the logits are one of the last stage's tensors, and the structure of the output need not be built.
    final = model.final_logits if place is None else itemgetter(place)
    return Variant("eager", stages, tuple(model.heads), final)


def batch_of(model: MultiExitModel, live: Tensors, size: int) -> Tensors:
    """A batch of `size` samples before stage 0: those of `live`, repeated or shortened."""
    rows = torch.arange(size, device=live[0].device) % model.staged.batch_size_of(live)
    return model.staged.compact(live, rows, 0)


def _no_outputs(stage: Stage, device: torch.device) -> Tensors:
    """What a stage gives for no samples."""
    shapes = [[size if isinstance(size, int) else 0 for size in live.shape] for live in stage.outputs]
    return tuple(
        torch.empty(shape, dtype=live.dtype, device=device) for shape, live in zip(shapes, stage.outputs, strict=True)
    )


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
