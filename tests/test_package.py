"""The package as a whole: what importing it costs, and that its rooms stand where the architecture page says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import eenet

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "eenet"

FLOORS = [
    {"errors", "_safetensors", "_values"},
    {"_files", "_extras"},
    {"_evidence"},
    {"tasks", "preprocessing"},
    {"records", "costs"},
    {"scheduler", "stages"},
    {"control", "networks", "testing"},
    {"models"},
    {"optimize", "runtime", "bundle"},
    {"profiling", "evaluation", "predict"},
    {"serving", "training"},
    {"capacity"},
    {"experiments"},
    {"cli"},
    {"__main__", "__init__"},
]


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


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.xfail(reason="the modules were moved; runtime, optimize and bundle still import each other", strict=True)
def test_rooms_import_only_from_floors_below() -> None:
    floor = {room: index for index, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        room = room_of(path)
        if room == "__init__":
            continue  # the front page points to every room, by name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for module in modules:
                parts = module.split(".")
                if parts[0] != "eenet" or len(parts) < 2 or parts[1] == room:
                    continue
                if floor[parts[1]] >= floor[room]:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {module}")
                private = any(part.startswith("_") for part in parts[2:])
                if private or (isinstance(node, ast.ImportFrom) and any(a.name.startswith("_") for a in node.names)):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports what is private to {parts[1]}")
    assert not wrong, "\n".join(wrong)
    assert {room_of(p) for p in SOURCE.rglob("*.py")} <= set(floor)
