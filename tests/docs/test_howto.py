"""The snippets of the short pages run; one that begins with the name of a file, as a comment, is that file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from optional import import_or_skip
from pages import DOCS

from eenet.scheduler import SCHEDULERS, SCORES

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
    monkeypatch.syspath_prepend(tmp_path)
    known = mock.patch.dict(SCHEDULERS), mock.patch.dict(SCORES)
    written: list[str] = []
    with torch.random.fork_rng(devices=[]), known[0], known[1]:  # what a page registers is forgotten
        try:
            for block in code:
                file = re.match(r"# (\w+)\.py\n", block)
                if file is not None:
                    Path(f"{file[1]}.py").write_text(block, encoding="utf-8")
                    written.append(file[1])
                    continue
                exec(compile(block, str(page), "exec"), names)
        finally:
            # Its own modules alone: parts of torch cannot be imported twice.
            for module in written:
                sys.modules.pop(module, None)
