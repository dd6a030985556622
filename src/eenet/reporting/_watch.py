"""Folders of results that are watched: the page of what is finished, and what a run has done so far."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eenet.errors import EENetError
from eenet.reporting._page import page_of
from eenet.reporting._report import report
from eenet.reporting._runs import FOLDER_FILES

_log = logging.getLogger("eenet.reporting")

EVERY = 1.0
"""Seconds between two looks at the folders."""

_STEPS = {
    "data": "reads the data and splits them into parts",
    "train": "trains the exits",
    "collect": "runs the network over the calibration and test parts: what each exit says",
    "profile": "measures what each exit costs on this machine",
    "fit": "fits every scheduler at every budget",
    "evaluate": "compares the schedulers on the test part, and writes the results",
}
_FAILURES = (EENetError, OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
_HISTORIES = (Path("work") / "training" / "metrics.csv", Path("metrics.csv"))


class Watched:
    """The page of some results, made again when they change, and the state of the runs that write them.

    Parameters
    ----------
    paths : sequence of path
        What `report` takes: folders of results, and files of benchmarks. A folder may be empty, or not there yet.
    options
        Those of `report`.
    """

    def __init__(self, paths: Sequence[Path], **options: Any) -> None:
        self.paths = [Path(path) for path in paths]
        self._options = options
        self._lock = threading.Lock()
        self._page: bytes | None = None
        self._version, self._error = "", ""
        self._made, self._seen = "", ""
        self._building = False

    @property
    def page(self) -> bytes | None:
        """The page; None as long as not all results are there."""
        with self._lock:
            return self._page

    def look(self) -> bool:
        """Look at the folders once, and make the page again where results have changed and are whole.

        A change counts when two looks in a row see the same, so that no page is made of what is being written. Returns
        whether the page was made.
        """
        mark = self._mark()
        settled, self._seen = mark == self._seen, mark
        if not mark or not settled or mark == self._made:
            return False
        with self._lock:
            self._building = True
        page, error = None, ""
        try:
            page = page_of(report(*self.paths, **self._options).data).encode("utf-8")
        except _FAILURES as problem:
            # Whatever is in the files, the next results must be seen.
            error = str(problem) if isinstance(problem, (EENetError, OSError)) else f"unexpected contents: {problem!r}"
            _log.info("the page is not made: %s", error)
        with self._lock:
            self._building, self._made, self._error = False, mark, error
            if page is not None:
                self._page, self._version = page, mark
        return page is not None

    def watch(self, ended: threading.Event, wait: Callable[[float], object] = time.sleep) -> None:
        """Look again and again, until this is set."""
        while not ended.is_set():
            self.look()
            wait(EVERY)

    def status(self) -> dict[str, Any]:
        """What there is, ready for JSON: the version of the page, and the state of each folder."""
        with self._lock:
            found = {"version": self._version, "building": self._building, "error": self._error}
        return {**found, "runs": [_state(path) for path in self.paths]}

    def _mark(self) -> str:
        """What the results look like, in short; empty where some are not there."""
        entries: list[Any] = []
        for path in self.paths:
            files = [path]
            if path.is_dir() or not path.is_file():
                if _unfinished(path):
                    return ""
                files = [path / name for name in FOLDER_FILES] + sorted(path.glob("schedulers/*.safetensors"))
            for file in files:
                try:
                    about = file.stat()
                except OSError:
                    return ""
                entries.append((str(file), about.st_mtime_ns, about.st_size))
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def _unfinished(folder: Path) -> bool:
    """Whether a run is writing results there: its steps are kept, and the last is not among them."""
    steps = folder / "work" / "steps"
    return steps.is_dir() and not (steps / "evaluate.json").is_file()


def _state(path: Path) -> dict[str, Any]:
    """What is in a folder: the steps of a run, its training so far, and what comes next."""
    done = {step: found for step in _STEPS if (found := _read_step(path / "work" / "steps" / f"{step}.json"))}
    training, changed = _training(path)
    begun = bool(done) or (path / "work").is_dir() or training is not None
    following = next((step for step in _STEPS if step not in done), None) if begun else None
    collected, costs = _result(done, "collect"), _object(_result(done, "profile").get("costs"))
    return {
        "name": path.name or str(path),
        "path": str(path),
        "there": path.exists(),
        "finished": (path / "metrics.json").is_file() or path.is_file(),
        "changed": changed,
        "steps": [
            {
                "step": step,
                "about": about,
                "seconds": done[step].get("seconds") if step in done else None,
                "state": "done" if step in done else "next" if step == following else "later",
            }
            for step, about in _STEPS.items()
        ]
        if begun
        else [],
        "exits": _result(done, "train").get("exits"),
        "training": training,
        "accuracies": {part: about.get("accuracies") for part, about in collected.items() if isinstance(about, dict)},
        "costs": {name: costs.get(name) for name in ("values", "unit", "plain")} if costs else None,
    }


def _read_step(path: Path) -> dict[str, Any]:
    """The marker of a step; empty where it is not there, or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return _object(found)


def _object(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _result(done: dict[str, dict[str, Any]], step: str) -> dict[str, Any]:
    return _object(done.get(step, {}).get("result"))


def _training(folder: Path) -> tuple[dict[str, Any] | None, float | None]:
    """The epochs so far: the accuracy of each exit on validation data, and the loss; and when that was written."""
    for name in _HISTORIES:
        try:
            text, changed = (folder / name).read_text(encoding="utf-8"), (folder / name).stat().st_mtime
        except (OSError, UnicodeDecodeError):
            continue
        rows = list(csv.DictReader(text.splitlines()))
        columns = [key for key in rows[0] if str(key).startswith("accuracies_")] if rows else []
        try:
            table = {
                "epochs": [int(row["epoch"]) + 1 for row in rows],
                "loss": [_finite(row["loss"]) for row in rows],
                "accuracies": [[_finite(row[column]) for row in rows] for column in columns],
                "seconds": [float(row["seconds"]) for row in rows],
            }
        except (KeyError, TypeError, ValueError):  # a table of something else
            continue
        return table, changed
    return None, None


def _finite(text: str) -> float | None:
    """A number as JSON can hold it: the loss of a training that diverges is none."""
    value = float(text)
    return value if math.isfinite(value) else None
