"""Static quantization of ONNX graphs with ONNX Runtime's own tools: int8 per channel, written as QDQ."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eenet._extras import require
from eenet.bundle._onnx import _errors_of, errors_alone, operator_sets_once
from eenet.runtime._backend import Array

_MOVE = frozenset({
    "Cast", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "QuantizeLinear", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that compute nothing: they move numbers."""


@dataclass(frozen=True)
class Quantized:
    """A graph in int8: its content, and the kinds of its operators that still compute in fp32.

    `content` is None where nothing in it could be quantized; `reason` says why.
    """

    content: bytes | None
    kept: tuple[str, ...] = ()
    reason: str = ""


def quantized(content: bytes, feeds: Sequence[Mapping[str, Array]], *, weight_bits: int = 7) -> Quantized:
    """The graph with int8 weights and activations, whose ranges are those of the inputs in `feeds`.

    Weights are signed, per output channel; activations unsigned, per tensor: the kernels of x86 processors want both.
    Weights use 7 of their 8 bits, from -64 to 64: x86 processors without VNNI add two products in 16 bits, which
    overflow with 8, so that a graph would answer otherwise there than where it was made and judged.
    """
    onnx, tools = require("onnx", "export"), require("onnxruntime.quantization", "export")
    with tempfile.TemporaryDirectory() as folder, errors_alone():  # the tools log through the root logger
        given, ready, made = (Path(folder) / name for name in ("given.onnx", "ready.onnx", "made.onnx"))
        given.write_bytes(content)
        try:
            # Batch norms go into convolutions, and shapes are inferred, as the quantizer wants it.
            tools.quant_pre_process(given, ready, skip_symbolic_shape=True)
            graph = onnx.load(ready)
            operator_sets_once(onnx, graph)
            onnx.save(graph, ready)
            tools.quantize_static(
                ready,
                made,
                _Reader(feeds),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                reduce_range=weight_bits == 7,
            )
            graph = onnx.load(made)
            known = (*onnx.load(ready).graph.value_info, *graph.graph.output)
        except _failures(onnx) as error:
            return Quantized(None, reason=" ".join(str(error).split())[:200] or type(error).__name__)
    nodes = graph.graph.node
    from_int8 = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    products = [node for node in nodes if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    if not any(set(node.input) & from_int8 for node in products):
        return Quantized(None, reason="it has no convolution or matrix product with weights")
    floats = {value.name for value in known if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    kept = {
        node.op_type
        for node in nodes
        if node.op_type not in _MOVE and floats & set(node.output) and not from_int8 & set(node.input)
    }
    del graph.graph.value_info[:]
    for part in (graph, graph.graph, *nodes, *graph.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return Quantized(graph.SerializeToString(deterministic=True), tuple(sorted(kept)))


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
    known = _errors_of(require("onnxruntime", "onnx"))
    return (*known, *checks, ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError)
