"""The stages and exit heads of a model as ONNX graphs: one file each, batch dimension dynamic."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from eenet._compat import recurrent_in_one
from eenet._extras import require
from eenet.bundle._manifest import StageSpec
from eenet.bundle._onnx import errors_alone, operator_sets_once
from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel, inferring, logits_in
from eenet.runtime._adaptive import tensor_spec
from eenet.stages import LiveTensor, Stage, Step, walk

OPSETS = range(18, 24)
DEFAULT_OPSET = 20
"""Read by every ONNX Runtime since 1.17."""

_HALF = (torch.bfloat16, torch.float16)
_MOST_BYTES = 2**31 - 2**24  # protobuf ends at 2 GiB; the rest is for the graph itself


_MOST_JOINED = 2**29  # joining holds several copies in memory


@dataclass(frozen=True)
class Graphs:
    """The stages of a bundle and the content of its files by name."""

    stages: tuple[StageSpec, ...]
    files: dict[str, bytes]


def onnx_graphs(model: MultiExitModel, opset: int, progress: Callable[[str], None] | None = None) -> Graphs:
    """A model's stages and heads as ONNX; raises `InvalidInputError`, naming the stage, where one cannot be written."""
    report = progress or (lambda _: None)
    for library in ("onnx", "onnxscript"):
        require(library, "export")
    specs: list[StageSpec] = []
    files: dict[str, bytes] = {}
    args, kwargs = model.staged.example
    for stage in model.staged.inference_stages:
        _require_full_precision(stage)
    with inferring(model), torch.inference_mode(mode=False), torch.no_grad():
        live = model.staged.flatten_inputs(*args, **kwargs)
        stages = model.staged.inference_stages
        for k, step in enumerate(walk(stages, live)):
            stage = step.stage
            inputs = tuple(tensor_spec(one) for one in stage.inputs)
            graph = f"stages/{k}.onnx"
            report(f"writing stage {k + 1} of {len(stages)} ({stage.name})")
            if k == len(stages) - 1:
                files[graph] = _graph(_Last(model, stage), live, stage.inputs, stage.name, opset)
                specs.append(StageSpec(stage.name, inputs, graph, None, None))
                break
            feature, index = step.feature, stage.feature_index
            # The head takes the feature with its samples first; where it is passed on like that, it is not sent twice.
            alone = index not in stage.passed or bool(index is not None and stage.outputs[index].batch_dim)
            wrapped = _Early(stage, feature=alone)
            files[graph] = _graph(wrapped, live, stage.inputs, stage.name, opset)
            head = f"heads/{k}.onnx"
            report(f"writing head {k + 1} of {len(stages) - 1} ({stage.name})")
            described = (stage.feature,)
            files[head] = _graph(_Head(model.heads[k]), (feature,), described, f"the head at {stage.name}", opset)
            place = None if alone or index is None else stage.passed.index(index)
            specs.append(StageSpec(stage.name, inputs, graph, head, place))
            live = step.live
    return Graphs(tuple(specs), files)


def plain_graph(model: MultiExitModel, graphs: Graphs, opset: int) -> bytes | None:
    """The plain network as one graph, joined from those of its stages; None where that cannot be.

    Its inputs have the names of the network's arguments, or of the bundle's inputs where some argument is no tensor,
    and its output is "logits". Of a cascade it is the last member, whose stages need nothing that the others computed:
    it is written by itself.
    """
    onnx = require("onnx", "export")
    content = _plain_graph(model, graphs, opset)
    if content is None:
        return None
    whole = onnx.load_from_string(content)
    specs, arguments = model.staged.inference_stages[0].inputs, model.staged.arguments
    called = arguments if len(arguments) == len(specs) else [spec.name for spec in specs]
    _rename(whole.graph, [*called, "logits"])
    named: bytes = whole.SerializeToString(deterministic=True)
    return named


def _rename(graph: Any, names: Sequence[str]) -> None:
    """Give the inputs and outputs of a graph these names, in order; where one is taken the graph stays as it is."""
    ends = [value.name for value in (*graph.input, *graph.output)]
    new = dict(zip(ends, names, strict=True))
    if len(set(names)) < len(names) or (_values_in(graph) - set(ends)) & set(names):
        return
    for part in _graphs_in(graph):
        for value in (*part.input, *part.output):
            value.name = new.get(value.name, value.name)
        for node in part.node:
            for used in (node.input, node.output):
                used[:] = [new.get(name, name) for name in used]


