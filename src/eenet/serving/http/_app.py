"""The HTTP interface: a FastAPI application around a runner of stages; importing it needs the extra."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from fastapi import FastAPI, Query, Response
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from eenet.errors import DrainingError, InvalidInputError, OverloadedError
from eenet.serving.engine._limits import Limits, RefusedError
from eenet.serving.engine._request import Outcome, Request
from eenet.serving.engine._runner import Runner
from eenet.serving.engine._servable import Controller, Servable
from eenet.serving.http._answers import answers_json, answers_npy
from eenet.serving.http._body import ClientGoneError, Receiver, form_files
from eenet.serving.http._decode import NPY, Decoder
from eenet.serving.http._openapi import describe
from eenet.serving.http._page import page

_INLINE = 16 * 1024  # bodies up to this size are decoded in the event loop; handing them to a thread would take longer
_GONE = 499  # the client closed the connection; nobody sees this status but the metrics
_MAX_TIMEOUT_MS = 600_000


def make_app(
    servable: Servable,
    runner: Runner,
    controller: Controller,
    *,
    limits: Limits | None = None,
    token: str | None = None,
) -> FastAPI:
    """The application that serves a model. `token` is what `PUT /budget` asks for; without one it is off."""
    service = _Service(servable, runner, controller, limits or Limits(), token)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runner.start()
        yield
        await runner.drain()
        service.close()

    app = FastAPI(title="eenet", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HTTPRequest, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return service.refusal(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def wrong(_: HTTPRequest, error: HTTPException) -> Response:
        return service.refusal(error.status_code, str(error.detail), error.headers)

    @app.post("/predict")
    async def predict(
        request: HTTPRequest,
        full: bool = Query(default=False),
        timeout_ms: int | None = Query(default=None, ge=1, le=_MAX_TIMEOUT_MS),
    ) -> Response:
        return await service.predict(request, full, timeout_ms)

    @app.put("/budget")
    async def budget(request: HTTPRequest) -> Response:
        return await service.change_budget(request)

    @app.get("/health")
    async def health() -> Response:
        if not runner.alive:
            return service.refusal(503, "a worker has died; restart the server")
        return service.json({"status": "alive"})

    @app.get("/ready")
    async def ready() -> Response:
        if not runner.accepting:
            return service.refusal(503, "not taking requests", {"Retry-After": "1"})
        return service.json({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return service.answer(runner.metrics.exposition(controller.budget), "text/plain; version=0.0.4; charset=utf-8")

    @app.get("/info")
    async def info() -> Response:
        return service.json(service.info())

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return service.json(document)

    document = describe(servable, service.decoder, service.limits)

    for path, name in (("/", "index.html"), ("/docs", "docs.html")):
        app.add_api_route(path, _page_handler(name), methods=["GET"])
    return app


def _page_handler(name: str) -> Callable[[], Awaitable[Response]]:
    html, headers = page(name)

    async def handler() -> Response:
        return Response(html, headers=headers, media_type="text/html; charset=utf-8")

    return handler


class _Service:
    """What the handlers share."""

    def __init__(
        self, servable: Servable, runner: Runner, controller: Controller, limits: Limits, token: str | None
    ) -> None:
        self._servable, self._runner, self._controller = servable, runner, controller
        self._token = token
        self._receiver = Receiver(limits)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="eenet-decode")
        self.limits = limits
        self.decoder = Decoder(servable, limits)

    def close(self) -> None:
        self._threads.shutdown()

    def answer(
        self, content: bytes, media_type: str, headers: Mapping[str, str] | None = None, status: int = 200
    ) -> Response:
        return Response(content, status, dict(headers or {}), media_type)

    def json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        content = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        return self.answer(content, "application/json", headers, status)

    def refusal(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
        return self.json({"detail": message}, status, headers)

    async def predict(self, request: HTTPRequest, full: bool, timeout_ms: int | None) -> Response:
        began = time.perf_counter()
        response = await self._predict(request, full, timeout_ms)
        self._runner.metrics.request(response.status_code, time.perf_counter() - began)
        return response

    async def _predict(self, request: HTTPRequest, full: bool, timeout_ms: int | None) -> Response:
        try:
            header = request.headers.get("content-type", "")
            content_type = header.partition(";")[0].strip().lower()
            body = await self._receiver.body(request, content_type)
            began = time.perf_counter()
            if len(body) <= _INLINE and content_type == "application/json":
                inputs = self.decoder(content_type, body)
            else:
                loop = asyncio.get_running_loop()
                inputs = await loop.run_in_executor(self._threads, self._decode, header, content_type, body)
            timeout = self.limits.timeout if timeout_ms is None else timeout_ms / 1000
            answered = await self._answer(request, inputs, timeout, full)
        except ClientGoneError:
            return self.refusal(_GONE, "the client is gone")
        except RefusedError as error:
            headers = {"Retry-After": "1"} if error.status == 503 else {}
            return self.refusal(error.status, str(error), headers)
        except OverloadedError as error:
            return self.refusal(503, str(error), {"Retry-After": str(min(600, round(error.retry_after)))})
        except DrainingError as error:
            return self.refusal(503, str(error), {"Retry-After": "1"})
        except InvalidInputError as error:
            return self.refusal(422, str(error))
        if answered.outcome is Outcome.LATE:
            return self.refusal(504, f"no answer within {timeout:g} s; allow more time with timeout_ms")
        if answered.outcome is not Outcome.ANSWERED:
            return self.refusal(500, "the network failed on this request; the server's log says why")
        milliseconds = 1000 * (time.perf_counter() - began)
        if request.headers.get("accept", "") in NPY:
            return self.answer(answers_npy(answered), NPY[0], {"X-Exits": ",".join(map(str, answered.exits))})
        return self.json(answers_json(answered, self._servable, milliseconds))

    def _decode(self, header: str, content_type: str, body: bytes) -> Any:
        if content_type == "multipart/form-data":
            return self.decoder.from_parts(form_files(header, body, self.limits.max_samples))
        return self.decoder(content_type, body)

    async def _answer(self, request: HTTPRequest, inputs: Any, timeout: float, full: bool) -> Request:
        """Wait for the answer or for the client to go away, whatever comes first."""
        answer = asyncio.ensure_future(self._runner.answer(inputs, timeout=timeout, full=full))
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

    async def change_budget(self, request: HTTPRequest) -> Response:
        if self._token is None:
            return self.refusal(403, "changing the budget is off: start the server with a token")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), self._token.encode()):
            return self.refusal(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        try:
            body = await self._receiver.body(request, "application/json")
            document = orjson.loads(body)
            if not isinstance(document, dict) or set(document) != {"budget"}:
                raise RefusedError(422, "expected a JSON object with 'budget' and nothing else")
            budget = document["budget"]
            if isinstance(budget, bool) or not isinstance(budget, (int, float, str)):
                raise RefusedError(422, f"the budget is {budget!r}, expected a number or a text such as '60%'")
            limit = await self._runner.set_budget(budget)
        except ClientGoneError:
            return self.refusal(_GONE, "the client is gone")
        except orjson.JSONDecodeError as error:
            return self.refusal(400, f"the body is not JSON: {error}")
        except RefusedError as error:
            return self.refusal(error.status, str(error))
        except InvalidInputError as error:
            return self.refusal(422, str(error))
        spendable = min(limit, float(self._servable.costs[-1]))
        return self.json({"budget": spendable, "unit": self._servable.costs.unit})

    def info(self) -> dict[str, Any]:
        servable, metrics = self._servable, self._runner.metrics
        names = servable.class_names
        return {
            **servable.info,
            "kind": self.decoder.kind,
            "num_exits": servable.backend.num_exits,
            "num_classes": servable.backend.num_classes,
            "class_names": None if names is None else list(names),
            "inputs": [{"name": s.name, "dtype": str(s.dtype), "shape": list(s.shape)} for s in servable.inputs],
            "costs": servable.costs.to_dict(),
            "budget": self._controller.budget,
            "traffic": {
                "exit_shares": metrics.exit_shares,
                "mean_cost": metrics.mean_cost,
                "waiting": list(self._runner.waiting),
            },
        }


async def _gone(request: HTTPRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
