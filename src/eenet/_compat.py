"""Every private API of torch, Lightning, Ray and transformers that the library uses, and why no public one does.

The names of `_PRIVATE` are imported when first used, so that `eenet` can be used without these libraries.
`tests/test_compat.py` tests each, with a message that says what to do when a release removes it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import logging
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import torch
    import torch.utils._pytree as pytree
    from torch import _check as torch_check
    from torch._export.verifier import SpecViolationError as SpecViolationError
    from torch._inductor import aoti_compile_and_package as aoti_compile_and_package
    from torch._inductor import aoti_load_package as aoti_load_package
    from torch._ops import HigherOrderOperator as HigherOrderOperator
    from torch._ops import OpOverload as OpOverload
    from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
    from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "BatchNorm",
    "HigherOrderOperator",
    "OpOverload",
    "SpecViolationError",
    "aoti_compile_and_package",
    "aoti_load_package",
    "attention_of",
    "buffers_of",
    "by_reference",
    "clear_fake_caches",
    "flop_counter",
    "is_fake",
    "no_precision_hint",
    "out_spec_of",
    "put_tensor",
    "pytree",
    "quiet_trace",
    "recurrent_in_one",
    "rename_node",
    "schema_of",
    "set_attention",
    "torch_check",
    "version_of",
]

_PRIVATE = {
    # Nested inputs and outputs. torch has no public module for them; that of `optree` is another dependency.
    "pytree": ("torch.utils._pytree", None),
    # The common base of all batch norms, by which they are recognized.
    "BatchNorm": ("torch.nn.modules.batchnorm", "_BatchNorm"),
    # What the nodes of an exported graph call.
    "OpOverload": ("torch._ops", "OpOverload"),
    "HigherOrderOperator": ("torch._ops", "HigherOrderOperator"),
    "torch_check": ("torch", "_check"),
    # What torch.export raises for a graph that it cannot keep.
    "SpecViolationError": ("torch._export.verifier", "SpecViolationError"),
    # Stages compiled ahead of time.
    "aoti_compile_and_package": ("torch._inductor", "aoti_compile_and_package"),
    "aoti_load_package": ("torch._inductor", "aoti_load_package"),
}


def __getattr__(name: str) -> Any:
    if name not in _PRIVATE:
        raise AttributeError(f"module 'eenet._compat' has no attribute {name!r}")
    module, attribute = _PRIVATE[name]
    value: Any = import_module(module)
    if attribute is not None:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


@contextlib.contextmanager
def quiet_trace() -> Iterator[None]:
    """Keep torch.export from logging, and from printing the graph where it fails; for this thread only.

    It has no setting for that. What else is printed in the block is printed at its end, where it does not fail.
    """
    here = threading.get_ident()
    stream = sys.stderr
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    handlers = {handler for logger in loggers for handler in logger.handlers}

    def keep(record: logging.LogRecord) -> bool:
        return record.thread != here or not record.name.startswith("torch")

    held = _Held(stream, here)
    for handler in handlers:
        handler.addFilter(keep)
    sys.stderr = held
    try:
        yield
        stream.write(held.text.getvalue())
    finally:
        sys.stderr = stream
        for handler in handlers:
            handler.removeFilter(keep)


@contextlib.contextmanager
def recurrent_in_one() -> Iterator[None]:
    """Trace an LSTM, GRU or RNN as the one operator that it is, for a sequence of any length.

    To find the shapes of its outputs, torch.export otherwise traces it step by step, at about 0.1 s for each step, and
    fixes the number of steps.
    """
    import torch
    from torch._C import DispatchKey

    aten = torch.ops.aten
    operators = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
    keys = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
    before = [(operator, dict(operator.py_kernels)) for operator in operators]
    try:
        for operator in operators:
            operator.py_kernels.update(dict.fromkeys(keys, _recurrent_shapes))
            operator._dispatch_cache.clear()
        yield
    finally:
        for operator, kernels in before:
            operator.py_kernels.clear()
            operator.py_kernels.update(kernels)
            operator._dispatch_cache.clear()


@contextlib.contextmanager
def left_by_exception() -> Iterator[None]:
    """A block in a trace that an exception may leave from inside modules that torch.fx would then take to be open."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    stack = getattr(getattr(get_proxy_mode(), "tracer", None), "module_stack", None)
    before = None if stack is None else list(stack.items())
    try:
        yield
    finally:
        if stack is not None and before is not None:
            stack.clear()
            stack.update(before)


