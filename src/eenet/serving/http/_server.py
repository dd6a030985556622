"""Serving over HTTP with uvicorn: one process, ready for one command."""

from __future__ import annotations

import ipaddress
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eenet._extras import require
from eenet.control import BudgetController
from eenet.errors import InvalidInputError
from eenet.serving.engine._driver import Driver
from eenet.serving.engine._engine import EngineOptions
from eenet.serving.engine._limits import Limits
from eenet.serving.engine._servable import Controller, Servable
from eenet.serving.http._protocol import guarded_protocol

if TYPE_CHECKING:
    from uvicorn.server import Server

_SPARE_FILES = 128  # open files kept for everything but connections
_BACKLOG = 2048


@dataclass(frozen=True)
class ServerOptions:
    """Where and how to serve. `token` allows changing the budget; a host beyond loopback needs one.

    `workers` threads run stages at the same time; `drain_timeout` is how many seconds requests have to end after
    SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    workers: int = 1
    drain_timeout: float = 60.0
    engine: EngineOptions = field(default_factory=EngineOptions)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < 8:
            raise InvalidInputError("the token has fewer than 8 characters, which can be guessed; use a longer one")
        if self.token is None and not is_loopback(self.host):
            raise InvalidInputError(
                f"the host {self.host!r} can be reached from other machines, which needs a token for changing the "
                "budget: set EENET_TOKEN, or serve on 127.0.0.1"
            )


def make_server(
    servable: Servable,
    options: ServerOptions | None = None,
    *,
    controller: Controller | None = None,
    ready: Callable[[str], None] | None = None,
) -> Server:
    """A server to `run()`; it ends after SIGTERM or Ctrl+C, when every accepted request is answered.

    `controller` holds the budget, by default a `BudgetController`; `ready` is called with the server's address
    once it listens. Raises `MissingExtraError` without the extra "serve".
    """
    uvicorn: Any = require("uvicorn", "serve", "serving")
    for module in ("fastapi", "httptools", "orjson", "prometheus_client", "python_multipart"):
        require(module, "serve", "serving")
    from eenet.serving.http._app import make_app

    options = options or ServerOptions()
    chosen: Controller = controller or BudgetController(servable.scheduler)
    driver = Driver(servable, chosen, options.engine, workers=options.workers)
    app = make_app(servable, driver, chosen, limits=options.limits, token=options.token)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        http=guarded_protocol(options.limits),
        ws="none",
        lifespan="on",
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        limit_concurrency=_most_connections(),
        timeout_graceful_shutdown=max(1, round(options.drain_timeout)),
        server_header=False,
    )

    class ReadyServer(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if ready is not None and self.started:
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    server: Server = ReadyServer(config)
    return server


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _most_connections() -> int | None:
    """As many as there can be open files, less some; raises this process's limit as far as it may."""
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            pass  # some systems set the hard limit higher than they allow
    return None if soft == resource.RLIM_INFINITY else max(1, soft - _SPARE_FILES)
