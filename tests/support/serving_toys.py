"""Toy back ends for the tests of serving: the logits of a request are its input."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from waiting import PATIENCE, until

import eenet
from eenet.errors import InvalidInputError
from eenet.runtime import Live
from eenet.scheduler import ThresholdPolicy
from eenet.serving.engine import EngineOptions, FixedBudget, Limits
from eenet.serving.http import ServerOptions, make_server
from eenet.tasks import Classification, Task

Array = NDArray[Any]

PATIENT = Limits(timeout=PATIENCE, head_timeout=PATIENCE, body_timeout=PATIENCE)
"""Limits that no client of a test reaches because its process had to wait."""


class TableBackend:
    """A back end whose input (n, K * C) is the logits of its K exits, side by side; keeps the sizes of its batches.

    An input that holds `poison` makes its batch fail.
    """

    poison = 1e30

    def __init__(self, exits: int, classes: int) -> None:
        self.num_exits = exits
        self.num_classes = classes
        self.calls: list[tuple[int, int]] = []

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        array = inputs["x"] if isinstance(inputs, Mapping) else inputs
        width = self.num_exits * self.num_classes
        if array.ndim != 2 or array.shape[1] != width or array.dtype != np.float32:
            raise InvalidInputError(f"input 'x' is {array.dtype} {array.shape}, expected float32 (n, {width})")
        return (array,)

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        (x,) = live
        self.calls.append((k, len(x)))
        if (x == self.poison).any():
            raise RuntimeError("a poisonous sample")
        last = k == self.num_exits - 1
        logits = x[:, k * self.num_classes : (k + 1) * self.num_classes] if observe or last else None
        return (() if last else (x,)), logits

    def size(self, k: int, live: Live) -> int:
        return len(live[0])

    def take(self, k: int, live: Live, rows: NDArray[np.intp]) -> Live:
        return tuple(tensor[rows] for tensor in live)

    def join(self, k: int, parts: Sequence[Live]) -> Live:
        return tuple(np.concatenate(tensors) for tensors in zip(*parts, strict=True))


def scripted_policy(exits: int) -> ThresholdPolicy:
    """A sample exits where two classes' logits differ much: see `scripted_logits`."""
    logits = np.repeat(np.linspace(0, 1, 2 * exits, dtype=np.float32).reshape(exits, 1, 2), 4, axis=1)
    records = eenet.ExitRecords.from_logits(logits, np.arange(4) % 2)
    policy = eenet.MaxProbability().fit(records, eenet.ExitCosts(np.arange(1.0, exits + 1)), budget=float(exits)).policy
    return replace(policy, thresholds=np.full(exits - 1, 5.0), enabled=np.ones(exits - 1, dtype=np.bool_))


def scripted_logits(leave_at: Sequence[int], exits: int) -> NDArray[np.float32]:
    """Inputs (n, 2 K) of a `TableBackend` that leave at these exits under `scripted_policy`."""
    logits = np.zeros((len(leave_at), exits, 2), dtype=np.float32)
    for n, k in enumerate(leave_at):
        logits[n, k:, n % 2] = 10.0
    return logits.reshape(len(leave_at), -1)


