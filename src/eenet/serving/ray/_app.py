"""A bundle as a Ray Serve application: every stage is a deployment with replicas and resources of its own.

Importing this needs no Ray; using it does: `pip install 'eenet[ray]'`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eenet._compat import by_reference
from eenet._extras import require
from eenet._files import atomic_path
from eenet.bundle import load
from eenet.control import BudgetController
from eenet.errors import InvalidInputError
from eenet.serving.engine._model import Controller, FixedBudget
from eenet.serving.http._server import is_loopback
from eenet.serving.ray._options import RayOptions
from eenet.serving.ray._service import RemoteService, RemoteStages
from eenet.serving.ray._stage import StageReplica

if TYPE_CHECKING:
    from fastapi import FastAPI

APPLICATION = "eenet"
INGRESS = "ingress"
TOKEN_VARIABLE = "EENET_TOKEN"
_GRACE = 60.0  # seconds that a replica which is taken away has to answer what it took in


def app(args: Mapping[str, Any]) -> Any:
    """The application for `serve run` and `serve deploy`: `import_path: eenet.serving.ray:app`.

    Parameters
    ----------
    args : mapping
        `bundle`, the path of a folder that all nodes see, and what differs from the defaults of `RayOptions`.

    Raises
    ------
    InvalidInputError
        For args that are not these, and options that do not fit the bundle.
    MissingExtraError
        Without the extra "ray".

    Examples
    --------
    >>> from eenet.serving import ray
    >>> ray.app({"bundle": "bundle"})  # doctest: +SKIP
    """
    if not isinstance(args.get("bundle"), str):
        raise InvalidInputError(f"the args are {dict(args)!r}, expected 'bundle', the path of a folder")
    options = RayOptions.from_dict({name: value for name, value in args.items() if name != "bundle"})
    return _application(args["bundle"], options)


def _application(bundle: str | Path, options: RayOptions | None = None) -> Any:
    """The application of a bundle, for `ray.serve.run`: deployments `stage-0` ... and `ingress`, which handles HTTP.

    Each process loads the bundle from the folder, which all nodes must see under this path, and only the stage it runs.
    """
    serve = _serve()
    options = options or RayOptions()
    folder = str(Path(bundle).resolve())
    loaded = load(folder, stages=())
    if options.budget is not None:
        loaded.at(options.budget)
    _token(options)
    stages = []
    for k, scaling in enumerate(options.scaling(len(loaded.exit_names))):
        stage = serve.deployment(
            StageReplica,
            name=_stage_name(k),
            graceful_shutdown_timeout_s=_GRACE,
            health_check_period_s=2.0,
            **scaling.deployment(options.engine.max_batch),
        )
        stages.append(
            stage.bind(
                folder,
                k,
                options.engine,
                workers=options.workers,
                threads=options.threads,
                allow=options.allow,
                inline_bytes=options.inline_bytes,
            )
        )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name=INGRESS,
        num_replicas=1,
        graceful_shutdown_timeout_s=_GRACE,
        **_ingress_deployment(options),
    )
    return ingress.bind(folder, options, *stages)


def _stage_name(k: int) -> str:
    """What the deployment of stage k is called."""
    return f"stage-{k}"


class Ingress:
    """The deployment that handles HTTP: decodes requests, sends them through the stages and holds the budget."""

    def __init__(self, bundle: str, options: RayOptions, *stages: Any) -> None:
        exceptions, refusals = require("ray.exceptions", "ray"), require("ray.serve.exceptions", "ray")
        lost = (exceptions.RayActorError, exceptions.ObjectLostError)
        refused = (refusals.BackPressureError, refusals.DeploymentUnavailableError)
        loaded = load(bundle, stages=())
        if options.budget is not None:
            loaded = loaded.at(options.budget)
        views = [by_reference(stage).view for stage in stages]
        # What inputs the network takes is found by running its stages where they are.
        loaded.backend = RemoteStages(
            [stage.inputs for stage in loaded.manifest.stages],
            loaded.manifest.num_classes,
            views,
            failed=exceptions.RayTaskError,
            gone=(*lost, *refused, TimeoutError),
        )
        self._model = loaded
        self._controller: Controller = (
            BudgetController(loaded.scheduler) if options.adapt else FixedBudget(loaded.scheduler)
        )
        self._options = options
        self._service = RemoteService(
            loaded,
            self._controller,
            [by_reference(stage).remote for stage in stages],
            options.engine,
            retries=options.retries,
            lost=lost,
            refused=refused,
            views=[view.remote for view in views],
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve runs."""
        from eenet.serving.http._app import make_app

        return make_app(
            self._model,
            self._service,
            self._controller,
            limits=self._options.limits,
            token=_token(self._options),
            show_samples=self._options.show_samples,
        )


