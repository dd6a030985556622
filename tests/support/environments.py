"""Installing into the fresh environments of the tests."""

from __future__ import annotations

import subprocess
import sys


def install(python: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Install into the environment of `python`, which needs no pip; only what is imported gets compiled, by that."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run([*pip, "--no-compile", *words], capture_output=True, text=True, check=False)
