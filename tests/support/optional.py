"""Optional libraries for tests; what they say of themselves while they load is no error of a test."""

from __future__ import annotations

import importlib
import warnings
from importlib import metadata
from typing import Any

import pytest


def import_or_skip(name: str) -> Any:
    """Import torchvision, timm, transformers or one of their modules; skip the test where it cannot be imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not installed or cannot be imported ({error})")
        except RuntimeError as error:  # a torchvision of another build than torch
            if "operator torchvision::nms does not exist" not in f"{error}{error.__cause__}{error.__context__}":
                raise
            pytest.skip(f"torchvision is of another build than torch ({error})")


def not_installed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As where the distribution `name` is not installed, for what asks for its version."""
    version = metadata.version

    def other(asked: str) -> str:
        if asked == name:
            raise metadata.PackageNotFoundError(name)
        return version(asked)

    monkeypatch.setattr(metadata, "version", other)
