"""`eenet doctor`: what is installed and works here, and how small a difference of times can be seen."""

from __future__ import annotations

import base64
import os
import platform
import shutil
import tempfile
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

from eenet._extras import install, missing_of, require
from eenet._timing import Timing, in_turns, processor, timed
from eenet._version import __version__
from eenet.cli._console import new_table, output, print_json, waiting
from eenet.cli._options import Json
from eenet.errors import MissingExtraError

BROKEN = 1

_LIBRARIES = (
    "numpy", "scipy", "torch", "torchvision", "onnxruntime", "onnx", "lightning", "transformers", "timm", "ray",
)  # fmt: skip
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
_LEAST_FREE = 2e9  # bytes: a training with its caches, or an export, may need this much
_GOOD, _POOR = 0.02, 0.05  # differences that can be seen on a quiet machine, and on one that is of little use
_CROWDED = 0.5  # programs that run for each core: from here on what is measured has to share
_ROUNDS, _BLOCKS = 30, 20
_SIDE = 160  # of the matrices whose product is timed: a call takes about as long as a small network
# An ONNX graph of one node, y = x + x for two numbers: what runs it runs ONNX.
_GRAPH = "CAcSADo1Cg4KAXgKAXgSAXkiA0FkZBIBZ1oPCgF4EgoKCAgBEgQKAggCYg8KAXkSCgoICAESBAoCCAJCBAoAEA0="


def doctor(
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to time the same work twice; 0: not at all.")] = 2.0,
    json_output: Json = False,
) -> None:
    """Say what is installed and works here, and whether times measured here can be trusted.

    Versions, processors and threads, devices, extras with the line that installs what is missing, whether torch and
    torchvision are of one build, whether ONNX Runtime runs a graph, free disk. For the times, the same work is measured
    twice, in turns: the difference that comes out is noise, and a smaller one cannot be seen here. The exit code is 1
    where something that is installed does not work; a missing extra or an unquiet machine is no fault.

    Examples:

        eenet doctor

        eenet doctor --json > machine.json
    """
    with waiting("looking at this machine"):
        found = _found(seconds)
    if json_output:
        print_json(found)
    else:
        _show(found)
    if found["broken"]:
        raise typer.Exit(BROKEN)


def _found(seconds: float) -> dict[str, Any]:
    torch, torch_says = _loaded("torch", "torch")
    works = {
        "torch": torch_says,
        "torchvision": _loaded("torchvision", "train")[1] if torch is not None else None,
        "onnxruntime": onnx_says(),
    }
    disk = shutil.disk_usage(Path.cwd())
    return {
        "schema": 1,
        "versions": {
            "eenet": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _LIBRARIES},
        },
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": processor(),
            "cores": os.cpu_count(),
            "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "cores_of_cgroup": cgroup_limit(),
            "torch_threads": None if torch is None else torch.get_num_threads(),
            "environment": {name: os.environ[name] for name in _THREADS if name in os.environ},
        },
        "devices": _devices(torch),
        "extras": _extras(),
        "works": works,
        "broken": [f"{name}: {words}" for name, words in works.items() if words not in (None, "works")],
        "disk": {"here_bytes": disk.free, "temporary_bytes": shutil.disk_usage(tempfile.gettempdir()).free},
        "timing": _timing(seconds) if seconds else None,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _loaded(name: str, extra: str) -> tuple[Any, str | None]:
    """A library, and whether it can be imported: None where it is not installed, else "works" or why not."""
    if _version(name) is None:
        return None, None
    try:
        return require(name, extra, "eenet"), "works"
    except MissingExtraError as error:
        return None, str(error)


def onnx_says() -> str | None:
    """Whether ONNX Runtime runs a graph, in words; None where it is not installed."""
    runtime, words = _loaded("onnxruntime", "onnx")
    if runtime is None:
        return words
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(base64.b64decode(_GRAPH), options, providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {"x": np.array([1, 2], dtype=np.float32)})
    except RuntimeError as error:
        return f"does not run a graph ({error}); pip install --force-reinstall onnxruntime"
    return "works" if answer.tolist() == [2, 4] else f"says that 1 + 1 and 2 + 2 are {answer.tolist()}; reinstall it"


