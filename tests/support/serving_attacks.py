"""A hostile client in a process of its own, until stopped: `python tests/support/serving_attacks.py NAME PORT`."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

_HEAD = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n"


def _post(port: int, body: bytes, content_type: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as opened:
        opened.sendall(_HEAD.format(content_type, len(body)).encode() + body)
        opened.recv(65536)


def _deep(port: int) -> None:
    _post(port, b'{"inputs": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "application/json")


def _large(port: int) -> None:
    row = b"[" + b",".join([b"0.123456789"] * 8) + b"]"
    _post(port, b'{"inputs": [' + b",".join([row] * 20_000) + b"]}", "application/json")


def _huge(port: int) -> None:
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100, 75000), }"
    head += b" " * (117 - len(head)) + b"\n"
    _post(port, b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(30_000_000), "application/x-npy")


def _too_large(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as opened:
        opened.sendall(_HEAD.format("application/x-npy", 100 << 20).encode())
        for _ in range(20):
            opened.sendall(bytes(1 << 20))


_stalled: deque[socket.socket] = deque(maxlen=400)  # far fewer than a process may have open files


def _stalls(port: int) -> None:
    for _ in range(20):
        opened = socket.create_connection(("127.0.0.1", port), timeout=30)
        opened.sendall(_HEAD.format("application/x-npy", 1000).encode() + bytes(500))
        _stalled.append(opened)


def _breaks_off(port: int) -> None:
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as opened:
            opened.sendall(_HEAD.format("application/x-npy", 1000).encode() + bytes(500))


ATTACKS: dict[str, tuple[Callable[[int], None], float]] = {
    "deep-json": (_deep, 0.3),
    "large-json": (_large, 0.5),
    "30-MB": (_huge, 1.0),
    "100-MB": (_too_large, 0.5),
    "stalls": (_stalls, 0.5),
    "breaks-off": (_breaks_off, 0.2),
}
"""What each does, and how many seconds lie between two of them."""


def main() -> None:
    """Attack until stopped; says "ready" first."""
    attack, pause = ATTACKS[sys.argv[1]]
    if hasattr(os, "nice"):
        os.nice(10)  # what it takes from the machine is not the server's fault
    print("ready", flush=True)
    while True:
        with contextlib.suppress(ConnectionError, TimeoutError):
            attack(int(sys.argv[2]))
        time.sleep(pause)


if __name__ == "__main__":
    main()
