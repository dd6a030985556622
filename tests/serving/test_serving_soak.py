"""A short soak; `make soak` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_short_soak_and_an_overload_find_nothing_wrong() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--seconds", "30", "--overload", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "nothing was wrong" in done.stdout
