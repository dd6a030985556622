"""The core and the runtime of bundles on every supported Python: `make test-matrix`. Not part of CI."""

from pathlib import Path

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# The tests of what needs numpy and scipy only.
CORE = (
    "tests/scheduler",
    "tests/evaluation",
    "tests/test_budget.py",
    "tests/test_costs.py",
    "tests/test_evidence.py",
    "tests/test_testing.py",
    "tests/test_values.py",
)

# They also run the policies in PyTorch.
WITH_TORCH = ("tests/scheduler/test_scheduler_abstention.py", "tests/scheduler/test_scheduler_baselines.py")

nox.options.sessions = ["core"]
nox.options.default_venv_backend = "venv"


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """The tests of the core without PyTorch, then the wheel with `[onnx]` in an environment of its own."""
    session.install(".[report]", "hypothesis", "pytest", "pytest-xdist", "--constraint", "constraints.txt")
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *session.posargs)
    session.run("python", *pytest, "-n", "2", "--dist", "loadfile", *CORE, *(f"--ignore={path}" for path in WITH_TORCH))
    # The bundle that the environment runs is exported by the development environment, which has PyTorch.
    own = str(Path(".venv/bin/python").absolute())
    python = str(Path(session.bin) / "python")
    words = ("tests/test_installed.py", "-k", "core or onnx")
    session.run(own, *pytest, *words, env={"EENET_TEST_PYTHON": python}, external=True)
