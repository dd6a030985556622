"""Reading and writing files: atomic, versioned, and never able to run code."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import FileFormatError, InvalidInputError, OutOfSpaceError

_ASIDE, _EARLIER = ".old", "earlier"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how the errors of safetensors end that the system gave it
_PICKLE = "a pickle or an archive"
_ZIP = b"PK\x03\x04"
_STARTS = {
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", _ZIP, b"\x1f\x8b"), _PICKLE),
    **dict.fromkeys((b"{", b"["), "JSON"),
    b"\x93NUMPY": "a .npy file with one array",
    b"PAR1": "a parquet file",
    b"\x89HDF": "an HDF5 file",
}
_MOST_HEADER = 100_000_000  # the limit of the safetensors library
_FORMATS = {"eenet.scheduler": "a fitted scheduler", "eenet.records": "exit records"}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` when the block ends well and is removed otherwise.

    Raises `OutOfSpaceError`, which names `path`, where the disk fills up within the block.
    """
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
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise OutOfSpaceError(
            f"cannot write {str(target)!r}: {os.strerror(error.errno)}; free some space, or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _working_folder() -> Path:
    """The folder that the program runs in; where that was deleted meanwhile, the root, which nothing replaces."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path(os.sep)


@contextmanager
def atomic_folder(path: str | Path, *, marker: str, what: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` when the block ends well and is removed otherwise.

    A folder that holds an earlier one, which has the file `marker`, is replaced; any other that is not empty is
    refused. `what` is the word for such a folder in the message: "saved model".

    No rename replaces a folder, so the earlier one is renamed first. A process that is killed before the second rename
    leaves it in a hidden folder beside `path`: `left_aside` finds it.
    """
    target = Path(path).resolve()  # what a link leads to, and not the link, is replaced
    if _working_folder().is_relative_to(target):
        raise InvalidInputError(
            f"cannot write {str(path)!r}: this program runs in it, and it would be replaced; choose another folder"
        )
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / marker).is_file())):
        raise InvalidInputError(
            f"cannot write {str(path)!r}: it is there already and holds no {what}; choose a new folder"
        )
    temporary: Path | None = None
    within = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        within = True
        yield temporary
        within = False
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            _flush(temporary)  # before the earlier one is deleted
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_ASIDE, dir=target.parent))
            earlier = aside / _EARLIER
            try:
                target.rename(earlier)
                temporary.rename(target)
            finally:
                if earlier.exists() and not target.exists():
                    earlier.rename(target)
                shutil.rmtree(aside)
        else:
            temporary.rename(target)
    except OSError as error:
        here = isinstance(error, OutOfSpaceError) and str(temporary) in str(error)
        if here or error.errno in _NO_SPACE:  # named is the folder: the temporary one is gone when this is read
            raise OutOfSpaceError(
                f"cannot write {str(path)!r}: {os.strerror(error.errno or errno.ENOSPC)}; free some space, or choose "
                "another place"
            ) from error
        if within and error.errno != errno.EROFS and not _is_about(error, (temporary or target, target)):
            raise  # of what was read meanwhile, such as the images of a data set
        raise InvalidInputError(
            f"cannot write {str(path)!r}: {error.strerror or error}; choose a folder that is writable"
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)


def left_aside(path: str | Path) -> str:
    """For a message that a folder is not there: the earlier one, if a process was killed while it replaced it."""
    target = Path(path).resolve()
    found = sorted(target.parent.glob(f".{glob.escape(target.name)}.*{_ASIDE}/{_EARLIER}"))
    if not found or target.exists():
        return ""
    return f"; a process that replaced it was killed, and the earlier one is {str(found[-1])!r}: rename that folder"


