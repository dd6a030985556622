"""A missing extra is named with the command that installs it, from where eenet itself came."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from eenet.errors import MissingExtraError
from eenet.evaluation import compare
from eenet.testing import toy_costs, toy_records

COMMIT = {"vcs": "git", "commit_id": "0" * 40}


@pytest.mark.parametrize(
    ("source", "command"),
    [
        (None, "pip install 'eenet[report]'"),
        ({"url": "file:///a%20clone/eenet", "dir_info": {"editable": True}}, "pip install '/a clone/eenet[report]'"),
        (
            {"url": "file:///eenet-1-py3-none-any.whl", "archive_info": {}},
            "pip install 'eenet[report] @ file:///eenet-1-py3-none-any.whl'",
        ),
        (
            {"url": "https://example.org/eenet.git", "vcs_info": COMMIT},
            "pip install 'eenet[report] @ git+https://example.org/eenet.git'",
        ),
    ],
)
def test_it_is_the_clone_the_file_or_the_index(
    source: dict[str, Any] | None, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Installed(metadata.Distribution):
        def read_text(self, filename: str) -> str | None:
            assert filename == "direct_url.json"
            return None if source is None else json.dumps(source)

        def locate_file(self, path: Any) -> Path:
            return Path(path)

    monkeypatch.setattr(metadata, "distribution", lambda _name: Installed())
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = compare(toy_records(100), toy_costs(), ["max_prob"], ["60%"], resplits=1)
    with pytest.raises(MissingExtraError) as refused:
        found.write_figure(tmp_path / "figure.png")
    assert str(refused.value).endswith(f": {command}")
