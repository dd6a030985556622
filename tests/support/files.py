"""Files as eenet writes them, made and read by safetensors or numpy alone: for tests of what a reader refuses."""

from __future__ import annotations

import io
import json
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


def write_arrays(path: Path, arrays: Mapping[str, Any], *, kind: str, schema: int, header: Mapping[str, Any]) -> None:
    """Write a file of some kind, whatever is in it."""
    metadata = {"format": f"eenet.{kind}", "schema": str(schema), "header": json.dumps(header)}
    save_file(dict(arrays), path, metadata=metadata)


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and the header of a file."""
    with safe_open(path, framework="numpy") as handle:
        names = list(handle.keys())
        return {name: handle.get_tensor(name) for name in names}, json.loads(handle.metadata()["header"])


@contextmanager
def full_disk(left: int) -> Iterator[None]:
    """No file may grow beyond `left` bytes within the block: the system's way to make a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
