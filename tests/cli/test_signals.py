"""A command that Ctrl-C or SIGTERM stops has its own exit code and says how to go on, wherever it is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import interruptible


def stopped(folder: Path, text: str, code: int) -> str:
    """The standard error of a command that runs the function `network` of the module with this text."""
    (folder / "stops.py").write_text(f"import signal, time\n{text}", encoding="utf-8")
    command = [sys.executable, "-m", "eenet", "profile", "stops:network"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        preexec_fn=None if sys.platform == "win32" else interruptible,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: stopped, nothing was half written" in done.stderr
    return done.stderr


def test_within_code_from_text(tmp_path: Path) -> None:
    """Python ends a module by SIGINT then, whatever exit code it chose."""
    stopped(tmp_path, "def network():\n    exec('raise KeyboardInterrupt')\n", 130)


def test_while_a_module_is_imported_which_is_imported_whole(tmp_path: Path) -> None:
    """An extension module may end the process by SIGSEGV where the Python code that it runs at import raises."""
    lines = [
        "import signal, time",
        "from pathlib import Path",
        "signal.raise_signal(signal.SIGTERM)",
        "time.sleep(0.1)",  # which is tried again meanwhile
        "Path('whole').touch()",
    ]
    (tmp_path / "other.py").write_text("\n".join(lines), encoding="utf-8")
    stopped(tmp_path, "def network():\n    import other\n    time.sleep(60)\n", 143)
    assert (tmp_path / "whole").exists()


def test_within_a_callback_that_cannot_pass_it_on(tmp_path: Path) -> None:
    """Python ignores what a finalizer raises, so the command would go on."""
    lines = [
        "class Last:",
        "    def __del__(self):",
        "        signal.raise_signal(signal.SIGINT)",
        "        for _ in range(10_000):",
        "            pass",
        "def network():",
        "    Last()",
        "    time.sleep(60)",
    ]
    error = stopped(tmp_path, "\n".join(lines) + "\n", 130)
    assert "ignored" not in error


@pytest.mark.skipif(sys.platform == "win32", reason="there is no exit code of a signal")
def test_a_second_signal_does_not_wait_for_the_import(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import signal, time\nfor _ in range(2):\n    signal.raise_signal(signal.SIGTERM)\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    (tmp_path / "stops.py").write_text("def network():\n    import other\n", encoding="utf-8")
    command = [sys.executable, "-m", "eenet", "profile", "stops:network"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM, done.stderr
