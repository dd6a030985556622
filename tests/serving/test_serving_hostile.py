"""Clients that stall, break off, flood or lie get the right refusal, and slow no other client."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
import serving_attacks
from files import npy
from serving_attacks import ATTACKS
from serving_process import sleeping_server
from serving_toys import PATIENT, ToyModel, connect, listens, scripted_logits, serving
from waiting import PATIENCE, until

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n"


@pytest.fixture(scope="module")
def patient() -> Iterator[httpx.Client]:
    """Of a server that gives up no client, however late it is."""
    with served() as connected:
        yield connected


@pytest.fixture(scope="module")
def impatient() -> Iterator[httpx.Client]:
    """Of one that gives up heads, and the rest of bodies that it has refused."""
    with served(head_timeout=0.5) as connected:
        yield connected


@pytest.fixture(scope="module")
def impatient_of_bodies() -> Iterator[httpx.Client]:
    with served(body_timeout=0.5) as connected:
        yield connected


@contextlib.contextmanager
def served(**limits: float) -> Iterator[httpx.Client]:
    small = replace(PATIENT, max_body=1_000_000, max_head=4096, **limits)  # type: ignore[arg-type]
    with serving(ToyModel(), limits=small) as url, connect(url) as connected:
        yield connected


@contextlib.contextmanager
def connection(to: httpx.Client) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", to.base_url.port or 80), timeout=PATIENCE) as opened:
        yield opened


def rest(opened: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := opened.recv(65536):
            received += chunk
    return received


def first_line(opened: socket.socket) -> bytes:
    """The first line that comes."""
    received = b""
    while b"\r\n" not in received and (chunk := opened.recv(65536)):
        received += chunk
    return received.partition(b"\r\n")[0]


def still_serves(to: httpx.Client) -> None:
    """An honest request is answered: not always the first, where a busy machine makes the client late."""

    def served() -> bool:
        with contextlib.suppress(httpx.TransportError):
            headers = {"Content-Type": "application/x-npy"}
            response = to.post("/predict", content=npy(scripted_logits([1], 3)), headers=headers)
            return response.status_code == 200 and response.json()["predictions"][0]["exit"] == 1
        return False

    until(served)


def drip(opened: socket.socket, piece: bytes) -> None:
    """Send a piece every 20 ms until the server closes the connection."""
    end = time.monotonic() + PATIENCE
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < end:
            opened.sendall(piece)
            if select.select([opened], [], [], 0.02)[0] and not opened.recv(65536):
                return
        pytest.fail("the server waits for ever")


@pytest.mark.parametrize("start", [b"", b"\r\n", b"POST /pre", b"POST /predict HTTP/1.1\r\nHost: x\r\nA: "])
def test_a_head_that_never_ends_is_given_up(impatient: httpx.Client, start: bytes) -> None:
    with connection(impatient) as opened:
        opened.sendall(start)
        assert rest(opened) == b""
    still_serves(impatient)


def test_a_head_that_comes_a_byte_at_a_time_is_given_up(impatient: httpx.Client) -> None:
    with connection(impatient) as opened:
        drip(opened, b"A")
    still_serves(impatient)


def test_a_head_that_is_too_large_is_given_up(patient: httpx.Client) -> None:
    with connection(patient) as opened:
        with contextlib.suppress(ConnectionError):
            opened.sendall(b"GET /health HTTP/1.1\r\n")
            for _ in range(10_000):
                opened.sendall(b"A: " + b"b" * 1000 + b"\r\n")
        assert not rest(opened).startswith(b"HTTP/1.1 200")
    still_serves(patient)


def test_a_body_that_stalls_gets_408(impatient_of_bodies: httpx.Client) -> None:
    with connection(impatient_of_bodies) as opened:
        opened.sendall(HEAD + b"Content-Length: 100\r\n\r\n" + b"a" * 50)
        assert first_line(opened).startswith(b"HTTP/1.1 408 ")
    still_serves(impatient_of_bodies)


def test_a_client_that_breaks_off_in_its_body_leaves_nothing_behind(patient: httpx.Client) -> None:
    def gone() -> float:
        lines = patient.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith('eenet_requests_total{status="499"'))

    before = gone()
    for _ in range(5):
        with connection(patient) as opened:
            opened.sendall(HEAD + b"Content-Length: 100\r\n\r\n" + b"a" * 50)
    until(lambda: gone() == before + 5)
    still_serves(patient)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_hundred_megabytes_are_refused_at_once(patient: httpx.Client, chunked: bool) -> None:
    piece = bytes(1 << 20)
    with connection(patient) as opened:
        if chunked:
            opened.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        else:
            opened.sendall(HEAD + b"Content-Length: 104857600\r\n\r\n")
        opened.settimeout(0.0)
        received, sent = b"", 0
        opened.setblocking(False)
        for _ in range(100):
            opened.setblocking(True)
            opened.sendall((b"100000\r\n" + piece + b"\r\n") if chunked else piece)
            sent += len(piece)
            opened.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                received += opened.recv(65536)
            if b"}" in received:
                break
        assert received.startswith(b"HTTP/1.1 413 ")
        assert sent < 50 << 20
    still_serves(patient)


def test_a_refused_client_that_goes_on_for_ever_is_cut_off(impatient: httpx.Client) -> None:
    with connection(impatient) as opened:
        opened.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
        drip(opened, bytes(1000))
    still_serves(impatient)


@pytest.mark.parametrize(
    "start", [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"nonsense\r\n\r\n", b"GET  \r\n\r\n"]
)
def test_what_is_not_http_gets_400(patient: httpx.Client, start: bytes) -> None:
    with connection(patient) as opened:
        opened.sendall(start)
        assert rest(opened)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 505")
    still_serves(patient)


def test_lies_about_the_length_of_a_body(patient: httpx.Client) -> None:
    for head in (b"Content-Length: -1\r\n\r\n", b"Content-Length: 1e3\r\n\r\n", b"Content-Length: 5, 6\r\n\r\n"):
        with connection(patient) as opened:
            opened.sendall(HEAD + head)
            assert rest(opened).startswith(b"HTTP/1.1 400 ")
    still_serves(patient)


@pytest.fixture(scope="module")
def slow_server() -> Iterator[str]:
    """A network that takes 72 ms for a sample of one stage, in a process of its own."""
    with sleeping_server(0.072) as (url, _):
        yield url


def latencies(connected: httpx.Client, requests: int) -> list[float]:
    found = []
    for _ in range(requests):
        began = time.perf_counter()
        assert connected.post("/predict", **predict(0)).status_code == 200
        found.append(time.perf_counter() - began)
    return found


def predict(leave_at: int) -> dict[str, Any]:
    """A request for one sample."""
    return {"content": npy(scripted_logits([leave_at], 3)), "headers": {"Content-Type": "application/x-npy"}}


@contextlib.contextmanager
def attacker(name: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """A hostile client in a process of its own, stopped to begin with."""
    command = [sys.executable, serving_attacks.__file__, name, str(httpx.URL(url).port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        yield process
        assert process.poll() is None, "the attacker died"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop and continue a process")
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_does_not_slow_other_clients(slow_server: str, name: str) -> None:
    """By the quickest answers: other work of the machine delays answers too, but not all of them; an attack would."""
    calm: list[float] = []
    attacked: list[float] = []
    with attacker(name, slow_server) as process, connect(slow_server) as connected:
        latencies(connected, 3)
        for _ in range(6):  # in turns, so that other work of the machine falls on both
            calm += latencies(connected, 4)
            process.send_signal(signal.SIGCONT)
            attacked += latencies(connected, 4)
            process.send_signal(signal.SIGSTOP)
    before, during = min(calm), min(attacked)
    assert during < 1.5 * before, f"{1000 * before:.0f} ms alone, {1000 * during:.0f} ms under {name}"


@pytest.mark.slow
def test_ten_thousand_connections_do_not_slow_other_clients(slow_server: str) -> None:
    resource = pytest.importorskip("resource", reason="open files are limited otherwise on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = 10_000
    if hard != resource.RLIM_INFINITY and hard < connections + 200:
        pytest.skip(f"this process may open {hard} files, {connections + 200} are needed")
    if soft != resource.RLIM_INFINITY and soft < connections + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (connections + 200, hard))
    address = "127.0.0.1", httpx.URL(slow_server).port or 80
    with connect(slow_server) as connected:
        latencies(connected, 3)
        calm = min(latencies(connected, 20))
    with contextlib.ExitStack() as opened:
        for _ in range(connections):
            opened.enter_context(socket.create_connection(address, timeout=PATIENCE))
        with connect(slow_server) as connected:  # one opened before may have idled longer than a server waits
            crowded = min(latencies(connected, 20))
    assert crowded < 1.5 * calm, f"{1000 * calm:.0f} ms alone, {1000 * crowded:.0f} ms among {connections} connections"


def test_sigterm_in_the_middle_of_traffic_loses_no_request() -> None:
    requests = 40

    def waiting(connected: httpx.Client) -> int:
        return sum(connected.get("/info").json()["traffic"]["waiting"])

    with (
        sleeping_server(0.001, max_batch=4, held="yes") as (url, process),
        connect(url) as connected,
        httpx.Client(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_connections=requests)) as many,
        ThreadPoolExecutor(requests) as pool,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        sent = [pool.submit(many.post, "/predict", **predict(2))]
        assert process.stdout.readline() == "begun\n"
        sent += [pool.submit(many.post, "/predict", **predict(2)) for _ in range(requests - 1)]
        # A request that has not been read before the signal would rightly be refused.
        until(lambda: waiting(connected) == requests - 1)
        process.send_signal(signal.SIGTERM)
        until(lambda: not listens(url))  # it has heard of the signal
        assert not any(one.done() for one in sent)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert [one.result().status_code for one in sent] == [200] * requests
