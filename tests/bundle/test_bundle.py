"""Bundles: they do what the model does, without torch; and nothing damaged, swapped, newer or foreign is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import CASES, Case, bundle_with_category, up_to_nine, with_category
from environments import install
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import eenet
import eenet.bundle.onnx
from eenet.bundle import LoadedBundle, sealed
from eenet.errors import EENetError, ExportError, FileFormatError, InvalidInputError
from eenet.testing import toy_costs, toy_records

pytestmark = pytest.mark.filterwarnings("ignore:the costs at batch size")  # a test machine may be busy

for _library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_library)

SOURCE = Path(eenet.__file__).resolve().parents[1]


@pytest.fixture
def copied(exported: Any, tmp_path: Path) -> Path:
    """A copy of the bundle of the small convolutional network, to be damaged."""
    folder = tmp_path / "bundle"
    shutil.copytree(exported("convolutions")[1], folder)
    return folder


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_bundle_takes_the_exits_of_a_replay_and_gives_the_models_logits_for_every_batch_size(
    exported: Any, name: str
) -> None:
    case, folder = exported(name)
    bundle = eenet.bundle.onnx.load(folder, threads=1)
    expected = case.scheduler.replay(case.records(case.fresh))
    assert len(set(expected.exits.tolist())) > 1
    logits = _logits(case)
    for size in (1, 7, 40):
        for start in range(0, 40, size):
            rows = np.arange(start, min(start + size, 40))
            got = bundle({key: array[rows] for key, array in case.arrays.items()})
            np.testing.assert_array_equal(got.exits, expected.exits[rows])
            of_exits = logits[expected.exits[rows], rows]
            np.testing.assert_allclose(got.logits, of_exits, atol=1e-3 * max(1, np.abs(of_exits).max()), rtol=0)
    assert bundle.manifest.data["verified"]["samples"] == 40


def _logits(case: Case) -> Any:
    with torch.inference_mode():
        given = case.call(case.fresh)
        outputs = case.model(**given) if isinstance(given, dict) else case.model(given)
    return np.stack([one.numpy() for one in outputs])


@pytest.mark.parametrize("options", [{"opset": 18}, {}])
def test_a_number_that_is_no_row_of_a_table_is_refused_and_a_negative_one_is_not_counted_from_the_end(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model, _ = with_category()
    bundle = bundle_with_category(tmp_path / "bundle", **options)
    x = np.zeros((3, 4), np.float32)
    got = bundle({"x": x, "kind": np.array([0, 3, 5])})
    with torch.inference_mode():
        logits = np.stack([one.numpy() for one in model(x=torch.from_numpy(x), kind=torch.tensor([0, 3, 5]))])
    np.testing.assert_allclose(got.logits, logits[got.exits, np.arange(3)], atol=1e-5)
    for wrong in (-1, -6, -7, 6, 2**40):
        with pytest.raises(InvalidInputError, match=r"no row of the network's table \(nn.Embedding\): .* 0 to 5"):
            bundle({"x": x, "kind": np.array([0, wrong, 5])})


def test_a_text_bundle_runs_at_other_lengths_than_it_was_exported_with(exported: Any) -> None:
    case, folder = exported("bert")
    bundle = eenet.bundle.onnx.load(folder, threads=1)
    shorter = {name: tensor[:, :9] for name, tensor in case.fresh.items()}
    got = bundle({name: tensor.numpy() for name, tensor in shorter.items()})
    np.testing.assert_array_equal(got.exits, case.scheduler.replay(case.records(shorter)).exits)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=12), cut=st.integers(0, 12))
def test_take_and_join_select_and_merge_the_samples_at_every_boundary(exported: Any, rows: list[int], cut: int) -> None:
    case, folder = exported("bert")
    backend = eenet.bundle.onnx.load(folder, threads=1).backend
    whole = backend.enter(case.arrays)
    for k in range(backend.num_exits):
        index = np.array(rows)
        parts = [backend.take(k, whole, index[:cut]), backend.take(k, whole, index[cut:])]
        merged = backend.join(k, parts)
        assert backend.size(k, merged) == len(rows)
        for one, other in zip(merged, backend.take(k, whole, index), strict=True):
            np.testing.assert_array_equal(one, other)
        _, of_whole = backend.run(k, whole, observe=True)
        _, of_rows = backend.run(k, merged, observe=True)
        assert of_whole is not None
        assert of_rows is not None
        np.testing.assert_allclose(of_rows, of_whole[index], atol=1e-3)
        whole, _ = backend.run(k, whole, observe=False)


def test_requests_of_different_lengths_are_not_merged(exported: Any) -> None:
    case, folder = exported("bert")
    backend = eenet.bundle.onnx.load(folder, threads=1).backend
    long = backend.enter(case.arrays)
    short = backend.enter({name: array[:, :9] for name, array in case.arrays.items()})
    with pytest.raises(InvalidInputError, match=r"'input_ids' has shape \(40, 12\) in one request and \(40, 9\)"):
        backend.join(0, [long, short])


def test_a_head_that_is_not_observed_does_not_run(exported: Any) -> None:
    case, folder = exported("convolutions")
    backend = eenet.bundle.onnx.load(folder, threads=1).backend
    calls: list[int] = []

    def counted(k: int, head: Any) -> Any:
        def run(arrays: Any) -> Any:
            calls.append(k)
            return head(arrays)

        return run

    heads: dict[int, Any] = backend._heads  # type: ignore[attr-defined]
    heads.update({k: counted(k, head) for k, head in heads.items()})
    live = backend.enter(case.arrays)
    live, logits = backend.run(0, live, observe=False)
    assert logits is None
    live, logits = backend.run(1, live, observe=True)
    assert logits is not None
    assert calls == [1]


def test_an_empty_batch_gives_empty_answers(exported: Any) -> None:
    for name, shape in (("convolutions", (0, 5)), ("segmentation", (0, 4, 16, 16))):
        case, folder = exported(name)
        got = eenet.bundle.onnx.load(folder, threads=1)({key: array[:0] for key, array in case.arrays.items()})
        assert got.logits.shape == shape
        assert got.exits.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.int64), "input 'x' has dtype int64, expected float32"),
        (lambda x: x[:, :2], r"input 'x' has shape \(40, 2, 8, 8\), expected \(batch, 3, 8, 8\)"),
        (lambda x: x[0], r"input 'x' has shape \(3, 8, 8\), expected"),
        (lambda x: x.tolist(), "input 'x' is a list, expected a numpy array"),
        (lambda x: np.ma.masked_less(x, 0), "input 'x': .* of 7680 values are masked, and would be taken"),
        (lambda x: {"y": x}, r"^'y' is no input of the network: .*takes the inputs \['x'\]: 'x' is missing"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(exported: Any, change: Any, message: str) -> None:
    case, folder = exported("convolutions")
    given = change(case.arrays["x"])
    with pytest.raises(InvalidInputError, match=message):
        eenet.bundle.onnx.load(folder, threads=1)(given if isinstance(given, (np.ndarray, dict)) else {"x": given})


def test_what_is_not_finite_goes_to_the_last_exit_as_in_a_replay(exported: Any) -> None:
    case, folder = exported("convolutions")
    x = case.arrays["x"].copy()
    x[3], x[5, 0, 0, 0] = np.nan, np.inf
    got = eenet.bundle.onnx.load(folder, threads=1)(x)
    assert got.exits[[3, 5]].tolist() == [2, 2]
    others = np.delete(np.arange(40), [3, 5])
    expected = case.scheduler.replay(case.records(case.fresh)).exits
    np.testing.assert_array_equal(got.exits[others], expected[others])


def test_the_bundle_says_what_it_is(exported: Any, tmp_path: Path) -> None:
    case, _ = exported("convolutions")
    names = ["a", "b", "c", "d", "e"]
    bundle = case.export(tmp_path / "named", class_names=names)
    assert bundle.class_names == tuple(names)
    info = json.loads(json.dumps(bundle.info))
    assert info["exits"] == ["first", "second", "output"]
    assert info["budget"] == case.scheduler.budget
    assert info["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 8, 8], "batch_dim": 0}]
    assert bundle.costs == case.scheduler.costs
    assert bundle.exit_names == case.model.exit_names


def test_the_budget_of_a_loaded_bundle_can_be_changed(exported: Any) -> None:
    case, folder = exported("convolutions")
    bundle = eenet.bundle.onnx.load(folder, threads=1)
    budgets = [row["budget"] for row in bundle.info["budgets"]]
    assert budgets == sorted(budgets)
    for budget in (budgets[0], budgets[len(budgets) // 2], budgets[-1]):
        other = bundle.at(budget)
        assert other.backend is bundle.backend
        expected = other.scheduler.replay(case.records(case.fresh)).exits
        np.testing.assert_array_equal(other(case.arrays).exits, expected)
    assert bundle.scheduler.budget == case.scheduler.budget
    with pytest.raises(eenet.InfeasibleBudgetError, match="smallest feasible budget"):
        bundle.at(0.1)


def test_nothing_of_the_machine_it_was_made_on_is_in_the_graphs(exported: Any) -> None:
    _, folder = exported("bert")
    for path in folder.rglob("*.onnx"):
        content = path.read_bytes()
        assert b".py" not in content
        assert str(Path.home()).encode() not in content


def test_another_runtime_gives_the_same(exported: Any) -> None:
    reference = pytest.importorskip("onnx.reference")
    case, folder = exported("convolutions")
    x = case.arrays["x"][:3]
    backend = eenet.bundle.onnx.load(folder, threads=1).backend
    live, logits = backend.run(0, backend.enter(x), observe=True)
    assert logits is not None
    stage, head = folder / "stages/0.onnx", folder / "heads/0.onnx"
    (passed,) = reference.ReferenceEvaluator(str(stage)).run(None, {_input(stage): x})
    (said,) = reference.ReferenceEvaluator(str(head)).run(None, {_input(head): passed})
    np.testing.assert_allclose(live[0], passed, atol=1e-4)
    np.testing.assert_allclose(logits, said, atol=1e-3)


def _input(path: Path) -> str:
    import onnx

    return str(onnx.load(path).graph.input[0].name)


def test_a_bundle_of_an_older_opset_runs(exported: Any, tmp_path: Path) -> None:
    case, _ = exported("convolutions")
    bundle = case.export(tmp_path / "older", opset=18)
    assert bundle.info["made_with"]["opset"] == 18
    got = bundle(case.arrays)
    np.testing.assert_array_equal(got.exits, case.scheduler.replay(case.records(case.fresh)).exits)


class TestDamage:
    """Every way a bundle can be other than what was written ends with an error that names the file."""

    @pytest.mark.parametrize("name", ["stages/1.onnx", "heads/0.onnx", "scheduler.safetensors"])
    def test_a_flipped_byte(self, copied: Path, name: str) -> None:
        content = bytearray((copied / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copied / name).write_bytes(content)
        with pytest.raises(FileFormatError, match=rf"{name}' is damaged, or belongs to another bundle"):
            eenet.bundle.load(copied)

    @pytest.mark.parametrize("name", ["stages/2.onnx", "scheduler.safetensors"])
    def test_a_truncated_file(self, copied: Path, name: str) -> None:
        content = (copied / name).read_bytes()
        (copied / name).write_bytes(content[:-1])
        with pytest.raises(FileFormatError, match=rf"{name}' has {len(content) - 1} bytes, .* it is truncated"):
            eenet.bundle.load(copied)

    def test_swapped_files(self, copied: Path) -> None:
        first, second = (copied / "heads/0.onnx"), (copied / "heads/1.onnx")
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"heads/\d.onnx' has \d+ bytes, expected \d+"):
            eenet.bundle.load(copied)

    def test_a_missing_file(self, copied: Path) -> None:
        (copied / "stages/1.onnx").unlink()
        with pytest.raises(FileFormatError, match=r"lacks the file 'stages/1\.onnx'"):
            eenet.bundle.load(copied)

    def test_a_file_of_another_bundle(self, copied: Path, exported: Any) -> None:
        shutil.copy(exported("digits")[1] / "scheduler.safetensors", copied / "scheduler.safetensors")
        with pytest.raises(FileFormatError, match=r"scheduler.safetensors'"):
            eenet.bundle.load(copied)

    def test_a_link_that_leaves_the_folder(self, copied: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside.onnx"
        shutil.move(copied / "stages/0.onnx", outside)
        (copied / "stages/0.onnx").symlink_to(outside)
        with pytest.raises(FileFormatError, match=r"stages/0.onnx' is a link"):
            eenet.bundle.load(copied)

    def test_a_linked_folder(self, copied: Path, tmp_path: Path) -> None:
        shutil.move(copied / "stages", tmp_path / "elsewhere")
        (copied / "stages").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileFormatError, match="stages' is a link"):
            eenet.bundle.load(copied)

    @pytest.mark.parametrize(
        "name", ["../secret.onnx", "/etc/passwd", "stages/../../secret.onnx", "a\\b", "", "a//b", "stages/.hidden"]
    )
    def test_a_name_that_leads_out_of_the_folder(self, copied: Path, name: str) -> None:
        manifest = _manifest(copied)
        manifest["files"][name] = manifest["files"].pop("stages/0.onnx")
        manifest["stages"][0]["graph"] = name
        _write(copied, manifest)
        with pytest.raises(FileFormatError, match="is not a plain path inside the folder"):
            eenet.bundle.load(copied)

    def test_a_newer_schema(self, copied: Path) -> None:
        _write(copied, {**_manifest(copied), "schema": 2})
        with pytest.raises(FileFormatError, match="has schema 2, this eenet reads up to 1: upgrade eenet"):
            eenet.bundle.load(copied)

    def test_a_manifest_that_was_changed_by_hand(self, copied: Path) -> None:
        text = (copied / "manifest.json").read_text()
        (copied / "manifest.json").write_text(text.replace('"num_classes": 5', '"num_classes": 4'))
        with pytest.raises(FileFormatError, match=r"manifest.json' is damaged"):
            eenet.bundle.load(copied)

    def test_a_folder_that_is_no_bundle(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(InvalidInputError, match=r"the bundle is an int, expected the folder that eenet\.export"):
            eenet.bundle.load(3)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=r"holds no manifest.json \(it holds notes.txt\)"):
            eenet.bundle.load(tmp_path)
        with pytest.raises(InvalidInputError, match="there is no such folder"):
            eenet.bundle.load(tmp_path / "nothing")
        (tmp_path / ".nothing.x.old" / "earlier").mkdir(parents=True)
        with pytest.raises(InvalidInputError, match=r"the earlier one is '.*\.nothing\.x\.old/earlier': rename"):
            eenet.bundle.load(tmp_path / "nothing")

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_a_manifest_with_anything_in_it_ends_in_an_error_of_ours_or_works(
        self, exported: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.getbasetemp() / "fuzzed"
        if not folder.exists():
            shutil.copytree(exported("convolutions")[1], folder)
        manifest = _manifest(exported("convolutions")[1])
        place: Any = manifest
        for _ in range(data.draw(st.integers(1, 4))):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], (dict, list)) or not place[key]:
                break
            parent, place = place, place[key]
        else:
            place, key = parent, key
        place[key] = data.draw(_JSON)
        _write(folder, manifest)
        try:
            loaded = eenet.bundle.load(folder, threads=1)
        except EENetError:
            return
        assert isinstance(loaded, LoadedBundle)

    @settings(max_examples=60, deadline=None)
    @given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_a_manifest_of_random_bytes_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes
    ) -> None:
        folder = tmp_path_factory.getbasetemp() / "random"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").write_bytes(content)
        with pytest.raises(EENetError):
            eenet.bundle.load(folder)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.text(max_size=8) | st.sampled_from(["onnx", "float32"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def _manifest(folder: Path) -> Any:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    return manifest


def _write(folder: Path, manifest: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


class TestExport:
    """What is refused before anything is written, and that nothing half is left."""

    def test_a_model_that_the_bundle_does_not_equal_is_not_exported(
        self, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case, _ = exported("convolutions")
        run = eenet.bundle.onnx.OnnxBackend.run

        def off(self: Any, k: int, live: Any, *, observe: bool) -> Any:
            passed, logits = run(self, k, live, observe=observe)
            return passed, None if logits is None else logits + 0.5 * np.abs(logits).max()

        monkeypatch.setattr(eenet.bundle.onnx.OnnxBackend, "run", off)
        with pytest.raises(ExportError, match="at exit 'first' the bundle's logits differ from the model's by"):
            case.export(tmp_path / "bundle")
        assert list(tmp_path.iterdir()) == []

    def test_an_earlier_bundle_is_replaced_and_other_folders_are_left_alone(
        self, exported: Any, copied: Path, tmp_path: Path
    ) -> None:
        case, _ = exported("convolutions")
        before = (copied / "manifest.json").read_text()
        case.export(copied, class_names=list("abcde"))
        assert (copied / "manifest.json").read_text() != before
        other = tmp_path / "other"
        other.mkdir()
        (other / "precious").touch()
        with pytest.raises(InvalidInputError, match="holds no bundle; choose a new folder"):
            case.export(other)
        assert (other / "precious").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"backend": "tensorrt"}, "backend is 'tensorrt', expected one of"),
            ({"opset": 7}, "opset is 7, expected 18 to"),
            ({"class_names": ["a"]}, "there are 1 class names, the model has 5 classes"),
            (
                {"preprocessing": eenet.preprocessing.ImagePreprocessing((32, 32))},
                r"makes images of \(3, 32, 32\), the network takes \(3, 8, 8\)",
            ),
        ],
    )
    def test_options_that_do_not_fit(self, exported: Any, tmp_path: Path, options: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            exported("convolutions")[0].export(tmp_path / "bundle", **options)
        assert list(tmp_path.iterdir()) == []

    def test_half_precision_is_refused_with_the_way_out(self, exported: Any, tmp_path: Path) -> None:
        x = torch.randn(4, 3, 8, 8, dtype=torch.bfloat16)
        from networks import SmallConvNet

        model = eenet.attach(SmallConvNet().eval().to(torch.bfloat16), ["first", "second"], 5, x)
        with pytest.raises(InvalidInputError, match=r"export model.float\(\)"):
            eenet.export(model, exported("convolutions")[0].scheduler, tmp_path / "b", example=x)

    def test_what_is_no_model_or_no_scheduler(self, exported: Any, tmp_path: Path) -> None:
        case, _ = exported("convolutions")
        x = torch.randn(4, 3, 8, 8)
        with pytest.raises(InvalidInputError, match=r"model is a \w+, expected a MultiExitModel; give a network exits"):
            eenet.export(case.scheduler, case.model, tmp_path / "b", example=x)
        with pytest.raises(InvalidInputError, match="scheduler is a str, expected a fitted scheduler; make one"):
            eenet.export(case.model, "scheduler.safetensors", tmp_path / "b", example=x)  # type: ignore[arg-type]

    def test_the_model_is_left_as_it_was(self, exported: Any, tmp_path: Path) -> None:
        case, _ = exported("convolutions")
        before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
        case.model.train()
        try:
            case.export(tmp_path / "bundle")
            assert all(module.training for module in case.model.modules())
        finally:
            case.model.eval()
        for name, tensor in case.model.state_dict().items():
            assert torch.equal(tensor, before[name]), name


_WITHOUT = """
import sys
for name in ("torch", "typer", "rich", "typing_extensions", "onnx", "onnxscript"):
    sys.modules[name] = None  # importing it raises ImportError
