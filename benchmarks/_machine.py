"""What a benchmark ran on: said first, and kept with the numbers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import eenet
from eenet.profiling import fingerprint


def machine() -> dict[str, Any]:
    """Processor, threads, versions, and how busy the machine was when the benchmark began."""
    found = fingerprint(torch.device("cpu"))
    found |= {"eenet": eenet.__version__, "numpy": np.__version__, "system": platform.system()}
    try:
        found["torchvision"] = version("torchvision")
    except PackageNotFoundError:
        found["torchvision"] = "not installed"
    if hasattr(os, "getloadavg"):
        found["load_before"] = round(os.getloadavg()[0], 2)
    return found


def describe(found: dict[str, Any]) -> str:
    """One paragraph for people."""
    busy = found.get("load_before")
    shared = "" if busy is None else f"; load {busy} before the start" + (" (not idle)" if busy > 0.5 else "")
    return (
        f"{found['processor']} ({found['machine']}), {found['cores']} cores, torch threads: {found['threads']}"
        f"{shared}\n"
        f"eenet {found['eenet']}, torch {found['torch']}, torchvision {found['torchvision']}, "
        f"numpy {found['numpy']}, Python {found['python']}, {found['system']}"
    )


def progress_bar() -> Progress:
    """A progress bar on standard error, which goes away when it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
