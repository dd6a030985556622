"""`--import`: scores and schedulers of one's own on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import refused

from eenet.testing import toy_records

SCORE = """
from dataclasses import dataclass

import numpy as np
from eenet.scheduler import Score


@dataclass(frozen=True)
class Squares(Score):
    name = "squares"
    whole_samples = True

    def __call__(self, history):
        return (history.evidence[-1].probabilities.astype(np.float64) ** 2).sum(axis=1)
"""
SCHEDULER = """
from eenet.scheduler import Scheduler


class OfSquares(Scheduler, method="squares"):
    def __init__(self):
        super().__init__("squares", "geometric")
"""


def eenet_in(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from eenet.cli import main\nif __name__ == '__main__': main()"]
    return subprocess.run(
        [*command, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def test_a_module_of_the_current_folder_gives_methods_and_what_was_saved_with_them(tmp_path: Path) -> None:
    records = toy_records(samples=300)
    assert records.labels is not None
    np.savez(tmp_path / "predictions.npz", probs=records.probabilities, labels=records.labels)
    (tmp_path / "my_score.py").write_text(SCORE, encoding="utf-8")
    (tmp_path / "my_policy.py").write_text(SCHEDULER, encoding="utf-8")
    ours = ("predictions.npz", "--import", "my_score", "--import", "my_policy")
    made = ("--costs", "1,2,3", "--method", "squares", "--budget", "60%", "--no-fallback", "--out", "s.safetensors")
    fitted = eenet_in(tmp_path, "fit", *ours, *made, "--json")
    assert fitted.returncode == 0, fitted.stderr
    assert json.loads(fitted.stdout)["method"] == "squares"
    judged = ("evaluate", "predictions.npz", "--scheduler", "s.safetensors")
    assert eenet_in(tmp_path, "--import=my_score", "--import=my_policy", *judged, "--json").returncode == 0
    without = eenet_in(tmp_path, *judged)
    assert without.returncode == 2
    assert "score 'squares' is not known" in without.stderr
    methods = ("--methods", "max_prob,squares", "--budgets", "50%,70%", "--resplits", "2", "--jobs", "2")
    compared = eenet_in(tmp_path, "compare", *ours, *methods, "--costs", "1,2,3", "--json")
    assert compared.returncode == 0, compared.stderr
    assert {row["scheduler"] for row in json.loads(compared.stdout)["rows"]} >= {"max_prob", "squares"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("compare", "a.npz", "--import", "no_such_module"),
            "'no_such_module': there is no module ",
        ),
        (("compare", "a.npz", "--import", "."), "'.' cannot be read"),
        (
            ("compare", "a.npz", "--import", "my_policy.py"),
            "'my_policy.py' is the name of a file; give the name",
        ),
        (("compare", "a.npz", "--import"), "--import is the last word; give the name of a module after it"),
        (("fit", "digits", "--budget", "60%", "--method", "gini"), "for one of your own give --import and the module"),
    ],
)
def test_what_cannot_be_imported_is_refused(words: tuple[str, ...], message: str) -> None:
    assert message in refused(*words)
