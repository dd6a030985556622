"""Makes torchvision importable beside a torch of another build: for tests and benchmarks, never for users.

Its compiled operators do not load there, and its import fails for two that only detection uses: `operator
torchvision::nms does not exist`. It takes timm, torchmetrics and most of transformers down with it. Python imports this
file as it starts where this folder is on PYTHONPATH. Nothing changes where torchvision can be imported as it is.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_operators: list[Any] = []


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads torchvision; where that fails for its operators, defines them and loads it again."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error) or _operators:
                raise
            import torch  # torchvision has imported it

            library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _operators.append(library)  # the operators are gone when nothing refers to the library
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]  # what the failed import left behind
            super().exec_module(module)


class _Finder:
    """Finds torchvision where Python would, to be loaded by `_Loader`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder)
