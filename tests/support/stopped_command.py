"""The command line in a process that gets a signal at a set moment, however late the machine is with others.

`python tests/support/stopped_command.py SIGINT says "epoch 2/" train digits ...` when it has said that on standard
error, and `... SIGINT makes .safetensors compare ...` when it, or a process that it started, first gives a file a name
that ends so.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

_MADE = "EENET_TESTS_MADE"


class _Stops:
    """A stream that sends the signal after what has these words."""

    def __init__(self, stream: Any, words: str, number: signal.Signals) -> None:
        self._stream, self._words, self._number = stream, words, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        written: int = self._stream.write(text)
        if self._words in text:
            os.kill(os.getpid(), self._number)
        return written


def watch_files() -> None:
    """Send the signal when this process makes the file; the first process that does so makes the mark."""
    ending, number, process, mark = os.environ[_MADE].split(os.pathsep)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event != "os.rename" or not str(given[1]).endswith(ending):
            return
        try:
            Path(mark).touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(int(process), signal.Signals[number])

    sys.addaudithook(hook)


def main() -> None:
    """Run the command whose words come after the signal, the kind of moment, and what makes it the moment."""
    number, kind, what, *words = sys.argv[1:]
    sys.argv[1:] = words
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with tempfile.TemporaryDirectory() as folder:
        if kind == "says":
            sys.stderr = _Stops(sys.stderr, what, signal.Signals[number])
        else:
            mark = str(Path(folder) / "mark")
            os.environ[_MADE] = os.pathsep.join([what, number, str(os.getpid()), mark])
            watch_files()
        from eenet.cli import main as command

        command()


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__" and _MADE in os.environ:
    watch_files()
