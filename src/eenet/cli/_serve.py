"""`eenet serve`, in this process or on a Ray cluster."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eenet._extras import require_extra
from eenet.cli._console import note_threads, print_json, side
from eenet.cli._models import current_folder_importable
from eenet.cli._options import Bundle, BundleAllow, ListeningJson
from eenet.cli._trained import bundle_of
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.serving.ray import RayOptions, StageScaling

TOKEN_VARIABLE = "EENET_TOKEN"


def serve(
    bundle: Bundle,
    host: Annotated[str, typer.Option(help="Beyond loopback it needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help=f"Holds the token for PUT /budget; or set {TOKEN_VARIABLE}.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Start with another of the bundle's budgets, such as 50%.")] = None,
    hold: Annotated[
        bool,
        typer.Option(
            "--hold/--no-hold",
            help="Adapt the policy so that traffic costs the budget: some samples then exit elsewhere than in eenet "
            "evaluate. With --no-hold none does.",
        ),
    ] = True,
    workers: Annotated[int, typer.Option(min=1, help="Stages that run at the same time.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads for each stage; 0 leaves it to the runtime.")] = 0,
    max_batch: Annotated[int, typer.Option(min=1, help="Samples in a batch, at most.")] = 16,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long a request waits for others.")] = 2.0,
    max_samples: Annotated[int, typer.Option(min=1, help="Samples inside at once; more are refused.")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for an answer, if the client names none.")] = 30.0,
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Merge samples of several requests before each stage.")
    ] = True,
    show_samples: Annotated[
        bool | None,
        typer.Option(
            "--show-samples/--no-show-samples",
            help="Show the last samples (/traffic, the page), also to requests that a proxy passed on; or never.",
            show_default="to those who have the token; without one, to requests of this machine",
        ),
    ] = None,
    allow: BundleAllow = None,
    ray: Annotated[bool, typer.Option("--ray", help="Each stage a deployment of its own on a Ray cluster.")] = False,
    address: Annotated[str | None, typer.Option(help="With --ray: the cluster; without, one is started here.")] = None,
    replicas: Annotated[
        str, typer.Option(help="With --ray: of each stage, such as 2 or 1:4,2:8 (least:most, stage by stage).")
    ] = "1",
    cpus: Annotated[str, typer.Option(help="With --ray: set aside for a replica, such as 0.5,1,1.")] = "1",
    target: Annotated[float, typer.Option(min=0.01, help="With --ray: calls a replica should have at once.")] = 16.0,
    write_yaml: Annotated[
        Path | None, typer.Option(help="With --ray: write the file for `serve deploy`, and do not serve.")
    ] = None,
    json_output: ListeningJson = False,
) -> None:
    """Serve a bundle over HTTP: POST /predict, a page at /, metrics, and a budget that can be changed.

    Requests are batched by stage. Ctrl+C or SIGTERM ends it when all requests inside have been answered.

    Of a trained model, such as `digits`, a bundle is made first, which takes less than a minute: EENet is fitted to the
    calibration records beside the model, at 65 % of the plain network's cost or --budget, in times measured here. It is
    kept in EENET_CACHE (~/.cache/eenet) for the next time.

    Examples:

        eenet serve bundle

        eenet serve digits --budget 50%

        EENET_TOKEN=... eenet serve bundle --host 0.0.0.0 --port 80 --budget 50%

        eenet serve bundle --ray --replicas 1:2,1:4,2:8 --cpus 0.5,1,1
    """
    require_extra("ray" if ray else "serve", "eenet serve")
    from eenet.bundle import load
    from eenet.control import BudgetController
    from eenet.serving.engine import EngineOptions, FixedBudget, Limits
    from eenet.serving.http import ServerOptions, make_server

    token = os.environ.get(TOKEN_VARIABLE) or None
    if token_file is not None:
        if not token_file.is_file():
            raise InvalidInputError(f"there is no token file {str(token_file)!r}")
        token = token_file.read_text(encoding="utf-8").strip()
    engine = EngineOptions(max_batch=max_batch, max_wait=max_wait_ms / 1000, max_samples=max_samples, merge=merge)
    limits = Limits(timeout=timeout, max_samples=min(256, max_samples))
    if not ray and (address is not None or write_yaml is not None):
        raise InvalidInputError("--address and --write-yaml are for a Ray cluster; add --ray")
    used = threads or (1 if ray else None)  # a replica has its own share of the machine
    bundle = bundle_of(bundle, threads=used, allow=allow or ())
    if ray:
        from eenet.serving.ray import RayOptions
        from eenet.serving.ray import write_yaml as write

        laid_out = RayOptions(
            stages=_scaling(replicas, cpus, target),
            budget=budget,
            adapt=hold,
            token_file=None if token_file is None else str(token_file.resolve()),
            workers=workers,
            threads=threads or 1,
            allow=allow or (),
            engine=engine,
            limits=limits,
            show_samples=show_samples,
        )
        if write_yaml is not None:
            write(write_yaml, bundle, laid_out, host=host, port=port)
            side().print(f"wrote {write_yaml}; start it with: serve deploy {write_yaml}")
            return
        _serve_on_ray(bundle, laid_out, address=address, host=host, port=port, json_output=json_output)
        return
    options = ServerOptions(
        host=host,
        port=port,
        token=token,
        workers=workers,
        engine=engine,
        limits=limits,
        show_samples=show_samples,
    )
    with current_folder_importable():
        loaded = load(bundle, threads=used, allow=allow or ())
    note_threads(loaded)
    if budget is not None:
        loaded = loaded.at(budget)
    controller = BudgetController(loaded.scheduler) if hold else FixedBudget(loaded.scheduler)

    def ready(url: str) -> None:
        int8 = [name for name, precision in loaded.precision.items() if precision == "int8"]
        what = f"{loaded.runtime}, {', '.join(int8)} in int8" if int8 else loaded.runtime
        side().print(f"{what}; costs {loaded.costs_from}", soft_wrap=True)
        _say_ready(bundle, url, json_output=json_output)

    server = make_server(loaded, options, controller=controller, ready=ready)
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server has handlers of its own while it runs, and passes the signal on to these at its end.
        signal.signal(number, lambda *_: None)
    _require_free(host, port)
    server.run()


def _say_ready(folder: Path, url: str, *, json_output: bool) -> None:
    if json_output:
        print_json({"schema": 1, "bundle": str(folder), "url": url}, indent=None)
    side().print(f"serving {folder} on {url}", soft_wrap=True)


def _require_free(host: str, port: int) -> None:
    """Raise `InvalidInputError` where nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        if os.name == "posix":
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise InvalidInputError(
                f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another --port or --host"
            ) from error