def cgroup_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The processors that a container may use; None without a limit, or where there are no control groups."""
    for name, files in (("v2", ("cpu.max",)), ("v1", ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))):
        try:
            words = " ".join((root / file).read_text(encoding="ascii") for file in files).split()
        except OSError:
            continue
        if words[0] == "max" or (name == "v1" and float(words[0]) < 0):
            return None
        return float(words[0]) / float(words[1])
    return None


def _devices(torch: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"device": "cpu", "name": processor()}]
    if torch is None:
        return found
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append({"device": f"cuda:{number}", "name": about.name, "memory_bytes": about.total_memory})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    return found


def _extras() -> list[dict[str, Any]]:
    """Each extra, what is missing of it, and the line that brings it; none where eenet is not installed."""
    try:
        names = metadata.metadata("eenet").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        names = []
    extras = []
    for name in names:
        missing = missing_of(name)
        line = install(name) if missing else None
        extras.append({"extra": name, "installed": not missing, "missing": missing, "install": line})
    return extras


# Times


def _timing(seconds: float) -> dict[str, Any]:
    """How far apart the times of the same work are, measured as two things that are to be compared."""
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    left, right = rng.random((2, _SIDE, _SIDE))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # of the last minute, before this work
    before = _stolen()
    with threadpool_limits(limits=1):
        work = partial(timed, _work, left, right)
        timing = in_turns([work, work], seconds=seconds, least=_ROUNDS, warm_up=5, seed=0)
    after = _stolen()
    wall, cpu = smallest_difference(timing, "wall"), smallest_difference(timing, "cpu")
    stolen = None
    if before is not None and after is not None and after[1] > before[1]:
        stolen = (after[0] - before[0]) / (after[1] - before[1])
    return {
        "rounds": len(timing.wall),
        "seconds": seconds,
        "wall_ms": 1000 * float(np.median(timing.wall)),
        "wall_spread": _spread(timing.wall),
        "cpu_spread": _spread(timing.cpu),
        "wall_difference": wall,
        "cpu_difference": cpu,
        "load": load,
        "stolen": stolen,
        "governor": _line_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "verdict": verdict(wall, cpu, _spread(timing.wall), load),
    }


def _work(left: Any, right: Any) -> None:
    for _ in range(4):
        left @ right


def _spread(times: Any) -> float:
    """The middle half of the times over their median."""
    low, middle, high = np.percentile(times, [25, 50, 75])
    return float((high - low) / middle)


def smallest_difference(timing: Timing, clock: str) -> float:
    """The relative difference that two measurements of the same work stay below in 95 % of all cases.

    By a bootstrap over blocks of rounds, since what disturbs a machine lasts for some of them.
    """
    times = getattr(timing, clock)
    count = min(len(times), _BLOCKS)
    blocks = times[: len(times) // count * count].reshape(count, -1, 2)
    chosen = np.random.default_rng(0).integers(count, size=(300, count))
    medians = np.median(blocks[chosen].reshape(300, -1, 2), axis=1)
    return float(np.quantile(np.abs(medians[:, 0] / medians[:, 1] - 1), 0.95))


def verdict(wall: float, cpu: float, spread: float, load: float | None = None) -> str:
    """Whether times are stable enough here, in words: by the load, the noise of medians and the spread of the times."""
    seen = f"differences of wall time under {_percent(wall)} cannot be seen here"
    cores = os.cpu_count() or 1
    if load is not None and load > _CROWDED * cores:
        return (
            f"not stable: a load of {load:.1f} on {cores} cores: others take turns with what is measured; {seen} now, "
            f"and single times vary by {_percent(spread)}: measure when they have ended, or go by CPU time "
            f"({_percent(cpu)})"
        )
    if wall <= _GOOD and spread <= _POOR:
        return f"stable: {seen}"
    if wall <= _GOOD:
        return f"{seen}, measured in turns; single times vary by {_percent(spread)}: believe medians alone"
    if cpu <= min(_GOOD, wall / 2):
        return f"{seen}; go by CPU time ({_percent(cpu)}), or measure on a quieter machine"
    much = "measure for longer, or on a quieter machine" if wall <= _POOR else "times measured now mean little"
    return f"{seen}; {much}"


def _percent(value: float) -> str:
    return f"{max(100 * value, 0.1):.1f} %"


def _stolen() -> tuple[float, float] | None:
    """Processor time that other guests of this machine took, and all of it; None where it is not known."""
    words = (_line_of("/proc/stat") or "").split()
    if len(words) < 9:
        return None
    return float(words[8]), sum(float(word) for word in words[1:9])


def _line_of(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip() or None
    except OSError:
        return None


def _show(found: dict[str, Any]) -> None:
    table = new_table(left=("", "", ""))
    table.show_header = False

    def add(what: str, words: str, state: str = "", *, end: bool = False) -> None:
        style = {"ok": "green", "look": "yellow", "broken": "bold red"}.get(state, "")
        table.add_row(what, Text(state, style=style), words, end_section=end)

    versions, machine = found["versions"], found["machine"]
    add("eenet", f"{versions['eenet']}, Python {versions['python']}, {machine['system']}")
    add("libraries", ", ".join(f"{name} {versions[name]}" for name in _LIBRARIES if versions[name]), end=True)
    limits = [f"{machine['cores']} cores"]
    if machine["cores_allowed"] != machine["cores"]:
        limits.append(f"{machine['cores_allowed']} for this process")
    if machine["cores_of_cgroup"] is not None:
        limits.append(f"the container may use {machine['cores_of_cgroup']:g}")
    threads = machine["torch_threads"]
    usable = min(machine["cores_allowed"] or 1, machine["cores_of_cgroup"] or float("inf"))
    add("processor", f"{machine['processor']}; {', '.join(limits)}")
    if "AVX" in machine["processor"] and "VNNI" not in machine["processor"]:
        add("", "no VNNI: stages in int8 are right here, but hardly faster than in fp32")
    words = ["torch is not there"] if threads is None else [f"torch takes {threads}"]
    words += [f"{name}={value}" for name, value in machine["environment"].items()]
    if threads is not None and threads > usable:
        words.append(f"more than there are cores: give --threads {max(1, int(usable))}")
    add("threads", ", ".join(words), "look" if threads is not None and threads > usable else "ok")
    for one in found["devices"][1:]:
        memory = f", {one['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in one else ""
        add("device", f"{one['device']}: {one['name']}{memory}", "ok")
    if not found["devices"][1:]:
        add("device", "the CPU alone")
    free = found["disk"]["here_bytes"]
    words_of_disk = (
        f"{free / 1e9:.1f} GB free here, {found['disk']['temporary_bytes'] / 1e9:.1f} GB for temporary files"
    )
    add("disk", words_of_disk, "look" if free < _LEAST_FREE else "ok", end=True)
    for name, says in found["works"].items():
        state = "" if says is None else "ok" if says == "works" else "broken"
        add(name, says or "not installed", state)
    if not found["extras"]:
        add("extras", "not known: eenet is not installed, but on the path", "look")
    table.add_section()
    for one in found["extras"]:
        add(f"extra {one['extra']}", "" if one["installed"] else one["install"], "ok" if one["installed"] else "")
    timing = found["timing"]
    if timing is not None:
        table.add_section()
        state = "ok" if timing["verdict"].startswith("stable") else "look"
        add("timing", timing["verdict"], state)
        noise = [f"wall times vary by {timing['wall_spread']:.1%}, CPU times by {timing['cpu_spread']:.1%}"]
        if timing["load"] is not None:
            noise.append(f"load {timing['load']:.2f}")
        if timing["stolen"] is not None:
            noise.append(f"{timing['stolen']:.1%} of the time taken by other guests")
        if timing["governor"] is not None:
            noise.append(f"frequency governor {timing['governor']}")
        add("", f"{', '.join(noise)}; {timing['rounds']} rounds in turns")
    output().print(table)
