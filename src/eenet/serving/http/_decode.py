"""From the bytes of a connection to a network's inputs, within limits: heads, bodies, arrays. No byte is trusted."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import struct
import threading
import tokenize
import zlib
from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from eenet._extras import require
from eenet.serving.engine._model import InputSpec, Model
from eenet.serving.engine._request import Limits, RefusedError
from eenet.serving.http._models import NPY

Array = NDArray[Any]
Decoded = tuple[dict[str, Array], dict[str, Array]]
"""A network's inputs by name, and what `Preprocessing.with_flags` says of the samples."""
T = TypeVar("T")

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# What Pillow raises for damaged files is not one family.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, struct.error, zlib.error)

# What numpy raises for a damaged head, which it reads as a Python literal.
_BAD_HEAD = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError, UserWarning)
# numpy reads a head with `ast.literal_eval`, and Python 3.11's parser counts its depth for all threads together: two
# threads at once can end in "AST constructor recursion depth mismatch".
_one_header_at_a_time = threading.Lock()
_MOST_NAMES, _LONGEST_NAME = 10, 60  # of a request, in an error
_MAX_NPY_HEAD = 1000  # bytes; numpy.save writes 118 for an array of numbers with few dimensions


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


def guarded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn that closes connections which send no complete head in time, or one too large.

    uvicorn waits without end for the head of a connection's first request, keeps all of it, and reads without end what
    comes after an early refusal. `Receiver` looks after bodies that are awaited.
    """
    require("httptools", "serve")
    base: Any = require("uvicorn.protocols.http.httptools_impl", "serve").HttpToolsProtocol

    class GuardedProtocol(base):  # type: ignore[misc]
        _timer: asyncio.TimerHandle | None = None
        _head = 0
        _in_body = False

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._head += len(data)
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self._in_body:
                self._head = 0
            elif self._head > limits.max_head:
                self.transport.close()
                return
            if self.cycle is None or self.cycle.response_complete:
                # Either a head is coming, or the rest of a body that was refused.
                self._watch()

        def on_headers_complete(self) -> None:
            self._rest()
            self._head = 0
            self._in_body = True
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._head = 0
            self._in_body = False
            super().on_message_complete()

        def _watch(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(limits.head_timeout, self.transport.close)

        def _rest(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return GuardedProtocol


class Receiver:
    """Receives bodies; limits each of them and all together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._uploading = 0

    async def body(self, request: Request, content_type: str) -> bytes:
        """The whole body.

        Raises `RefusedError` for one that is too large or too slow, `ClientGoneError` where it breaks off.
        """
        most = self._limits.max_json if content_type == "application/json" else self._limits.max_body

        async def receive() -> bytes:
            async with contextlib.aclosing(self._chunks(request, most)) as chunks:
                return b"".join([chunk async for chunk in chunks])

        return await self._in_time(receive())

    async def form(self, request: Request) -> list[tuple[str, bytes]]:
        """The names and contents of the files in a multipart body.

        Raises as `body`, and `RefusedError` for a form that is malformed, is cut off, or holds anything but files.
        """

        async def receive() -> list[tuple[str, bytes]]:
            most = self._limits.max_samples
            async with contextlib.aclosing(self._chunks(request, self._limits.max_body)) as chunks:
                parser = _FormParser(request.headers, chunks, max_files=most, max_fields=most)
                try:
                    form = await parser.parse()
                except MultiPartException as error:
                    if len(parser.items) >= most:
                        raise RefusedError(413, f"the form has more than {most} files") from error
                    raise RefusedError(400, f"the form cannot be read: {error.message}") from error
                except ValueError as error:  # of a charset that decodes no text
                    raise RefusedError(400, f"the form cannot be read: {error}") from error
            try:
                return [(name, _content(value)) for name, value in form.multi_items()]
            finally:
                await form.close()

        return await self._in_time(receive())

    async def _in_time(self, receiving: Coroutine[Any, Any, T]) -> T:
        try:
            return await asyncio.wait_for(receiving, self._limits.body_timeout)
        except asyncio.TimeoutError as error:
            raise RefusedError(408, f"the body was not complete after {self._limits.body_timeout:g} s") from error

    async def _chunks(self, request: Request, most: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes, counted."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most)
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                self._uploading += len(chunk)
                if size > most:
                    raise _too_large(most)
                if self._uploading > self._limits.max_uploads:
                    raise RefusedError(503, "too much is being uploaded now; try again later")
                yield chunk
        except ClientDisconnect as error:
            raise ClientGoneError from error
        finally:
            self._uploading -= size


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"the body has more than the {most} bytes that are taken")


