"""docs/howto/scale.md: its plans are what the command prints, and its other commands run, unless it says otherwise."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commands import run
from optional import import_or_skip
from pages import DOCS, demo_folder

for _library in ("onnx", "onnxruntime", "ray", "fastapi"):
    pytest.importorskip(_library, reason="needs the extras that the page is about")

TEXT = (DOCS / "howto" / "scale.md").read_text(encoding="utf-8")


def commands() -> list[tuple[list[str], str]]:
    """The commands that run here, and what follows each on the page."""
    found = []
    for match in re.finditer(r"^```sh\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL):
        paragraph = TEXT[: match.start()].rstrip().rpartition("\n\n")[2]
        if "*Not run here*" not in paragraph:
            found += [(shlex.split(line), TEXT[match.end() :]) for line in match[1].splitlines()]
    return found


def rows(table: str) -> list[list[str]]:
    """The cells of the first table of Markdown in a text."""
    lines = re.search(r"(?:^\|.*\n)+", table, flags=re.MULTILINE)
    assert lines is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()][2:]


def test_the_plans_on_the_page_are_what_the_commands_print() -> None:
    plans = [(words, after) for words, after in commands() if words[1] == "plan"]
    assert len(plans) == 2
    for words, after in plans:
        lines = [line.strip() for line in run(*words[1:]).stdout.splitlines()[1:]]
        printed = [re.split(r"\s{2,}", line) for line in lines if line.strip("─")]
        assert printed == rows(after)[: len(printed)]


def test_the_other_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_or_skip("torchvision")
    pytest.importorskip("mlxtend")
    monkeypatch.chdir(tmp_path)
    demo_folder()
    for name in ("bundle", "digits-bundle"):
        run("export", "demo", "--scheduler", "scheduler.safetensors", "--out", name, "--seconds", "0")
    others = [words for words, _ in commands() if words[1] != "plan"]
    assert [words[1] for words in others] == ["serve", "predict"]
    for words in others:
        run(*words[1:])
    names = [one["name"] for one in import_or_skip("yaml").safe_load(Path("eenet.yaml").read_text())["applications"]]
    assert names == ["eenet"]
    assert Path("answers.parquet").is_file()
