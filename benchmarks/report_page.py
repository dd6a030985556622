"""How large the page of `eenet report` is for 10,000 samples and 5 schedulers, and how soon a browser has it open.

python benchmarks/report_page.py
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

import eenet
from eenet.testing import toy_costs, toy_records

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
METHODS = ("max_prob", "entropy", "patience", "margin", "voting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5, help="how often the page is opened")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        start = time.perf_counter()
        eenet.report(
            toy_records(options.samples, 4, options.classes, seed=1),
            costs=toy_costs(4),
            calibration=toy_records(3000, 4, options.classes),
            methods=METHODS,
            out=path,
        )
        print(f"made in {time.perf_counter() - start:.1f} s, {path.stat().st_size / 1e6:.2f} MB")
        text, figure = zip(*(opened(path) for _ in range(options.rounds)), strict=True)
    for name, seconds in (("text", text), ("first figure", figure)):
        print(f"{name} after {statistics.median(seconds):.2f} s, at best {min(seconds):.2f} s")


def opened(path: Path) -> tuple[float, float]:
    """Seconds until a new browser shows the text of the page, and its first figure."""
    executable = next(found for name in BROWSERS if (found := shutil.which(name)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_selector("#sentence:not(:empty)")
        text = time.perf_counter() - start
        page.wait_for_selector("#figure-frontier[data-at] svg")
        figure = time.perf_counter() - start
        browser.close()
    return text, figure


if __name__ == "__main__":
    main()
