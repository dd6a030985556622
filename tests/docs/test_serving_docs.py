"""docs/howto/serving.md: its Python runs, its commands run against a server, unless it says that they do not."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import TOKEN, served
from optional import import_or_skip
from pages import DOCS, demo_folder

PAGE = DOCS / "howto" / "serving.md"


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [m[1] for m in found if "*Not run here*" not in text[: m.start()].rstrip().rpartition("\n\n")[2]]


def test_the_python_on_the_page_runs() -> None:
    names: dict[str, Any] = {"__name__": "serving.md"}
    code = blocks("python")
    assert len(code) == 2
    for block in code:
        exec(compile(block, "docs/howto/serving.md", "exec"), names)


def test_the_commands_on_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_or_skip("torchvision")
    if shutil.which("curl") is None:
        pytest.skip("needs curl, which the page uses")
    monkeypatch.chdir(tmp_path)
    demo_folder()
    from commands import run

    run("export", "demo", "--scheduler", "scheduler.safetensors", "--out", "bundle", "--no-measure")
    commands = [line for block in blocks("sh") for line in block.replace("\\\n", "").splitlines()]
    start, *requests = [shlex.split(command.replace("$EENET_TOKEN", TOKEN)) for command in commands]
    assert start[:2] == ["eenet", "serve"]
    assert len(requests) == 2
    port = start[start.index("--port") + 1]
    with served(*[word if word != port else "0" for word in start[2:]], EENET_TOKEN=TOKEN) as (url, _):
        answers = []
        for words in requests:
            assert words[0] == "curl"
            command = [word.replace(f"http://127.0.0.1:{port}", url) for word in words]
            answers.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert '"predictions"' in answers[0]
    assert answers[1] == '{"budget":1.5,"unit":"ms"}'
