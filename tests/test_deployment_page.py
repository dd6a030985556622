"""The deployment page: its Python and its commands run, in their order, unless it says that they do not."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest

import eenet
from eenet.errors import ReliabilityWarning
from optional import import_or_skip
from test_cli import run
from test_docs import DOCS

for _library in ("onnx", "onnxscript", "onnxruntime", "pyarrow", "mlxtend", "PIL"):
    pytest.importorskip(_library)

PAGE = DOCS / "deployment.md"
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, bool]]:
    """Language, code and whether it is marked as not run here, of every block."""
    text = PAGE.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        paragraph = text[: match.start()].rstrip().rpartition("\n\n")[2]
        found.append((match[1], match[2], "*Not run here*" in paragraph))
    return found


def demo_folder() -> None:
    """What `eenet demo` leaves behind, with an untrained network, a scheduler for it, and a folder of digits."""
    from PIL import Image

    from eenet.demo import TrainingSettings
    from eenet.demo._data import load_digits, split
    from eenet.demo._model import build, save_model

    settings = TrainingSettings(train=100, calibration=60, test=30)
    parts = split(load_digits(), settings, Path("demo"))
    model = build(settings.network, 0).eval()
    save_model(model, settings, Path("demo"))
    records = eenet.collect(model, [parts["calibration"].images])
    eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0).save("scheduler.safetensors")
    Path("digits").mkdir()
    for number, image in enumerate(parts["test"].images[:5, 0] * 0.3081 + 0.1307):
        Image.fromarray((image.numpy() * 255).round().astype("uint8")).save(f"digits/{number}.png")


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
                exec(compile(code, "docs/deployment.md", "exec"), names)
                continue
            for line in code.replace("\\\n", "").splitlines():
                program, *words = shlex.split(line)
                assert program == "eenet", f"{line!r} is not run by this test; mark it as not run here"
                run(*words)
    assert ran["python"] >= 4
    assert ran["sh"] >= 2
    assert Path("answers.parquet").is_file()
