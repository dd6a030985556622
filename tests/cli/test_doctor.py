"""`eenet doctor`: what it says of this machine, and of machines that are made up."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from commands import run
from hypothesis import given
from hypothesis import strategies as st
from optional import not_installed

import eenet
from eenet._timing import Timing, processor  # private: what the timer measures, here with a noise that is known
from eenet.cli import _doctor as made
from eenet.errors import MissingExtraError


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library is imported, so that the test is quick and the same everywhere."""
    monkeypatch.setattr(made, "_loaded", lambda *_: (None, None))


def test_json_has_versions_threads_extras_disk_and_timing(works: None) -> None:
    found = json.loads(run("doctor", "--seconds", 0.05, "--json").stdout)
    assert found["versions"]["eenet"] == eenet.__version__
    assert found["machine"]["cores"] >= 1
    assert found["disk"]["here_bytes"] > 0
    timing = found["timing"]
    assert timing["rounds"] >= 30
    assert timing["wall_difference"] >= 0
    assert "cannot be seen here" in timing["verdict"]
    for extra in found["extras"]:
        assert extra["installed"] == (not extra["missing"])
        assert (extra["install"] is None) == extra["installed"]


def test_the_graph_that_it_runs_is_one() -> None:
    pytest.importorskip("onnxruntime")
    assert made.onnx_says() == "works"


def test_a_torchvision_of_another_build_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(name: str, *_: str) -> None:
        raise MissingExtraError(f"{name}: operator torchvision::nms does not exist; pip install --force-reinstall")

    monkeypatch.setattr(made, "require", refuses)
    monkeypatch.setattr(metadata, "version", lambda _name: "1.0")
    shown = run("doctor", "--seconds", 0, code=1).stdout
    assert "broken" in shown
    assert "--force-reinstall" in shown
    assert run("doctor", "--seconds", 0, "--quiet", code=1).output == ""


def test_missing_extras_are_no_fault_and_the_line_is_given(works: None, monkeypatch: pytest.MonkeyPatch) -> None:
    not_installed(monkeypatch, "ray")
    assert "[ray]'" in run("doctor", "--seconds", 0).stdout


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx avx2 fma\n", "AMD EPYC (AVX2)"),
        (
            "model name : AMD EPYC\nflags : avx2 avx512f avx512_vnni avx512_bf16\n\nmodel name : Other\n",
            "AMD EPYC (AVX2, AVX-512, VNNI, bf16)",
        ),
        ("processor : 0\nFeatures : fp asimd asimddp i8mm bf16\n", " (bf16, dot product, i8mm)"),
        ("model name : Old\nflags : sse2\n", "Old"),
    ],
)
def test_a_processor_is_its_name_and_what_makes_networks_fast(tmp_path: Path, info: str, name: str) -> None:
    """Clouds give one name to processors of several generations."""
    (tmp_path / "cpuinfo").write_text(info)
    assert processor(tmp_path / "cpuinfo").endswith(name)


def test_a_processor_without_vnni_is_told_what_int8_is_worth(works: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, told in (("P (AVX2)", True), ("P (AVX2, VNNI)", False), ("P (dot product)", False)):
        monkeypatch.setattr(made, "processor", lambda name=name: name)
        assert ("no VNNI" in run("doctor", "--seconds", 0).stdout) == told


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_container(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert made.cgroup_limit(tmp_path) == limit


def test_more_noise_hides_larger_differences() -> None:
    noise = np.random.default_rng(0).standard_normal((400, 2))
    found = [made.smallest_difference(Timing(1 + s * noise, np.ones((400, 2))), "wall") for s in (0.0, 0.01, 0.1)]
    assert found[0] == 0
    assert found[0] < found[1] < found[2]
    # A median of n normal numbers has the variance pi / (2 n); two of them differ by at most 1.96 errors in 95 %.
    assert found[2] == pytest.approx(0.1 * 1.96 * np.sqrt(np.pi / 400), rel=0.6)


@pytest.mark.parametrize(
    ("wall", "cpu", "spread", "words"),
    [
        (0.003, 0.003, 0.01, "stable: differences of wall time under 0.3 %"),
        (0.003, 0.003, 0.2, "believe medians alone"),
        (0.08, 0.01, 0.2, "go by CPU time (1.0 %)"),
        (0.04, 0.04, 0.2, "measure for longer"),
        (0.3, 0.3, 0.5, "mean little"),
    ],
)
def test_the_verdict_in_words(wall: float, cpu: float, spread: float, words: str) -> None:
    for load in (None, 0.0, 0.5):
        assert words in made.verdict(wall, cpu, spread, load)


@given(st.floats(0.001, 0.5), st.floats(0.001, 0.5), st.floats(0.001, 0.5), st.floats(0, 64), st.integers(1, 64))
def test_a_machine_that_runs_other_programs_is_not_called_stable(
    wall: float, cpu: float, spread: float, load: float, cores: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: cores)
        words = made.verdict(wall, cpu, spread, load)
    assert (f"a load of {load:.1f} on {cores} cores" in words) == (load > cores / 2)
    assert words.startswith("stable") == (load <= cores / 2 and wall <= 0.02 and spread <= 0.05)