class _FormParser(MultiPartParser):
    """Starlette's, with all files in memory, where the limits on bodies hold; and it refuses a form without an end."""

    spool_max_size = 0  # no limit

    def __init__(self, headers: Headers, chunks: AsyncGenerator[bytes, None], **limits: Any) -> None:
        super().__init__(headers, self._to_the_end(chunks), **limits)
        self._ended = False

    def on_end(self) -> None:
        self._ended = True

    async def _to_the_end(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            yield chunk
        if not self._ended:
            raise MultiPartException("it is cut off")


def _content(value: UploadFile | str) -> bytes:
    if isinstance(value, str):
        raise RefusedError(422, "the form has a field that is no named file; give each part a filename")
    return value.file.read()


class Decoder:
    """Turns bodies into a network's inputs by name; raises `RefusedError` or `InvalidInputError` for any it cannot."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.kind = model.preprocessing.kind
        self._preprocess = model.preprocessing
        self._with_flags = getattr(model.preprocessing, "with_flags", None)
        self._specs = {spec.name: spec for spec in model.inputs}
        self._limits = limits
        self._json = require("orjson", "serve")
        if self.kind == "image":
            self._images = require("PIL.Image", "serve")

    def __call__(self, content_type: str, body: bytes) -> Decoded:
        """The inputs of a body that holds one thing: JSON, an array, an image or a text."""
        if content_type == "application/json":
            return self._from_json(body)
        if content_type in NPY or (content_type == "application/octet-stream" and self.kind == "array"):
            return self._checked({self._only_input(): npy_array(body)}), {}
        if self.kind == "image" and (content_type.startswith("image/") or content_type == "application/octet-stream"):
            return self.from_images([body])
        if self.kind == "text" and content_type == "text/plain":
            return self.from_texts([_text(body)])
        raise RefusedError(415, f"the content type {content_type!r} is not taken; send {', '.join(self.content_types)}")

    @property
    def content_types(self) -> list[str]:
        """The content types of bodies that are taken."""
        own = {"image": ["image/*", "multipart/form-data"], "text": ["text/plain"], "array": ["multipart/form-data"]}
        return ["application/json", NPY[0], *own[self.kind]]

    def from_parts(self, parts: Sequence[tuple[str, bytes]]) -> Decoded:
        """The inputs of a multipart body: image files, or npy files by the names of the inputs."""
        if not parts:
            raise RefusedError(422, "the form holds no file; send at least one")
        if self.kind == "image":
            other = next((name for name, _ in parts if name != "file"), None)
            if other is not None:
                raise RefusedError(
                    422, f"the form has a field {other!r}, expected image files in the field 'file' only"
                )
            return self.from_images([content for _, content in parts])
        if self.kind == "array":
            return self._checked({name: npy_array(content) for name, content in parts}), {}
        raise RefusedError(415, f"a form is not taken; send {', '.join(self.content_types)}")

    def from_images(self, files: Sequence[bytes]) -> Decoded:
        """The inputs of image files."""
        self._require_count(len(files))
        for n, content in enumerate(files):
            self._check_image(content, n)
        return self._from_raw(files)

    def from_texts(self, texts: Sequence[str]) -> Decoded:
        """The inputs of texts."""
        self._require_count(len(texts))
        for n, text in enumerate(texts):
            if len(text) > self._limits.max_text:
                raise RefusedError(
                    413, f"text {n} has {len(text)} characters, at most {self._limits.max_text} are taken"
                )
        return self._from_raw(texts)

    def _from_raw(self, items: Sequence[Any]) -> Decoded:
        made: Decoded = (dict(self._preprocess(items)), {}) if self._with_flags is None else self._with_flags(items)
        return made

    def _from_json(self, body: bytes) -> Decoded:
        try:
            document = self._json.loads(body)
        except self._json.JSONDecodeError as error:
            raise RefusedError(400, f"the body is not JSON: {error}") from error
        keys = ["inputs"] + (["text", "texts"] if self.kind == "text" else [])
        if not isinstance(document, dict) or len(document) != 1 or next(iter(document)) not in keys:
            expected = f"expected a JSON object with {' or '.join(map(repr, keys))} and nothing else"
            if not isinstance(document, dict):
                raise RefusedError(422, f"the body is no JSON object; {expected}")
            within = '{"inputs": {' + ", ".join(f'"{name}": ...' for name in self._specs) + "}}"
            way = f", as {within}" if set(document) & set(self._specs) else ""
            raise RefusedError(422, f"the body has {_names(document) or 'no key'}; {expected}{way}")
        key, value = next(iter(document.items()))
        if key == "inputs":
            values = value if isinstance(value, dict) else {self._only_input(): value}
            # Asked of the bytes, since an array of strings takes as much for each of them as for the longest.
            if body.count(b'"') != 2 + (2 * len(values) if isinstance(value, dict) else 0):
                raise RefusedError(422, "the inputs hold strings or objects, expected nested lists of numbers")
            words = any(word in body for word in (b"true", b"false"))
            if not set(values) <= set(self._specs):
                raise self._other_names(values)
            arrays = {name: _array(v, self._specs[name], words) for name, v in values.items()}
            return self._checked(arrays), {}
        texts = [value] if key == "text" else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RefusedError(422, f"{key!r} is no {'string' if key == 'text' else 'list of strings'}")
        return self.from_texts(texts)

    def _other_names(self, given: Collection[str]) -> RefusedError:
        """What to say of inputs with other names than the network's."""
        unknown = [name for name in given if name not in self._specs]
        lacking = [name for name in self._specs if name not in given]
        wrong = f"the network has no input {_names(unknown)}" if unknown else f"the inputs lack {_names(lacking)}"
        return RefusedError(422, f"{wrong}; expected {sorted(self._specs)} and nothing else")

    def _only_input(self) -> str:
        if len(self._specs) > 1:
            raise RefusedError(
                422, f"the network has the inputs {sorted(self._specs)}; give an array for each of these names"
            )
        return next(iter(self._specs))

    def _checked(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Add the batch dimension where one sample was sent without it; refuse what is not finite."""
        if sorted(arrays) != sorted(self._specs):
            raise self._other_names(arrays)
        if all(array.ndim == len(self._specs[name].shape) - 1 for name, array in arrays.items()):
            arrays = {name: array[None] for name, array in arrays.items()}
        for name, array in arrays.items():
            if array.ndim == 0:
                raise RefusedError(422, f"the input {name!r} is a single number, expected an array")
            self._require_count(len(array))
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RefusedError(422, f"the input {name!r} holds NaN, infinity or a number out of range")
        return arrays

    def _require_count(self, samples: int) -> None:
        if samples > self._limits.max_samples:
            raise RefusedError(413, f"the request has {samples} samples, at most {self._limits.max_samples} are taken")
        if samples == 0:
            raise RefusedError(422, "the request has no sample; send at least one")

    def _check_image(self, content: bytes, n: int) -> None:
        """Look at the head of an image before any of it is decoded."""
        limits = self._limits
        try:
            # The decompression-bomb check of Pillow warns or raises, by settings that are global; ours is below.
            with self._images.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
                width, height = image.size
        except (self._images.DecompressionBombError, self._images.DecompressionBombWarning) as error:
            raise RefusedError(413, f"image {n} has more pixels than the {limits.max_pixels} that are taken") from error
        except _DAMAGED as error:
            raise RefusedError(422, f"image {n} cannot be read; send one of {', '.join(IMAGE_FORMATS)}") from error
        if width * height > limits.max_pixels:
            raise RefusedError(
                413, f"image {n} has {width} x {height} pixels, at most {limits.max_pixels} in all are taken"
            )
        if max(width, height) > limits.max_aspect * min(width, height):
            raise RefusedError(
                422,
                f"image {n} is {width} x {height}, expected sides at most a factor of {limits.max_aspect:g} apart",
            )


def npy_array(body: bytes) -> Array:
    """The array in the bytes of an .npy file; raises `RefusedError` unless it holds numbers, complete and no more."""
    file = io.BytesIO(body)
    try:
        version = npy_format.read_magic(file)
    except ValueError as error:
        raise RefusedError(400, "the body is not an .npy file; write it with numpy.save") from error
    readers = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    try:
        with _one_header_at_a_time:
            shape, fortran, dtype = readers[version](file, max_header_size=_MAX_NPY_HEAD)
    except (KeyError, *_BAD_HEAD) as error:
        raise RefusedError(
            400, "the head of the .npy file is damaged; write it with numpy.save, without pickle"
        ) from error
    if dtype.kind not in "fiub" or len(shape) > 32:
        raise RefusedError(422, f"the .npy file holds {dtype} in {len(shape)} dimensions, expected numbers")
    size = len(body) - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise RefusedError(400, f"the .npy file says {shape} of {dtype}, but {size} bytes follow; it may be cut off")
    # numpy's reader of the rest, `read_array`, copies the bytes.
    array = np.frombuffer(body, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    return np.asarray(array, dtype.newbyteorder("="), order="C")


def _array(value: Any, spec: InputSpec, words: bool) -> Array:
    """An array of the dtype that the network takes, from nested lists of numbers."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise RefusedError(422, f"the input {spec.name!r} is ragged or nested too deeply; expected an array") from error
    expected = np.dtype(spec.dtype)
    if expected.kind != "b" and words and array.dtype.kind in "fiu":  # numpy takes true for 1 among numbers
        flat = np.asarray(value, dtype=np.object_).ravel()
        words = any(isinstance(one, bool) for one in flat)
    if expected.kind == "b" and array.dtype.kind in "iu" and np.isin(array, (0, 1)).all():
        array = array.astype(bool)  # a mask as tokenizers write it
    if array.dtype.kind not in {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[expected.kind] or (
        expected.kind != "b" and words and array.dtype.kind in "fiu"
    ):
        kinds = {"f": "numbers", "i": "whole numbers", "u": "whole numbers", "b": "true or false"}
        raise RefusedError(422, f"the input {spec.name!r} does not hold {kinds[expected.kind]} ({expected})")
    if expected.kind in "fiu" and array.size:
        # Of floats too: a number that is too large would round to the largest, or to infinity.
        bounds: Any = np.finfo(expected) if expected.kind == "f" else np.iinfo(expected)
        least, most = array.min().item(), array.max().item()
        if least < float(bounds.min) or most > float(bounds.max) or not (least == least and most == most):
            raise RefusedError(422, f"the input {spec.name!r} goes from {least} to {most}, which is no {expected}")
    return array.astype(expected)


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"the text is not UTF-8: {error.reason} at byte {error.start}") from error


def _names(names: Collection[str]) -> str:
    """Some names that a client sent, quoted and cut, so that no error is as long as a body."""
    first = [_name(name) for name in list(names)[:_MOST_NAMES]]
    more = [f"{len(names) - len(first)} more"] if len(names) > len(first) else []
    return ", ".join([*first, *more])


def _name(name: str) -> str:
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...")
