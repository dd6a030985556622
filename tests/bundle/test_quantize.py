"""A plain network in int8: `eenet.bundle.onnx.quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optional import import_or_skip

import eenet.bundle.onnx
from eenet.errors import FileFormatError, InvalidInputError

for _library in ("onnx", "onnxruntime"):
    import_or_skip(_library)


def graph(path: Path, *, batch: Any = "batch", weights: bool = True) -> Path:
    """Two matrix products of an input "x" of 6 numbers with a softmax behind; without `weights`, a softmax alone."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("a", (6, 16)), ("b", (16, 4)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"]),
    ]
    if not weights:
        nodes, tensors = [helper.make_node("Softmax", ["x"], ["y"])], []
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4 if weights else 6])]
    made = helper.make_graph(nodes, "plain", inputs, outputs, tensors)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def answers(path: Path, x: Any) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options).run(None, {"x": x})[0]


@pytest.mark.parametrize("batch", ["batch", 8])
def test_answers_stay_near_and_the_weights_are_signed_the_activations_unsigned(tmp_path: Path, batch: Any) -> None:
    import onnx

    plain, made = graph(tmp_path / "plain.onnx", batch=batch), tmp_path / "made.onnx"
    x = np.random.default_rng(1).normal(size=(100, 6)).astype(np.float32)
    assert eenet.bundle.onnx.quantize(plain, made, x) == ("Relu", "Softmax")
    assert eenet.bundle.onnx.quantize(plain, tmp_path / "again.onnx", {"x": x}) == ("Relu", "Softmax")
    assert made.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    np.testing.assert_allclose(answers(made, x[:8]), answers(plain, x[:8]), atol=0.05)
    graph_made = onnx.load(made).graph
    kinds = {one.name: one.data_type for one in graph_made.initializer}
    assert onnx.TensorProto.INT8 in kinds.values()
    zeros = {kinds[node.input[2]] for node in graph_made.node if node.op_type == "QuantizeLinear"}
    assert zeros == {onnx.TensorProto.UINT8}


def test_no_sum_overflows_on_any_processor(tmp_path: Path) -> None:
    """Of two products of uint8 and int8 in 16 bits, as processors without VNNI add them."""
    import onnx
    from onnx import numpy_helper

    plain, made = graph(tmp_path / "plain.onnx"), tmp_path / "made.onnx"
    network = onnx.load(plain)
    for weights in network.graph.initializer:  # all the largest that there are
        weights.CopyFrom(numpy_helper.from_array(np.full(list(weights.dims), 0.1, np.float32), weights.name))
    network.graph.node[-1].op_type = "Identity"
    onnx.save(network, plain)
    x = np.ones((64, 6), np.float32)
    x[0] = 0
    eenet.bundle.onnx.quantize(plain, made, x)
    np.testing.assert_allclose(answers(made, x), answers(plain, x), rtol=0.01, atol=1e-6)
    for one in onnx.load(made).graph.initializer:
        if one.data_type == onnx.TensorProto.INT8:
            assert 2 * 255 * np.abs(numpy_helper.to_array(one).astype(int)).max(initial=0) < 2**15


def tokens(path: Path, *, opset: int = 20, alpha: float = 1.0) -> Path:
    """Two products and a Gemm of one input of 5 tokens of 24 numbers, and a product of their results, as in attention.

    The weights of the Gemm are transposed, and its result times `alpha`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("q", (24, 8)), ("k", (24, 8)), ("g", (8, 40)), ("b", (8,)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["xq"]),
        helper.make_node("MatMul", ["x", "k"], ["xk"]),
        helper.make_node("Transpose", ["xk"], ["kx"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["xq", "kx"], ["scores"]),
        helper.make_node("MatMul", ["scores", "xq"], ["mixed"]),
        helper.make_node("Flatten", ["mixed"], ["flat"]),
        helper.make_node("Gemm", ["flat", "g", "b"], ["y"], transB=1, alpha=alpha),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5, 24])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])]
    made = helper.make_graph(nodes, "tokens", inputs, outputs, tensors)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.mark.parametrize("opset", [9, 13, 20])
def test_a_matrix_product_takes_the_range_of_each_row(tmp_path: Path, opset: int) -> None:
    plain, made = tokens(tmp_path / "plain.onnx", opset=opset), tmp_path / "made.onnx"
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, 5, 24)).astype(np.float32)
    # One range for all would leave samples that are a million times smaller nothing but zeros.
    x *= (10.0 ** rng.integers(-3, 4, size=(64, 1, 1))).astype(np.float32)
    assert "Gemm" not in eenet.bundle.onnx.quantize(plain, made, x)
    right, got = answers(plain, x), answers(made, x)
    sizes = np.abs(right).max(axis=1, keepdims=True)
    assert np.median(np.abs(got - right) / sizes) < 0.02
    assert np.max(np.abs(got - right) / sizes) < 0.2
    for rows in ([3], [0, 5, 60], list(range(32))):  # whatever else is in the batch
        np.testing.assert_array_equal(answers(made, x[rows]), got[rows])
    assert np.isfinite(answers(made, np.zeros((1, 5, 24), np.float32))).all()


def test_products_of_activations_and_scaled_ones_stay_fp32(tmp_path: Path) -> None:
    import onnx

    x = np.random.default_rng(1).normal(size=(64, 5, 24)).astype(np.float32)
    made = tmp_path / "made.onnx"
    assert eenet.bundle.onnx.quantize(tokens(tmp_path / "plain.onnx", alpha=0.5), made, x) == ("Gemm", "MatMul")
    kinds = [node.op_type for node in onnx.load(made).graph.node]
    assert (kinds.count("MatMulInteger"), kinds.count("MatMul"), kinds.count("Gemm")) == (2, 2, 1)
    assert kinds.count("QuantizeLinear") == 1, "two products of one input need its rows rounded once"


def written(path: Path, nodes: list[Any], weights: dict[str, Any], inputs: dict[str, list[Any]], **more: Any) -> Path:
    """A graph of float32 inputs with one output "y"; `more` inputs are by their type."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    given += [helper.make_tensor_value_info(name, kind, []) for name, kind in more.items()]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "made", given, [output], tensors)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def kinds_in(path: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(path).graph.node]


