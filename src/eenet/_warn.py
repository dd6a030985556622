"""Warning at the line of the caller's that called into the library, however deep in it the reason was found."""

from __future__ import annotations

import sys
import warnings

_WITHIN = ("eenet", "torch", "contextlib", "functools")
"""Packages between the caller's line and that of the warning: the library, and what decorates its functions."""


def warn(message: str | Warning, category: type[Warning]) -> None:
    """Warn at the first frame outside the library; where there is none, as in its own threads, at the outermost."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _WITHIN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
