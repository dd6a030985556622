"""The server keeps to its OpenAPI document: schemathesis sends what the document allows, and what it does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from commands import TOKEN
from pages import DOCS
from serving_toys import Gray, ToyModel, Words, serving
from waiting import PATIENCE

CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]

[checks.negative_data_rejection]
expected-statuses = ["4xx"]
"""
"""504 is right where the client waits a millisecond only."""

PATHS = ["/budget", "/health", "/info", "/metrics", "/predict", "/ready", "/traffic"]


@pytest.mark.parametrize("kind", ["array", "text", "image"])
def test_schemathesis_finds_nothing_that_the_document_does_not_tell_of(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'eenet[dev]'")
    preprocessing = {"array": None, "text": Words(), "image": Gray()}[kind]
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG, encoding="utf-8")
    with serving(ToyModel(preprocessing), token=TOKEN) as url:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{url}/openapi.json"),
            # What a schema allows may still be no image, no .npy file, no text with a word, no budget that can be met.
            *(
                "--exclude-checks",
                "positive_data_acceptance",
                "--phases",
                "examples,coverage,fuzzing",
                "--max-examples",
                "15",
            ),
            *("--header", f"Authorization: Bearer {TOKEN}", "--generation-deterministic", "--no-color"),
            *("--warnings", "off", "--continue-on-failure"),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "COLUMNS": "100"}
        )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "No issues found" in done.stdout or "passed" in done.stdout


def test_the_document_names_every_path_that_is_served() -> None:
    with serving(ToyModel()) as url:
        document = httpx.get(f"{url}/openapi.json", timeout=PATIENCE).json()
        assert sorted(document["paths"]) == PATHS
        assert document["openapi"] == "3.1.0"


def test_the_table_on_the_page_says_which_paths_there_are_and_which_ask_for_the_token() -> None:
    page = (DOCS / "howto" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`(?:GET|POST|PUT) .*?`) \| .* \| ([^|]*) \|$", page, flags=re.MULTILINE)
    listed = {tuple(path.split()): token for paths, token in rows for path in re.findall(r"`(.*?)`", paths)}
    own = {("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")}
    with serving(ToyModel(), token=TOKEN) as url:
        document = httpx.get(f"{url}/openapi.json", timeout=PATIENCE).json()
        served = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        assert set(listed) == served | own
        for (method, path), token in listed.items():
            bare = httpx.request(method, f"{url}{path}", timeout=PATIENCE)
            assert (bare.status_code == 401) == (token == "**yes**"), path
            asks = document["paths"].get(path, {}).get(method.lower(), {}).get("security")
            assert (asks is not None) == (token != "no"), path
            if path == "/traffic":
                httpx.post(f"{url}/predict", json={"inputs": [[1.0] * 6]}, timeout=PATIENCE).raise_for_status()
                with_token = httpx.get(f"{url}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE)
                assert (
                    len(httpx.get(f"{url}{path}", timeout=PATIENCE).json()["samples"]),
                    len(with_token.json()["samples"]),
                ) == (0, 1)
