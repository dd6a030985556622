"""The deployment page: its Python and its commands run, in their order, unless it says that they do not."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
from commands import run
from optional import import_or_skip
from pages import DOCS, demo_folder

from eenet.errors import ReliabilityWarning

for _library in ("onnx", "onnxscript", "onnxruntime", "pyarrow", "mlxtend", "PIL"):
    pytest.importorskip(_library)

PAGE = DOCS / "howto" / "deployment.md"
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, bool]]:
    """Language, code and whether it is marked as not run here, of every block."""
    text = PAGE.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        paragraph = text[: match.start()].rstrip().rpartition("\n\n")[2]
        found.append((match[1], match[2], "*Not run here*" in paragraph))
    return found


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_or_skip("torchvision")
    monkeypatch.chdir(tmp_path)
    demo_folder()
    names: dict[str, Any] = {"__name__": "deployment.md"}
    ran = {"python": 0, "sh": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # on a busy machine nothing may be faster
        for language, code, skipped in blocks():
            if skipped:
                continue
            ran[language] += 1
            if language == "python":
                exec(compile(code, "docs/howto/deployment.md", "exec"), names)
                continue
            for line in code.replace("\\\n", "").splitlines():
                program, *words = shlex.split(line)
                assert program == "eenet", f"{line!r} is not run by this test; mark it as not run here"
                run(*words)
    assert ran["python"] >= 4
    assert ran["sh"] >= 2
    assert Path("answers.parquet").is_file()
