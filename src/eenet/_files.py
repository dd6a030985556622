"""Reading and writing files: atomic, versioned, and never able to run code."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import FileFormatError, InvalidInputError

_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"\x1f\x8b")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` when the block ends well and is removed otherwise."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    except OSError as error:
        raise InvalidInputError(
            f"cannot write {str(target)!r}: {error.strerror or error}; choose a folder that exists and is writable"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; give it the mode an ordinary new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        try:
            temporary.replace(target)
        except OSError as error:
            raise InvalidInputError(
                f"cannot write {str(target)!r}: {error.strerror or error}; choose the path of a file, not of a folder"
            ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_arrays(
    path: str | Path, arrays: Mapping[str, NDArray[Any]], *, kind: str, schema: int, header: Mapping[str, Any]
) -> None:
    """Write arrays and a JSON header to one safetensors file, atomically."""
    from safetensors.numpy import save

    metadata = {"format": f"eenet.{kind}", "schema": str(schema), "header": json.dumps(header, allow_nan=False)}
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_arrays(path: str | Path, *, kind: str, schema: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write_arrays` wrote; raises `FileFormatError` for anything else, naming what was found."""
    from safetensors import SafetensorError, safe_open

    source = existing_file(path)
    refuse_pickle(source)
    try:
        with safe_open(str(source), framework="numpy") as handle:
            metadata = handle.metadata() or {}
            arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise FileFormatError(
            f"{str(source)!r} is not a whole safetensors file ({error}); it may be truncated: write it again"
        ) from error
    found = metadata.get("format")
    if found != f"eenet.{kind}":
        raise FileFormatError(f"{str(source)!r} holds {found or 'no eenet data'!r}, expected 'eenet.{kind}'")
    version = metadata.get("schema", "")
    if not version.isdecimal() or int(version) > schema:
        raise FileFormatError(
            f"{str(source)!r} has schema {version!r}, this eenet reads up to {schema}: upgrade eenet to read it"
        )
    try:
        header = json.loads(metadata["header"])
        if not isinstance(header, dict):
            raise TypeError("not a mapping")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"{str(source)!r} has a damaged header ({error}); write the file again") from error
    return arrays, header


def existing_file(path: str | Path) -> Path:
    """Return `path` as a `Path`, or raise `InvalidInputError` when there is no such file."""
    source = Path(path)
    if not source.is_file():
        what = "a folder" if source.is_dir() else "not there"
        raise InvalidInputError(f"cannot read {str(source)!r}: it is {what}; give the path of a file")
    return source


def refuse_pickle(source: Path) -> None:
    """Raise `FileFormatError` when the file starts like a pickle, gzip, or the zip that torch.save writes."""
    with source.open("rb") as handle:
        start = handle.read(9)
    # A safetensors file starts with the length of its header, whose bytes may happen to be those of a pickle (a header
    # of 640 bytes: 80 02), and then the header itself, a JSON object.
    if start.startswith(_PICKLE_STARTS) and start[8:] != b"{":
        raise FileFormatError(
            f"{str(source)!r} looks like a pickle or an archive such as torch.save writes: loading one can run "
            "code, so eenet refuses; save it with eenet's own .save()"
        )
