"""The code in the docs runs."""

from __future__ import annotations

import ast
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optional import import_or_skip
from pages import DOCS

import eenet
from eenet.testing import toy_costs, toy_records
from networks import table_model

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> dict[str, list[str]]:
    """The blocks of Python on a page, by the title of their section."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        code = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        if code:
            found[section.splitlines()[0]] = code
    return found


@pytest.mark.filterwarnings("ignore:the last exit is right on:eenet.errors.ReliabilityWarning")  # not trained
def test_bring_your_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("torchvision", "timm", "transformers"):
        import_or_skip(library)
    monkeypatch.chdir(tmp_path)
    sections = blocks("howto/networks.md")
    assert list(sections) == [
        "torchvision",
        "timm",
        "Hugging Face",
        "Several inputs",
        "Recurrent networks",
        "Where tracing fails",
    ]
    # A reader goes through the page from top to bottom, so the sections share their names.
    names: dict[str, Any] = {"__name__": "networks.md"}
    for title, code in sections.items():
        for block in code:
            exec(compile(block, f"docs/howto/networks.md, {title}", "exec"), names)
    assert {path.name for path in (tmp_path / "resnet18-3-exits").iterdir()} == {
        "model.json",
        "model.safetensors",
        "example.safetensors",
    }


def test_the_training_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("lightning_fabric", "tensorboard"):
        import_or_skip(library)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "training.md"}
    with torch.random.fork_rng(devices=[]):
        for title, code in blocks("howto/training.md").items():
            if title != LOOPS:
                for block in code:
                    exec(compile(block, f"docs/howto/training.md, {title}", "exec"), names)
    for file in ("last.safetensors", "best.safetensors", "metrics.csv", "tensorboard"):
        assert (tmp_path / "run" / file).exists(), "the guide lists it"
    assert not (tmp_path / "heads" / "features").exists()
    assert len(list((tmp_path / "features").iterdir())) == 2
    described = set(re.findall(r"`([a-z_]+?)(?:_[kb])?`", (DOCS / "howto" / "training.md").read_text(encoding="utf-8")))
    columns = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {re.sub(r"_\d+$", "", column) for column in columns} <= described | {"epoch"}


LOOPS = "Another training loop"


@pytest.fixture(scope="module")
def toy_problem(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], tuple[float, ...]]:
    """The names of the guide's toy problem, and the accuracies that `eenet.train` reaches on it in five epochs."""
    import_or_skip("lightning_fabric")
    names: dict[str, Any] = {"__name__": "training.md"}
    start = blocks("howto/training.md")["A run"][0]
    with torch.random.fork_rng(devices=[]):
        exec(compile(start[: start.index("config = ")], "docs/howto/training.md", "exec"), names)
        config = names["TrainConfig"](
            epochs=5, learning_rate=0.05, schedule="constant", accelerator="cpu", tensorboard=False, progress=False
        )
        out = tmp_path_factory.mktemp("train") / "run"
        result = eenet.train(names["with_exits"](), names["training"], names["validation"], config=config, out=out)
    return names, result.history[-1].accuracies