def _scaling(replicas: str, cpus: str, target: float) -> Sequence[StageScaling]:
    """The stages of "1:4,2:8" and "0.5,1": numbers of replicas or ranges of them, and CPUs, one for all or one each."""
    from eenet.serving.ray import StageScaling

    ranges, shares = replicas.split(","), cpus.split(",")
    count = max(len(ranges), len(shares))
    for name, given in (("--replicas", ranges), ("--cpus", shares)):
        if len(given) not in (1, count):
            raise InvalidInputError(f"{name} has {len(given)} entries, expected 1 or {count}")
    stages = []
    for k in range(count):
        least, _, most = ranges[k % len(ranges)].partition(":")
        try:
            numbers = int(least), int(most or least), float(shares[k % len(shares)])
        except ValueError as error:
            raise InvalidInputError(
                f"--replicas {replicas!r} and --cpus {cpus!r}: expected such as 1:4,2:8 and 0.5,1 ({error})"
            ) from error
        stages.append(StageScaling(numbers[0], numbers[1], target=target, cpus=numbers[2]))
    return stages


def _serve_on_ray(
    bundle: Path, options: RayOptions, *, address: str | None, host: str, port: int, json_output: bool
) -> None:
    """Serve until Ctrl+C or SIGTERM; Ray is ended too where it was started here."""
    from eenet.serving.ray import start, stop

    port = port or _free_port(host)
    ended = threading.Event()
    url = start(bundle, options, address=address, host=host, port=port)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):  # only now: Ray sets handlers of its own while it starts
            signal.signal(number, lambda *_: ended.set())
        _say_ready(bundle, url or "the port of the Ray Serve that runs there already", json_output=json_output)
        ended.wait()
    finally:
        stop(everything=address is None)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])
