"""torchvision 0.28 fails to import beside the CPU build of torch 2.13, and takes timm and transformers down with it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

_libraries: list[torch.library.Library] = []


def define_missing_operators() -> None:
    """Define the two operators that torchvision registers fakes for, unless the build has them."""
    if _libraries or hasattr(torch.ops.torchvision, "nms"):
        return
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def import_or_skip(name: str) -> Any:
    """Import torchvision, timm, transformers or one of their modules; skip the test where it is not installed."""
    define_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
