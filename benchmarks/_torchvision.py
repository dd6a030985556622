"""torchvision 0.28 fails to import beside the CPU build of torch 2.13, unless two operators are defined first."""

from __future__ import annotations

import warnings
from typing import Any

import torch

_libraries: list[torch.library.Library] = []


def resnet50() -> torch.nn.Module:
    """torchvision's ResNet-50 with random weights, in inference mode."""
    if not _libraries and not hasattr(torch.ops.torchvision, "nms"):
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its missing image codecs, which are not used here
        from torchvision.models import resnet50 as make
    network: torch.nn.Module = make(weights=None)
    return network.eval()
