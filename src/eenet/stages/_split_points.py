"""Places: where a network could be cut, what each place costs to reach, and how much would cross the boundary."""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from eenet._compat import flop_counter
from eenet._timing import waiting_for
from eenet.errors import CutError, InvalidInputError
from eenet.stages._binding import modes_kept, set_evaluation
from eenet.stages._capture import capture_with_markers, is_marker
from eenet.stages._example import Example, form_of
from eenet.stages._network import refuse_wrapped, require_runs
from eenet.stages._plan import SameTensor, Symbols, is_assert, is_size, is_tensor, returned_values, returns_its_input
from eenet.stages._samples import undisturbed
from eenet.stages._stage import Dynamic, InputForm, Stage

COSTS = ("flops", "ms")

# Measuring takes at least this many rounds, and more within these seconds.
_ROUNDS, _MOST_ROUNDS, _SECONDS = 8, 60, 0.5


@dataclass(frozen=True)
class SplitPoint:
    """The end of a module that a network can be cut at.

    `share` is the share of the network's cost that comes before it, `elements` the number of values per sample that
    would cross a boundary here, in `tensors` live tensors. `cost` is what comes before it, in FLOPs or seconds of the
    example. `sees` is the share of the values of a sample, among all inputs that the answer depends on, that are in
    inputs which what the module returns depends on: less than 1 before two inputs meet.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> [point.name for point in eenet.stages.split_points(network, torch.randn(2, 4))][:2]
    ['0', '1']
    """

    name: str
    share: float
    elements: int
    tensors: int
    cost: float
    sees: float = 1.0


def split_points(
    model: nn.Module,
    example: Example,
    *,
    dynamic: Dynamic | None = None,
    cost: str = "flops",
) -> list[SplitPoint]:
    """The ends of modules that a network can be cut at, in order; of those that end together the outermost.

    A module is left out that is called more than once, or whose end is no place for a cut: the samples do not lie along
    one dimension of every live tensor. `cost` is "flops", counted, or "ms", measured on the example. Raises CutError
    for a network that cannot be traced.

    Parameters
    ----------
    model : Module
        The network.
    example : Tensor, tuple or mapping
        An input that the network takes.
    dynamic : mapping, optional
        Further dimensions whose size may change, as in `eenet.cut`.
    cost : str
        "flops" or "ms".

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> [point.name for point in eenet.stages.split_points(network, torch.randn(2, 4))][:2]
    ['0', '1']
    """
    if cost not in COSTS:
        raise InvalidInputError(f"cost is {cost!r}, expected one of {list(COSTS)}")
    refuse_wrapped(model)
    with torch.inference_mode(mode=False):
        form = form_of(model, example, dynamic)
        modules = {name: module for name, module in model.named_modules() if name}
        with modes_kept(model):
            set_evaluation(model)
            with undisturbed(model):
                try:
                    graph_module, calls, _ = capture_with_markers(model, modules, form)
                except CutError:
                    require_runs(model, form, example)  # else that is the reason
                    raise
                ends = _Ends(graph_module, list(modules), calls)
                shares, shapes = _costs(graph_module, form, cost)
    return ends.places(shares, shapes)