def flat(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (K, N, C) as inputs (N, K * C) of a `TableBackend`."""
    exits, samples, classes = logits.shape
    return np.ascontiguousarray(logits.transpose(1, 0, 2).reshape(samples, exits * classes))


def fitted(
    maker: Any, logits: NDArray[np.float32], labels: NDArray[np.intp], share: float
) -> tuple[eenet.Scheduler, eenet.ExitCosts]:
    """A scheduler with a budget at this share of the way from the first to the last exit's cost, or the smallest."""
    costs = eenet.ExitCosts(np.arange(1.0, len(logits) + 1))
    records = eenet.ExitRecords.from_logits(logits, labels)
    try:
        return maker().fit(records, costs, budget=costs[0] + share * (costs[-1] - costs[0])), costs
    except eenet.InfeasibleBudgetError as error:
        return maker().fit(records, costs, budget=error.smallest), costs


@dataclass
class Spec:
    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Plain:
    """No preprocessing."""

    kind = "array"

    def __call__(self, items: Sequence[Any]) -> Mapping[str, Any]:
        raise NotImplementedError


class Gray:
    """Image files to the logits of a `TableBackend` of two classes and three exits: bright ones leave early."""

    kind = "image"

    def __call__(self, items: Sequence[bytes]) -> Mapping[str, Any]:
        from PIL import Image

        leave_at = []
        for n, item in enumerate(items):
            try:
                with Image.open(io.BytesIO(item)) as image:
                    level = np.asarray(image.convert("L")).mean()
            except (OSError, SyntaxError, ValueError, EOFError) as error:
                raise InvalidInputError(f"item {n} does not decode as an image") from error
            leave_at.append(2 - int(level / 86))
        return {"x": scripted_logits(leave_at, 3)}


class Words:
    """Texts to the logits of a `TableBackend`: a word leaves at the first exit, two at the second, more at the last."""

    kind = "text"

    def __call__(self, items: Sequence[str]) -> Mapping[str, Any]:
        counts = [len(item.split()) for item in items]
        if 0 in counts:
            raise InvalidInputError(f"item {counts.index(0)} has no word")
        return {"x": scripted_logits([min(count, 3) - 1 for count in counts], 3)}


class ToyModel:
    """Something to serve: three exits, two classes, costs 1, 2, 3 ms; exits as `scripted_logits` says."""

    def __init__(self, preprocessing: Any = None, backend: Any = None) -> None:
        self.backend: Any = backend or TableBackend(3, 2)
        self.task: Task = Classification()
        self.inputs = [Spec("x", "float32", ("batch", 6))]
        self.preprocessing: Any = preprocessing or Plain()
        self.class_names: Sequence[str] | None = ["even", "odd"]
        self.info: dict[str, Any] = {"backend": "table", "exits": ["first", "second", "output"]}
        logits = scripted_logits([0, 1, 2] * 20, 3).reshape(60, 3, 2).transpose(1, 0, 2)
        records = eenet.ExitRecords.from_logits(logits, np.arange(60) % 2)
        self.scheduler: eenet.Scheduler = eenet.MaxProbability().fit(
            records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0
        )
        policy = scripted_policy(3)
        self.scheduler.policy.thresholds[:] = policy.thresholds
        self.scheduler.policy.enabled[:] = True
        self.costs = self.scheduler.costs


@contextlib.contextmanager
def serving(
    model: Any,
    controller: Any = None,
    *,
    engine: EngineOptions | None = None,
    limits: Limits = PATIENT,
    **options: Any,
) -> Iterator[str]:
    """A real server on loopback, in a thread; gives its address. It has drained when the block ends."""
    made = ServerOptions(port=0, engine=engine or EngineOptions(max_wait=0.0), limits=limits, **options)
    server = make_server(model, made, controller=controller or FixedBudget(model.scheduler))
    keep_connections(server)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def keep_connections(server: Any) -> None:
    """Idle connections stay open: closing one just when a client that was late sends its next request fails that."""
    server.config.timeout_keep_alive = PATIENCE


class InProcess:
    """The application of a server, called in this process and without sockets; `decoded` is what it made of a body."""

    def __init__(self, preprocessing: Any, limits: Limits, *more: Spec) -> None:
        model = ToyModel(preprocessing, _Remembers(3, 2))
        model.inputs += more
        options = ServerOptions(limits=limits, engine=EngineOptions(max_wait=0.0))
        self._backend = model.backend
        server: Any = make_server(model, options, controller=FixedBudget(model.scheduler))
        self._app = server.config.app
        self._loop = asyncio.new_event_loop()
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._loop.run_until_complete(self._lifespan.__aenter__())

    def post(self, content_type: str, body: bytes) -> tuple[int, str]:
        """Status and body of the answer to `POST /predict`."""
        self._backend.inputs = None
        return self._loop.run_until_complete(self._post(content_type, body))

    @property
    def decoded(self) -> Mapping[str, Array] | None:
        """The arrays that the last body became; None where it was refused before that."""
        inputs: Mapping[str, Array] | None = self._backend.inputs
        return inputs

    def close(self) -> None:
        """Stop the workers."""
        self._loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
        self._loop.close()

    async def _post(self, content_type: str, body: bytes) -> tuple[int, str]:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": "POST",
            "path": "/predict", "raw_path": b"/predict", "root_path": "", "query_string": b"",
            "headers": [(b"content-type", content_type.encode("latin-1", "replace"))],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        sent: list[Any] = []

        async def receive() -> Any:
            for message in messages:
                return message
            return await asyncio.Event().wait()  # the client stays

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        content: bytes = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], content.decode()


class _Remembers(TableBackend):
    """Keeps what entered last."""

    poison = float("nan")
    inputs: Any = None

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        self.inputs = inputs
        return super().enter(inputs)


def connect(url: str) -> httpx.Client:
    """A client that waits for a busy machine."""
    return httpx.Client(base_url=url, timeout=PATIENCE)


def listens(url: str) -> bool:
    """Whether a server takes connections at an address."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", httpx.URL(url).port or 80)) == 0