import numpy as np, eenet, eenet.bundle.onnx
bundle = eenet.bundle.onnx.load(sys.argv[1], threads=1)
answers = bundle({name: array for name, array in np.load(sys.argv[2]).items()})
np.savez(sys.argv[3], logits=answers.logits, exits=answers.exits)
"""


@pytest.mark.parametrize("name", ["convolutions", "bert", "segmentation"])
def test_a_bundle_runs_where_torch_cannot_be_imported(exported: Any, tmp_path: Path, name: str) -> None:
    case, folder = exported(name)
    _run_without_torch([sys.executable], case, folder, tmp_path)


def _run_without_torch(python: list[str], case: Case, folder: Path, scratch: Path) -> None:
    arrays: dict[str, Any] = case.arrays
    np.savez(scratch / "inputs.npz", **arrays)
    command = [*python, "-c", _WITHOUT, str(folder), str(scratch / "inputs.npz"), str(scratch / "answers.npz")]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    with np.load(scratch / "answers.npz") as answers:
        expected = case.scheduler.replay(case.records(case.fresh))
        np.testing.assert_array_equal(answers["exits"], expected.exits)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment without packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


@pytest.mark.slow
@pytest.mark.parametrize("requirement", ["onnxruntime", "onnxruntime<1.22"])
def test_a_bundle_runs_in_a_fresh_environment_with_onnxruntime_and_without_torch(
    exported: Any, environment: str, tmp_path: Path, requirement: str
) -> None:
    done = install(environment, "numpy", "scipy", "safetensors", requirement)
    if done.returncode:
        pytest.skip(f"no package index can be reached, or it lacks {requirement} for this Python: {done.stderr[-200:]}")
    has = subprocess.run([environment, "-c", "import torch"], capture_output=True, check=False)
    assert has.returncode != 0, "the environment must not have torch"
    case, folder = exported("convolutions")
    _run_without_torch([environment], case, folder, tmp_path)


def test_a_network_that_mixes_samples_is_refused(tmp_path: Path) -> None:
    class Center(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    torch.manual_seed(0)
    network = nn.Sequential(Center(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(20, 6)
    staged = eenet.cut(network, ["2"], x[:4], check=False)  # its self-check finds this too
    model = eenet.attach(staged)
    scheduler = eenet.Static(1).fit(toy_records(samples=40, exits=2, classes=3), toy_costs(2))
    with pytest.raises(ExportError, match="the network mixes samples, so that no sample can exit by itself"):
        eenet.export(model, scheduler, tmp_path / "bundle", example=x)
    assert not (tmp_path / "bundle").exists()


def test_half_precision_within_a_network_is_refused_by_name(tmp_path: Path) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out: torch.Tensor = self.linear(x)
            return out.float()

    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Half(), nn.Linear(8, 3)).eval()
    model = eenet.attach(network, ["1"], example=torch.randn(2, 6))
    scheduler = eenet.Static(1).fit(toy_records(samples=40, exits=2, classes=3), toy_costs(2))
    with pytest.raises(InvalidInputError, match=r"'2.*' \((Half|Linear)\) in the stage .* computes in bfloat16"):
        eenet.export(model, scheduler, tmp_path / "bundle", example=torch.randn(4, 6))


class Recurrent(nn.Module):
    """Two recurrent layers over sequences of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(6, 8, batch_first=True)
        self.second = nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classes(self.second(self.first(x)[0])[0][:, -1])
        return logits


