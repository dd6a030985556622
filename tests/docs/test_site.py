"""The documentation site builds without a warning and without a network, and its links lead somewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS
from site_links import broken_links

for _library in ("sphinx", "sphinx_gallery", "myst_parser", "numpydoc", "pydata_sphinx_theme", "sphinx_design"):
    pytest.importorskip(_library)

ROOT = DOCS.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built of copies, since building writes pages beside the sources. The tutorials do not run."""
    here = tmp_path_factory.mktemp("site")
    made = shutil.ignore_patterns("_build", "tutorials", "api", "results")
    shutil.copytree(DOCS, here / "docs", ignore=made)
    shutil.copytree(ROOT / "examples", here / "examples")
    shutil.copytree(ROOT / "results", here / "results", ignore=shutil.ignore_patterns("work", "*.safetensors"))
    (here / "tests").mkdir()
    shutil.copytree(ROOT / "tests" / "support", here / "tests" / "support")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", "html"]
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "EENET_DOCS_RUN": "0", "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return here / "html"


def test_no_link_leads_nowhere_and_no_page_loads_anything_from_another_site(site: Path) -> None:
    assert (site / "index.html").is_file()
    assert broken_links(site) == []


def test_a_wrong_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><a href="#here">a</a><a href="c.html">c</a>')
    (tmp_path / "b.html").write_text('<p id="other"><script src="https://example.org/x.js"></script>')
    assert [line.split(": ")[0] for line in broken_links(tmp_path)] == [
        "a.html links to b.html#there",
        "a.html links to #here",
        "a.html links to c.html",
        "b.html loads https://example.org/x.js",
    ]


def test_every_public_name_has_its_entry(site: Path) -> None:
    from site_pages import documented_names, public_paths

    text = "".join(page.read_text(encoding="utf-8") for page in (site / "reference" / "api").glob("*.html"))
    documented = set(documented_names().values())
    assert len(documented) > 140
    for name in public_paths():
        assert name not in documented or f'id="{name}"' in text, f"{name} is missing in the reference"
