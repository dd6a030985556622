"""Reading and writing files: atomic, versioned, and never able to run code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._safetensors import parse
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
        give_usual_mode(temporary)  # mkstemp makes the file private
        try:
            temporary.replace(target)
        except OSError as error:
            raise InvalidInputError(
                f"cannot write {str(target)!r}: {error.strerror or error}; choose the path of a file, not of a folder"
            ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, marker: str, what: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` when the block ends well and is removed otherwise.

    A folder that holds an earlier one, told by the file `marker`, is replaced; any other that is not empty is left
    alone, and refused. `what` is the word for such a folder in the message: "saved model".
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / marker).is_file())):
        raise InvalidInputError(
            f"cannot write {str(target)!r}: it is there already and holds no {what}; choose a new folder"
        )
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            # A rename replaces an empty folder only, so the earlier one steps aside first.
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            target.rename(aside / "earlier")
            temporary.rename(target)
            shutil.rmtree(aside)
        else:
            temporary.rename(target)
    except OSError as error:
        raise InvalidInputError(
            f"cannot write {str(target)!r}: {error.strerror or error}; choose a folder that is writable and has space"
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)


def give_usual_mode(path: Path) -> None:
    """Give a file that was made private the mode an ordinary new file would have."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
    source = existing_file(path)
    refuse_pickle(source)
    name = str(source)
    try:
        arrays, metadata = parse(source.read_bytes())
    except ValueError as error:
        raise FileFormatError(
            f"{name!r} is not a whole safetensors file ({error}); it may be truncated: write it again"
        ) from error
    found = metadata.get("format")
    if found != f"eenet.{kind}":
        raise FileFormatError(f"{name!r} holds {found or 'no eenet data'!r}, expected 'eenet.{kind}'")
    version = metadata.get("schema", "")
    if not version.isdecimal() or int(version) > schema:
        raise FileFormatError(
            f"{name!r} has schema {version!r}, this eenet reads up to {schema}: upgrade eenet to read it"
        )
    try:
        header = json.loads(metadata["header"])
        if not isinstance(header, dict):
            raise TypeError("not a mapping")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise FileFormatError(f"{name!r} has a damaged header ({error}); write the file again") from error
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