def test_convolutions_have_fixed_ranges_and_the_product_behind_them_one_of_each_row(tmp_path: Path) -> None:
    from onnx import helper

    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weights = {"k": rng.normal(size=(4, 3, 3, 3)), "w": rng.normal(size=(4, 5))}
    plain, made = written(tmp_path / "plain.onnx", nodes, weights, {"x": ["n", 3, 8, 8]}), tmp_path / "made.onnx"
    x = rng.normal(size=(64, 3, 8, 8)).astype(np.float32)
    eenet.bundle.onnx.quantize(plain, made, x)
    kinds = kinds_in(made)
    assert {"Conv", "QuantizeLinear", "DequantizeLinear", "MatMulInteger"} <= set(kinds)
    assert "MatMul" not in kinds
    np.testing.assert_allclose(answers(made, x), answers(plain, x), atol=0.2)


def test_weights_that_a_branch_reads_too_are_kept_for_it(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    onnxruntime = pytest.importorskip("onnxruntime")
    out = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(kind, ["m", "w"], ["t"])], name, [], [out])
        for name, kind in (("then", "Add"), ("else", "MatMul"))
    }
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("If", ["c"], ["y"], **branches)]
    weights = {"w": np.random.default_rng(0).normal(size=(6, 6))}
    plain = written(tmp_path / "plain.onnx", nodes, weights, {"x": [6, 6]}, c=TensorProto.BOOL)
    from eenet.bundle._quantize import quantized

    feed = {"x": np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32), "c": np.array(True)}
    content = quantized(plain.read_bytes(), [feed]).content
    assert content is not None
    for c in (True, False):
        feed["c"] = np.array(c)
        got, right = (onnxruntime.InferenceSession(g).run(None, feed)[0] for g in (content, plain.read_bytes()))
        np.testing.assert_allclose(got, right, atol=0.5)


def test_weights_that_a_caller_can_give_stay_as_they_are(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("MatMul", ["m", "v"], ["y"])]
    weights = {"w": np.eye(6), "v": np.eye(6)}
    plain = written(tmp_path / "plain.onnx", nodes, weights, {"x": ["n", 6], "w": [6, 6]})
    kept = eenet.bundle.onnx.quantize(plain, tmp_path / "made.onnx", np.ones((32, 6), np.float32))
    assert kept == ("MatMul",)
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "made.onnx")
    feed = {"x": np.ones((2, 6), np.float32), "w": np.full((6, 6), 2, np.float32)}
    np.testing.assert_allclose(session.run(None, feed)[0], np.full((2, 6), 12), rtol=0.01)