def _flush(folder: Path) -> None:
    """Wait until the files in a folder are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())


def _is_about(error: OSError, folders: Iterable[Path]) -> bool:
    """Whether the file of an error is one of these folders or in one."""
    return isinstance(error.filename, str) and any(Path(error.filename).is_relative_to(one) for one in folders)


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


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write torch's tensors to a safetensors file; raises `OSError` where the system cannot write it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        code = _OS_ERROR.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path, hint: str = "write it again") -> dict[str, Any]:
    """The object in a JSON file; raises `FileFormatError`, which ends in what to do, for anything else."""
    source = existing_file(path)
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise FileFormatError(f"{str(source)!r} is not JSON ({error}); {hint}") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{str(source)!r} holds a JSON {type(found).__name__}, expected an object; {hint}")
    return found


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
    """Read what `write_arrays` wrote; raises `FileFormatError` for anything else, naming what the file is."""
    source = existing_file(path)
    require_safetensors(source, f"eenet.{kind}")
    names, metadata = read_header(source)
    name, form = str(source), metadata.get("format")
    if form != f"eenet.{kind}":
        raise FileFormatError(
            f"{name!r} holds {_words(form)}, expected {_words(f'eenet.{kind}')}: have two arguments been exchanged?"
        )
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
    return read_tensors(source, names), header


def read_header(source: Path) -> tuple[list[str], dict[str, str]]:
    """The names of the arrays in a safetensors file, and its metadata; the arrays are not read."""
    with _opened(source) as handle:
        return list(handle.keys()), dict(handle.metadata() or {})


def read_tensors(source: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Some arrays of a safetensors file."""
    with _opened(source) as handle:
        return {name: _tensor(handle, name, source) for name in names}


def _tensor(handle: Any, name: str, source: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = handle.get_tensor(name)
    except (TypeError, AttributeError) as error:  # numpy has no bfloat16 or float8
        raise FileFormatError(
            f"{name!r} in {str(source)!r} has a dtype that numpy does not know ({error}); write it as float32"
        ) from error
    if array.dtype.kind not in "biufc":  # where ml_dtypes is imported, safetensors gives arrays of its dtypes
        raise FileFormatError(
            f"{name!r} in {str(source)!r} has a dtype that numpy does not know ({array.dtype}); write it as float32"
        )
    return array


@contextmanager
def _opened(source: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(source), framework="numpy") as handle:
            yield handle
    except SafetensorError as error:
        raise FileFormatError(
            f"{str(source)!r} is not a whole safetensors file ({error}); it may be truncated: write it again"
        ) from error


def _words(form: str | None) -> str:
    """Words for what a file holds, of the format in its metadata."""
    return f"{_FORMATS.get(form, 'data')} ({form!r})" if form else "no eenet data"


def lines_of(text: str) -> list[str]:
    """The lines of a file's text as editors count them: `str.splitlines` also ends one at U+2028 or a form feed."""
    return text.removesuffix("\n").split("\n") if text else []


def existing_file(path: str | Path) -> Path:
    """Return `path` as a `Path`, or raise `InvalidInputError` when there is no such file."""
    source = Path(path)
    if not source.is_file():
        what = "a folder" if source.is_dir() else "not there"
        raise InvalidInputError(f"cannot read {str(source)!r}: it is {what}; give the path of a file")
    return source


def require_safetensors(source: Path, expected: str = "") -> None:
    """Raise `FileFormatError` where a file is plainly of another format, in words that help; a pickle above all."""
    other = _other_format(source)
    if other is None:
        return
    if other is _PICKLE:
        raise FileFormatError(
            f"{str(source)!r} looks like a pickle or an archive such as torch.save writes: loading one can run "
            "code, so eenet refuses; save it with eenet's own .save()"
        )
    described = (
        f"{_words(expected)} in a safetensors file: have two arguments been exchanged?" if expected else "safetensors"
    )
    raise FileFormatError(f"{str(source)!r} is {other}, expected {described}")


def _other_format(source: Path) -> str | None:
    """The format that a file has by its first bytes; None where it may be safetensors."""
    with source.open("rb") as handle:
        start = handle.read(9)
    # A safetensors file starts with the length of its header, whose bytes may happen to be those of a pickle (a header
    # of 640 bytes: 80 02), and then the header itself, a JSON object.
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < _MOST_HEADER:
        return None
    for prefix, name in _STARTS.items():
        if start.startswith(prefix):
            return "an .npz file of arrays" if prefix == _ZIP and _is_npz(source) else name
    return None


def _is_npz(source: Path) -> bool:
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def cache_folder(kind: str) -> Path:
    """The folder of what is made once and kept: in EENET_CACHE, or in eenet of the user's cache.

    Raises `InvalidInputError` where it cannot be made, and where others could write to it: what is in it is run.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eenet"
    folder = Path(os.environ.get("EENET_CACHE") or usual) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError as error:
        raise InvalidInputError(
            f"cannot use the cache {str(folder)!r} ({error.strerror}); set EENET_CACHE to a folder of yours"
        ) from error
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    if foreign or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidInputError(
            f"the cache {str(folder)!r} can be written by others, and what is in it would be run; set EENET_CACHE to "
            "a folder that only you can write"
        )
    return folder
