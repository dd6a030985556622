"""A server in a process of its own, whose network takes a set time for each call."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from serving_toys import PATIENT, TableBackend, ToyModel, keep_connections
from waiting import PATIENCE

from eenet.runtime import Live
from eenet.serving.engine import EngineOptions, FixedBudget
from eenet.serving.http import ServerOptions, make_server


class SleepingBackend(TableBackend):
    """A `TableBackend` that takes some seconds for each call, as an accelerator would, from when `go` is set."""

    def __init__(self, seconds: float) -> None:
        super().__init__(3, 2)
        self._seconds = seconds
        self.go = threading.Event()

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        if not self.go.is_set():
            print("begun", flush=True)
            self.go.wait()
        time.sleep(self._seconds)
        return super().run(k, live, observe=observe)


@contextlib.contextmanager
def sleeping_server(seconds: float, **options: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of a server; SIGTERM stops it at the end.

    With `held="yes"` its network says "begun" at its first call and waits there for a line on standard input.
    """
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), f"--seconds={seconds}", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http"), "the server did not start"
        yield address, process
    finally:
        process.terminate()
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()


def main() -> None:
    """Serve until stopped; the first line of output is the address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--held", choices=("yes", "no"), default="no")
    given = parser.parse_args()
    backend = SleepingBackend(given.seconds)
    model = ToyModel(backend=backend)
    options = ServerOptions(
        port=0,
        engine=EngineOptions(max_batch=given.max_batch, max_wait=0.0),
        limits=replace(PATIENT, body_timeout=10.0),  # what an attacker has begun is given up
    )
    ready: Any = lambda url: print(url, flush=True)  # noqa: E731
    server = make_server(model, options, controller=FixedBudget(model.scheduler), ready=ready)
    keep_connections(server)

    def released() -> None:
        os.read(sys.stdin.fileno(), 1)
        backend.go.set()

    if given.held == "yes":
        threading.Thread(target=released, daemon=True).start()
    else:
        backend.go.set()
    server.run()


if __name__ == "__main__":
    main()
