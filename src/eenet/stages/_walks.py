"""The batches that a check sends through the stages, and what the stages give for them.

All of them are of the same samples, and run through a stage together, step by step, so that what they share is computed
once. A convolution and a linear layer take each row of a dimension alone, whatever else is in the batch. Where one is
given rows that it has had in the first batch, but for rounding, its results are taken from there. These layers are most
of the time of a network; all other steps are run for every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from eenet._values import array_value
from eenet.stages._example import BATCH
from eenet.stages._samples import SEED
from eenet.stages._split import Split, random_steps
from eenet.stages._stage import Stage, compact, walk

Tensors = tuple[Tensor, ...]

FAILURES = (RuntimeError, TypeError, ValueError, IndexError)
"""What a step may raise for a batch that it cannot take."""

SELECTED = (2, 0, 1, 1)
"""The samples of a batch that are selected before a stage: in another order, and more of them than it has."""

# Batches in which one sample stands beside others than before: what it takes from any of those would be another.
_BESIDE = tuple((row,) * BATCH for row in range(BATCH))

_CONVOLUTIONS = (torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.conv3d.default)
_LINEAR = torch.ops.aten.linear.default

_ROUNDED = 8
"""The units in the last place, of the largest number of a feature, by which the same rows may be rounded otherwise."""


@array_value
@dataclass(frozen=True)
class Run:
    """What a stage gave in a run: copies, since a later stage may change a tensor in place."""

    stage: Stage
    outputs: Tensors

    @property
    def live(self) -> Tensors:
        """The tensors that the next stage was run on, once more copies."""
        return tuple([self.outputs[i].clone() for i in self.stage.passed])


def _run_of(stage: Stage, outputs: Tensors) -> Run:
    return Run(stage, tuple([tensor.clone() for tensor in outputs]))


@dataclass
class Walk:
    """What the stages gave for a batch, one after the other, up to the one that failed, if one did."""

    runs: list[Run] = field(default_factory=list)
    failure: Exception | None = None


@array_value
@dataclass
class Walks:
    """What an inference check compares, all of the same samples.

    A walk of the `whole` batch, of its first sample as the `single` one, and of each batch of `_BESIDE`; and what each
    stage gives for the samples `SELECTED` from the whole batch before it.
    """

    whole: Walk
    single: Walk
    beside: list[Walk]
    selected: list[Tensors | Exception]


def walks_of(split: Split, inputs: Tensors) -> Walks:
    """All that an inference check compares; what fails is kept as a failure."""
    several = len(split.stages) > 1
    places = [tuple(range(BATCH)), (0,), *(_BESIDE if several else ())]
    batches = [inputs, tuple([tensor[:1] for tensor in inputs]), *(picked(inputs, rows) for rows in places[2:])]
    index = [torch.tensor(rows, device=inputs[0].device) for rows in (*places, SELECTED)]
    walks = [Walk() for _ in batches]
    selected: list[Tensors | Exception] = []
    graphs = [stage.module for stage in split.stages if isinstance(stage.module, fx.GraphModule)]
    if len(graphs) < len(split.stages) or any(next(random_steps(graph), None) for graph in graphs):
        walks = [walk_alone(split, batch) for batch in batches]
        before = inputs
        for stage, run in zip(split.stages, walks[0].runs, strict=False):
            torch.manual_seed(SEED)
            try:
                selected.append(stage(*compact(before, index[-1], stage.batch_dims)))
            except FAILURES as error:
                selected.append(error)
            before = run.live
        return Walks(walks[0], walks[1], walks[2:], selected)
    lives: list[Tensors | Exception] = list(batches)
    for stage, graph in zip(split.stages, graphs, strict=True):
        whole = lives[0]
        if isinstance(whole, Exception):
            break
        chosen = [compact(whole, index[-1], stage.batch_dims)] if several else []
        results = _run_together(graph, [*lives, *chosen], index)
        selected += results[len(lives) :]
        for number, (walked, result) in enumerate(zip(walks, results, strict=False)):
            if isinstance(result, Exception):
                walked.failure, lives[number] = result, result
            else:
                walked.runs.append(_run_of(stage, result))
                lives[number] = tuple([result[i] for i in stage.passed])
    return Walks(walks[0], walks[1], walks[2:], selected)


def walk_alone(split: Split, inputs: Tensors) -> Walk:
    """The walk of one batch, with the seed of the checks."""
    torch.manual_seed(SEED)
    found = Walk()
    try:
        for step in walk(split.stages, inputs):
            found.runs.append(_run_of(step.stage, step.outputs))
    except FAILURES as error:
        found.failure = error
    return found


def picked(tensors: Sequence[Tensor], rows: Sequence[int]) -> Tensors:
    """A batch of some samples, which may come more than once."""
    return tuple([tensor.index_select(0, torch.tensor(rows, device=tensor.device)) for tensor in tensors])


def _run_together(
    module: fx.GraphModule, batches: Sequence[Tensors | Exception], rows: Sequence[Tensor]
) -> list[Tensors | Exception]:
    """What a stage gives for each batch, or what it raises; batch i is made of the samples `rows[i]` of the first.

    A batch that is an exception has failed before, and stays so. All steps must be without randomness.
    """
    found = list(batches)
    interpreter = fx.Interpreter(module)
    values: dict[fx.Node, list[Any]] = {}
    position = 0
    for node in module.graph.nodes:
        of_each: list[Any] = [None] * len(found)
        shared = interpreter.fetch_attr(str(node.target)) if node.op == "get_attr" else None
        first: tuple[Any, ...] = ()
        for number, batch in enumerate(found):
            if isinstance(batch, Exception):
                continue
            if node.op in ("placeholder", "get_attr"):
                of_each[number] = batch[position] if node.op == "placeholder" else shared
                continue
            args, kwargs = (fx.node.map_arg(a, partial(_value, values, number)) for a in (node.args, node.kwargs))
            first = first or args
            if node.op == "output":
                found[number] = args[0]
                continue
            try:
                taken = _taken(node, first, args, of_each[0], rows[number]) if number and not kwargs else None
                of_each[number] = getattr(interpreter, node.op)(node.target, args, kwargs) if taken is None else taken
            except FAILURES as error:
                found[number] = error
        position += node.op == "placeholder"
        values[node] = of_each
        for used in interpreter.user_to_last_uses.get(node, ()):
            del values[used]
    return found


def _value(values: dict[fx.Node, list[Any]], number: int, node: fx.Node) -> Any:
    return values[node][number]


def _taken(node: fx.Node, first: tuple[Any, ...], args: tuple[Any, ...], result: Any, rows: Tensor) -> Tensor | None:
    """The result of a layer that takes each row alone, from that for the first batch; None where it must be run."""
    if node.target not in (*_CONVOLUTIONS, _LINEAR) or not isinstance(result, Tensor):
        return None
    others = zip(first[1:], args[1:], strict=True)
    if not all(a is b if isinstance(a, Tensor) else a == b for a, b in others):
        return None
    before, now = first[0], args[0]
    if before.ndim == now.ndim == 2 and node.target is _LINEAR:
        # The steps of a sequence may lie along the dimension of the samples, before or after them.
        for shape, dim in (((-1, BATCH), 1), ((BATCH, -1), 0)):
            if before.shape[0] % BATCH == 0 and now.shape[0] * BATCH == before.shape[0] * len(rows):
                of_now = (-1, len(rows)) if dim else (len(rows), -1)
                one, other = before.reshape(*shape, before.shape[1]), now.reshape(*of_now, now.shape[1])
                if _same_rows(one, other, dim, rows, 2):
                    return _selected(result.reshape(*shape, result.shape[1]), dim, rows).flatten(0, 1)
        return None
    # Channels and places are not alone; a sequence may come before the samples.
    dims, features = (min(before.ndim - 1, 2), -1) if node.target is _LINEAR else (int(before.ndim == args[1].ndim), 1)
    for dim in range(dims):
        if before.shape[dim] == BATCH and now.shape[dim] == len(rows) and _same_rows(before, now, dim, rows, features):
            return _selected(result, dim, rows)
    return None


def _same_rows(before: Tensor, now: Tensor, dim: int, rows: Tensor, features: int) -> bool:
    """Whether a layer, whose features are along a dimension, is given rows that it has had before."""
    beside = tuple(rows.tolist())
    if beside in _BESIDE and not torch.equal(before.select(dim, beside[0]), now.select(dim, beside[0])):
        return False  # of these batches the sample that stands where it stood counts to the bit
    picked = before.index_select(dim, rows)
    if torch.equal(picked, now):
        return True
    if picked.shape != now.shape or now.dtype not in (torch.float32, torch.float64):
        return False
    # In a batch of another size, or at another place in it, sums may be rounded otherwise. Only since the last layer
    # whose result was taken, so by little; and each feature has its own scale, which the layer may bring to another.
    scale = picked.abs().amax([d for d in range(picked.ndim) if d != features % picked.ndim], keepdim=True)
    tolerance = _ROUNDED * torch.finfo(now.dtype).eps * scale
    return bool(scale.isfinite().all() and ((picked - now).abs() <= tolerance).all())


def _selected(tensor: Tensor, dim: int, rows: Tensor) -> Tensor:
    """Some rows of a tensor, laid out in memory as it is: sums over another layout may round otherwise."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    taken = tensor.permute(order).index_select(order.index(dim), rows)
    return taken.permute([order.index(d) for d in range(tensor.ndim)])
