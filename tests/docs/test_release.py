"""The files that name the version of a release agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import eenet

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("yaml")


def release() -> tuple[str, str]:
    """The version and the date of the newest release in the changelog."""
    found = re.search(r"^## (\d+\.\d+\.\d+), (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert found, "CHANGELOG.md has no heading such as `## 0.2.0, 2026-11-26`"
    return found[1], found[2]


def test_the_changelog_has_a_section_for_this_version() -> None:
    version, _ = release()
    assert eenet.__version__ == version or re.fullmatch(r"\d+\.\d+\.\d+\.dev\d+", eenet.__version__)


def test_the_citation_names_the_newest_release() -> None:
    import yaml  # type: ignore[import-untyped]

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], str(citation["date-released"])) == release()


def test_the_badges_say_what_pyproject_says() -> None:
    readme, project = ((ROOT / name).read_text("utf-8") for name in ("README.md", "pyproject.toml"))
    versions = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', project)
    assert f"badge/python-3.{min(versions, key=int)}_to_3.{max(versions, key=int)}-" in readme
    assert 'license = "Apache-2.0"' in project
    assert "badge/license-Apache--2.0-" in readme
    assert "strict = true" in project.partition("[tool.mypy]")[2].partition("[[")[0]
    assert "badge/typed-mypy_strict-" in readme
