"""The private APIs that the library uses: what each must do, and what to do when a release removes it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import unittest.mock
import warnings
from typing import Any

import pytest
import torch
from optional import import_or_skip
from torch import nn

from eenet import _compat

REMOVED = "`eenet._compat.{name}` is gone from {library} {version}: {todo}"


def needs(name: str, todo: str) -> Any:
    """The private API, or a failure that says what to do about it."""
    try:
        return getattr(_compat, name)
    except (AttributeError, ImportError) as error:
        message = REMOVED.format(name=name, library="torch", version=torch.__version__, todo=todo)
        pytest.fail(f"{message} ({error})")


def test_nested_structures() -> None:
    todo = "use its public successor (torch.utils.pytree) where there is one, else flatten with the package `optree`"
    pytree = needs("pytree", todo)
    value = {"a": torch.ones(1), "b": (2, [torch.zeros(1)])}
    leaves, spec = pytree.tree_flatten(value)
    assert isinstance(spec, pytree.TreeSpec), todo
    assert len(leaves) == 3, todo
    assert pytree.tree_unflatten(leaves, spec) == value, todo
    assert [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(value)[0]] == [
        "['a']",
        "['b'][0]",
        "['b'][1][0]",
    ]
    doubled = pytree.tree_map_only(torch.Tensor, lambda t: t + 1, value)
    assert doubled["b"][0] == 2, todo
    assert float(doubled["a"]) == 2, todo


def test_the_base_of_all_batch_norms() -> None:
    todo = "list the classes: BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm"
    base = needs("BatchNorm", todo)
    for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(norm, base), todo
    assert not issubclass(nn.LayerNorm, base), todo


def test_the_operators_of_a_graph() -> None:
    todo = "see what `type(node.target)` is in a graph of torch.export, and import it from where it is now"
    assert isinstance(torch.ops.aten.add.Tensor, needs("OpOverload", todo)), todo
    assert isinstance(torch.ops.higher_order.cond, needs("HigherOrderOperator", todo)), todo


def test_what_a_graph_says_of_itself() -> None:
    class Adding(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            torch._check(x.shape[0] > 1)  # type: ignore[no-untyped-call]
            return {"sum": x.add_(1)}

    graph = torch.export.export(Adding(), (torch.ones(3),), strict=False).module()
    nodes = {node.op: node for node in graph.graph.nodes}
    spec = _compat.out_spec_of(graph)
    assert isinstance(spec, _compat.pytree.TreeSpec), "see where torch.export keeps out_spec: ExportedProgram.call_spec"
    adding = next(node for node in graph.graph.nodes if isinstance(node.target, _compat.OpOverload))
    changed = [argument.alias_info is not None for argument in _compat.schema_of(adding.target).arguments]
    assert changed[0], "see how an operator says now which arguments it changes, and mend schema_of"
    _compat.rename_node(nodes["placeholder"], "renamed")
    assert nodes["placeholder"].name == "renamed", "see torch.fx.Node for another way to rename a node"
    assert _compat.torch_check is torch._check, "see what a check of sizes is called in a graph of torch.export"


def test_what_tensors_and_modules_hold() -> None:
    tensor = torch.ones(2)
    before = _compat.version_of(tensor)
    tensor.add_(1)
    assert _compat.version_of(tensor) > before, "compare copies, to see whether a tensor was changed in place"
    todo = "nn.Module holds its tensors otherwise: register them with register_parameter and register_buffer"
    module = nn.BatchNorm1d(2)
    assert set(_compat.buffers_of(module)) == {"running_mean", "running_var", "num_batches_tracked"}, todo
    other = torch.zeros(2)
    _compat.put_tensor(module, "running_mean", other, parameter=False, persistent=False)
    assert module.running_mean is other, todo
    assert "running_mean" not in module.state_dict(), todo
    _compat.put_tensor(module, "running_mean", nn.Parameter(other), parameter=True, persistent=True)
    assert dict(module.named_parameters())["running_mean"] is module.running_mean, todo
    assert "running_mean" in module.state_dict(), todo


@pytest.mark.parametrize("name", ["aoti_compile_and_package", "aoti_load_package"])
def test_compilation_ahead_of_time(name: str) -> None:
    todo = "look for it in torch.export or torch.compiler; tests/optimize says whether its arguments are the same"
    assert callable(needs(name, todo)), todo


def test_an_unknown_name_is_no_private_api() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = _compat.nothing


def test_the_hint_of_fabric_about_precision(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = import_or_skip("lightning_fabric.accelerators.cuda")
    todo = "Fabric gives its hint in other words or by another logger: correct `no_precision_hint`, or remove it"
    gpu = {"is_available": True, "get_device_capability": (9, 0), "get_device_name": "a GPU"}
    caplog.set_level(logging.INFO)
    for name in ("lightning_fabric", "lightning.fabric", "lightning.pytorch", "pytorch_lightning"):
        for logger in map(logging.getLogger, (name, f"{name}.utilities", f"{name}.utilities.rank_zero")):
            # Whatever a library did to loggers that were there when it configured its own.
            quiet: tuple[tuple[str, Any], ...] = (("disabled", False), ("propagate", True), ("level", logging.NOTSET))
            for attribute, value in quiet:
                monkeypatch.setattr(logger, attribute, value)
    for within, logged in ((contextlib.nullcontext(), 1), (_compat.no_precision_hint(), 0)):
        caplog.clear()
        cuda._check_cuda_matmul_precision.cache_clear()
        with within, contextlib.ExitStack() as stack:
            for name, value in gpu.items():
                stack.enter_context(unittest.mock.patch.object(torch.cuda, name, return_value=value))
            cuda._check_cuda_matmul_precision(torch.device("cuda", 0))
        assert len(caplog.records) == logged, todo
    with _compat.no_precision_hint():
        cuda.rank_zero_info("something else")
    assert caplog.messages == ["something else"]


def test_the_attention_of_a_configuration() -> None:
    transformers = import_or_skip("transformers")
    todo = (
        "transformers no longer keeps the attention implementation in `config._attn_implementation`: build the network "
        "with Model._from_config(config, attn_implementation=...) or its public successor"
    )
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    for name in ("eager", "sdpa"):
        config = transformers.BertConfig(**small)
        _compat.set_attention(config, name)
        network = transformers.BertModel(config)
        assert _compat.attention_of(network.config) == name, todo


def test_fake_tensors_and_the_caches_that_keep_them() -> None:
    todo = "find what tensors torch.export traces with, and how to recognize them"

    @functools.lru_cache
    def cached(n: int) -> list[torch.Tensor]:
        return [torch.ones(n)]

    class Cached(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + cached(3)[0]

    torch.export.export(Cached(), (torch.ones(3),), strict=False)
    assert needs("is_fake", todo)(cached(3)[0]), todo
    assert not _compat.is_fake(torch.ones(3))
    assert needs("clear_fake_caches", todo)() == ["cached"], todo
    assert type(cached(3)[0]) is torch.Tensor
    assert _compat.clear_fake_caches() == []


def test_what_export_raises_and_prints(capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    error = needs("SpecViolationError", "remove it from the errors that stages/_capture.py expects")
    assert issubclass(error, Exception)
    with pytest.raises(RuntimeError), _compat.quiet_trace():
        torch.export.export(Branching(), (torch.ones(3),), strict=False)
    assert capfd.readouterr() == ("", ""), "torch.export writes in another way where it fails: silence that too"


def test_the_serialization_of_calls_on_ray() -> None:
    handles = import_or_skip("ray.serve.handle")
    todo = (
        "Ray Serve has no option `_by_reference` any more: see DeploymentHandle.options. Where it leaves the "
        "serialization to Ray, `by_reference` is no longer needed (tests/serving/test_serving_ray.py)"
    )
    assert "_by_reference" in inspect.signature(handles.DeploymentHandle.options).parameters, todo
    handle = unittest.mock.Mock(spec=handles.DeploymentHandle)
    assert _compat.by_reference(handle) is handle.options.return_value
    handle.options.assert_called_once_with(_by_reference=True)


def test_recurrent_layers_are_traced_as_one_operator() -> None:
    todo = "without it LSTMs are traced step by step: see how torch.export now finds the shapes that `aten.lstm` gives"
    kept = needs("recurrent_in_one", todo)
    operators = [getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
    before = [dict(operator.py_kernels) for operator in operators]
    x, dynamic = torch.randn(2, 30, 4), torch.export.Dim.DYNAMIC
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        module = kind(4, 8, batch_first=True)
        with kept(), _compat.quiet_trace(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch.export on the list of weights that the layers keep
            program = torch.export.export(module, (x,), dynamic_shapes=({0: dynamic, 1: dynamic},), strict=False)
        other = torch.randn(3, 7, 4)
        torch.testing.assert_close(program.module()(other)[0], module(other)[0], msg=todo)
    assert [dict(operator.py_kernels) for operator in operators] == before, todo


def test_flops_without_modules() -> None:
    todo = "count with torch's FlopCounterMode as it is; see whether it works on graphs with an autocast block"
    with needs("flop_counter", todo)() as counter:
        nn.Linear(4, 8)(torch.ones(2, 4))
    assert counter.get_total_flops() == 2 * 2 * 4 * 8, todo


def test_an_exception_that_leaves_several_modules_of_a_trace() -> None:
    todo = "find where torch.fx keeps the modules that a trace is in, or end networks early in another way"

    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(Inner())
            self.after = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                with _compat.left_by_exception():
                    self.inner(x)
            except KeyError:
                pass
            after: torch.Tensor = self.after(x)
            return after

    x, network = torch.randn(2, 3), nn.Sequential(Outer())
    program = torch.export.export(network, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), network(x), msg=todo)
