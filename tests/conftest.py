"""What all tests share: fixed seeds, one thread, hypothesis settings, and the material beside the repository."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from mended_torchvision import sitecustomize

try:
    import torch
except ModuleNotFoundError:  # `make test-matrix` runs the tests of the core without it
    torch = None  # type: ignore[assignment]

SEED = 20240104

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

if torch is not None:
    torch.set_num_threads(1)

# Importing `sitecustomize` mended torchvision, where it needs that, in this process; this does so in those it starts.
_paths = [str(Path(sitecustomize.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(_paths)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - libraries under test may use the global state
    if torch is not None:
        torch.manual_seed(SEED)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of material shared beside the repository: `../shared`, or where EENET_SHARED says."""
    folder = Path(os.environ.get("EENET_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the shared material: no ../shared beside the repository, and EENET_SHARED is not set")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser, for the tests of pages."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed (Debian: chromium-headless-shell)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'eenet[dev]'")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
