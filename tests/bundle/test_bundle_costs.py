"""A bundle is costed in the runtime that runs it: measured there, planned in that, and again on another machine."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import CASES, Case, MeanOfSteps, bundle_up_to_nine, bundle_with_category, up_to_nine, with_category
from commands import refused, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eenet
from eenet._sizes import not_of_length
from eenet.bundle import LoadedBundle, sealed
from eenet.bundle._measure import remaining  # private, here and below: `load` does it all, a test one step
from eenet.bundle._plan import compact, planned_again
from eenet.errors import FallbackWarning, InfeasibleBudgetError, InvalidInputError, MemberError, ReliabilityWarning
from eenet.testing import toy_costs, toy_records

for _library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_library)

SOURCE = Path(eenet.__file__).resolve().parents[1]
QUICK: dict[str, Any] = {"seconds": 0.0, "batch_sizes": (1, 8)}


@pytest.fixture(autouse=True)
def _busy_machine() -> Iterator[None]:
    """Rounds differ on a machine that does other things too, which is said and here no fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path, list[str]]:
    """A case whose calibration records have labels, its bundle as it was measured, and the steps of exporting it."""
    case = CASES["convolutions"]()
    said: list[str] = []
    folder = tmp_path_factory.mktemp("measured") / "bundle"
    scheduler = eenet.MaxProbability().fit(labeled(case), eenet.ExitCosts([1, 2, 3], batch_size=8), budget="60%")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        example = case.call(case.inputs)
        eenet.export(case.model, scheduler, folder, example=example, progress=said.append, **QUICK)
    return case, folder, said


def test_what_fell_back_in_the_fit_is_not_warned_of_again_by_the_export(tmp_path: Path) -> None:
    case = CASES["convolutions"]()
    with pytest.warns(FallbackWarning, match="too few to learn from"):
        scheduler = eenet.EENet().fit(labeled(case), eenet.ExitCosts([1, 2, 3]), "60%")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bundle = eenet.export(case.model, scheduler, tmp_path / "b", example=case.call(case.inputs), **QUICK)
    assert bundle.scheduler.fallback is not None
    assert not [one for one in said if issubclass(one.category, FallbackWarning)]


def labeled(case: Case) -> eenet.ExitRecords:
    """The records of its calibration samples, with labels drawn."""
    records = case.records(case.inputs)
    labels = np.random.default_rng(0).integers(records.num_classes, size=len(records))
    return eenet.ExitRecords(records.probabilities, records.predictions, labels)


@pytest.fixture
def folder(made: tuple[Case, Path, list[str]], tmp_path: Path) -> Path:
    """A copy of the measured bundle."""
    copied = tmp_path / "bundle"
    shutil.copytree(made[1], copied)
    return copied


def test_a_bundle_has_the_costs_of_its_own_runtime_and_the_share_of_the_budget_that_it_had(folder: Path) -> None:
    bundle = eenet.bundle.load(folder)
    costs, device = bundle.costs, bundle.costs.device
    assert str(device["runtime"]).startswith("ONNX Runtime ")
    assert costs.unit == "ms"
    assert costs.batch_size == 8
    assert costs.plain is not None
    assert "inputs" in costs.includes
    assert bundle.scheduler.budget == pytest.approx(max(0.6 * costs[-1], costs[0]))
    assert bundle.measured_elsewhere is None
    for text in (bundle.costs_from, repr(bundle), bundle.info["costs_from"]):
        assert f"measured in {bundle.runtime}, batches of 8" in text


def test_the_table_of_all_batch_sizes_is_read_by_fit(folder: Path, tmp_path: Path) -> None:
    profile = eenet.bundle.load(folder).manifest.data["profile"]
    assert profile["batch_sizes"] == [1, 8]
    (tmp_path / "costs.json").write_text(json.dumps(profile))
    toy_records().save(tmp_path / "records.safetensors")
    words = ("fit", tmp_path / "records.safetensors", "--costs", tmp_path / "costs.json", "--method", "max_prob")
    read = {
        size: eenet.ExitCosts.from_dict(json.loads(run(*words, "--batch-size", size, "--json").stdout)["costs"])
        for size in (1, 8)
    }
    for size, costs in read.items():
        assert costs.values.tolist() == profile["costs"]["ms"][profile["batch_sizes"].index(size)]
    assert read[8].plain == eenet.bundle.load(folder).costs.plain


