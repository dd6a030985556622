"""ONNX graphs in int8: convolutions with fixed ranges, matrix products with the range of each row.

Convolutions and what is around them are quantized with ONNX Runtime's own tools: one range of the activations per
tensor, found on samples, written as QDQ. That ruins transformers, whose activations have a few numbers a hundred times
as large as the others. So a matrix product with weights takes the range of each row of its input, of each token or
sample, while it runs. The tools' dynamic quantization takes one range of a whole batch instead: then an answer depends
on which other samples are in the batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eenet._extras import require
from eenet.bundle._onnx import errors_alone, errors_of, operator_sets_once
from eenet.runtime._backend import Array

_MOVE = frozenset({
    "Cast", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "QuantizeLinear", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that compute nothing: they move numbers."""

_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Quantized:
    """A graph in int8: its content, and the kinds of its operators that still compute in fp32.

    `content` is None where nothing in it could be quantized; `reason` says why.
    """

    content: bytes | None
    kept: tuple[str, ...] = ()
    reason: str = ""


def quantized(content: bytes, feeds: Sequence[Mapping[str, Array]], *, weight_bits: int = 7) -> Quantized:
    """The graph with int8 weights and activations; `feeds` are inputs that give the ranges where they are fixed.

    Weights are signed, per output channel; activations unsigned, per tensor for convolutions, per row for matrix
    products: the kernels of x86 processors want both. Products of two activations, as in attention, stay fp32.
    Weights use 7 of their 8 bits, from -64 to 64: x86 processors without VNNI add two products in 16 bits, which
    overflow with 8, so that a graph would answer otherwise there than where it was made and judged.
    """
    onnx, tools = require("onnx", "export"), require("onnxruntime.quantization", "export")
    # Outside of what catches the errors of the tools, as all that is our own: its faults are no matter of the graph.
    registry = require("onnxruntime.quantization.registry", "export").QDQRegistry
    with tempfile.TemporaryDirectory() as folder, errors_alone():  # the tools log through the root logger
        given, ready, made = (Path(folder) / name for name in ("given.onnx", "ready.onnx", "made.onnx"))
        given.write_bytes(content)
        try:
            # Batch norms go into convolutions, and shapes are inferred, as the quantizer wants it.
            tools.quant_pre_process(given, ready, skip_symbolic_shape=True)
            graph = onnx.load(ready)
            operator_sets_once(onnx, graph)
            onnx.save(graph, ready)
            if any(node.op_type in ("Conv", "ConvTranspose") for node in graph.graph.node):
                tools.quantize_static(
                    ready,
                    made,
                    _Reader(feeds),
                    quant_format=tools.QuantFormat.QDQ,
                    op_types_to_quantize=[one for one in registry if one not in _PRODUCTS],
                    per_channel=True,
                    activation_type=tools.QuantType.QUInt8,
                    weight_type=tools.QuantType.QInt8,
                    reduce_range=weight_bits == 7,
                )
            else:
                made = ready
        except _failures(onnx) as error:
            return Quantized(None, reason=" ".join(str(error).split())[:200] or type(error).__name__)
        graph = onnx.load(made)
        known = (*onnx.load(ready).graph.value_info, *graph.graph.output)
    opset = next(one.version for one in graph.opset_import if one.domain in ("", "ai.onnx"))
    by_row = _products_by_row(onnx, graph.graph, opset, 64 if weight_bits == 7 else 127)
    nodes = graph.graph.node
    from_int8 = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = [node for node in nodes if node.op_type in ("Conv", "ConvTranspose")]
    if not by_row and not any(set(node.input) & from_int8 for node in convolutions):
        return Quantized(None, reason="it has no convolution or matrix product with weights")
    floats = {value.name for value in known if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    quantized_by_tools = (node for node in nodes if node.op_type not in _PRODUCTS and set(node.input) & from_int8)
    in_fp32 = floats - by_row - {name for node in quantized_by_tools for name in node.output}
    kept = {node.op_type for node in nodes if node.op_type not in _MOVE and in_fp32 & set(node.output)}
    del graph.graph.value_info[:]
    for part in (graph, graph.graph, *nodes, *graph.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return Quantized(graph.SerializeToString(deterministic=True), tuple(sorted(kept)))


def _products_by_row(onnx: Any, graph: Any, opset: int, most: int) -> set[str]:
    """Put in place of each product with constant weights one in int8, whose activations have a range per row.

    Gives the names of all that the new nodes make. The rows of the input are divided by their largest magnitude, and
    rounded to 1 to 255 with 128 for zero, which all processors have quick kernels for; weights go from `-most` to
    `most` by output channel.
    """
    given = {one.name for one in graph.input}  # which may take the place of an initializer of that name
    constants = {one.name: one for one in graph.initializer if one.name not in given}
    prefix = "by_row"
    while any(name.startswith(prefix) for name in _names_in(graph)):
        prefix = f"_{prefix}"
    nodes, scaled, made = [], {}, set[str]()
    for node in graph.node:
        weights = _weights_of(onnx, node, constants)
        if weights is None:
            nodes.append(node)
            continue
        new = _Nodes(onnx, graph, f"{prefix}/{len(nodes)}")
        source = node.input[0]
        if source not in scaled:  # query, key and value are made of the same rows
            absolute = new("Abs", source)
            if opset < 18:
                largest = new("ReduceMax", absolute, axes=[-1], keepdims=1)
            else:
                largest = new("ReduceMax", absolute, new.constant(np.array([-1])), keepdims=1)
            magnitude = new("Max", largest, new.constant(np.float32(1e-20)))
            step, zero = new.constant(np.float32(1 / 127)), new.constant(np.uint8(128))
            scaled[source] = magnitude, new("QuantizeLinear", new("Div", source, magnitude), step, zero), zero
        magnitude, rows, zero = scaled[source]
        steps = np.maximum(np.abs(weights).max(axis=0) / most, 1e-20)
        product = new("MatMulInteger", rows, new.constant(np.rint(weights / steps).astype(np.int8)), zero)
        by_column = new("Mul", new("Cast", product, to=onnx.TensorProto.FLOAT), new.constant(np.float32(steps / 127)))
        product = new("Mul", by_column, magnitude)
        if len(node.input) == 3 and node.input[2]:
            product = new("Add", product, node.input[2])
        new.made[-1].output[0] = node.output[0]
        nodes.extend(new.made)
        made.update(name for one in new.made for name in one.output)
    del graph.node[:]
    graph.node.extend(nodes)
    used = set(_names_in(graph))
    for one in list(graph.initializer):
        if one.name not in used:
            graph.initializer.remove(one)
    return made


def _names_in(graph: Any) -> Iterator[str]:
    """All names of nodes and of what they take and make, those of a branch or a loop too, and of the outputs."""
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names_in(inner)
    yield from (one.name for one in graph.output)


def _weights_of(onnx: Any, node: Any, constants: Mapping[str, Any]) -> Array | None:
    """The constant weights (inputs, outputs) of a product that can be made by rows; None for any other node."""
    if node.op_type not in _PRODUCTS or node.input[1] not in constants or node.input[0] in constants:
        return None
    asked = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if asked.get("transA", 0) or asked.get("alpha", 1) != 1 or asked.get("beta", 1) != 1:
        return None
    weights: Array = onnx.numpy_helper.to_array(constants[node.input[1]])
    if weights.ndim != 2 or weights.dtype != np.float32 or not np.isfinite(weights).all():
        return None
    return weights.T if asked.get("transB", 0) else weights


class _Nodes:
    """Makes the nodes and constants of one product."""

    def __init__(self, onnx: Any, graph: Any, prefix: str) -> None:
        self._onnx, self._graph, self._prefix = onnx, graph, prefix
        self._constants = 0
        self.made: list[Any] = []

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self._prefix}/{len(self.made)}"
        self.made.append(self._onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"{self._prefix}/constant/{self._constants}"
        self._constants += 1
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name


class _Reader:
    """Gives the quantizer its samples, one batch after the other."""

    def __init__(self, feeds: Sequence[Mapping[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._feeds, None)

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        return self._feeds


def _failures(onnx: Any) -> tuple[type[Exception], ...]:
    """What the tools raise for a graph that they cannot quantize; none of it has a base of its own."""
    checks = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    known = errors_of(require("onnxruntime", "onnx"))
    return (*known, *checks, ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError)