@pytest.mark.filterwarnings("ignore")  # these libraries warn of processes, pinned memory and what they will change
@pytest.mark.parametrize(
    ("number", "library"), [(0, "torch"), (1, "accelerate"), (2, "transformers"), (3, "lightning")]
)
def test_other_training_loops_reach_the_accuracy_of_train(
    number: int,
    library: str,
    toy_problem: tuple[dict[str, Any], tuple[float, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for needed in [library, *(["accelerate"] if library == "transformers" else [])]:
        import_or_skip(needed)
    monkeypatch.chdir(tmp_path)
    loop = blocks("howto/training.md")[LOOPS][number]
    assert f"{library}." in loop or f"from {library} " in loop, "the loops are in this order"
    assert sum(bool(line.strip()) for line in loop.splitlines()) <= 15
    names, expected = dict(toy_problem[0]), toy_problem[1]
    with torch.random.fork_rng(devices=[]):
        exec(compile(loop, f"docs/howto/training.md, {LOOPS}", "exec"), names)
    reached = eenet.collect(names["model"], names["validation"]).accuracies
    # The worst of three standard errors at 128 samples; chance is 0.25.
    assert (reached > np.array(expected) - 0.13).all()


def test_the_controller_on_the_method_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("explanation/method.md")["The budget in traffic"]
    scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs())
    names: dict[str, Any] = {"eenet": eenet, "scheduler": scheduler, "model": table_model(3, 5)}
    exec(compile(code, "docs/explanation/method.md", "exec"), names)
    names["fast"](torch.randn(10, 15))
    assert names["controller"].samples == 10
    assert eenet.BudgetController.load(scheduler, "controller.json").samples == 0


def test_the_abstention_on_the_method_page() -> None:
    (code,) = blocks("explanation/method.md")["Abstention"]
    names: dict[str, Any] = {}
    exec(compile(code, "docs/explanation/method.md", "exec"), names)
    assert 0 < names["decisions"].handed_back <= 0.02


def test_is_it_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_or_skip("matplotlib")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "howto" / "worth-it.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    names: dict[str, Any] = {"__name__": "worth-it.md"}
    for block in code:
        exec(compile(block.replace("seconds=10", "seconds=0"), "docs/howto/worth-it.md", "exec"), names)
    assert (tmp_path / "worth.csv").read_text(encoding="utf-8").count("\n") == 9
    assert (tmp_path / "worth.png").is_file()


def test_the_messages_in_the_training_guide_are_those_of_the_code() -> None:
    """A message is quoted in part, with … for what is filled in."""
    said = []
    for path in (ROOT / "src" / "eenet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                said.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.append(node.value)
    text = (DOCS / "howto" / "training.md").read_text(encoding="utf-8")
    table = text.split("<!-- messages: begin -->")[1].split("<!-- messages: end -->")[0]
    quoted = re.findall(r"^\| `(.+?)` \|", table, flags=re.MULTILINE)
    assert len(quoted) > 10
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("…")), flags=re.DOTALL)
        assert any(pattern.search(one) for one in said), f"no message of the code reads {message!r}"


def test_the_report_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("matplotlib", "plotly"):
        import_or_skip(library)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for title, code in blocks("howto/report.md").items():
        for block in code:
            exec(compile(block, f"docs/howto/report.md, {title}", "exec"), names)
    assert {"report.html", "report.json", "exit-shares.pdf"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.filterwarnings("ignore:the costs at batch size")  # a test machine may be busy
@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")  # the network is not trained
def test_the_code_in_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert code
    network = torch.nn.Sequential(
        OrderedDict(
            layer1=torch.nn.Conv2d(3, 8, 3, 2),
            layer2=torch.nn.Conv2d(8, 8, 3, 2),
            layer3=torch.nn.Conv2d(8, 128, 3, padding=1),
            # Most of the cost, and little of it fixed in a batch, so that exits before it fit a budget.
            layer4=torch.nn.Conv2d(128, 256, 3, padding=1),
            layer5=torch.nn.Conv2d(256, 256, 3, padding=1),
            pool=torch.nn.AdaptiveAvgPool2d(1),
            flat=torch.nn.Flatten(),
            top=torch.nn.Linear(256, 10),
        )
    ).eval()
    x, y = torch.randn(60, 3, 32, 32), torch.arange(60) % 10
    names: dict[str, Any] = {"network": network, "x": x[:4], "calibration_loader": [(x, y)], "test_loader": [(x, y)]}
    exec(compile(code[0], "README.md", "exec"), names)  # what follows are measurements
    assert names["out"].logits.shape == (4, 10)


def test_the_page_on_cascades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "cascades.md"}
    sections = blocks("howto/cascades.md")
    # This one needs trained networks; tests/test_preprocessing.py has small ones.
    del sections["Members with tokenizers of their own"]
    for title, code in sections.items():
        for block in code:
            exec(compile(block, f"docs/howto/cascades.md, {title}", "exec"), names)
