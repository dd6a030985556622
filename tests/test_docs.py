"""The code in the docs runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from torchvision_shim import define_missing_operators

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> dict[str, list[str]]:
    """The blocks of Python on a page, by the title of their section."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        code = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        if code:
            found[section.splitlines()[0]] = code
    return found


def test_bring_your_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("torchvision", "timm", "transformers"):
        define_missing_operators()
        pytest.importorskip(library, reason=f"{library} is not installed", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    sections = blocks("networks.md")
    assert list(sections) == ["torchvision", "timm", "Hugging Face", "Where tracing fails"]
    # A reader goes through the page from top to bottom, so the sections share their names.
    names: dict[str, Any] = {"__name__": "networks.md"}
    for title, code in sections.items():
        for block in code:
            exec(compile(block, f"docs/networks.md, {title}", "exec"), names)
    assert {path.name for path in (tmp_path / "resnet18-3-exits").iterdir()} == {
        "model.json",
        "model.safetensors",
        "example.safetensors",
    }
