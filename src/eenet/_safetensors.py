"""Reading safetensors with numpy alone: an exported bundle must be read where only numpy and a runtime are installed.

The format: eight bytes, little-endian, with the length of a JSON header; the header, which maps names to dtype, shape
and the span of bytes; the bytes. Writing is left to the safetensors library.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U64": "<u8",
    "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_MOST_HEADER = 100_000_000  # the library's own limit
_METADATA = "__metadata__"


def parse(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and the metadata in the bytes of a safetensors file; raises ValueError, saying what is wrong."""
    if len(data) < 8:
        raise ValueError(f"{len(data)} bytes are too few")
    length = int.from_bytes(data[:8], "little")
    if length > min(_MOST_HEADER, len(data) - 8):
        raise ValueError(f"its header is said to have {length} bytes, {len(data) - 8} follow")
    try:
        header = json.loads(data[8 : 8 + length])
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not text")
    body = memoryview(data)[8 + length :]
    arrays: dict[str, NDArray[Any]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        arrays[name], span = _array(name, entry, body)
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError(f"its arrays leave a gap or overlap at byte {min(start, end)}")
        end = stop
    if end != len(body):
        raise ValueError(f"its arrays have {end} bytes, {len(body)} follow the header")
    return arrays, metadata


def _array(name: str, entry: Any, body: memoryview) -> tuple[NDArray[Any], tuple[int, int]]:
    try:
        dtype, shape, (start, stop) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name!r} is described as {entry!r}, of which {error} cannot be read") from error
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"{name!r} is described with numbers that are no sizes")
    if not start <= stop <= len(body) or stop - start != np.dtype(dtype).itemsize * math.prod(shape):
        raise ValueError(f"{name!r} of shape {shape} is said to lie at bytes {start} to {stop} of {len(body)}")
    # A copy: aligned, native and writable, and the file's bytes can go.
    array = np.frombuffer(body[start:stop], dtype=dtype).reshape(shape).astype(np.dtype(dtype).newbyteorder("="))
    return array, (start, stop)