class _Ends:
    """The markers of a graph, by the place they stand at, and the tensors that live there."""

    def __init__(self, graph_module: fx.GraphModule, names: list[str], calls: Mapping[str, int]) -> None:
        nodes = list(graph_module.graph.nodes)
        self._symbols = Symbols(node for node in nodes if node.op == "placeholder" and is_tensor(node))
        self._order: dict[fx.Node, int] = {}
        self._same = SameTensor()
        self._last_use: dict[fx.Node, int] = {}
        self._groups: list[list[tuple[str, fx.Node]]] = [[]]
        self._last_operator = -1
        for position, node in enumerate(nodes):
            # The items of a list belong to the operator that makes the list.
            producer = node.args[0] if node.target is operator.getitem else None
            self._order[node] = self._order[producer] if isinstance(producer, fx.Node) else position
            if is_marker(node):
                inner, index = node.args[:2]
                assert isinstance(inner, fx.Node)
                assert isinstance(index, int)
                self._same[node] = inner
                if calls[names[index]] == 1:
                    self._groups[-1].append((names[index], node))
                continue
            if node.op == "output" or (node.op == "call_function" and not is_size(node) and not is_assert(node)):
                returned = returned_values(node) if node.op == "output" else node.all_input_nodes
                for used in returned:
                    if isinstance(used, fx.Node):
                        self._last_use[self._same.resolve(used)] = position
                if node.target is not operator.getitem and node.op != "output":
                    self._last_operator = position
                    if self._groups[-1]:
                        self._groups.append([])
            kept = returns_its_input(node) if node.op == "call_function" else None
            if kept is not None:
                self._same[node] = kept
        self._reached = _reached(nodes)
        self._tensors = [n for n in nodes if n not in self._same and n.op != "get_attr" and is_tensor(n)]

    def places(
        self, shares: Mapping[fx.Node, tuple[float, float]], shapes: Mapping[fx.Node, tuple[int, ...]]
    ) -> list[SplitPoint]:
        """The places that can be cut at, in order."""
        points = []
        earlier: set[fx.Node] = set()
        for group in self._groups:
            marked = {marker: _marked(marker) for _, marker in group}
            # The outermost: its name says most, and what it returns is what the rest of the network is built on.
            for name, marker in sorted(group, key=lambda end: end[0].count(".")):
                # A module that hands on what another one ended with is no place of its own.
                place = self._place(name, marker, shares[marker], shapes) if marked[marker] not in earlier else None
                if place is not None:
                    points.append(place)
                    break
            earlier.update(marked.values())
        return points

    def _place(
        self, name: str, marker: fx.Node, reached: tuple[float, float], shapes: Mapping[fx.Node, tuple[int, ...]]
    ) -> SplitPoint | None:
        position, feature = self._order[marker], self._same.resolve(marker)
        if position > self._last_operator:
            return None
        live = [
            tensor
            for tensor in self._tensors
            if self._order[tensor] < position and (tensor is feature or self._last_use.get(tensor, -1) > position)
        ]
        elements = 0
        for tensor in live:
            dims = self._symbols.batch_dims(tensor)
            if len(dims) > 1 or self._symbols.mixed_dims(tensor) or (tensor is feature and not dims):
                return None
            if dims:
                shape = shapes[tensor]
                elements += int(np.prod(shape)) // shape[dims[0]]
        cost, share = reached
        if not feature.meta["val"].is_floating_point() or not 0 < share < 1:
            return None
        return SplitPoint(name, share, elements, len(live), cost, self._sees(marker, shapes))

    def _sees(self, marker: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> float:
        """The share of the values that the answer depends on which what the marker stands at depends on."""
        seen, needed = (
            sum(int(np.prod(shapes[tensor][1:])) for tensor in self._reached[node])
            for node in (marker, next(reversed(self._reached)))
        )
        return min(seen / needed, 1.0) if needed else 1.0


def _reached(nodes: Sequence[fx.Node]) -> dict[fx.Node, frozenset[fx.Node]]:
    """The tensor inputs whose values each node depends on, in order; of those alone whose size is read none."""
    found: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in nodes:
        if node.op == "placeholder":
            found[node] = frozenset([node]) if is_tensor(node) else frozenset()
        else:
            used = [found[one] for one in node.all_input_nodes if not is_size(one)]
            found[node] = used[0] if len(used) == 1 else frozenset().union(*used)
    return found


def seen_at_exits(stages: Sequence[Stage], sizes: Sequence[int]) -> list[float]:
    """What `SplitPoint.sees` is of each exit of a cut network; 1 of all where a stage is no graph.

    `sizes` are the numbers of values that a sample has in each input of the network.
    """
    known = [frozenset([number]) for number in range(len(sizes))]
    seen: list[frozenset[int]] = []
    for stage in stages:
        if not isinstance(stage.module, fx.GraphModule):
            return [1.0] * (len(stages) - 1)
        entering, found = iter(known), dict[fx.Node, frozenset[int]]()
        for node in stage.module.graph.nodes:
            if node.op == "placeholder":
                found[node] = next(entering)
            elif node.target is torch.ops.aten.sym_size.int:  # a size depends on no value
                found[node] = frozenset()
            else:
                found[node] = frozenset().union(*(found[one] for one in node.all_input_nodes))
        (returned,) = next(reversed(stage.module.graph.nodes)).args
        outputs = [found[one] for one in returned]
        seen.append(frozenset().union(*outputs) if stage.feature_index is None else outputs[stage.feature_index])
        known = [outputs[position] for position in stage.passed]
    needed = sum(sizes[number] for number in seen[-1])
    return [min(sum(sizes[number] for number in of_exit) / needed, 1.0) if needed else 1.0 for of_exit in seen[:-1]]


def _costs(
    graph_module: fx.GraphModule, form: InputForm, cost: str
) -> tuple[dict[fx.Node, tuple[float, float]], dict[fx.Node, tuple[int, ...]]]:
    """The cost that comes before each marker and its share of the whole, and the shape of each tensor."""
    with flop_counter() as counter:
        run = _Run(graph_module, counter.get_total_flops)
        run.run(*form.tensors(), enable_io_processing=False)
    marks = np.array([*run.marks.values(), counter.get_total_flops()], dtype=np.float64)
    if cost == "ms":
        marks = _times(graph_module, form)
    if marks[-1] <= 0:
        raise CutError("no operation of the network has a counted cost; name the modules to exit at")
    reached = [(float(mark), float(mark / marks[-1])) for mark in marks[:-1]]
    return dict(zip(run.marks, reached, strict=True)), run.shapes


def _times(graph_module: fx.GraphModule, form: InputForm) -> NDArray[np.float64]:
    """The seconds from the start to each marker, and to the end, when the graph runs on the example."""
    wait = waiting_for(form.tensors()[0].device)
    # On a processor its own time, which other programs do not lengthen; several threads share each step alike.
    clock = time.process_time if wait is None else time.perf_counter
    ticks: list[float] = []

    def tick(tensor: Tensor | None = None, *_: Any) -> Tensor | None:
        if wait is not None:
            wait()
        ticks.append(clock())
        return tensor

    # As the stages run later: compiled to Python, not node by node.
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    for node in reversed(list(graph.nodes)):
        if is_marker(node):
            node.target = tick
        elif node.op in ("call_function", "call_module") and is_assert(node) and not node.users:
            graph.erase_node(node)
    timed = fx.GraphModule(graph_module, graph)
    rounds: list[list[float]] = []
    begin = clock()
    while len(rounds) < _ROUNDS or (clock() - begin < _SECONDS and len(rounds) < _MOST_ROUNDS):
        ticks.clear()
        tick()
        timed(*[tensor.clone() for tensor in form.tensors()])
        tick()
        rounds.append(list(ticks))
    # The shortest time of each step, after a first round: what disturbs a machine only ever makes it longer.
    times: NDArray[np.float64] = np.diff(rounds[1:], axis=1).min(axis=0).cumsum()
    return times


class _Run(fx.Interpreter):
    """A run of the graph that reads a meter at every marker."""

    def __init__(self, graph_module: fx.GraphModule, meter: Any) -> None:
        super().__init__(graph_module)
        self._meter = meter
        self.marks: dict[fx.Node, float] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if is_marker(n):
            self.marks[n] = self._meter()
            return self.env[n.args[0]]  # type: ignore[index]
        if n.op in ("call_function", "call_module") and is_assert(n):
            return None
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


def _marked(marker: fx.Node) -> fx.Node:
    """The tensor that a marker stands at, past other markers."""
    while is_marker(marker):
        inner = marker.args[0]
        assert isinstance(inner, fx.Node)
        marker = inner
    return marker
