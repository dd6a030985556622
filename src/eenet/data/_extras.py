"""Importing what only `eenet[train]` installs, when it is first used, with an error that says what needs it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from eenet.errors import MissingExtraError

_WITH_TORCH = ("torchvision", "transformers")


def need(module: str, purpose: str) -> Any:
    """Import `module`; raises `MissingExtraError` naming the extra where it is not installed."""
    package = module.partition(".")[0]
    try:
        if package in _WITH_TORCH:
            # It mends a torchvision whose operators are missing; imported here, since it brings torch along.
            from eenet._extras import require

            return require(module, "train")
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {package}, which cannot be imported ({error}); pip install 'eenet[train]'"
        ) from error
