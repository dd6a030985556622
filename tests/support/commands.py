"""The command line in tests: in this process, or as a server in one of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner
from waiting import PATIENCE

from eenet.cli import app

TOKEN = "correct horse battery"


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*words: object) -> str:
    """The one line on standard error of a command that ends with exit code 2."""
    result = run(*words, code=2)
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return str(lines[0])


@contextlib.contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command in a process of its own; gives the address that it names."""
    process = subprocess.Popen(
        [sys.executable, "-m", "eenet", "serve", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        while not (lines and "http://" in lines[-1]):
            line = process.stderr.readline()
            assert line, "".join(lines)
            lines.append(line)
        address = lines[-1].split()[-1]
        reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
        reader.start()
        yield address, process
    finally:
        process.terminate()
        process.wait(PATIENCE)
        reader.join(PATIENCE)
        process.stderr.close()


def stopped(number: signal.Signals, kind: str, what: str, *words: object) -> subprocess.CompletedProcess[str]:
    """The command in a process that sends itself a signal at this moment; see `stopped_command`."""
    script = Path(__file__).with_name("stopped_command.py")
    command = [sys.executable, str(script), number.name, kind, what, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def interruptible() -> None:
    """As `preexec_fn`: Ctrl-C ends the process also where the tests run in the background, whose children ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
