"""`eenet serve`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from eenet.cli._console import side

TOKEN_VARIABLE = "EENET_TOKEN"


def serve(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that eenet export wrote.")],
    host: Annotated[str, typer.Option(help="Beyond loopback it needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help=f"Holds the token for PUT /budget; or set {TOKEN_VARIABLE}.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Start with another of the bundle's budgets, such as 50%.")] = None,
    hold: Annotated[
        bool, typer.Option("--hold/--no-hold", help="Adapt the policy so that traffic costs the budget.")
    ] = True,
    workers: Annotated[int, typer.Option(min=1, help="Stages that run at the same time.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads for each stage; 0 leaves it the choice.")] = 0,
    max_batch: Annotated[int, typer.Option(min=1, help="Samples in a batch, at most.")] = 16,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long a request waits for company.")] = 2.0,
    max_samples: Annotated[int, typer.Option(min=1, help="Samples inside at once; more are refused.")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for an answer, if the client names none.")] = 30.0,
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Merge survivors of several requests before each stage.")
    ] = True,
    allow: Annotated[
        list[str] | None, typer.Option(help="An import path that a bundle of weights may call to build its network.")
    ] = None,
) -> None:
    """Serve a bundle over HTTP: POST /predict, a page at /, metrics, and a budget that can be changed.

    Requests are batched by stage. Ctrl+C or SIGTERM ends it when everybody inside has been answered.

    Examples:

        eenet serve bundle

        EENET_TOKEN=... eenet serve bundle --host 0.0.0.0 --port 80 --budget 50%
    """
    from eenet.errors import InvalidInputError
    from eenet.runtime import load
    from eenet.scheduler import BudgetController
    from eenet.serving import EngineOptions, FixedBudget, Limits, ServerOptions, make_server

    token = os.environ.get(TOKEN_VARIABLE) or None
    if token_file is not None:
        if not token_file.is_file():
            raise InvalidInputError(f"there is no token file {str(token_file)!r}")
        token = token_file.read_text(encoding="utf-8").strip()
    options = ServerOptions(
        host=host,
        port=port,
        token=token,
        workers=workers,
        engine=EngineOptions(max_batch=max_batch, max_wait=max_wait_ms / 1000, max_samples=max_samples, merge=merge),
        limits=Limits(timeout=timeout, max_samples=min(256, max_samples)),
    )
    loaded = load(bundle, threads=threads or None, allow=allow or ())
    if budget is not None:
        loaded = loaded.at(budget)
    controller = BudgetController(loaded.scheduler) if hold else FixedBudget(loaded.scheduler)
    server = make_server(
        loaded, options, controller=controller, ready=lambda url: side().print(f"serving {bundle} on {url}")
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server has handlers of its own while it runs, and passes the signal on to these at its end.
        signal.signal(number, lambda *_: None)
    server.run()


def _say(bundle: Path, url: str) -> None:
    side().print(f"serving {bundle} on {url}")