def test_its_policy_is_the_one_of_a_fit_in_its_costs_to_the_records_it_carries(
    made: tuple[Case, Path, list[str]], folder: Path
) -> None:
    bundle = eenet.bundle.load(folder, threads=1)
    assert bundle.records == labeled(made[0])
    again = eenet.MaxProbability().fit(bundle.records, bundle.costs, bundle.scheduler.budget)
    assert again.policy == bundle.scheduler.policy
    case = made[0]
    expected = bundle.scheduler.replay(case.records(case.fresh)).exits
    np.testing.assert_array_equal(bundle(case.arrays).exits, expected)


def test_exporting_says_what_it_does(made: tuple[Case, Path, list[str]]) -> None:
    said = made[2]
    assert said[0] == "writing stage 1 of 3 (first)"
    assert "writing head 2 of 2 (second)" in said
    assert "measuring at batch size 8" in said
    assert said[-1] == "comparing the bundle with the model"


def test_the_plain_network_in_a_bundle_gives_the_networks_logits(
    made: tuple[Case, Path, list[str]], folder: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    case = made[0]
    session = onnxruntime.InferenceSession(folder / "plain.onnx", providers=["CPUExecutionProvider"])
    x = case.fresh["x"]
    (got,) = session.run(["logits"], {"x": x.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(got, case.model(x)[-1].numpy(), atol=1e-3)


def test_the_graph_of_the_plain_network_has_the_names_of_the_networks_arguments(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle_with_category(tmp_path / "two")
    small, big = (torch.nn.Sequential(torch.nn.Linear(4, n), torch.nn.ReLU(), torch.nn.Linear(n, 3)) for n in (2, 8))
    x = torch.randn(24, 4)
    cascade = eenet.cascade([small.eval(), big.eval()], x[:2])
    scheduler = eenet.MaxProbability().fit(
        eenet.collect(cascade, [(x, big(x).argmax(1))]), eenet.ExitCosts([1.0, 10.0]), 5.0, fallback=False
    )
    eenet.export(cascade, scheduler, tmp_path / "cascade", example=x, measure=False)
    category, samples = with_category()
    cases: list[tuple[str, dict[str, Any], Any]] = [
        ("two", {name: tensor.numpy() for name, tensor in samples.items()}, lambda: category(**samples)[-1]),
        ("cascade", {"input": x.numpy()}, lambda: big(x)),
    ]
    for name, feed, network in cases:
        file = tmp_path / name / "plain.onnx"
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            np.testing.assert_allclose(session.run(["logits"], feed)[0], network().numpy(), atol=1e-5)
        eenet.benchmark({"plain": file}, feed, batch_sizes=[8], seconds=0.0)  # inputs by the names of the graph


def test_the_graph_of_the_plain_network_is_one_that_onnx_runtimes_quantizers_take(folder: Path, tmp_path: Path) -> None:
    onnx, tools = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime.quantization")
    domains = [one.domain for one in onnx.load(folder / "plain.onnx").opset_import]
    assert len(domains) == len(set(domains))
    tools.quantize_dynamic(folder / "plain.onnx", tmp_path / "dynamic.onnx", weight_type=tools.QuantType.QInt8)
    assert any(node.op_type == "DynamicQuantizeLinear" for node in onnx.load(tmp_path / "dynamic.onnx").graph.node)


@pytest.mark.parametrize("name", ["bert", "segmentation"])
def test_texts_and_dense_answers_are_measured_too(exported: Any, name: str) -> None:
    case, folder = exported(name)
    again = eenet.bundle.measure(folder, threads=1, **QUICK)
    assert again.costs.plain is not None
    assert again.costs.device["threads"] == 1
    assert again.manifest.data["profile"]["plain_is"] == "one graph"
    expected = again.scheduler.replay(case.records(case.fresh)).exits
    np.testing.assert_array_equal(again(case.arrays).exits, expected)


def test_measuring_again_changes_nothing_unless_it_is_to(folder: Path) -> None:
    before = _contents(folder)
    found = eenet.bundle.measure(folder, threads=1, **QUICK)
    assert _contents(folder) == before
    assert found.costs.device["threads"] == 1
    written = eenet.bundle.measure(folder, threads=1, update=True, **QUICK)
    loaded = eenet.bundle.load(folder, threads=1)
    assert loaded == written
    assert loaded.costs == written.costs
    assert [file.name for file in folder.glob("*scheduler*")] == [loaded.manifest.data["scheduler"]]
    assert set(loaded.manifest.data["files"]) == {
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()
    } - {"manifest.json"}


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_another_budget_is_one_in_the_measured_costs(folder: Path) -> None:
    found = eenet.bundle.measure(folder, budget="100% of last", **QUICK)
    assert found.scheduler.budget == pytest.approx(found.costs[-1])
    with pytest.raises(InfeasibleBudgetError, match="the smallest feasible budget is"):
        eenet.bundle.measure(folder, budget=1e-9, **QUICK)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": "much"}, "budget 'much' cannot be read"),
        ({"budget": "5 GFLOPs"}, "the costs are in 'ms'"),
        ({"batch_sizes": (0,)}, "expected whole numbers from 1"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_measured_or_written(
    folder: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    said: list[str] = []
    with pytest.raises(InvalidInputError, match=message):
        eenet.bundle.measure(folder, progress=said.append, **given)
    with pytest.raises(InvalidInputError, match=message):
        CASES["convolutions"]().export(tmp_path / "other", measure=True, progress=said.append, **given)
    assert said == []


def test_another_processor_is_said_once_with_the_command_that_measures_again(folder: Path) -> None:
    bundle = eenet.bundle.load(folder)
    device = {**bundle.costs.device, "processor": "Another"}
    costs = eenet.ExitCosts.from_dict({**bundle.costs.to_dict(), "device": device})
    elsewhere = planned_again(bundle.scheduler, costs, bundle.records)
    _exchange_scheduler(folder, elsewhere)
    with pytest.warns(ReliabilityWarning, match=r"measured on Another .* eenet profile .*bundle --update"):
        loaded = eenet.bundle.load(folder)
    assert loaded.info["measured_elsewhere"] is not None
    assert eenet.bundle.measure(folder, update=True, **QUICK).measured_elsewhere is None
    assert eenet.bundle.load(folder).measured_elsewhere is None


def test_another_number_of_threads_is_known(folder: Path) -> None:
    threads = eenet.bundle.load(folder).costs.device["threads"] + 1
    note = eenet.bundle.load(folder, threads=threads).measured_elsewhere
    assert note is not None
    assert note.endswith(f"--update --threads {threads}")


def _exchange_scheduler(folder: Path, scheduler: eenet.Scheduler, **changed: Any) -> None:
    """Put another scheduler into a bundle."""
    import hashlib

    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    name = manifest["scheduler"]
    scheduler.save(folder / name)
    content = (folder / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest |= changed
    manifest = {key: value for key, value in manifest.items() if value is not ...}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


class TestOldBundles:
    """Bundles from before they had costs of their own still run, and say whose costs they have."""

    @pytest.fixture
    def old(self, folder: Path) -> Path:
        """A bundle as it was written before."""
        records = eenet.bundle.load(folder).records
        assert records is not None
        costs = eenet.ExitCosts([1, 2, 4], device={"torch": "2.11.0"}, batch_size=8)
        missing = dict.fromkeys(("profile", "records", "plain", "example"), ...)
        _exchange_scheduler(folder, eenet.MaxProbability().fit(records, costs, "60%"), **missing)
        return folder

    def test_it_says_that_its_costs_are_pytorchs(self, old: Path) -> None:
        bundle = eenet.bundle.load(old)
        assert "(measured in PyTorch 2.11.0, batches of 8), not of ONNX Runtime" in bundle.costs_from
        assert bundle.costs_from.endswith(f"eenet profile {old} --update")
        assert bundle.records is None
        assert bundle.measured_elsewhere is None

    def test_measured_it_keeps_its_thresholds_and_budgets_are_what_they_cost(self, old: Path) -> None:
        before = eenet.bundle.load(old).scheduler
        bundle = eenet.bundle.measure(old, update=True, **QUICK)
        assert bundle.scheduler.policy == before.policy
        shares = before.table.shares
        assert shares is not None
        spent = sorted(shares @ bundle.costs.values)
        budgets = [row["budget"] for row in eenet.bundle.load(old).info["budgets"]]
        np.testing.assert_allclose(budgets, np.unique(spent), rtol=1e-9)
        assert budgets[0] * (1 - 1e-9) <= bundle.scheduler.budget <= budgets[-1] * (1 + 1e-9)

    def test_with_records_it_is_planned_anew_and_carries_them(
        self, made: tuple[Case, Path, list[str]], old: Path
    ) -> None:
        records = labeled(made[0])
        bundle = eenet.bundle.measure(old, records=records, update=True, **QUICK)
        rows = eenet.bundle.load(old).info["budgets"]
        accuracies = [bundle.scheduler.at(row["budget"]).replay(records).accuracy for row in rows]
        assert [row["calibration_accuracy"] for row in rows] == pytest.approx(accuracies)
        assert eenet.bundle.load(old).records == records
        assert bundle.scheduler.budget == pytest.approx(max(0.6 * bundle.costs[-1], bundle.costs[0]))

    def test_records_of_another_network_are_refused(self, old: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"have 4 exits and 5 classes, the bundle's network has 3 and 5"):
            eenet.bundle.measure(old, records=toy_records(exits=4), **QUICK)


def test_records_of_another_network_are_not_exported(made: tuple[Case, Path, list[str]], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="they are of another network"):
        made[0].export(tmp_path / "bundle", records=toy_records(classes=7))
    assert list(tmp_path.iterdir()) == []


def test_records_of_the_same_network_with_other_weights_are_refused(
    made: tuple[Case, Path, list[str]], folder: Path, tmp_path: Path
) -> None:
    case, other = made[0], copy.deepcopy(made[0])
    own = case.records(case.inputs)
    with torch.no_grad():
        next(other.model.parameters()).mul_(1.5)
    other.records(case.inputs).save(tmp_path / "records.safetensors")
    foreign = eenet.ExitRecords.load(tmp_path / "records.safetensors")
    assert own.network not in (None, foreign.network)
    for wrong in (foreign, foreign.subset(range(20))):
        with pytest.raises(InvalidInputError, match=f"of a network with other weights .digest {foreign.network}"):
            eenet.bundle.measure(folder, records=wrong, **QUICK)
        with pytest.raises(InvalidInputError, match="collect records of this one, and fit to them"):
            case.export(tmp_path / "bundle", records=wrong)
    same = eenet.ExitRecords(own.probabilities, own.predictions)
    assert (same.network, same) == (None, own)  # of which nothing is known, and which is taken
    for right in (own, same):
        eenet.bundle.measure(folder, records=right, **QUICK)


def test_labels_stay_at_home_where_that_is_asked(made: tuple[Case, Path, list[str]], tmp_path: Path) -> None:
    bundle = made[0].export(tmp_path / "bundle", records=labeled(made[0]), keep_labels=False)
    assert bundle.records is not None
    assert bundle.records.labels is None
    assert bundle.records.utility is None


@settings(max_examples=30, deadline=None)
@given(
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda values: sum(values) > 0),
    size=st.integers(1, 300),
)
def test_the_samples_that_reach_each_stage_never_grow_and_never_end(shares: list[float], size: int) -> None:
    of_one = (np.array(shares) / sum(shares)).tolist()
    counts = remaining(of_one, size)
    assert counts[0] == size
    assert min(counts) >= 1
    assert all(before >= after for before, after in pairwise(counts))
    for k, count in enumerate(counts):
        assert abs(count - max(1, size * (1 - sum(of_one[:k])))) <= 0.51


class TestPlanningAgain:
    """A scheduler for other costs of the same exits."""

    def test_the_share_of_the_plain_network_stays(self) -> None:
        records = toy_records()
        fitted = eenet.MaxProbability().fit(records, eenet.ExitCosts([1, 2, 4], plain=3.5), "60%")
        other = planned_again(fitted, eenet.ExitCosts([0.2, 0.7, 1.1], plain=1.0), records)
        assert other.budget == pytest.approx(0.6)

    def test_where_that_is_too_little_the_smallest_feasible_budget_is_taken_and_said(self) -> None:
        records = toy_records()
        fitted = eenet.MaxProbability().fit(records, eenet.ExitCosts([1, 2, 4], plain=3.5), "30%")
        with pytest.warns(ReliabilityWarning, match="30% of the plain network is less than the first exit takes here"):
            other = planned_again(fitted, eenet.ExitCosts([0.5, 0.7, 1.1], plain=1.0), records)
        assert other.budget == pytest.approx(0.5)

    @pytest.mark.parametrize("method", ["eenet", "stopping", "patience", "voting", "ztw", "searched", "temperature"])
    def test_the_same_costs_and_records_give_the_same_policy(self, method: str) -> None:
        records, costs = toy_records(samples=150), toy_costs()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a scheduler may fall back on few samples
            fitted = eenet.scheduler.SCHEDULERS[method]().fit(records, costs, "70%")
            assert planned_again(fitted, costs, records) == fitted
            priced = planned_again(fitted, costs, None)
        assert priced.policy == fitted.policy
        assert priced.calibration_cost == pytest.approx(fitted.calibration_cost)

    def test_without_records_a_guaranteed_budget_is_no_longer_one_and_that_is_said(self) -> None:
        fitted = eenet.MaxProbability().fit(toy_records(), toy_costs(), "70%", guarantee=0.9)
        with pytest.warns(ReliabilityWarning, match="guaranteed budget was one in other costs"):
            other = planned_again(fitted, eenet.ExitCosts([1.0, 1.5, 4.0]), None)
        assert other.guarantee is None

    def test_with_records_it_is_guaranteed_again(self) -> None:
        records = toy_records(samples=2000)
        fitted = eenet.MaxProbability().fit(records, toy_costs(), "70%", guarantee=0.9)
        assert planned_again(fitted, eenet.ExitCosts([1.0, 1.5, 4.0]), records).guarantee == 0.9


def test_many_records_are_carried_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    records = toy_records(samples=500)
    assert compact(records, labels=True) == records
    monkeypatch.setattr("eenet.bundle._plan.MOST_RECORD_BYTES", 20_000)
    kept = compact(records, labels=True)
    assert 50 < len(kept) < 500
    assert np.isin(kept.digests(), records.digests()).all()


_WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "onnxscript"):
    sys.modules[name] = None  # importing it raises ImportError
from eenet.cli import main
main()
"""


def test_a_bundle_is_measured_again_where_torch_cannot_be_imported(folder: Path) -> None:
    words = ["profile", str(folder), "--batch-sizes", "1", "--seconds", "0", "--threads", "1", "--update", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(SOURCE), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    bundle = eenet.bundle.load(folder, threads=1)
    assert isinstance(bundle, LoadedBundle)
    assert result["plan"]["budget"] == bundle.scheduler.budget
    assert bundle.costs.device["threads"] == 1


def test_a_bundle_says_of_which_length_of_inputs_its_costs_are_and_is_measured_at_another(
    made: tuple[Case, Path, list[str]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 5, 4)
    model = eenet.attach(MeanOfSteps().eval(), ["first"], 3, x[:2], dynamic={1: "time"})
    records = eenet.collect(model, [(x, torch.randint(0, 3, (24,)))])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0]), "80%")
    folder = tmp_path / "bundle"
    bundle = eenet.export(model, scheduler, folder, example=x[:8], seconds=0.0, batch_sizes=(1,))
    assert bundle.costs.device["sizes"] == {"time": 5}
    assert bundle.costs_from.endswith("of inputs of length 5 (time); longer ones cost more")
    here = eenet.bundle.measure(folder, length=7, seconds=0.0, batch_sizes=(1,))
    assert here.costs.device["sizes"] == {"time": 7}
    assert eenet.bundle.load(folder).costs.device["sizes"] == {"time": 5}
    shown = run("profile", folder, "--length", 11, "--update", "--seconds", 0, "--batch-sizes", 1).stdout
    assert "of inputs of length 11 (time); longer ones cost more" in shown
    assert eenet.bundle.load(folder).costs.device["sizes"] == {"time": 11}
    again = eenet.bundle.measure(folder, seconds=0.0, batch_sizes=(1,))
    assert again.costs.device["sizes"] == {"time": 11}  # what was measured last
    with pytest.raises(InvalidInputError, match="length is 0, expected a whole number from 1"):
        eenet.bundle.measure(folder, length=0)
    _, fixed, _ = made
    assert "sizes" not in eenet.bundle.load(fixed).costs.device
    assert "of inputs of" not in eenet.bundle.load(fixed).costs_from
    with pytest.raises(InvalidInputError, match="length is 9, and the network takes inputs of one size only"):
        eenet.bundle.measure(fixed, length=9)


def test_a_length_that_the_network_does_not_take_is_refused_with_the_longest_that_it_takes(tmp_path: Path) -> None:
    bundle_up_to_nine(tmp_path / "bundle")
    expected = "length is 20, expected one up to 9, which is the longest that the network takes: give --length 9, or "
    with pytest.raises(InvalidInputError, match=expected):
        eenet.bundle.measure(tmp_path / "bundle", length=20, seconds=0.0, batch_sizes=(1,))
    assert expected in refused("profile", tmp_path / "bundle", "--length", 20, "--batch-sizes", 1, "--seconds", 0)
    here = eenet.bundle.measure(tmp_path / "bundle", length=9, seconds=0.0, batch_sizes=(1,))
    assert here.costs.device["sizes"] == {"time": 9}


def test_inputs_that_are_longer_than_the_network_takes_are_refused_with_the_longest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_up_to_nine(tmp_path / "bundle")
    for length in (20, 10, 5000):
        expected = rf"length {length} \(time\), expected one up to 9, which is the longest that the network takes: cut"
        with pytest.raises(InvalidInputError, match=expected):
            bundle(np.zeros((3, length, 4), np.float32))
    assert "onnxruntime" not in capfd.readouterr().err
    assert len(bundle(np.zeros((3, 9, 4), np.float32)).exits) == 3


def test_so_they_are_by_a_cascade_that_is_called_and_by_a_benchmark(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, (model, _) = bundle_up_to_nine(tmp_path / "bundle"), up_to_nine()
    expected = r"length 20 \(time\), expected one up to 9, which is the longest that the network takes: cut"
    long, labels = np.zeros((8, 20, 4), np.float32), np.zeros(8, np.int64)
    assert bundle.records is not None
    records = eenet.ExitRecords.cascade({"first": bundle.records, "second": bundle.records})
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0, 4.0]), 3.0, fallback=False)
    cascade = eenet.CallCascade({"first": bundle, "second": bundle}, scheduler)
    assert len(cascade(long[:, :9]).exits) == 8
    with pytest.raises(MemberError, match=f"first, raises InvalidInputError on 8 samples, .*{expected}"):
        cascade(long)
    for system, name in ((bundle, "a, plain fp32"), ((model, bundle.scheduler), "plain network")):
        with pytest.raises(InvalidInputError, match=rf"'{name}' .*, inputs of shape \(8, 20, 4\): .*{expected}"):
            eenet.benchmark({"a": system}, (long, labels), batch_sizes=[8], seconds=0.0)
    with pytest.raises(InvalidInputError, match=r"'a' .*: the graph does not run on them: .*; give data of its shape$"):
        eenet.benchmark({"a": tmp_path / "bundle" / "plain.onnx"}, (long, labels), batch_sizes=[8], seconds=0.0)
    assert "onnxruntime" not in capfd.readouterr().err


@given(st.integers(1, 40), st.integers(1, 400), st.integers(2, 9))
def test_of_lengths_that_must_be_multiples_two_that_are_taken_are_named(usual: int, more: int, step: int) -> None:
    length = step * usual + more
    assume(length % step)
    message = not_of_length(length, step * usual, lambda n: n % step == 0, "no")
    found = re.search(r"expected one such as (\d+) or (\d+), which the network takes: give --length", message)
    assert found is not None, message
    less, more = map(int, found.groups())
    assert less < length < more
    assert less % step == more % step == 0


def test_a_model_is_profiled_at_another_length_and_one_that_it_does_not_take_is_refused() -> None:
    words = ("profile", "bundles:up_to_nine", "--batch-sizes", 1, "--seconds", 0)
    found = json.loads(run(*words, "--length", 9, "--json").stdout)
    assert found["device"]["sizes"] == {"time": 9}
    assert found["costs"]["flops"][0][-1] > json.loads(run(*words, "--json").stdout)["costs"]["flops"][0][-1]
    message = refused(*words, "--length", 1000)
    assert (
        "length is 1000, expected one up to 9, which is the longest that the network takes: give --length 9" in message
    )


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_nearest_length_that_a_network_takes_is_found(one: int, other: int, limit: int) -> None:
    usual, length = sorted((one, other))
    usual, length = min(usual, limit), max(length, limit + 1)
    message = not_of_length(length, usual, lambda n: n <= limit, "no")
    assert f"length is {length}, expected one up to {limit}, which is the longest" in message
    message = not_of_length(usual, length, lambda n: n > limit, "no")
    assert f"expected one from {limit + 1}, which is the shortest" in message


def test_a_budget_that_buys_less_in_the_runtime_of_the_bundle_is_said_to(tmp_path: Path) -> None:
    case = CASES["convolutions"]()
    classes = case.model.num_classes
    labels = np.arange(200) % classes
    right = np.eye(classes)[labels] * 0.8 + 0.2 / classes
    sure = np.linspace(0.3, 0.9, 200)[:, None]
    wrong = np.eye(classes)[(labels + 1) % classes] * sure + (1 - sure) / classes
    records = eenet.ExitRecords.from_probabilities(np.stack([wrong, wrong, right]), labels)
    costs = eenet.ExitCosts([0.0001, 0.0002, 1.0], "ms", plain=1.0)
    scheduler = eenet.MaxProbability().fit(records, costs, "95%", fallback=False)
    example = case.call(case.inputs)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        eenet.export(case.model, scheduler, tmp_path / "bundle", example=example, records=records, **QUICK)
    # Where early exits cost nothing, 5 % had to leave there; here they cost something, so that more have to.
    (message,) = (str(one.message) for one in said if "at the same budget" in str(one.message))
    assert re.match(r"the exits cost \d+%/\d+%/\d+% of the plain network here, where .* fitted at 0%/0%/100%", message)
    assert re.search(r"the accuracy on the calibration records goes from 9\d\.\d% to \d+\.\d%\. Give a higher", message)


def test_a_share_that_could_not_be_met_is_what_a_bundle_is_planned_for_again(tmp_path: Path) -> None:
    case = CASES["convolutions"]()
    costs = eenet.ExitCosts([0.001, 0.5, 1.0], "ms", plain=1.0)
    scheduler = eenet.MaxProbability().fit(labeled(case), costs, "2% of plain", fallback=False)
    target = tmp_path / "bundle"

    def said(call: Callable[[], LoadedBundle]) -> LoadedBundle:
        with pytest.warns(
            ReliabilityWarning, match="the budget of 2% of the plain network is less than the first exit"
        ):
            return call()

    bundle = said(lambda: eenet.export(case.model, scheduler, target, example=case.call(case.inputs), **QUICK))
    assert bundle.manifest.data["asked"] == {"share": pytest.approx(0.02), "of": "plain"}
    for update in (False, True, True):
        bundle = said(lambda update=update: eenet.bundle.measure(target, update=update, **QUICK))  # type: ignore[misc]
    assert bundle.scheduler.budget == pytest.approx(bundle.costs[0])
    found = eenet.bundle.measure(target, budget="100% of last", update=True, **QUICK)
    asked = eenet.bundle.load(target).manifest.data["asked"]
    assert asked["share"] * (found.costs.reference if asked["of"] == "plain" else found.costs[-1]) == pytest.approx(
        found.scheduler.budget
    )
    again = eenet.bundle.measure(target, **QUICK)
    assert again.manifest.data["asked"] == asked


def test_a_bundle_that_does_not_say_what_was_asked_for_keeps_its_own_share(folder: Path) -> None:
    before = eenet.bundle.load(folder).scheduler
    _exchange_scheduler(folder, before, asked=...)
    asked = eenet.bundle.measure(folder, **QUICK).manifest.data["asked"]
    whole = before.costs.reference if asked["of"] == "plain" else before.costs[-1]
    assert asked["share"] * whole == pytest.approx(before.budget)


def test_threads_that_are_not_given_are_those_of_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said, threads in (("1", 1), ("3", 3), ("2,4", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        bundle = eenet.bundle.measure(folder, update=True, **QUICK)
        assert bundle.costs.device["threads"] == threads
        assert eenet.bundle.load(folder, threads=threads).other_threads is None
        assert eenet.bundle.load(folder).other_threads is None
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    note = eenet.bundle.load(folder).other_threads
    assert note is not None
    assert "measured at threads=2, it runs at 1" in note
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert eenet.bundle.load(folder).other_threads is None  # one for each core, which ONNX Runtime counts