def _graphs_in(graph: Any) -> Iterator[Any]:
    """The graph, and those of its branches and loops."""
    yield graph
    for attribute in (one for node in graph.node for one in node.attribute):
        for part in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graphs_in(part)


def _values_in(graph: Any) -> set[str]:
    """The names of all values, those of branches and loops too."""
    parts = list(_graphs_in(graph))
    held = {one.name for part in parts for one in part.initializer}
    return held | {name for part in parts for node in part.node for name in (*node.input, *node.output)}


def _plain_graph(model: MultiExitModel, graphs: Graphs, opset: int) -> bytes | None:
    """That graph, with the names that joining gave it."""
    if model.plain is not model.backbone:
        args, kwargs = model.staged.example
        inputs = model.staged.inference_stages[0].inputs
        with inferring(model), torch.inference_mode(mode=False), torch.no_grad():
            return _graph(_Plain(model), model.staged.flatten_inputs(*args, **kwargs), inputs, "the last member", opset)
    if sum(map(len, graphs.files.values())) > _MOST_JOINED:
        return None
    onnx, compose = require("onnx", "export"), require("onnx.compose", "export")
    whole: Any = None
    for k, (stage, following) in enumerate(zip(graphs.stages, [*graphs.stages[1:], None], strict=True)):
        assert stage.graph is not None
        part = compose.add_prefix(onnx.load_from_string(graphs.files[stage.graph]), f"stage{k}_")
        given = [value.name for value in part.graph.output][: 1 if following is None else len(following.inputs)]
        if whole is None:
            whole, passed = part, given
            continue
        taken = [value.name for value in part.graph.input]
        io_map = list(zip(passed, taken, strict=True))
        try:
            whole, passed = compose.merge_models(whole, part, io_map=io_map, outputs=given), given
        except (ValueError, onnx.checker.ValidationError):  # it is for measuring only; the stages can be run instead
            return None
    operator_sets_once(onnx, whole)  # joined graphs name theirs once for each
    content: bytes = whole.SerializeToString(deterministic=True)
    return content