def write_yaml(
    path: str | Path,
    bundle: str | Path,
    options: RayOptions | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Write the file for `serve deploy`, checked against Ray Serve's own schema.

    The scaling and the resources of each deployment are there, to be edited by hand.

    Parameters
    ----------
    path : path
        The file to write.
    bundle, options, host, port
        As for `start`.

    Examples
    --------
    >>> from eenet.serving import ray
    >>> ray.write_yaml("eenet.yaml", "bundle")  # doctest: +SKIP
    """
    yaml = require("yaml", "ray", "writing the file for serve deploy")
    text = yaml.safe_dump(_document(bundle, options, host=host, port=port), sort_keys=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _document(
    bundle: str | Path, options: RayOptions | None = None, *, host: str = "127.0.0.1", port: int = 8000
) -> dict[str, Any]:
    """What `write_yaml` writes, as Ray Serve's `ServeDeploySchema` has it."""
    _serve()
    options = options or RayOptions()
    _require_token(host, options)
    folder = str(Path(bundle).resolve())
    scaling = options.scaling(len(load(folder, stages=()).exit_names))
    args = {"bundle": folder, **options.to_dict()}
    args.pop("stages", None)  # each deployment says it for itself, in one place
    document: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "eenet.serving.ray:app",
                "args": args,
                "deployments": [
                    *(
                        {"name": _stage_name(k), **one.deployment(options.engine.max_batch)}
                        for k, one in enumerate(scaling)
                    ),
                    {"name": INGRESS, "num_replicas": 1, **_ingress_deployment(options)},
                ],
            }
        ],
    }
    require("ray.serve.schema", "ray").ServeDeploySchema.model_validate(document)
    return document


def start(
    bundle: str | Path,
    options: RayOptions | None = None,
    *,
    address: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> str | None:
    """Serve a bundle on a Ray cluster; `stop` ends it.

    Parameters
    ----------
    bundle : path
        The folder of the bundle, which all nodes see.
    options : RayOptions
        How it is served.
    address : str
        The address of the cluster. By default one is started here, with as many logical CPUs as the smallest number of
        replicas reserves, where that is more than there are.
    host, port : str, int
        Where to listen. Where Ray Serve runs already, it keeps its own.

    Returns
    -------
    str or None
        The URL when it is ready, or None where Ray Serve ran already.

    Raises
    ------
    InvalidInputError
        Where the options do not fit the bundle, and for a host beyond loopback without a token.
    MissingExtraError
        Without the extra "ray".

    Examples
    --------
    >>> from eenet.serving import ray
    >>> ray.start("bundle")  # doctest: +SKIP
    'http://127.0.0.1:8000'
    """
    serve, ray = _serve(), require("ray", "ray")
    options = options or RayOptions()
    _require_token(host, options)
    application = _application(bundle, options)
    if not ray.is_initialized():
        if address is None:
            scaling = options.scaling(len(load(bundle, stages=()).exit_names))
            needed = options.ingress_cpus + sum(one.min_replicas * one.cpus for one in scaling)
            ray.init(num_cpus=max(os.cpu_count() or 1, int(needed + 1)), include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    running = bool(serve.status().proxies)
    serve.start(http_options={"host": host, "port": port})
    with _fresh_random():
        serve.run(application, name=APPLICATION, route_prefix="/")
    return None if running else f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def _fresh_random() -> Iterator[None]:
    """Within the block `random` draws what no seed of the caller says; its state is as before afterwards.

    Ray Serve draws the versions of deployments from it: after the same seed it would take another bundle for one that
    runs already.
    """
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def stop(*, everything: bool = True) -> None:
    """End the application when all requests inside have been answered; with `everything` also Ray Serve and Ray.

    Parameters
    ----------
    everything : bool
        Whether to stop Ray too, where `start` started it.

    Examples
    --------
    >>> from eenet.serving import ray
    >>> ray.stop()  # doctest: +SKIP
    """
    serve, ray = _serve(), require("ray", "ray")
    serve.delete(APPLICATION)
    if everything:
        serve.shutdown()
    ray.shutdown()


def _require_token(host: str, options: RayOptions) -> None:
    """Raise `InvalidInputError` where a host beyond loopback would be served without a token."""
    if not is_loopback(host) and _token(options) is None:
        raise InvalidInputError(
            f"the host {host!r} can be reached from other machines, which needs a token for changing the budget: name "
            "a token file, or serve on 127.0.0.1"
        )


def _token(options: RayOptions) -> str | None:
    token = os.environ.get(TOKEN_VARIABLE) or None
    if options.token_file is not None:
        path = Path(options.token_file)
        if not path.is_file():
            raise InvalidInputError(f"there is no token file {str(path)!r}")
        token = path.read_text(encoding="utf-8").strip()
    if token is not None and len(token) < 8:
        raise InvalidInputError("the token has fewer than 8 characters, which can be guessed; use a longer one")
    return token


def _ingress_deployment(options: RayOptions) -> dict[str, Any]:
    # The samples inside are bounded, and the ingress itself refuses more with 503.
    return {
        "max_ongoing_requests": 10 * options.engine.max_samples,
        "ray_actor_options": {"num_cpus": options.ingress_cpus},
    }


def _serve() -> Any:
    for module in ("fastapi", "orjson", "prometheus_client", "python_multipart"):
        require(module, "ray", "serving on Ray")
    return require("ray.serve", "ray", "serving on Ray")
