"""Running a policy for real: samples leave at their exits, and deeper stages run only for the rest.

Names are loaded when first used, so that a bundle of ONNX graphs runs without PyTorch (`eenet.bundle.onnx`)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eenet.runtime._adaptive import AdaptiveModel as AdaptiveModel
    from eenet.runtime._adaptive import AdaptiveOutput as AdaptiveOutput
    from eenet.runtime._adaptive import to_numpy as to_numpy
    from eenet.runtime._backend import Live as Live
    from eenet.runtime._backend import StageBackend as StageBackend
    from eenet.runtime._walk import Answers as Answers
    from eenet.runtime._walk import walk as walk

_HOMES = {
    "AdaptiveModel": "_adaptive",
    "AdaptiveOutput": "_adaptive",
    "Answers": "_walk",
    "Live": "_backend",
    "StageBackend": "_backend",
    "to_numpy": "_adaptive",
    "walk": "_walk",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'eenet.runtime' has no attribute {name!r}")
    value = getattr(import_module(f"eenet.runtime.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
