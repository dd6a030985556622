"""The wheel in fresh environments: what works with each extra, and which extra each message names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import Case, small_convolutions
from environments import install
from optional import import_or_skip

ROOT = Path(__file__).resolve().parents[1]
PYTHON = os.environ.get("EENET_TEST_PYTHON", sys.executable)  # `make test-matrix` sets it to other versions

pytestmark = pytest.mark.slow


class Environment:
    """A virtual environment with the wheel of this checkout and nothing else of it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder, self.wheel = folder, wheel
        subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(folder)], check=True)

    def install(self, extra: str) -> Environment:
        """Add the wheel with an extra, or without any."""
        requirement = f"{self.wheel}[{extra}]" if extra else str(self.wheel)
        done = install(self.python_path, "--constraint", str(ROOT / "constraints.txt"), requirement)
        if done.returncode:
            pytest.skip(f"no package index can be reached, or it lacks what is needed: {done.stderr[-300:]}")
        return self

    @property
    def python_path(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables, without those that bring in the checkout; what is compiled may be kept."""
        left_out = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
        return {name: value for name, value in os.environ.items() if name not in left_out}

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Python in the environment, outside the checkout."""
        command = [self.python_path, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=self.variables, cwd=self.folder)

    def python(self, code: str, *arguments: object) -> str:
        """The output of a piece of Python."""
        done = self.run("-c", code, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *words: object) -> str:
        """The one line on standard error of a command of eenet that ends with exit code 2."""
        done = self.run("-m", "eenet", *words)
        assert done.returncode == 2, (done.stdout, done.stderr)
        (line,) = done.stderr.strip().splitlines()
        return line


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("EENET_TEST_WHEEL"):  # `make release` tests the file that would be uploaded
        return Path(given).resolve(strict=True)
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the wheel cannot be built here, its build needs a package index: {done.stderr[-300:]}")
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    return Environment(tmp_path_factory.mktemp("core"), wheel).install("")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Case]:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    import_or_skip("torchvision")
    folder, case = tmp_path_factory.mktemp("installed") / "bundle", small_convolutions()
    case.export(folder)
    return folder, case


def _save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


FITS = """
import sys, warnings
import eenet
from eenet.scheduler import SCHEDULERS
from eenet.testing import toy_costs, toy_records

warnings.simplefilter("ignore")
records, fresh = toy_records(600, seed=0), toy_records(600, seed=1)
for name, make in SCHEDULERS.items():
    scheduler = make().fit(records, toy_costs(), budget="70%")
    scheduler.save(f"{name}.safetensors")
    assert 0 < eenet.load_scheduler(f"{name}.safetensors").replay(fresh).mean_cost <= toy_costs()[-1]
assert "torch" not in sys.modules
print(len(SCHEDULERS))
"""


def test_the_core_fits_every_scheduler_without_torch(core: Environment, tmp_path: Path) -> None:
    from eenet.scheduler import SCHEDULERS

    assert core.run("-c", "import torch").returncode != 0, "the environment must not have torch"
    assert core.python(FITS) == f"{len(SCHEDULERS)}\n"


def test_the_core_runs_the_commands_for_predictions(core: Environment, tmp_path: Path) -> None:
    from eenet.testing import toy_records

    records = toy_records(300)
    assert records.labels is not None
    path = tmp_path / "predictions.npz"
    np.savez(path, probs=records.probabilities, labels=records.labels, costs=np.array([1.0, 2.0, 3.0]))
    saved = tmp_path / "scheduler.safetensors"
    fitted = core.run("-m", "eenet", "fit", path, "--budget", "60%", "--out", saved, "--json")
    assert fitted.returncode == 0, fitted.stderr
    shown = core.run("-m", "eenet", "evaluate", path, "--scheduler", saved, "--json")
    assert json.loads(shown.stdout)["held_out_cost"] <= json.loads(fitted.stdout)["budget"] * 1.001


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["serve", "BUNDLE"], "serve"),
        (["predict", "BUNDLE", "photos", "--out", "answers.parquet"], "predict"),
        (["profile", "some.module:network"], "torch"),
        (["export", "some.module:network", "--scheduler", "s.safetensors", "--out", "bundle"], "export"),
        (["train", "cifar10-resnet56", "--out", "run"], "train"),
        (["demo"], "demo"),
        (["serve", "BUNDLE", "--ray"], "ray"),
    ],
)
def test_a_command_without_its_extra_names_it(
    core: Environment, bundle: tuple[Path, Case], words: list[str], extra: str
) -> None:
    given = [str(bundle[0]) if word == "BUNDLE" else word for word in words]
    assert f"pip install 'eenet[{extra}]" in core.refused(*given)


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import eenet; eenet.attach", "torch"),
        ("import eenet.models", "torch"),
        ("import eenet.profiling", "torch"),
        ("import eenet.training", "torch"),
        ("import eenet.bundle.onnx as o; o.load(sys.argv[1])", "onnx"),
    ],
)
def test_a_name_without_its_extra_says_which(
    core: Environment, bundle: tuple[Path, Case], code: str, extra: str
) -> None:
    done = core.run("-c", f"import sys; {code}", bundle[0])
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("eenet.errors.MissingExtraError: ")
    assert f"pip install 'eenet[{extra}]" in done.stderr


