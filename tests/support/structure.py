"""The structure of the package as its own imports show it; `python tests/support/structure.py` prints the measures.

`--write` writes the picture in docs/explanation/architecture.md again. A test holds every import to `LAYERS`.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import threading
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "eenet"
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
BEGIN, END = "<!-- written by tests/support/structure.py -->", "<!-- end -->"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors"),
    ("_extras", "_files", "_pretrained", "_sizes", "_values", "_warn"),
    ("_needs_torch", "_compat", "_timing", "_progress"),
    ("tasks", "preprocessing"),
    ("_cascades",),
    ("records", "costs"),
    ("scheduler",),
    ("control", "testing"),
    ("networks", "stages"),
    ("models",),
    ("optimize",),
    ("runtime",),
    ("bundle",),
    ("profiling",),
    ("evaluation",),
    ("benchmarking",),
    ("reporting",),
    ("training",),
    ("serving.engine", "predict"),
    ("serving.http",),
    ("serving.ray",),
    ("capacity",),
    ("experiments.data",),
    ("experiments.recipes",),
    ("experiments",),
    ("cli",),
    ("__main__",),
)
"""The import order, from the ground up: a module imports from its own package and from lower layers only."""

FREE = {"eenet", "eenet.serving"}
"""The root hands on names of every package when they are first used; an empty package has nothing to order."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[tuple[str, int]]:
    """The modules of the package that a file imports, anywhere in it, with the line."""
    found: set[tuple[str, int]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add((inner if inner in known else node.module, node.lineno))
    return found


def graph() -> dict[str, dict[str, int]]:
    """For each module those that it imports, with the line of the first import."""
    known = modules()
    arrows: dict[str, dict[str, int]] = {}
    for name, path in known.items():
        arrows[name] = {}
        for target, line in sorted(imports(path, known)):
            if name == "eenet":
                continue
            # Python runs the __init__ of every package on the way to a module.
            parents = [target.rsplit(".", up)[0] for up in range(target.count("."))]
            for reached in parents:
                if reached != name and reached != "eenet" and not name.startswith(f"{reached}."):
                    arrows[name].setdefault(reached, line)
            if target == "eenet":
                arrows[name].setdefault(target, line)
    return arrows


def layer_of(module: str) -> tuple[int, str]:
    """The layer of a module and the package that stands in it; raises `KeyError` where no layer names it."""
    inner = module.removeprefix("eenet.")
    matches = [
        (number, package)
        for number, layer in enumerate(LAYERS)
        for package in layer
        if inner == package or inner.startswith(f"{package}.")
    ]
    if not matches:
        raise KeyError(f"no layer names {module}: add its package to LAYERS in tests/support/structure.py")
    return max(matches, key=lambda match: len(match[1]))


def upward(arrows: dict[str, dict[str, int]]) -> list[str]:
    """The imports that do not go down, as text."""
    wrong = []
    known = modules()
    for name, targets in arrows.items():
        if name in FREE:
            continue
        number, package = layer_of(name)
        for target, line in targets.items():
            place = f"{known[name].relative_to(ROOT)}:{line} ({package}) imports {target}"
            if target == "eenet" or (
                target not in FREE and layer_of(target)[1] != package and layer_of(target)[0] >= number
            ):
                wrong.append(place)
    return wrong


def circles(arrows: dict[str, dict[str, int]]) -> list[list[str]]:
    """The groups of modules that import each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in arrows[name]:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in arrows:
        if name not in index:
            visit(name)
    return found


def code_lines(path: Path) -> int:
    """The lines of a file that hold code: not blank, no comment, no docstring."""
    text = path.read_text(encoding="utf-8")
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def public_names() -> dict[str, list[str]]:
    """The names that each package offers, by `api_page`'s reading."""
    from importlib import import_module

    import api_page

    return {package: api_page.public_names(import_module(f"eenet.{package}")) for package in api_page.PACKAGES}


@contextmanager
def files_run() -> Iterator[set[str]]:
    """The files of the package in which a function is called inside the block, in any thread."""
    seen: set[str] = set()
    start = str(SOURCE)

    def note(frame: Any, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(start):
            seen.add(str(Path(frame.f_code.co_filename).relative_to(SOURCE)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def ways() -> dict[str, list[str]]:
    """The files on four ways: a budget's through `fit`, a network's through `attach`, a sample's, a request's."""
    import warnings

    import httpx
    import torch

    import eenet
    from eenet.serving.engine import ServedModel
    from eenet.serving.http import ServerOptions, make_server

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    network = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(3)))
    network.append(torch.nn.Linear(8, 5))
    x, y = torch.randn(400, 8), torch.randint(0, 5, (400,))
    found: dict[str, list[str]] = {}

    def traced(name: str, action: Callable[[], Any]) -> Any:
        action()  # imports and what is made when first used
        with files_run() as seen:
            result = action()
        found[name] = sorted(seen)
        return result

    model = traced("attach", lambda: eenet.attach(network, ["0", "1"], 5, x[:2])).eval()
    records = eenet.collect(model, [(x, y)])
    costs = eenet.ExitCosts([1.0, 2.0, 3.0])
    scheduler = traced("fit", lambda: eenet.EENet().fit(records, costs, budget="60%"))
    fast = eenet.AdaptiveModel(model, scheduler)
    traced("sample", lambda: fast(x[:8]))

    served = ServedModel(model, scheduler)
    address: list[str] = []
    up = threading.Event()

    def ready(url: str) -> None:
        address.append(url)
        up.set()

    server = make_server(served, ServerOptions(port=0), ready=ready)
    body = {"inputs": x[:4].tolist()}
    with files_run() as seen:  # the server's threads are traced from their start
        thread = threading.Thread(target=server.run)
        thread.start()
        up.wait()
        httpx.post(f"{address[0]}/predict", json=body, timeout=None).raise_for_status()
        seen.clear()
        httpx.post(f"{address[0]}/predict", json=body, timeout=None).raise_for_status()
        found["request"] = sorted(seen)
        server.should_exit = True
        thread.join()
    return found


def picture() -> str:
    """The layers from the top down and, for each package, what it imports."""
    arrows = graph()
    known = modules()
    used: dict[str, set[str]] = {}
    for name, targets in arrows.items():
        if name not in FREE:
            package = layer_of(name)[1]
            used.setdefault(package, set()).update(
                layer_of(target)[1] for target in targets if target not in FREE and layer_of(target)[1] != package
            )
    lines = ["| layer | package | what it is | imports |", "|---|---|---|---|"]
    for number in range(len(LAYERS) - 1, -1, -1):
        for package in LAYERS[number]:
            if package not in used:
                continue
            path = known[f"eenet.{package}"]
            text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
            order = [name for layer in LAYERS for name in layer if name in used[package]]
            lines.append(f"| {number} | `{package}` | {text} | {', '.join(order)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/explanation/architecture.md with the picture as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{picture()}\n{END}{after}"


def main() -> None:
    """Print the measures, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the picture in docs/explanation/architecture.md")
    parser.add_argument("--ways", action="store_true", help="also run the four ways and name their files")
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(page(), encoding="utf-8")
        return
    arrows = graph()
    files = list(modules().values())
    print(f"source files        {len(files)}")
    print(f"lines of source     {sum(len(path.read_text(encoding='utf-8').splitlines()) for path in files)}")
    print(f"  of them code      {sum(map(code_lines, files))}")
    print(f"circles             {len(circles(arrows))}")
    for circle in circles(arrows):
        print("   ", ", ".join(circle))
    print(f"upward imports      {len(upward(arrows))}")
    for wrong in upward(arrows):
        print("   ", wrong)
    names = public_names()
    print(f"public names        {sum(map(len, names.values()))}")
    for package, offered in names.items():
        print(f"    {package:22} {len(offered)}")
    if options.ways:
        for way, run in ways().items():
            print(f"files on the way    {way}: {len(run)}")
            for name in run:
                print("   ", name)


if __name__ == "__main__":
    main()
