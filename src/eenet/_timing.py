"""The timer: what is compared takes turns, so that a machine that slows down meanwhile does so to all of it."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._version import __version__

Floats = NDArray[np.float64]
Clock = tuple[float, float]
"""Wall and CPU seconds; CPU time is that of all threads of the process."""

_NOTED = ("torchvision", "onnxruntime")
_INSTRUCTIONS = {
    "AVX2": ("avx2",), "AVX-512": ("avx512f",), "VNNI": ("avx512_vnni", "avx_vnni"), "bf16": ("avx512_bf16", "bf16"),
    "AMX": ("amx_tile",), "dot product": ("asimddp",), "i8mm": ("i8mm",), "SVE": ("sve",),
}  # fmt: skip
"""How /proc/cpuinfo spells what is worth knowing of a processor: on x86, int8 is fast with VNNI, bfloat16 with bf16."""
_BUSY = 0.5  # the load of a machine that is idle but for this process is below this


TRUSTED_SPREAD = 0.25
"""Above this relative spread (the middle half of the rounds over their median) a measurement carries a warning."""
_TRUSTED_WAITS = 1.33
_SEEN = 1e-6  # ms: below, a clock of the processor that ticks coarsely saw nothing of a small network


@dataclass(frozen=True, eq=False)
class Timing:
    """Seconds of each step in each round: `wall` and `cpu` are (rounds, steps)."""

    wall: Floats
    cpu: Floats

    @property
    def shortest(self) -> Floats:
        """The shortest wall time of each step, (steps,): what disturbs a machine only ever makes a step longer."""
        shortest: Floats = self.wall.min(axis=0)
        return shortest


def timed(function: Callable[..., Any], *args: Any, wait: Callable[[], Any] | None = None) -> Clock:
    """Wall and CPU seconds of one call; `wait` is called before each reading of the clocks, as a GPU needs it."""
    if wait is not None:
        wait()
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    function(*args)
    if wait is not None:
        wait()
    return (time.perf_counter_ns() - wall) / 1e9, (time.process_time_ns() - cpu) / 1e9


def doubt(
    costs: Mapping[str, Any],
    spreads: Mapping[str, Any],
    plain: Mapping[str, Any],
    unit: str,
    row: int,
    device: Mapping[str, Any] | None,
) -> str:
    """Why measured costs of exits are not to be trusted, the end of a sentence that begins with them; "" if they are.

    Parameters
    ----------
    costs, spreads
        By unit, (batch sizes, K): cumulative, and how far rounds lie apart, relative.
    plain
        By unit, (batch sizes,): those of the plain network.
    unit, row
        Which of them.
    device
        What was measured on; the two clocks of a GPU's work say different things.
    """
    way_out = "on a quieter machine, or " + (
        "for longer" if unit == "cpu_ms" else "take CPU times: unit='cpu_ms' in Python, --unit cpu_ms of `eenet fit`"
    )
    widest = float(max(spreads[unit][row], default=0.0))
    if widest > TRUSTED_SPREAD:
        return f"vary by {widest:.0%} between rounds; measure again {way_out}"
    if unit != "ms" or not all("cpu_ms" in table for table in (costs, plain)) or "accelerator" in (device or {}):
        return ""
    pairs = [(float(plain[clock][row]), float(costs[clock][row][-1])) for clock in ("ms", "cpu_ms")]
    if min(map(min, pairs)) < _SEEN:
        return ""
    wall, cpu = (of_plain / of_last for of_plain, of_last in pairs)
    if wall / cpu < _TRUSTED_WAITS:  # far below 1 it may be: decisions run in one thread, and a network in many
        return ""
    return (
        f"do not compare with that of the plain network, which is {wall:.3g} times the last exit's in wall time and "
        f"{cpu:.3g} times in CPU time: a long call waits for other programs more often than the short ones of its "
        f"parts. Percentages of the plain network would be wrong; measure again {way_out}"
    )


def in_turns(
    clocks: Sequence[Callable[[], Clock]],
    *,
    seconds: float,
    least: int = 5,
    most: int | None = None,
    warm_up: int = 1,
    seed: int | None = None,
    progress: Callable[[], Any] | None = None,
) -> Timing:
    """Measure all steps in rounds, for about `seconds`.

    Parameters
    ----------
    clocks
        The steps, each a function that runs once and returns what it took, such as `partial(timed, step)`.
    seconds
        When this has passed after the warm-up, no further round begins.
    least, most
        The number of rounds is within these.
    warm_up
        Rounds before the first that counts.
    seed
        Where given, each round has an order of its own, drawn from this seed.
    progress
        Called after each round.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    order: Sequence[int] = range(len(clocks))
    for _ in range(warm_up):
        for clock in clocks:
            clock()
    rounds: list[list[Clock]] = []
    start = time.perf_counter()
    while len(rounds) < least or (time.perf_counter() - start < seconds and (most is None or len(rounds) < most)):
        times: list[Clock] = [(0.0, 0.0)] * len(clocks)
        for step in order if rng is None else rng.permutation(len(clocks)).tolist():
            times[step] = clocks[step]()
        rounds.append(times)
        if progress is not None:
            progress()
    table = np.array(rounds).reshape(len(rounds), len(clocks), 2)
    return Timing(table[..., 0], table[..., 1])


def waiting_for(device: Any) -> Callable[[], Any] | None:
    """What waits for the work on a torch device; None for the CPU, where nothing is to be waited for."""
    if device.type != "cuda":
        return None
    import torch

    return lambda: torch.cuda.synchronize(device)


def fingerprint(device: Any = "cpu") -> dict[str, Any]:
    """What a timing depends on: processor, threads, accelerator, versions. Without PyTorch, what numpy runs on."""
    description: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "device": str(device),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        description |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        if str(device).startswith("cuda"):
            description["accelerator"] = torch.cuda.get_device_name(device)
    return description


def machine(device: Any = "cpu") -> dict[str, Any]:
    """The fingerprint, with the versions of more libraries, and how busy the machine was before the measurement."""
    found = fingerprint(device) | {"eenet": __version__, "numpy": np.__version__, "system": platform.system()}
    found |= {name: _version(name) for name in _NOTED}
    if hasattr(os, "getloadavg"):
        found["load_before"] = round(os.getloadavg()[0], 2)
    return found


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def describe_machine(found: Mapping[str, Any]) -> str:
    """What `machine` found, in two lines."""
    busy = found.get("load_before")
    shared = "" if busy is None else f"; load {busy} before the start" + (" (not idle)" if busy > _BUSY else "")
    gpu = f"{found['accelerator']}; " if "accelerator" in found else ""
    threads = f", torch threads: {found['threads']}" if "threads" in found else ""
    libraries = [f"{name} {found[name]}" for name in ("eenet", "torch", *_NOTED, "numpy") if name in found]
    return (
        f"{gpu}{found['processor']}, {found['machine']}, {found['cores']} cores{threads}{shared}\n"
        f"{', '.join(libraries)}, Python {found['python']}, {found['system']}"
    )


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and which of the instructions it has that decide how fast, and how, networks run.

    Cloud machines give one name to processors of several generations. Only Linux says the instructions.
    """
    name, flags = name_and_flags(info)
    has = [word for word, any_of in _INSTRUCTIONS.items() if flags & set(any_of)]
    return f"{name} ({', '.join(has)})" if has else name


def name_and_flags(info: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """The processor's name and all instructions that it says it has, by the first core; none but on Linux."""
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    flags = f"{found.get('flags', '')} {found.get('Features', '')}".split()
    return found.get("model name") or platform.processor() or "unknown", frozenset(flags)
