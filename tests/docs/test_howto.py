"""The snippets of the short pages run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from optional import import_or_skip
from pages import DOCS

OF_OTHER_TESTS = {"cascades", "deployment", "index", "networks", "report", "scale", "serving", "training", "worth-it"}
PAGES = sorted(path for path in (DOCS / "howto").glob("*.md") if path.stem not in OF_OTHER_TESTS)
PAGES += [DOCS / f"{name}.md" for name in ("explanation/optimal-stopping", "explanation/replay", "reference/formats")]


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning", "ignore::eenet.errors.FallbackWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert code, "the page has a snippet"
    if "eenet.bundle.onnx" in text:
        for library in ("onnx", "onnxscript", "onnxruntime"):
            import_or_skip(library)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.name}
    with torch.random.fork_rng(devices=[]):
        for block in code:
            exec(compile(block, str(page), "exec"), names)