def test_recurrent_networks_of_sequences_of_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 5, 6)
    model = eenet.attach(Recurrent().eval(), ["first"], 5, x[:2], dynamic={1: "time"})
    records = eenet.collect(model, [(x, torch.randint(0, 5, (24,)))])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0]), "80%")
    bundle = eenet.export(model, scheduler, tmp_path / "bundle", example=x[:8], measure=False)
    fast = eenet.AdaptiveModel(model, scheduler)
    for steps in (1, 5, 17):
        longer = torch.randn(7, steps, 6)
        got, expected = bundle(longer.numpy()), fast(longer)
        np.testing.assert_array_equal(got.exits, expected.exits.numpy())
        np.testing.assert_allclose(got.logits, expected.logits.numpy(), atol=1e-4)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM that a process could handle")
def test_sigterm_leaves_nothing_half_written_and_says_how_to_go_on(tmp_path: Path) -> None:
    model, _ = up_to_nine()
    records = eenet.collect(model, [(torch.randn(40, 5, 4), torch.arange(40) % 3)])
    eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0]), 1.5).save(tmp_path / "scheduler.safetensors")
    out = tmp_path / "out"
    words = ("--scheduler", tmp_path / "scheduler.safetensors", "--out", out / "bundle", "--seconds", 60)
    command = [sys.executable, "-m", "eenet", "export", "bundles:up_to_nine", *map(str, words)]
    paths = os.pathsep.join([str(SOURCE), str(Path(__file__).parents[1] / "support")])
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not list(out.glob(".bundle.*.partial")) and process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)  # look again, or go on when it ends
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate()
    assert process.returncode == 143, message
    assert re.search(r"^error: stopped, nothing was half written; .+\n$", message, re.MULTILINE)
    assert "Traceback" not in message
    assert not list(out.iterdir())
