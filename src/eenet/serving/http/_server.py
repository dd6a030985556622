"""Serving over HTTP with uvicorn, in one process."""

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
from eenet.serving.engine._model import Controller, Model
from eenet.serving.engine._request import EngineOptions, Limits
from eenet.serving.engine._service import LocalService

if TYPE_CHECKING:
    from uvicorn.server import Server

_SPARE_FILES = 128  # open files kept for everything but connections
_BACKLOG = 2048


@dataclass(frozen=True)
class ServerOptions:
    """Where and how to serve.

    Parameters
    ----------
    host, port : str, int
        Where to listen; port 0 takes a free one. A host that other machines can reach needs a token.
    token : str
        What `PUT /budget` asks for, at least 8 characters; None switches changing the budget off.
    workers : int
        Threads that run stages at the same time.
    drain_timeout : float
        Seconds that accepted requests have to end after SIGTERM.
    engine : EngineOptions
        How batches are formed.
    limits : Limits
        What a request may cost.
    show_samples : bool
        Whether `GET /traffic` and the page show the last samples: never, or also in requests that a proxy passed on. By
        default not in those. Where there is a token, it is asked for in any case.

    Raises
    ------
    InvalidInputError
        For a short token, or a host beyond loopback without a token.

    Examples
    --------
    >>> from eenet.serving.http import ServerOptions
    >>> ServerOptions(port=8080, token="a long secret").host
    '127.0.0.1'
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    workers: int = 1
    drain_timeout: float = 60.0
    engine: EngineOptions = field(default_factory=EngineOptions)
    limits: Limits = field(default_factory=Limits)
    show_samples: bool | None = None

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < 8:
            raise InvalidInputError("the token has fewer than 8 characters, which can be guessed; use a longer one")
        if self.token is None and not is_loopback(self.host):
            raise InvalidInputError(
                f"the host {self.host!r} can be reached from other machines, which needs a token for changing the "
                "budget: set EENET_TOKEN, or serve on 127.0.0.1"
            )


def make_server(
    model: Model,
    options: ServerOptions | None = None,
    *,
    controller: Controller | None = None,
    ready: Callable[[str], None] | None = None,
) -> Server:
    """A server for HTTP; its method `run()` serves until SIGTERM or Ctrl+C, and answers every accepted request.

    Parameters
    ----------
    model : Model
        A loaded bundle, or a `ServedModel`.
    options : ServerOptions
        Where and how to serve.
    controller : Controller
        Holds the budget, by default a `BudgetController`.
    ready : callable
        Called with the server's address when it listens.

    Returns
    -------
    uvicorn.Server
        Call its `run()`.

    Raises
    ------
    MissingExtraError
        Without the extra "serve".

    Examples
    --------
    >>> import torch
    >>> import eenet
    >>> from eenet.serving.engine import ServedModel
    >>> from eenet.serving.http import ServerOptions, make_server
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> x = torch.randn(40, 4)
    >>> model = eenet.attach(network, exits=["0"], num_classes=3, example=x[:2])
    >>> records = eenet.collect(model, [x])
    >>> scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0]), budget="80%")
    >>> server = make_server(ServedModel(model, scheduler), ServerOptions(port=0))
    >>> server.config.host  # server.run() serves
    '127.0.0.1'
    """
    for module in ("fastapi", "httptools", "orjson", "prometheus_client", "python_multipart"):
        require(module, "serve", "serving")
    uvicorn: Any = require("uvicorn", "serve", "serving")
    from eenet.serving.http._app import make_app
    from eenet.serving.http._decode import guarded_protocol

    options = options or ServerOptions()
    chosen: Controller = controller or BudgetController(model.scheduler)
    service = LocalService(model, chosen, options.engine, workers=options.workers)
    app = make_app(
        model, service, chosen, limits=options.limits, token=options.token, show_samples=options.show_samples
    )
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
