"""What all tests share: fixed seeds, one thread, hypothesis settings, and the material beside the repository."""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from mended_torchvision import sitecustomize
from waiting import PATIENCE

try:
    import torch
except ModuleNotFoundError:  # `make test-matrix` runs the tests of the core without it
    torch = None  # type: ignore[assignment]

SEED = 20240104
TESTS = Path(__file__).parent

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

# Files of half a minute and more, the longest first. `--dist loadfile` gives whole files to the workers, and by itself
# begins with those of the most tests, so that long files of one test come last and one worker waits for the other.
LONGEST = (
    "experiments/test_recipes_smoke.py",
    "experiments/test_recipes.py",
    "test_installed.py",
    "serving/test_serving_ray.py",
    "docs/test_tutorials.py",
    "optimize/test_optimize.py",
    "cli/test_trained.py",
    "serving/test_serving_hostile.py",
    "serving/test_serving_soak.py",
    "bundle/test_bundle.py",
    "benchmarks/test_benchmarks.py",
    "docs/test_docs.py",
    "docs/test_site.py",
    "stages/test_stages_networks.py",
    "scheduler/test_scheduler_fallback.py",
    "evaluation/test_comparison_errors.py",
    "docs/test_deployment_page.py",
    "experiments/test_demo.py",
    "benchmarks/test_benchmark_cascades.py",
    "serving/test_serving_openapi.py",
    "benchmarks/test_benchmark_exits.py",
    "docs/test_docs_api.py",
    "test_docstrings.py",
    "bundle/test_precision.py",
    "bundle/test_bundle_costs.py",
    "docs/test_howto.py",
    "docs/test_scale_docs.py",
    "docs/test_serving_docs.py",
)

# How long examples take says how busy the machine is.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

if torch is not None:
    import remembered

    torch.set_num_threads(1)
    remembered.remember()

# Importing `sitecustomize` mended torchvision, where it needs that, in this process; this does so in those it starts.
_paths = [str(Path(sitecustomize.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(_paths)


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist keep the order of `pytest_collection_modifyitems`."""
    if missing := [name for name in LONGEST if not (TESTS / name).is_file()]:
        raise pytest.UsageError(f"LONGEST in {__file__} names {missing[0]!r}, which is not there; take it out")
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where workers share the tests: first the longest files, then those of the most tests."""
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path, len(places)), -tests[item.path]))


def pytest_collection_finish() -> None:
    """What all the libraries hold stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - libraries under test may use the global state
    if torch is not None:
        torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def logs_as_found() -> Iterator[None]:
    """What a test sets on the logs, or a page that it runs, ends with it."""
    loggers = [logging.getLogger(), logging.getLogger("eenet")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        for added in set(logger.handlers) - set(handlers):
            logger.removeHandler(added)


@pytest.fixture(autouse=True, scope="module")
def signal_handlers_as_found() -> Iterator[None]:
    """What a module leaves for signals ends with it: Ray's handler of SIGTERM would end the whole process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if handler is not None:  # one that Python did not set
            signal.signal(number, handler)


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
        milliseconds = 1000 * PATIENCE
        arguments = ["--no-sandbox", "--disable-gpu"]
        opened: Any = driver.chromium.launch(executable_path=path, args=arguments, timeout=milliseconds)
        new_page = opened.new_page

        def patient_page(**options: Any) -> Any:
            page = new_page(**options)
            page.set_default_timeout(milliseconds)
            return page

        opened.new_page = patient_page
        yield opened
        opened.close()
