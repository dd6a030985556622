"""The package as a whole: what importing it costs, and the order of its layers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import structure

import eenet
from eenet.errors import InvalidInputError


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_eenet_brings_in_nothing_heavy_and_nothing_optional() -> None:
    loaded = python("import sys, eenet; print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))").split()
    heavy = {"torch", "torchvision", "timm", "transformers", "lightning", "matplotlib", "onnxruntime", "typer", "ray"}
    assert not heavy & set(loaded)


def test_using_the_core_brings_in_no_optional_dependency() -> None:
    names = ", ".join(f"eenet.{name}" for name in eenet.__all__)
    loaded = python(f"import sys, eenet; ({names}); print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))")
    optional = {"torchvision", "timm", "transformers", "lightning", "matplotlib", "onnxruntime", "ray", "mlxtend"}
    assert not optional & set(loaded.split())


@pytest.mark.parametrize(
    ("source", "package"),
    [("torchvision:resnet18", "torchvision"), ("timm:resnet18", "timm"), ("hf:BertModel", "transformers")],
)
def test_a_torchvision_of_another_build_is_explained(source: str, package: str, tmp_path: Path) -> None:
    for name, code in {
        "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
        "timm": "import torchvision",
        # Transformers loads its parts when they are first named, and gives every failure the same error.
        "transformers": """
def __getattr__(name):
    try:
        import torchvision
    except RuntimeError as error:
        raise ModuleNotFoundError(f"Could not import module {name!r}") from error
""",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import eenet
try:
    eenet.build_network({source!r})
except eenet.errors.MissingExtraError as error:
    print(error)
"""
    explained = python(code)
    assert explained.startswith(f"this needs {package}, which cannot be imported: torch ")
    assert "are different builds (operator torchvision::nms does not exist)" in explained
    assert "pip install --force-reinstall torch torchvision" in explained


def test_every_public_name_is_there_and_unknown_ones_are_not() -> None:
    for name in eenet.__all__:
        assert getattr(eenet, name) is not None
        assert name in dir(eenet)
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = eenet.Nonsense


def test_imports_go_down_the_layers_only() -> None:
    assert not structure.upward(structure.graph())


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not structure.circles(structure.graph())


def test_the_picture_on_the_architecture_page_is_that_of_the_code() -> None:
    written = structure.PAGE.read_text(encoding="utf-8")
    assert written == structure.page(), "write it again: python tests/support/structure.py --write"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (3, "an int"),
        ("text", "a str"),
        (None, "None"),
        (np.zeros(3), "an ndarray"),
        (eenet.OptimalStopping(), "an OptimalStopping"),
        (type("LSTM", (), {})(), "an LSTM"),
        (type("UNet", (), {})(), "a UNet"),
        (type("UnsharedHead", (), {})(), "an UnsharedHead"),
        (type("UniformMix", (), {})(), "a UniformMix"),
        (type("_Early", (), {})(), "an _Early"),
    ],
)
def test_messages_name_the_kind_of_what_was_given_as_it_is_spoken(given: object, named: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^records are {named}, expected ExitRecords"):
        eenet.EENet().fit(given, eenet.ExitCosts([1.0, 2.0]))  # type: ignore[arg-type]


def test_no_message_writes_an_article_before_the_name_of_a_class_by_itself() -> None:
    articles = re.compile(r"\ban? (\{type\(|\{[a-z_.]*__name__)")
    assert not [path for path in structure.modules().values() if articles.search(path.read_text(encoding="utf-8"))]
