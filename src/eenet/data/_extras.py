"""Importing what only `eenet[train]` installs, when it is first used."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from eenet.errors import MissingExtraError

_operators: list[Any] = []  # a torch.library.Library withdraws its operators when it is collected


def need(module: str, purpose: str) -> Any:
    """Import `module`; raises `MissingExtraError` naming the extra where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{purpose} needs {package}, which cannot be imported ({error}); pip install 'eenet[train]'"
        ) from error


def need_torchvision(purpose: str) -> Any:
    """Import torchvision, also where its build lacks the operators that it registers fakes for.

    torchvision 0.28 of PyPI beside the CPU build of torch 2.13 stops with "operator torchvision::nms does not exist".
    Defining the two names and importing again is enough for what does not call them.
    """
    try:
        return need("torchvision.datasets", purpose)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _operators:
            raise
    import torch

    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.append(library)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    return need("torchvision.datasets", purpose)
