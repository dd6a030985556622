"""What the folder data sets share: files decoded when read, checked ahead where corrupt ones are to be skipped."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eenet.errors import EENetError, FileFormatError
from eenet.experiments.data._corrupt import CorruptSample

IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")


def entries(folder: Path, *, folders: bool) -> list[Path]:
    """Sub-folders, or files, that are not hidden, sorted by name."""
    with os.scandir(folder) as found:
        return sorted(
            Path(entry.path)
            for entry in found
            if not entry.name.startswith(".") and (entry.is_dir() if folders else entry.is_file())
        )


def spread(samples: int, limit: int | None) -> NDArray[np.int64]:
    """At most `limit` positions, evenly spaced: files come sorted by class, so the first ones would be of one class."""
    if limit is None or limit >= samples:
        return np.arange(samples)
    return (2 * np.arange(limit) + 1) * samples // (2 * limit)


def find_corrupt(read: Callable[[int], object], names: Sequence[str]) -> list[tuple[int, CorruptSample]]:
    """Read every sample, in threads since decoding leaves Python's lock, and name those that cannot be read."""

    def problem(index: int) -> tuple[int, CorruptSample] | None:
        try:
            read(index)
        except EENetError as error:
            # The reader names the file first; here the name stands apart.
            return index, CorruptSample(names[index], str(error).removeprefix(f"{names[index]!r} "))
        return None

    with ThreadPoolExecutor() as pool:
        return [found for found in pool.map(problem, range(len(names))) if found is not None]


def hash_file(path: Path) -> bytes:
    """A hash of a file's bytes; raises `FileFormatError` when it cannot be read."""
    try:
        return blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError as error:
        raise FileFormatError(f"{str(path)!r} cannot be read ({error.strerror or error}); fetch it again") from error


def hash_names(root: Path, paths: Sequence[Path]) -> str:
    """A hash of the files' relative names: contents would take hours for ImageNet."""
    return sha256("\n".join(path.relative_to(root).as_posix() for path in paths).encode()).hexdigest()