RUNS = """
import sys
import numpy as np, eenet.bundle.onnx

bundle = eenet.bundle.onnx.load(sys.argv[1], threads=1)
print(*bundle(dict(np.load(sys.argv[2]))).exits)
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    return Environment(tmp_path_factory.mktemp("onnx"), wheel).install("onnx")


def test_with_onnx_a_bundle_runs(onnx: Environment, bundle: tuple[Path, Case], tmp_path: Path) -> None:
    folder, case = bundle
    _save(tmp_path / "inputs.npz", case.arrays)
    expected = case.scheduler.replay(case.records(case.fresh)).exits
    assert onnx.python(RUNS, folder, tmp_path / "inputs.npz").split() == [str(k) for k in expected]


def test_with_onnx_alone_serving_names_its_own_extra(onnx: Environment, bundle: tuple[Path, Case]) -> None:
    assert "pip install 'eenet[serve]" in onnx.refused("serve", bundle[0])


ASKS = """
import json, sys, urllib.request
import numpy as np

(inputs,) = np.load(sys.argv[2]).values()
body = json.dumps({"inputs": inputs.tolist()}).encode()
request = urllib.request.Request(sys.argv[1] + "/predict", body, {"Content-Type": "application/json"})
print(*(answer["exit"] for answer in json.load(urllib.request.urlopen(request))["predictions"]))
"""


def test_with_serve_a_bundle_is_served(
    tmp_path_factory: pytest.TempPathFactory, wheel: Path, bundle: tuple[Path, Case], tmp_path: Path
) -> None:
    environment = Environment(tmp_path_factory.mktemp("serve"), wheel).install("serve")
    folder, case = bundle
    _save(tmp_path / "inputs.npz", case.arrays)
    command = [str(environment.folder / "bin" / "eenet"), "serve", str(folder), "--port", "0", "--no-hold"]
    variables = environment.variables
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=variables) as process:
        assert process.stderr is not None
        address = next(line for line in process.stderr if "http://" in line).split()[-1]
        answers = environment.python(ASKS, address, tmp_path / "inputs.npz")
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    expected = case.scheduler.replay(case.records(case.fresh)).exits
    assert answers.split() == [str(k) for k in expected]
    assert process.returncode == 0


ATTACHES = """
import torch, eenet, warnings
from torch import nn

warnings.simplefilter("ignore")
network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
model = eenet.attach(network, ["1"], example=x[:2])
costs = eenet.profile(model, x[:4], unit="flops")
scheduler = eenet.MaxProbability().fit(eenet.collect(model, [(x, y)]), costs, budget="95% of last")
logits, exits = eenet.AdaptiveModel(model, scheduler)(x)
assert exits.tolist() == scheduler.replay(eenet.collect(model, [x])).exits.tolist()
export = lambda: eenet.export(model, scheduler, "bundle", example=x)
train = lambda: eenet.train(model, [(x, y)], [(x, y)], out="run")
for use in (export, train):
    try:
        use()
    except eenet.EENetError as error:
        print(str(error).partition("eenet[")[2].partition("]")[0])
"""


def test_with_torch_a_network_gets_exits(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> None:
    environment = Environment(tmp_path_factory.mktemp("torch"), wheel).install("torch")
    assert environment.python(ATTACHES).split() == ["export", "train"]
