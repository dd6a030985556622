"""Importing what an optional extra brings, with an error that names the extra."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import warnings
from importlib import metadata
from typing import Any

from eenet.errors import MissingExtraError

_operators: list[Any] = []


def require(module: str, extra: str, purpose: str = "this") -> Any:
    """Import a module of an optional dependency, for a purpose that the error names.

    Raises `MissingExtraError` with the command that installs it, where it is missing or cannot be imported.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f"{purpose} needs {package}, which is not installed: pip install 'eenet[{extra}]'")
    with warnings.catch_warnings():
        # What a library says of itself while it loads is not about the caller's work.
        warnings.simplefilter("ignore")
        if package in ("torchvision", "timm", "transformers", "torchmetrics", "lightning"):
            _mend_torchvision()
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise MissingExtraError(
                f"{purpose} needs {package}, which cannot be imported ({error}); pip install 'eenet[{extra}]'"
            ) from error


def require_extra(extra: str, purpose: str) -> None:
    """Check that all packages of an extra are installed, before anything is done for a purpose that the error names.

    Raises `MissingExtraError`, which names what is missing and the command that installs it. Where eenet itself is not
    installed (a checkout on the path) nothing is known of its extras, and nothing is checked.
    """
    missing = sorted(_missing(extra, set()))
    if missing:
        raise MissingExtraError(
            f"{purpose} needs {', '.join(missing)}, not installed here: pip install 'eenet[{extra}]'"
        )


def _missing(extra: str, seen: set[str]) -> set[str]:
    """The distributions of an extra, and of the extras it names, that are not installed."""
    seen.add(extra)
    try:
        requirements = metadata.requires("eenet") or []
    except metadata.PackageNotFoundError:
        return set()
    missing: set[str] = set()
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        if not re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", marker) or "sys_platform" in marker:
            continue  # of another extra, or not for every platform
        name, inner = re.fullmatch(r"\s*([\w.-]+)(?:\[([\w,\s-]+)\])?.*", wanted).groups()  # type: ignore[union-attr]
        if name == "eenet":
            for other in {part.strip() for part in inner.split(",")} - seen:
                missing |= _missing(other, seen)
            continue
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.add(name)
    return missing


def _mend_torchvision() -> None:
    """Make torchvision importable where its compiled operators are missing.

    torchvision 0.28 beside the CPU build of torch 2.13 fails for two operators that are only used in detection, and
    takes timm and transformers, which import it, down with it.
    """
    if importlib.util.find_spec("torchvision") is None or _operators:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch  # only here: it takes a second, and most extras do without it

        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        # The operators are gone when nothing refers to the library.
        _operators.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left behind