def _recurrent_shapes(x: torch.Tensor, state: Any, _parameters: Any, *settings: Any) -> tuple[torch.Tensor, ...]:
    """Tensors of the shapes and strides that a recurrent operator gives; its last settings are how it runs."""
    bidirectional, batch_first = settings[-2:]
    states = tuple(state) if isinstance(state, (list, tuple)) else (state,)
    steps, batch = (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
    output = x.new_empty((steps, batch, states[0].shape[-1] * (2 if bidirectional else 1)))
    return (output.transpose(0, 1) if batch_first else output, *[one.new_empty(one.shape) for one in states])


def flop_counter() -> FlopCounterMode:
    """A counter of FLOPs, for `get_total_flops`, that does not distinguish modules.

    To do so, torch's puts hooks on gradients, which fails without gradients where a graph holds a block of its own,
    such as autocast.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    return counter


class _OneModule:
    """Stands for torch's tracker of the modules that run."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class _Held(io.TextIOBase):
    """A stream that holds back what one thread writes."""

    def __init__(self, stream: TextIO, thread: int) -> None:
        self.text = io.StringIO()
        self._stream = stream
        self._thread = thread

    def write(self, text: str) -> int:
        return (self.text if threading.get_ident() == self._thread else self._stream).write(text)

    def flush(self) -> None:
        self._stream.flush()


def is_fake(value: Any) -> bool:
    """Whether a value is a tensor without numbers, as torch.export uses them while it traces."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(value, FakeTensor)


def clear_fake_caches() -> list[str]:
    """Clear each `functools` cache that holds such a tensor; gives the names of the functions.

    There is no public way to see what is in these caches but the garbage collector.
    """
    cleared = []
    for value in gc.get_objects():
        # Not isinstance, which asks objects that stand for others what they are.
        if type(value) is functools._lru_cache_wrapper and _holds_fake(value):
            value.cache_clear()
            cleared.append(value.__name__)
    return cleared


def _holds_fake(cache: Any) -> bool:
    seen: set[int] = set()
    level = gc.get_referents(cache)
    # The entries hold the results, which may be lists or tuples of tensors.
    for _ in range(4):
        if any(is_fake(one) for one in level):
            return True
        level = [one for one in level if isinstance(one, (dict, list, tuple)) or type(one).__name__ == "lru_list_elem"]
        level = [one for one in level if id(one) not in seen]
        seen.update(map(id, level))
        level = [inner for one in level for inner in gc.get_referents(one)]
    return False


def schema_of(operator: Any) -> Any:
    """The schema of an operator in a graph: its arguments, and which of them it changes in place."""
    return operator._schema


def rename_node(node: Any, name: str) -> None:
    """Rename the node of a graph; its public name can only be read."""
    node._rename(name)


def out_spec_of(graph_module: Any) -> Any:
    """How the outputs of a graph of torch.export are nested; None where it does not say so."""
    return getattr(graph_module, "_out_spec", None)


def version_of(tensor: Any) -> int:
    """How often a tensor was changed in place."""
    count: int = tensor._version
    return count


def buffers_of(module: Any) -> dict[str, Any]:
    """The buffers of a module itself, by name, as it holds them."""
    buffers: dict[str, Any] = module._buffers
    return buffers


def put_tensor(module: Any, name: str, value: Any, *, parameter: bool, persistent: bool) -> None:
    """Put a tensor into a module in place of any other of that name, without the checks of `register_buffer`."""
    module._parameters.pop(name, None)
    module._buffers.pop(name, None)
    module._non_persistent_buffers_set.discard(name)
    if parameter:
        module._parameters[name] = value
        return
    module._buffers[name] = value
    if not persistent:
        module._non_persistent_buffers_set.add(name)


@contextlib.contextmanager
def no_precision_hint() -> Iterator[None]:
    """Keep Fabric from advising `torch.set_float32_matmul_precision` on a GPU; what else it logs is shown.

    The advice is for its caller, and `TrainConfig` has a precision. Fabric logs it wherever no other precision is set.
    """

    def keep(record: logging.LogRecord) -> bool:
        return "torch.set_float32_matmul_precision" not in record.getMessage()

    # Importing lightning.pytorch makes Fabric log through its logger.
    names = ("lightning_fabric", "lightning.fabric", "lightning.pytorch", "pytorch_lightning")
    loggers = [logging.getLogger(f"{name}.utilities.rank_zero") for name in names]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


def attention_of(config: Any) -> str | None:
    """The attention implementation ("eager", "sdpa", ...) that a configuration of transformers asks for."""
    implementation: str | None = getattr(config, "_attn_implementation", None)
    return implementation


def set_attention(config: Any, name: str) -> None:
    """Set the attention implementation of a configuration, which `to_dict` does not keep."""
    config._attn_implementation = name


def by_reference(handle: Any) -> Any:
    """A handle of a Ray Serve deployment whose calls and replies are serialized by Ray, whatever the settings.

    What Ray Serve serializes itself keeps the objects that a call refers to forever. There is no public option.
    """
    return handle.options(_by_reference=True)
