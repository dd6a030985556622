"""Receiving the body of a request within bounds, and taking a form apart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from eenet._extras import require
from eenet.serving.engine._limits import Limits, RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request


class ClientGoneError(Exception):
    """The client closed the connection before its request was whole."""


class Receiver:
    """Receives bodies; bounds each of them and all together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._uploading = 0

    async def body(self, request: Request, content_type: str) -> bytes:
        """The whole body; raises `RefusedError` for one too large or too slow, `ClientGoneError` if it breaks off."""
        limits = self._limits
        most = limits.max_json if content_type == "application/json" else limits.max_body
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most)
        try:
            return await asyncio.wait_for(self._receive(request, most), limits.body_timeout)
        except asyncio.TimeoutError as error:
            raise RefusedError(408, f"the body was not whole after {limits.body_timeout:g} s") from error

    async def _receive(self, request: Request, most: int) -> bytes:
        from starlette.requests import ClientDisconnect

        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                self._uploading += len(chunk)
                if size > most:
                    raise _too_large(most)
                if self._uploading > self._limits.max_uploads:
                    raise RefusedError(503, "too much is being uploaded now; try again later")
                chunks.append(chunk)
        except ClientDisconnect as error:
            raise ClientGoneError from error
        finally:
            self._uploading -= size
        return b"".join(chunks)


def form_files(header: str, body: bytes, most: int) -> list[tuple[str, bytes]]:
    """The names and contents of the files in a multipart body with this Content-Type header, `most` of them at most.

    Raises `RefusedError` for a form that is malformed or holds anything but files.
    """
    forms = require("python_multipart", "serve")
    _, options = forms.multipart.parse_options_header(header.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise RefusedError(400, "the form cannot be read: its Content-Type names no boundary")
    form = _Form(forms.multipart.parse_options_header, most)
    try:
        parser = forms.MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except forms.exceptions.FormParserError as error:
        raise RefusedError(400, f"the form cannot be read: {error}") from error
    if not form.ended:
        raise RefusedError(400, "the form cannot be read: it is cut off")
    return [(name, bytes(content)) for name, content in form.files]


class _Form:
    """What the parser's callbacks gather."""

    def __init__(self, parse_header: Any, most: int) -> None:
        self._parse_header = parse_header
        self._most = most
        self._field, self._value, self._disposition = b"", b"", b""
        self.files: list[tuple[str, bytearray]] = []
        self.ended = False

    def callbacks(self) -> dict[str, Any]:
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        self._disposition = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field, self._value = b"", b""

    def headers_finished(self) -> None:
        _, options = self._parse_header(self._disposition)
        name = options.get(b"name")
        if name is None or b"filename" not in options:
            raise RefusedError(422, "the form has a field that is no named file; give each part a name and a filename")
        if len(self.files) == self._most:
            raise RefusedError(413, f"the form has more than {self._most} files")
        self.files.append((name.decode("utf-8", "replace"), bytearray()))

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.files[-1][1].extend(memoryview(data)[start:end])

    def end(self) -> None:
        self.ended = True


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"the body has more than the {most} bytes that are taken")
