"""How Ctrl-C and SIGTERM end a command: by a KeyboardInterrupt, at a place that can bear one."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of a command that Ctrl-C or SIGTERM stopped."""

_USUAL: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
_CODES = {signal.SIGTERM: TERMINATED, signal.SIGINT: INTERRUPTED}
# Modules whose functions are not interrupted. Where an extension module runs Python code while it is imported, and that
# raises, it may end the process by SIGSEGV or SIGABRT; and nothing yet removes a temporary file that was just made.
_WHOLE = ("importlib._bootstrap", "_frozen_importlib", "eenet._files")
_AGAIN = 0.02  # seconds until it is tried again


@contextmanager
def stopped_by_signals(told: Callable[[int], None]) -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM end the command by a KeyboardInterrupt; a second one ends it at once.

    It is raised as soon as nothing runs that must be whole (the import of a module, what makes and renames temporary
    files), and once more where it came up in a callback that cannot pass it on. `told` gets the exit code of the signal
    before. Commands that serve have handlers of their own. Where a signal is ignored, or the program that runs the
    command has a handler, it stays so.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    ours = [number for number, usual in _USUAL.items() if signal.getsignal(number) == usual]
    stop = _Stop(told, ours)
    for number in ours:
        signal.signal(number, stop.handle)
    usual_hook = sys.unraisablehook

    def hook(lost: Any) -> None:
        if stop.number is not None and isinstance(lost.exc_value, KeyboardInterrupt):
            stop.again()
        else:
            usual_hook(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        stop.over = True
        for number in ours:
            signal.signal(number, _USUAL[number])
        if sys.unraisablehook is hook:
            sys.unraisablehook = usual_hook


class _Stop:
    """What one command knows of its end: which signal asked for it, and whether the next call tries again."""

    def __init__(self, told: Callable[[int], None], ours: list[signal.Signals]) -> None:
        self.told = told
        self.ours = ours
        self.number: signal.Signals | None = None
        self.retried = False
        self.over = False
        self.process, self.thread = os.getpid(), threading.get_ident()
        self.whole = _whole(sys._getframe())

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        retried, self.retried = self.retried, False
        # A process that was forked has nothing to clean up; and a second signal waits for nothing.
        if os.getpid() != self.process or (self.number is not None and not retried):
            for one in self.ours:
                signal.signal(one, _USUAL[one])
            signal.raise_signal(number)
            return
        self.number = signal.Signals(number)
        self.told(_CODES[self.number])
        if _whole(frame) > self.whole:
            self.again()
        else:
            raise KeyboardInterrupt

    def again(self) -> None:
        """Call the handler once more, a little later."""
        # Not by `threading`, whose locks the interrupted code may hold.
        _thread.start_new_thread(self._later, ())

    def _later(self) -> None:
        time.sleep(_AGAIN)
        if self.number is None or self.over:
            return
        self.retried = True
        if sys.platform == "win32":
            _thread.interrupt_main(self.number)
        else:  # which also ends a call of the system that waits
            signal.pthread_kill(self.thread, self.number)


def _whole(frame: FrameType | None) -> int:
    """How many functions that must be whole are running."""
    count = 0
    while frame is not None:
        count += frame.f_globals.get("__name__") in _WHOLE
        frame = frame.f_back
    return count
