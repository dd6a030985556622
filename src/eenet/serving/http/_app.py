"""The HTTP interface: a FastAPI application around a service; importing it needs the extra."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import inspect
import io
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import Depends, FastAPI, Query, Response
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from eenet._sizes import outside_table
from eenet._version import __version__
from eenet.control import BudgetController
from eenet.errors import DrainingError, InvalidInputError, OverloadedError
from eenet.serving.engine._model import Controller, Model, Service
from eenet.serving.engine._request import Limits, Outcome, RefusedError, Request
from eenet.serving.http import _models as models
from eenet.serving.http._decode import ClientGoneError, Decoder, Receiver
from eenet.tasks import softmax

_INLINE = 16 * 1024  # bodies up to this size are decoded in the event loop; handing them to a thread would take longer
_MOST_VIEWS = 8  # requests that ask for every exit, waiting or running
_FULL = "Switch the early exits off for this request: all samples are answered, or handed back, at the last."
_GONE = 499  # the client closed the connection: only the metrics show this status
_MAX_TIMEOUT_MS = 600_000
_BEARER = HTTPBearer(scheme_name="token", auto_error=False)


_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""What proxies add to a request that they pass on."""


def make_app(
    model: Model,
    service: Service,
    controller: Controller,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    show_samples: bool | None = None,
) -> FastAPI:
    """The application that serves a model. `PUT /budget` asks for the token; without one it is off."""
    handlers = _Handlers(model, service, controller, limits or Limits(), token, show_samples)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.drain()
        handlers.close()

    app = FastAPI(
        title="eenet",
        version=__version__,
        description="A multi-exit network behind a server that batches by stage and keeps a budget.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HTTPRequest, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _refusal(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def wrong(_: HTTPRequest, error: HTTPException) -> Response:
        return _refusal(error.status_code, str(error.detail), error.headers)

    retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}

    @app.post(
        "/predict",
        summary="Predict for one sample or several.",
        response_model=models.Answer,
        responses={
            200: {"description": "An answer for each sample, in order.", "content": models.file_content()},
            **models.refusals(models.REFUSED_PREDICT),
            503: {"model": models.Error, "description": "The server is full.", "headers": retry},
        },
        openapi_extra=models.predict_body(model, handlers.decoder.content_types, handlers.limits),
    )
    async def predict(
        request: HTTPRequest,
        full: Annotated[bool, Query(description=_FULL)] = False,
        timeout_ms: Annotated[
            int | None, Query(ge=1, le=_MAX_TIMEOUT_MS, description="How long to wait for the answer.")
        ] = None,
        exits: Annotated[
            bool,
            Query(description="Also run the sample to the end, and say what each exit gives: one sample."),
        ] = False,
    ) -> Response:
        return await handlers.predict(request, full, timeout_ms, exits)

    @app.put(
        "/budget",
        summary="Keep to another budget from now on.",
        response_model=models.SetBudget,
        responses=models.refusals(models.REFUSED_BUDGET),
        openapi_extra=models.json_body(models.NewBudget.model_json_schema()),
    )
    async def budget(
        request: HTTPRequest, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> Response:
        return await handlers.set_budget(request, None if given is None else given.credentials)

    unready = models.refusals({503: "No."})

    @app.get("/health", summary="Whether the server is alive.", response_model=models.Status, responses=unready)
    async def health() -> Response:
        if not service.alive:
            return _refusal(503, "a worker has died; restart the server")
        return _json({"status": "alive"})

    @app.get("/ready", summary="Whether it takes requests.", response_model=models.Status, responses=unready)
    async def ready() -> Response:
        if not service.accepting:
            return _refusal(503, "not taking requests", {"Retry-After": "1"})
        return _json({"status": "ready"})

    @app.get("/info", summary="What is served, its budget, and recent traffic.", response_model=models.Info)
    async def info() -> Response:
        return _json(handlers.info())

    @app.get(
        "/traffic",
        summary="Exits, cost and budget over time.",
        response_model=models.RecentTraffic,
        openapi_extra={"security": [{}, {_BEARER.scheme_name: []}]},  # the token is optional
    )
    async def traffic(request: HTTPRequest) -> Response:
        given = await _BEARER(request)
        direct = not any(name in request.headers for name in _FORWARDED)
        return _json(handlers.traffic(None if given is None else given.credentials, direct))

    @app.get("/metrics", summary="Counters in the text format of Prometheus.", response_class=PlainTextResponse)
    async def metrics() -> Response:
        text = service.metrics.exposition(handlers.budget, handlers.drift())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, name in (("/", "index.html"), ("/docs", "docs.html")):
        app.add_api_route(path, _page_handler(name), methods=["GET"], include_in_schema=False)
    return app


class _Handlers:
    """The handlers of the paths, and what they share."""

    def __init__(
        self,
        model: Model,
        service: Service,
        controller: Controller,
        limits: Limits,
        token: str | None,
        show_samples: bool | None,
    ) -> None:
        self._model, self._service, self._controller = model, service, controller
        self._token, self._show_samples = token, show_samples
        self._costs: list[float] = model.costs.values.tolist()
        self._plain_cost = model.costs.plain
        self._names, self._unit = model.class_names, model.costs.unit
        self._not_taken: Callable[[Any], str | None] = getattr(model, "_not_taken", lambda _inputs: None)
        self._receiver = Receiver(limits)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="eenet-decode")
        self._viewer = ThreadPoolExecutor(1, thread_name_prefix="eenet-view")
        self._viewing = 0
        self.limits = limits
        self.decoder = Decoder(model, limits)

    def close(self) -> None:
        self._threads.shutdown()
        self._viewer.shutdown()

    async def predict(self, request: HTTPRequest, full: bool, timeout_ms: int | None, exits: bool) -> Response:
        began = time.perf_counter()
        response = await self._predict(request, full, timeout_ms, exits)
        self._service.metrics.request(response.status_code, time.perf_counter() - began)
        return response

    async def _predict(self, request: HTTPRequest, full: bool, timeout_ms: int | None, exits: bool) -> Response:
        try:
            content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type == "multipart/form-data":
                body: Any = await self._receiver.form(request)
                began = time.perf_counter()
                decode: Callable[[Any], Any] = self.decoder.from_parts
            else:
                body = await self._receiver.body(request, content_type)
                began = time.perf_counter()
                decode = functools.partial(self.decoder, content_type)
            if content_type == "application/json" and len(body) <= _INLINE:
                inputs, flags = decode(body)
            else:
                inputs, flags = await asyncio.get_running_loop().run_in_executor(self._threads, decode, body)
            samples = len(next(iter(inputs.values())))
            if exits and samples != 1:
                raise RefusedError(422, f"exits=true is for one sample, the request has {samples}; send one")
            timeout = self.limits.timeout if timeout_ms is None else timeout_ms / 1000
            answered = await self._answer(request, inputs, timeout, full)
            milliseconds = 1000 * (time.perf_counter() - began)
            views = await self._views(inputs, answered, timeout) if exits else None
        except ClientGoneError:
            return _refusal(_GONE, "the client is gone")
        except RefusedError as error:
            return _refusal(error.status, str(error), {"Retry-After": "1"} if error.status == 503 else None)
        except OverloadedError as error:
            return _refusal(503, str(error), {"Retry-After": str(min(600, round(error.retry_after)))})
        except DrainingError as error:
            return _refusal(503, str(error), {"Retry-After": "1"})
        except InvalidInputError as error:
            return _refusal(422, str(error))
        if answered.outcome is Outcome.LATE:
            return _refusal(504, f"no answer within {timeout:g} s; allow more time with timeout_ms")
        if answered.outcome is not Outcome.ANSWERED:
            # In one thread: it may run the network, which must not hold up the requests of others.
            why = await asyncio.get_running_loop().run_in_executor(self._viewer, self._not_taken, inputs)
            why = why or outside_table(answered.error)
            return (
                _refusal(422, why)
                if why is not None
                else _refusal(500, "the network failed on this request; the server's log says why")
            )
        if request.headers.get("accept", "") in models.NPY:
            headers = {"X-Exits": ",".join(map(str, answered.exits))}
            for name, values in {"abstained": answered.abstained, **flags}.items():
                if values.any():
                    headers[f"X-{name.capitalize()}"] = ",".join(map(str, values.astype(int)))
            return Response(_npy(answered), headers=headers, media_type=models.NPY[0])
        shown = {} if views is None else {"exits": views}
        return _json({**self._answers(answered, flags), "milliseconds": milliseconds, **shown})

    async def _views(self, inputs: Any, answered: Request, timeout: float) -> list[dict[str, Any]] | None:
        """What each exit says of the sample of a request, in one thread: it must not hold up the requests of others."""
        if answered.outcome is not Outcome.ANSWERED:
            return None
        if self._viewing >= _MOST_VIEWS:
            raise RefusedError(503, "too many requests ask for every exit; try again later, or leave exits=true out")
        self._viewing += 1
        try:
            view = self._service.view
            running: Any = (
                view(inputs)
                if inspect.iscoroutinefunction(view)
                else asyncio.get_running_loop().run_in_executor(self._viewer, view, inputs)
            )
            views = await asyncio.wait_for(running, timeout)
        except asyncio.TimeoutError as error:
            raise RefusedError(504, f"not all exits were seen within {timeout:g} s; leave exits=true out") from error
        finally:
            self._viewing -= 1
        if views is None:
            raise InvalidInputError("this server cannot run every exit for one sample; leave exits=true out")
        shown = []
        for k, view in enumerate(views):
            (answer,) = self._predictions(view.logits, [k], [view.abstained])
            score, threshold = (v if v is not None and np.isfinite(v) else None for v in (view.score, view.threshold))
            shown.append({**answer, "score": score, "threshold": threshold, "leaves": view.leaves})
        return shown

    async def _answer(self, request: HTTPRequest, inputs: Any, timeout: float, full: bool) -> Request:
        """Wait for the answer or for the client to close the connection, whichever comes first."""
        answer = asyncio.ensure_future(self._service.answer(inputs, timeout=timeout, full=full))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientGoneError
            return answer.result()
        finally:
            for task in (answer, gone):
                if not task.done():
                    task.cancel()

    def _answers(self, request: Request, flags: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        """Class, probability, exit and cost of each sample; for a class per pixel, the share of the most frequent."""
        assert request.logits is not None, "an answered request has logits"
        predictions = self._predictions(request.logits, request.exits.tolist(), request.abstained.tolist())
        for n, one in enumerate(predictions):
            one |= {name: bool(values[n]) for name, values in flags.items()}
        return {
            "predictions": predictions,
            "cost_unit": self._unit,
            "full_cost": self._costs[-1],
            "plain_cost": self._plain_cost,
        }

    def _predictions(
        self, logits: np.ndarray[Any, Any], exits: Sequence[int], abstained: Sequence[bool]
    ) -> list[dict[str, Any]]:
        dense = logits.ndim > 2
        if dense:
            labels = logits.argmax(axis=1).reshape(len(logits), -1)
            shares = np.stack([np.bincount(row, minlength=logits.shape[1]) / len(row) for row in labels])
        else:
            shares = softmax(logits).astype(np.float64)
        names, costs = self._names, self._costs
        predictions = []
        for n, (row, k, back) in enumerate(zip(shares, exits, abstained, strict=True)):
            best = int(row.argmax()) if dense else int(logits[n].argmax())
            value = float(row[best])
            predictions.append(
                {
                    "class": -1 if back else best,
                    "abstained": back,
                    "name": None if names is None or back else names[best],
                    "share" if dense else "probability": value if np.isfinite(value) else None,
                    "exit": k,
                    "cost": costs[k],
                }
            )
        return predictions

    async def set_budget(self, request: HTTPRequest, token: str | None) -> Response:
        if self._token is None:
            return _refusal(403, "changing the budget is off: start the server with a token")
        if not self._is_token(token):
            return _refusal(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        try:
            document = orjson.loads(await self._receiver.body(request, "application/json"))
            await self._service.set_budget(models.NewBudget.model_validate(document).budget)
        except ClientGoneError:
            return _refusal(_GONE, "the client is gone")
        except orjson.JSONDecodeError as error:
            return _refusal(400, f"the body is not JSON: {error}")
        except RefusedError as error:
            return _refusal(error.status, str(error))
        except ValidationError:
            return _refusal(422, "expected a JSON object with 'budget', a number or a text such as '60%', and no more")
        except InvalidInputError as error:
            return _refusal(422, str(error))
        return _json({"budget": self.budget, "unit": self._unit})

    def _is_token(self, given: str | None) -> bool:
        """Whether this is the server's token; without one it can be reached from this machine alone."""
        if self._token is None:
            return True
        return given is not None and secrets.compare_digest(given.strip().encode(), self._token.encode())

    @property
    def budget(self) -> float:
        """The budget in force, or the cost of the last exit where it is larger: no sample can cost more."""
        return min(float(self._controller.budget), self._costs[-1])

    def info(self) -> dict[str, Any]:
        model, metrics = self._model, self._service.metrics
        names, about = model.class_names, dict(model.info)
        if about.get("budgets"):  # about a hundred: by column they are a quarter as long
            about["budgets"] = {key: [row[key] for row in about["budgets"]] for key in about["budgets"][0]}
        return {
            **about,
            "kind": self.decoder.kind,
            "num_exits": model.backend.num_exits,
            "num_classes": model.backend.num_classes,
            "class_names": None if names is None else list(names),
            "inputs": [{"name": s.name, "dtype": str(s.dtype), "shape": list(s.shape)} for s in model.inputs],
            "costs": model.costs.to_dict(),
            "budget": self.budget,
            "budget_changes": self._token is not None,
            "traffic": {
                "exit_shares": metrics.exit_shares,
                "mean_cost": metrics.mean_cost,
                "waiting": list(self._service.waiting),
            },
        }

    def traffic(self, token: str | None, direct: bool) -> dict[str, Any]:
        """What recent traffic did, over time, and the last samples without their inputs.

        Answers to others are for those who have the server's token. Where it has none they are for this machine:
        for requests that no proxy passed on, unless they were asked for.
        """
        recent = self._service.metrics.recent.to_dict()
        here = direct or self._token is not None or self._show_samples
        if self._show_samples is False or not here or not self._is_token(token):
            recent["samples"] = []
        names = self._names
        for one in recent["samples"]:
            number = one["class"]
            one["name"] = None if names is None or number is None or number < 0 else names[number]
        return {**recent, "unit": self._unit, "drift": self.drift()}

    def drift(self) -> dict[str, Any] | None:
        """What the controller says of drift; None where nothing adapts, or it cannot know."""
        if not isinstance(self._controller, BudgetController):
            return None
        try:
            report = self._controller.drift()
        except InvalidInputError:  # the scheduler's file does not say where samples left
            return None
        names = ("samples", "shares", "planned", "p_value", "alarm", "alarm_at")
        return {name: getattr(report, name) for name in names}


async def _gone(request: HTTPRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, status, headers, "application/json")


def _refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"detail": message}, status, headers)


def _npy(request: Request) -> bytes:
    """The logits (n, C, ...) as an .npy file."""
    assert request.logits is not None, "an answered request has logits"
    file = io.BytesIO()
    np.save(file, request.logits, allow_pickle=False)
    return file.getvalue()


def _page_handler(name: str) -> Callable[[], Awaitable[Response]]:
    """A page, with headers that allow its own script and style, and requests to this server only."""
    html = files("eenet.serving.http").joinpath("pages").joinpath(name).read_bytes()
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src blob: data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    for element in ("script", "style"):
        contents = re.findall(rf"<{element}>(.*?)</{element}>".encode(), html, flags=re.DOTALL)
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in contents]
        policy.append(f"{element}-src {' '.join(hashes)}")
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    async def handler() -> Response:
        return Response(html, headers=headers, media_type="text/html; charset=utf-8")

    return handler