def test_names_that_are_taken_and_a_bias_that_is_left_out_do_no_harm(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Relu", ["x"], ["by_row/0/0"], name="by_row/0/1"),
        helper.make_node("Gemm", ["by_row/0/0", "by_row/0/constant/0", ""], ["y"], name="_by_row"),
    ]
    weights = {"by_row/0/constant/0": np.random.default_rng(0).normal(size=(6, 4))}
    plain, made = written(tmp_path / "plain.onnx", nodes, weights, {"x": ["n", 6]}), tmp_path / "made.onnx"
    x = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
    assert eenet.bundle.onnx.quantize(plain, made, x) == ("Relu",)
    np.testing.assert_allclose(answers(made, x), answers(plain, x), atol=0.1)
    with pytest.raises(InvalidInputError, match="no convolution or matrix product with weights"):
        eenet.bundle.onnx.quantize(made, tmp_path / "again.onnx", x)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((20, 6), np.float32), r"samples have \[20\] rows.*at least 32"),
        ({"y": np.zeros((40, 6), np.float32)}, r"samples are \['y'\], the network takes \['x'\]"),
        (np.zeros((40, 5), np.float32), "does not take these samples"),
        (np.zeros((40, 6), np.float64), "does not take these samples"),
        (np.float32(1.0), r"samples have \[0\] rows"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path: Path, samples: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        eenet.bundle.onnx.quantize(graph(tmp_path / "plain.onnx"), tmp_path / "made.onnx", samples)
    assert [one.name for one in tmp_path.iterdir()] == ["plain.onnx"]


def test_what_is_no_network_or_has_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    x = np.zeros((40, 6), np.float32)
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(FileFormatError, match=r"cannot load .*text\.onnx"):
        eenet.bundle.onnx.quantize(tmp_path / "text.onnx", tmp_path / "made.onnx", x)
    plain = graph(tmp_path / "plain.onnx", weights=False)
    with pytest.raises(InvalidInputError, match="cannot be quantized: it has no convolution or matrix product"):
        eenet.bundle.onnx.quantize(plain, tmp_path / "made.onnx", x)
    with pytest.raises(InvalidInputError, match="takes 64 at a time"):
        eenet.bundle.onnx.quantize(graph(tmp_path / "fixed.onnx", batch=64), tmp_path / "made.onnx", x)
    assert not (tmp_path / "made.onnx").exists()


def test_weights_that_lie_beside_the_graph_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As torch.onnx.export writes a network by default.
    import onnx

    x = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    whole, apart = graph(tmp_path / "whole.onnx"), tmp_path / "apart" / "net.onnx"
    apart.parent.mkdir()
    onnx.save(onnx.load(whole), apart, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    eenet.bundle.onnx.quantize(whole, tmp_path / "whole-int8.onnx", x)
    for folder, path in ((tmp_path, apart), (apart.parent, Path("net.onnx"))):
        monkeypatch.chdir(folder)
        eenet.bundle.onnx.quantize(path, tmp_path / "apart-int8.onnx", x)
        assert (tmp_path / "apart-int8.onnx").read_bytes() == (tmp_path / "whole-int8.onnx").read_bytes()
    (apart.parent / "net.onnx.data").unlink()
    with pytest.raises(FileFormatError, match=r"the weights of .*net\.onnx.* cannot be read .*external_data=False"):
        eenet.bundle.onnx.quantize(apart, tmp_path / "lost.onnx", x)
    assert not (tmp_path / "lost.onnx").exists()


def test_a_graph_that_gives_infinity_for_what_was_a_number_is_not_written(tmp_path: Path) -> None:
    from onnx import helper

    nodes, weights = [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.full((2, 3), 1.7015e38)}
    plain, made = written(tmp_path / "plain.onnx", nodes, weights, {"x": ["n", 2]}), tmp_path / "made.onnx"
    x = np.tile(np.array([1, 0.5], np.float32), (40, 1))
    eenet.bundle.onnx.quantize(plain, made, x)
    made.unlink()
    x[[3, 30]] = [1, 0.997]  # of which the second is rounded up, and the sum is too large for float32
    assert np.isfinite(answers(plain, x)).all()
    with pytest.raises(InvalidInputError, match="in int8 gives NaN or infinity for 2 of the 40 samples"):
        eenet.bundle.onnx.quantize(plain, made, x)
    assert not made.exists()


def test_what_the_network_itself_gives_as_infinity_is_no_fault_of_int8(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Log", ["m"], ["y"])]
    weights = {"w": np.ones((2, 3))}
    plain, made = written(tmp_path / "plain.onnx", nodes, weights, {"x": ["n", 2]}), tmp_path / "made.onnx"
    x = np.ones((40, 2), np.float32)
    x[5] = 0
    eenet.bundle.onnx.quantize(plain, made, x)
    np.testing.assert_array_equal(np.isinf(answers(made, x)), np.isinf(answers(plain, x)))


def test_samples_that_are_not_finite_give_no_ranges(tmp_path: Path) -> None:
    x = np.ones((40, 6), np.float32)
    x[7, 2] = np.nan
    with pytest.raises(InvalidInputError, match="samples of 'x' hold NaN or infinity, of which the quantizer can take"):
        eenet.bundle.onnx.quantize(graph(tmp_path / "plain.onnx"), tmp_path / "made.onnx", x)
    assert not (tmp_path / "made.onnx").exists()
