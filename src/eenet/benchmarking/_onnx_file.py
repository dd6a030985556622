"""A network as one ONNX file, to be compared: called like a function, and how large it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from eenet._extras import require
from eenet.benchmarking._samples import Array
from eenet.errors import InvalidInputError


def _external_files(graph: Path) -> list[Path]:
    """The files beside an ONNX graph that hold weights of it.

    They are read from the protobuf as it is written, since the package onnx may be missing: a tensor's external data
    are entries of a key and a value, the value of "location" is a path from the folder of the graph.
    """
    content, found = graph.read_bytes(), []
    for start in (match.end() for match in re.finditer(rb"\x0a\x08location\x12", content)):
        size, shift, at = 0, 0, start
        while at < len(content):  # the length, 7 bits in a byte
            size, shift, at = size | (content[at] & 127) << shift, shift + 7, at + 1
            if content[at - 1] < 128 or shift > 28:
                break
        name = content[at : at + size].decode("utf-8", "replace")
        if name and "\0" not in name and (graph.parent / name).is_file():
            found.append(graph.parent / name)
    return found


class OnnxFile:
    """A network as one ONNX graph, in ONNX Runtime on the CPU; its first output are the logits."""

    def __init__(self, path: Path, threads: int | None) -> None:
        from eenet.bundle._onnx import errors_of, opened, quiet

        runtime = require("onnxruntime", "onnx", "an .onnx file")
        try:
            self._session = opened(runtime, str(path), threads)  # by its path, beside which its weights may lie
        except errors_of(runtime) as error:
            raise InvalidInputError(f"onnxruntime cannot load {str(path)!r}: {error}; export it again") from error
        self._errors = errors_of(runtime)
        self._quiet = quiet(runtime)
        self._names = [one.name for one in self._session.get_inputs()]
        self._doubles = {one.name for one in self._session.get_inputs() if one.type == "tensor(double)"}
        self.size = sum(file.stat().st_size for file in {path, *_external_files(path)})

    def __call__(self, *args: Array, **named: Array) -> Any:
        if len(args) == len(self._names):
            named = dict(zip(self._names, args, strict=True))
        if set(named) != set(self._names):
            raise InvalidInputError(f"the graph takes the inputs {self._names}, data holds {list(named) or len(args)}")
        fed = {
            key: array.astype(np.float32) if array.dtype == np.float64 and key not in self._doubles else array
            for key, array in named.items()
        }
        try:
            return self._session.run(None, fed, self._quiet)[0]
        except self._errors as error:
            reason = " ".join(str(error).split())
            raise InvalidInputError(f"the graph does not run on them: {reason}; give data of its shape") from error
