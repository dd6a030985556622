"""uvicorn's HTTP protocol, with an end to its patience."""

from __future__ import annotations

import asyncio
from typing import Any

from eenet._extras import require
from eenet.serving.engine._limits import Limits


def guarded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn that gives up connections which send no whole head in time, or one too large.

    uvicorn waits for ever for the head of a connection's first request, keeps all of it, and reads on for ever what
    comes after an early refusal. A body that is being waited for is not looked at here: see `Receiver`.
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
