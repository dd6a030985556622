"""The package as a whole: what importing it costs, and the order of its layers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import structure

import eenet


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
