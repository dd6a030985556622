"""What `eenet serve` does with --ray."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eenet.cli._console import side
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.serving.ray import RayOptions, StageScaling


def scaling(replicas: str, cpus: str, target: float) -> Sequence[StageScaling]:
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


def serve_on_ray(bundle: Path, options: RayOptions, *, address: str | None, host: str, port: int) -> None:
    """Serve until Ctrl+C or SIGTERM; Ray is ended too where it was started here."""
    from eenet.serving.ray import start, stop

    port = port or _free_port(host)
    ended = threading.Event()
    url = start(bundle, options, address=address, host=host, port=port)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):  # only now: Ray sets handlers of its own while it starts
            signal.signal(number, lambda *_: ended.set())
        side().print(f"serving {bundle} on {url or 'the port of the Ray Serve that runs there already'}")
        ended.wait()
    finally:
        stop(everything=address is None)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])
