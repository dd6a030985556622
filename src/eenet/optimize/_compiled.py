"""Stages compiled by AOTInductor: a package of native code for each, made on the machine that runs it and kept there.

A package is never part of a bundle, which must not hold code. It is kept in a cache that only the user can write, under
a key of the stage's graph, its weights, the version of torch and the machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from eenet._compat import aoti_compile_and_package, aoti_load_package
from eenet._files import cache_folder
from eenet._timing import name_and_flags
from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel
from eenet.optimize._frozen import eager, traced_heads
from eenet.stages import LiveTensor, Stage, Variant, walk

NAME = "compiled"
_COMPILERS = ("g++", "clang++", "c++")
_loads: list[str] = []
"""A package that another process could load, so that this one may load all of them."""


def compiled(model: MultiExitModel) -> Variant:
    """The model's stages and heads as AOTInductor packages, from the cache or compiled now: some seconds for each.

    One package runs every batch size. Heads that cannot be traced run as they are. Raises `InvalidInputError` for
    stages written by hand, without a C++ compiler, or where the cache is open to others.
    """
    if not model.staged.traced:
        raise InvalidInputError("stages written by hand cannot be compiled; run them as they are")
    cache = cache_folder("aoti")
    own = eager(model)
    stages = own.stages
    made: list[Stage] = []
    heads: list[Any] = []
    args, kwargs = model.staged.example
    with torch.no_grad(), torch.inference_mode(mode=False):
        live = model.staged.flatten_inputs(*args, **kwargs)
        graphs = traced_heads(model, stages)
        for k, step in enumerate(walk(stages, live)):
            stage = step.stage
            made.append(stage.replaced(_Package(_package(stage.module, live, stage.inputs, cache))))
            if k < len(graphs):
                graph, feature = graphs[k], step.feature.contiguous()
                if graph is None:
                    heads.append(model.heads[k])
                else:
                    heads.append(_Head(_package(graph, (feature,), (stage.feature,), cache)))
            live = step.live
    return own.replaced(NAME, stages=tuple(made), heads=tuple(heads))


class _Package(nn.Module):
    """A package as a stage's module."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        _require_loadable(str(path))
        self._run: Any = aoti_load_package(str(path))

    def forward(self, *live: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._run(*[tensor.contiguous() for tensor in live]))


def _require_loadable(path: str) -> None:
    """Load the first package in another process: with some builds of torch that ends the process.

    torch 2.11.0 for CUDA 13 does so with every package for the CPU.
    """
    if _loads:
        return
    code = "import sys; from torch._inductor import aoti_load_package; aoti_load_package(sys.argv[1])"
    tried = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    if tried.returncode:
        how = "crashes" if tried.returncode < 0 else f"fails ({' '.join(tried.stderr.split())[-200:]})"
        raise InvalidInputError(
            f"torch {torch.__version__} {how} where it loads a stage compiled by AOTInductor; run the model as it is, "
            "or use another build of torch"
        )
    _loads.append(path)


class _Head:
    def __init__(self, path: Path) -> None:
        self._package = _Package(path)

    def __call__(self, feature: Tensor) -> Tensor:
        logits: Tensor = self._package(feature)[0]
        return logits


class _Flat(nn.Module):
    """A graph as a function of a row of tensors, whose dynamic sizes can be named together."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *live: Tensor) -> Any:
        return self.module(*live)


def _package(module: nn.Module, live: tuple[Tensor, ...], described: tuple[LiveTensor, ...], cache: Path) -> Path:
    path = cache / f"{key_of(module, described)}.pt2"
    if path.is_file():
        return path
    if "CXX" not in os.environ and not any(shutil.which(name) for name in _COMPILERS):
        raise InvalidInputError(f"compiling stages needs a C++ compiler, one of {', '.join(_COMPILERS)}, or CXX set")
    dynamic = tuple(
        {dim: torch.export.Dim.DYNAMIC for dim, size in enumerate(one.shape) if isinstance(size, str)}
        for one in described
    )
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        partial = Path(folder) / path.name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the compiler says of itself
                contiguous = tuple(tensor.contiguous() for tensor in live)
                program = torch.export.export(_Flat(module), contiguous, dynamic_shapes={"live": dynamic}, strict=False)
                aoti_compile_and_package(program, package_path=str(partial))
        except (RuntimeError, TypeError, ValueError, OSError, subprocess.SubprocessError) as error:
            text = " ".join(str(error).split())[:300]
            raise InvalidInputError(f"AOTInductor cannot compile a stage ({text}); run the model as it is") from error
        partial.replace(path)
    return path


def key_of(module: nn.Module, described: tuple[LiveTensor, ...]) -> str:
    """Everything that the package depends on."""
    digest = hashlib.sha256()
    name, flags = name_and_flags()  # all of them: the compiler writes for the processor that it runs on
    machine = (platform.machine(), name, sorted(flags), torch.backends.cpu.get_cpu_capability(), torch.__version__)
    digest.update(repr((machine, [(one.shape, one.dtype) for one in described])).encode())
    if isinstance(module, fx.GraphModule):
        digest.update(module.code.encode())
    for name, tensor in _tensors_of(module):
        digest.update(repr((name, tensor.shape, tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """All tensors that go into a package, under every name: constants and buffers that are not saved included."""
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    if isinstance(module, fx.GraphModule):
        for node in module.graph.nodes:
            if node.op == "get_attr":
                value = _attribute(module, str(node.target))
                if isinstance(value, Tensor):
                    tensors[str(node.target)] = value
    return sorted(tensors.items())


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
