"""Running a policy for real: samples exit on the way, and deeper stages run only for the rest.

Names are loaded when first used, so that a bundle of ONNX graphs runs without PyTorch (`eenet.bundle.onnx`)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eenet.runtime._adaptive import AdaptiveModel as AdaptiveModel
    from eenet.runtime._adaptive import TorchBackend as TorchBackend
    from eenet.runtime._backend import Boundaries as Boundaries
    from eenet.runtime._backend import Live as Live
    from eenet.runtime._backend import StageBackend as StageBackend
    from eenet.runtime._backend import TensorSpec as TensorSpec
    from eenet.runtime._calls import CallCascade as CallCascade
    from eenet.runtime._loop import AdaptiveOutput as AdaptiveOutput
    from eenet.runtime._loop import ExitView as ExitView
    from eenet.runtime._loop import exit_views as exit_views
    from eenet.runtime._loop import run_arrays as run_arrays
    from eenet.runtime._loop import view_exits as view_exits

_HOMES = {
    "AdaptiveModel": "_adaptive",
    "AdaptiveOutput": "_loop",
    "Boundaries": "_backend",
    "CallCascade": "_calls",
    "ExitView": "_loop",
    "Live": "_backend",
    "StageBackend": "_backend",
    "TensorSpec": "_backend",
    "TorchBackend": "_adaptive",
    "exit_views": "_loop",
    "run_arrays": "_loop",
    "view_exits": "_loop",
}

__all__ = ["AdaptiveModel", "AdaptiveOutput", "CallCascade", "StageBackend"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'eenet.runtime' has no attribute {name!r}")
    value = getattr(import_module(f"eenet.runtime.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
