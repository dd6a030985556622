"""A server in a process of its own, whose network takes a set time for each call."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from serving_toys import PATIENCE, TableBackend, ToyModel

from eenet.runtime import Live
from eenet.serving.engine import EngineOptions, FixedBudget, Limits
from eenet.serving.http import ServerOptions, make_server


class SleepingBackend(TableBackend):
    """A `TableBackend` that takes some seconds for each call, as an accelerator would."""

    def __init__(self, seconds: float) -> None:
        super().__init__(3, 2)
        self._seconds = seconds

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        time.sleep(self._seconds)
        return super().run(k, live, observe=observe)


@contextlib.contextmanager
def sleeping_server(seconds: float, **options: Any) -> Iterator[tuple[str, int]]:
    """The address and the process number of a server; SIGTERM stops it at the end."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), f"--seconds={seconds}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http"), "the server did not start"
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(PATIENCE)
        process.stdout.close()


def main() -> None:
    """Serve until stopped; the first line of output is the address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--head-timeout", type=float, default=10.0)
    given = parser.parse_args()
    model = ToyModel(backend=SleepingBackend(given.seconds))
    options = ServerOptions(
        port=0,
        engine=EngineOptions(max_batch=given.max_batch, max_wait=0.0),
        limits=Limits(timeout=PATIENCE, head_timeout=given.head_timeout),
    )
    ready: Any = lambda url: print(url, flush=True)  # noqa: E731
    make_server(model, options, controller=FixedBudget(model.scheduler), ready=ready).run()


if __name__ == "__main__":
    main()
