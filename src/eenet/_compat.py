"""Every private API of torch, Lightning, Ray and transformers that the library uses, and why no public one does.

The names of `_PRIVATE` are imported when first used, so that `eenet` can be used without these libraries.
`tests/test_compat.py` tests each, with a message that says what to do when a release removes it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.utils._pytree as pytree
    from torch._inductor import aoti_compile_and_package as aoti_compile_and_package
    from torch._inductor import aoti_load_package as aoti_load_package
    from torch._ops import HigherOrderOperator as HigherOrderOperator
    from torch._ops import OpOverload as OpOverload
    from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

__all__ = [
    "BatchNorm",
    "HigherOrderOperator",
    "OpOverload",
    "aoti_compile_and_package",
    "aoti_load_package",
    "attention_of",
    "pytree",
    "set_attention",
    "set_loader_epoch",
]

_PRIVATE = {
    # Nested inputs and outputs. torch has no public module for them; that of `optree` is another dependency.
    "pytree": ("torch.utils._pytree", None),
    # The common base of all batch norms, by which they are recognized.
    "BatchNorm": ("torch.nn.modules.batchnorm", "_BatchNorm"),
    # What the nodes of an exported graph call.
    "OpOverload": ("torch._ops", "OpOverload"),
    "HigherOrderOperator": ("torch._ops", "HigherOrderOperator"),
    # Stages compiled ahead of time.
    "aoti_compile_and_package": ("torch._inductor", "aoti_compile_and_package"),
    "aoti_load_package": ("torch._inductor", "aoti_load_package"),
}


def __getattr__(name: str) -> Any:
    if name not in _PRIVATE:
        raise AttributeError(f"module 'eenet._compat' has no attribute {name!r}")
    module, attribute = _PRIVATE[name]
    found: Any = import_module(module)
    if attribute is not None:
        found = getattr(found, attribute)
    globals()[name] = found
    return found


def set_loader_epoch(loader: Any, epoch: int) -> None:
    """Set the epoch that a data loader of Fabric orders its samples by.

    Fabric counts its own epochs from 0, in a resumed run too, and has no public way to set the count.
    """
    loader._num_iter_calls = epoch


def attention_of(config: Any) -> str | None:
    """The attention implementation ("eager", "sdpa", ...) that a configuration of transformers asks for."""
    found: str | None = getattr(config, "_attn_implementation", None)
    return found


def set_attention(config: Any, name: str) -> None:
    """Set the attention implementation of a configuration, which `to_dict` does not keep."""
    config._attn_implementation = name
