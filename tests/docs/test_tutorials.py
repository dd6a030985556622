"""The tutorials run, with the claims that each checks at its end, and so does the page that a newcomer starts with."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from optional import import_or_skip
from pages import DOCS

EXAMPLES = sorted((DOCS.parent / "examples").glob("*/plot_*.py"))

pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")  # a test machine may be busy


@pytest.fixture(autouse=True)
def nothing_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Figures are drawn and not shown; random states are restored."""
    matplotlib = import_or_skip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield
    import_or_skip("matplotlib.pyplot").close("all")


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_keeps_its_claims(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text(encoding="utf-8")
    for library in sorted(set(re.findall(r"^(?:from|import) (\w+)", text, flags=re.MULTILINE)) - {"__future__"}):
        import_or_skip(library)
    assert re.search(r"^ *assert ", text, flags=re.MULTILINE), "a tutorial checks what it claims"
    monkeypatch.chdir(path.parent)  # as the gallery does; a tutorial writes to temporary folders only
    runpy.run_path(str(path))


def test_the_page_to_start_with() -> None:
    import_or_skip("mlxtend")
    code = re.findall(
        r"^```python\n(.*?)^```", (DOCS / "start.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {"__name__": "start.md"}
    for block in code:
        exec(compile(block.replace("seconds=2", "seconds=0.5"), "docs/start.md", "exec"), names)
    found = names["fast"](names["images"][3000:])
    accuracy = (found.logits.argmax(1) == names["labels"][3000:]).float().mean()
    whole = names["network"](names["images"][3000:]).argmax(1)
    assert accuracy > (whole == names["labels"][3000:]).float().mean() - 0.03
    assert 0.1 < (found.exits == 0).float().mean() < 0.95
