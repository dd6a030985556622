"""What the site needs beyond Sphinx's extensions: reference pages, equations as MathML, and links out of `docs/`."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from api_page import PACKAGES, public_names
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

import eenet

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
LOGGER = logging.getLogger(__name__)


def public_paths() -> dict[str, object]:
    """Every public object by the path where it is documented: that of its package."""
    return {
        f"eenet.{package}.{name}": getattr(import_module(f"eenet.{package}"), name)
        for package in PACKAGES
        for name in public_names(import_module(f"eenet.{package}"))
    }


def private_path(path: str, value: object) -> str:
    """Where an object is defined, which is how annotations name it."""
    return f"{getattr(value, '__module__', None) or path}.{getattr(value, '__qualname__', path)}"


def documented_names() -> dict[str, str]:
    """The documented path of each object by its private path; an object of two packages belongs to the first."""
    found: dict[str, str] = {}
    for path, value in public_paths().items():
        found.setdefault(private_path(path, value), path)
    return found


def own_members(value: type) -> list[str]:
    """Public methods and properties that a class defines itself and describes."""
    kinds = (property, classmethod, staticmethod)
    return [
        name
        for name, one in vars(value).items()
        if not name.startswith("_") and (isinstance(one, kinds) or inspect.isfunction(one)) and one.__doc__
    ]


def entry(path: str, value: object) -> list[str]:
    """The directive that documents one object."""
    if not callable(value):
        return [f".. autodata:: {path}", "   :no-value:", ""]
    if not isinstance(value, type):
        return [f".. autofunction:: {path}", ""]
    lines = [f".. autoclass:: {path}", "   :show-inheritance:"]
    members = [] if issubclass(value, BaseException) else own_members(value)
    if members:
        lines.append(f"   :members: {', '.join(members)}")
    return [*lines, ""]


def role(value: object) -> str:
    """The role that links to an object."""
    return "py:class" if isinstance(value, type) else "py:func" if callable(value) else "py:data"


def write(page: Path, lines: list[str]) -> None:
    """A page that stays the same keeps its date, so that it is not built again."""
    text = "\n".join(lines)
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")


def table(values: dict[str, object], homes: dict[str, str]) -> list[str]:
    """A table of objects with the first lines of their docstrings, each linked to where it is documented."""
    lines = [".. list-table::", "   :widths: 30 70", ""]
    for path, value in values.items():
        lines += [f"   * - :{role(value)}:`{path.rpartition('.')[2]} <{homes[private_path(path, value)]}>`"]
        lines += [f"     - {(inspect.getdoc(value) or '').splitlines()[0] if callable(value) else 'A constant.'}"]
    return [*lines, ""]


def write_reference(_: Sphinx) -> None:
    """`reference/api/NAME.rst` for each package, and `index.rst` for the entry points."""
    folder = HERE / "reference" / "api"
    homes = documented_names()
    entries = {f"eenet.{name}": getattr(eenet, name) for name in eenet.__all__ if name != "__version__"}
    lines = ["API reference", "=============", "", "``import eenet`` gives the names that most programs need:", ""]
    lines += [*table(entries, homes), "All names, by package:", "", ".. toctree::", "   :maxdepth: 1", ""]
    write(folder / "index.rst", [*lines, *(f"   {package}" for package in PACKAGES), ""])
    for package in PACKAGES:
        module = import_module(f"eenet.{package}")
        values = {f"eenet.{package}.{name}": getattr(module, name) for name in public_names(module)}
        lines = [f"eenet.{package}", "=" * 40, "", f".. module:: eenet.{package}", "", inspect.getdoc(module) or "", ""]
        lines += table(values, homes)
        for path, value in values.items():
            if homes[private_path(path, value)] == path:
                lines += entry(path, value)
        write(folder / f"{package}.rst", lines)


def results_page(file: Path) -> str:
    """The name of the page of a Markdown file of `results/`."""
    return file.parent.name if file.stem == "README" else f"{file.parent.name}-{file.stem}"


def write_results(_: Sphinx) -> None:
    """`reference/results/NAME.md` for each page in the folders of `results/`."""
    for file in sorted(RESULTS.glob("*/*.md")):
        text = site_links(file.read_text(encoding="utf-8"), file)
        write(HERE / "reference" / "results" / f"{results_page(file)}.md", [text])


def site_links(text: str, file: Path) -> str:
    """Links that are right in the repository, made to lead to the site's pages."""

    def lead(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        target = (file.parent / path).resolve()
        if target == HERE / "reference" / "api.md":
            return "](/reference/api/index.rst)"
        if target.is_relative_to(RESULTS) and target.suffix == ".md" and target.parent != RESULTS:
            return f"](/reference/results/{results_page(target)}.md{anchor})"
        if target.is_relative_to(HERE):
            return f"](/{target.relative_to(HERE).as_posix()}{anchor})"
        return match[0]

    return re.sub(r"\]\(((?!https?:|mailto:|/|#)[^)#\s]+)(#[^)\s]*)?\)", lead, text)


def mend_links(_: Sphinx, docname: str, source: list[str]) -> None:
    """Links between the pages and to `results/`."""
    if (HERE / f"{docname}.md").is_file():
        source[0] = site_links(source[0], HERE / f"{docname}.md")


def resolve_private(app: Sphinx, env: Any, node: nodes.Element, contnode: nodes.Element) -> Any:
    """References of annotations to a private path lead to the documented one; those to undocumented names are text."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    homes: dict[str, str] = env.app.documented_names
    home = homes.get(target) or homes.get(f"{node.get('py:module')}.{target}")
    if home is None and "." not in target:
        home = app.documented_short_names.get(target)  # type: ignore[attr-defined]
    if home is None or home == target:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", home, node, contnode)


def visit_math(self: Any, node: nodes.Element) -> None:
    """An equation as MathML, which browsers draw themselves."""
    try:
        self.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    except MathError as error:
        LOGGER.warning("the equation %r cannot be written as MathML: %s", node.astext(), error, location=node)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Everything above, where Sphinx calls it."""
    app.documented_names = documented_names()  # type: ignore[attr-defined]
    short: dict[str, str] = {}
    for home in app.documented_names.values():  # type: ignore[attr-defined]
        short.setdefault(home.rpartition(".")[2], home)
    app.documented_short_names = short  # type: ignore[attr-defined]
    app.connect("builder-inited", write_reference, priority=100)
    app.connect("builder-inited", write_results, priority=100)
    app.connect("source-read", mend_links)
    app.connect("missing-reference", resolve_private)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