def _require_full_precision(stage: Stage) -> None:
    """Raise InvalidInputError where a stage computes in half precision on the way: ONNX Runtime has no such kernels."""
    graphs = (part for part in stage.module.modules() if isinstance(part, fx.GraphModule))
    for node in (node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"):
        dtype = next((one for one in (*node.args, *node.kwargs.values()) if one in _HALF), None)
        if dtype is None:
            continue
        path, kind = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", "the network"))
        where = f"{path.removeprefix('network.')!r} ({str(kind).rpartition('.')[2]})" if path else "the network"
        raise InvalidInputError(
            f"{where} in the stage that ends at {stage.name!r} computes in {str(dtype).removeprefix('torch.')}, as in "
            "an autocast block, which ONNX Runtime cannot run on the CPU; leave the autocast block out of the network "
            "for inference, or use backend='torch'"
        )


class _Early(nn.Module):
    """A stage that gives the next one's tensors and, where asked, its feature with the samples first."""

    def __init__(self, stage: Stage, *, feature: bool) -> None:
        super().__init__()
        self.module = stage.module
        self._stage = stage
        self._feature = feature

    def forward(self, *live: Tensor) -> tuple[Tensor, ...]:
        step = Step(self._stage, self.module(*live))
        return (*step.live, step.feature) if self._feature else step.live


class _Last(nn.Module):
    """The last stage, giving the logits alone."""

    def __init__(self, model: MultiExitModel, stage: Stage) -> None:
        super().__init__()
        self.module = stage.module
        self._final = model.final_logits

    def forward(self, *live: Tensor) -> tuple[Tensor, ...]:
        return (self._final(self.module(*live)),)


class _Plain(nn.Module):
    """The plain network, giving the logits alone."""

    def __init__(self, model: MultiExitModel) -> None:
        super().__init__()
        self.module = model.plain
        self._call, self._classes = model.staged.call_of, model.num_classes

    def forward(self, *live: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self._call(live)
        return (logits_in(self.module(*args, **kwargs), self._classes),)


class _Head(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *live: Tensor) -> tuple[Tensor, ...]:
        return (self.head(live[0]),)


def _graph(
    module: nn.Module, live: tuple[Tensor, ...], described: Sequence[LiveTensor], name: str, opset: int
) -> bytes:
    weights = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    if weights > _MOST_BYTES:
        raise InvalidInputError(
            f"stage {name!r} has {weights / 2**30:.1f} GiB of weights, more than the 2 GiB that one ONNX file holds; "
            "put an exit in the middle of it, or use backend='torch'"
        )
    dynamic = tuple(
        {dim: torch.export.Dim.DYNAMIC for dim, size in enumerate(one.shape) if isinstance(size, str)}
        for one in described
    )
    module.eval()
    try:
        recurrent = recurrent_in_one() if _recurrent(module) else nullcontext()
        # Without torchvision torch.onnx warns of each of its operators in each graph.
        with warnings.catch_warnings(), errors_alone("torch.onnx"), recurrent:
            warnings.simplefilter("ignore")  # what the exporters say of themselves
            program = torch.export.export(module, live, dynamic_shapes={"live": dynamic}, strict=False)
            made = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{name!r} cannot be written as an ONNX graph ({_reason(error)}); use backend='torch', or replace the "
            "operator that ONNX lacks"
        ) from error
    assert made is not None
    proto = made.model_proto
    _refuse_negative_rows(proto)
    _tidy(proto, described)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _recurrent(module: nn.Module) -> bool:
    """Whether a stage has recurrent layers that ONNX has as one operator: the exporter gets plain RNNs wrong so."""
    aten = torch.ops.aten
    graphs = (part.graph for part in module.modules() if isinstance(part, fx.GraphModule))
    used = {node.target for graph in graphs for node in graph.nodes}
    return bool(used & {aten.lstm.input, aten.gru.input}) and not used & {aten.rnn_tanh.input, aten.rnn_relu.input}


def _reason(error: BaseException) -> str:
    innermost = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    return " ".join(str(innermost).split())[:300] or type(innermost).__name__


def _refuse_negative_rows(proto: Any) -> None:
    """Let the graph fail where a row of an embedding is negative, as PyTorch does: ONNX counts it from the end."""
    onnx = require("onnx", "export")
    graph, nodes = proto.graph, list(proto.graph.node)
    rows_of = {one.name: one.dims[0] for one in graph.initializer if len(one.dims) == 2}
    found = []
    for node in nodes:
        target = next((one.value for one in node.metadata_props if one.key == "pkg.torch.onnx.fx_node"), "")
        if node.op_type == "Gather" and "aten.embedding" in target and node.input[0] in rows_of:
            # Past the last row; a row that no table has where the index is negative, the index itself elsewhere.
            past, wide, negative, index = (f"{node.name}_{what}" for what in ("past", "wide", "negative", "index"))
            zero = f"{node.name}_zero"
            for name, value in ((past, rows_of[node.input[0]]), (zero, 0)):
                graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [], [value]))
            found += [
                onnx.helper.make_node("Cast", [node.input[1]], [wide], name=f"{wide}_node", to=onnx.TensorProto.INT64),
                onnx.helper.make_node("Less", [wide, zero], [negative], name=f"{negative}_node"),
                onnx.helper.make_node("Where", [negative, past, wide], [index], name=f"{index}_node"),
            ]
            node.input[1] = index
        found.append(node)
    if len(found) > len(nodes):
        del graph.node[:]
        graph.node.extend(found)


def _tidy(proto: Any, described: Sequence[LiveTensor]) -> None:
    """Leave out what the exporter notes about the machine it ran on, and call sizes by their names."""
    graph = proto.graph
    names: dict[str, str] = {}
    for value, live in zip(graph.input, described, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, live.shape, strict=True):
            if isinstance(size, str) and size.isidentifier() and dim.dim_param:
                names.setdefault(dim.dim_param, size)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    for part in (proto, graph, *graph.node, *graph.initializer, *proto.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in proto.functions:
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
