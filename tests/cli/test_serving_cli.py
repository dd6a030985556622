"""`eenet serve`: a bundle behind HTTP with one command, and without PyTorch."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from bundles import Case, small_convolutions
from commands import TOKEN, refused, run, served
from files import npy
from optional import import_or_skip
from waiting import PATIENCE

for _library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_library, reason="needs the extra that exports and runs ONNX graphs")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Case]:
    import_or_skip("torchvision")
    folder, case = tmp_path_factory.mktemp("serve") / "bundle", small_convolutions()
    case.export(folder, class_names=[f"kind {n}" for n in range(5)])
    return folder, case


def test_a_bundle_is_served_by_one_command_and_stops_when_told(bundle: tuple[Path, Case]) -> None:
    folder, case = bundle
    (images,) = case.arrays.values()
    with served(str(folder), "--port", "0", "--no-hold") as (url, process):
        response = httpx.post(
            f"{url}/predict", content=npy(images), headers={"Content-Type": "application/x-npy"}, timeout=PATIENCE
        )
        predictions = response.json()["predictions"]
        expected = case.scheduler.replay(case.records(case.fresh))
        assert [p["exit"] for p in predictions] == expected.exits.tolist()
        assert [p["class"] for p in predictions] == expected.predictions.tolist()
        assert predictions[0]["name"] == f"kind {predictions[0]['class']}"
        info = httpx.get(f"{url}/info", timeout=PATIENCE).json()
        assert info["backend"] == "onnx"
        assert info["budget"] == case.scheduler.budget
        assert httpx.put(f"{url}/budget", json={"budget": "50%"}, timeout=PATIENCE).status_code == 403
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_server_says_which_bundle_it_has_and_keeps_it(bundle: tuple[Path, Case], tmp_path: Path) -> None:
    """Also where the folder is exchanged below it: the next server has the new one."""
    from eenet.bundle import load

    folder, case = bundle
    served_here, replaced = tmp_path / "now", tmp_path / "before"
    shutil.copytree(folder, served_here)
    digest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["manifest_sha256"]
    assert load(folder).manifest.digest == digest
    with served(str(served_here), "--port", "0", "--budget", "50%") as (url, _):
        served_here.rename(replaced)
        case.export(served_here, class_names=[f"type {n}" for n in range(5)])
        info, metrics = (
            httpx.get(f"{url}/info", timeout=PATIENCE).json(),
            httpx.get(f"{url}/metrics", timeout=PATIENCE).text,
        )
        assert (info["name"], info["digest"]) == ("now", digest)
        assert f'eenet_bundle_info{{digest="{digest}",name="now"}} 1.0' in metrics
        (images,) = case.arrays.values()
        response = httpx.post(
            f"{url}/predict", content=npy(images), headers={"Content-Type": "application/x-npy"}, timeout=PATIENCE
        )
        assert response.json()["predictions"][0]["name"].startswith("kind ")
    with served(str(served_here), "--port", "0") as (url, _):
        info = httpx.get(f"{url}/info", timeout=PATIENCE).json()
        assert info["digest"] == load(served_here).manifest.digest != digest
        assert info["class_names"][0] == "type 0"


def test_the_budget_of_a_bundle_changes_while_it_runs(bundle: tuple[Path, Case]) -> None:
    folder, case = bundle
    (images,) = case.arrays.values()
    with served(str(folder), "--port", "0", "--no-hold", "--budget", "80%", EENET_TOKEN=TOKEN) as (url, _):
        assert httpx.get(f"{url}/info", timeout=PATIENCE).json()["budget"] == pytest.approx(0.8 * 3)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert (
            httpx.put(f"{url}/budget", json={"budget": "50%"}, headers=headers, timeout=PATIENCE).json()["budget"]
            == 1.5
        )
        refused = httpx.put(f"{url}/budget", json={"budget": "10%"}, headers=headers, timeout=PATIENCE)
        assert (refused.status_code, "smallest feasible" in refused.json()["detail"]) == (422, True)
        response = httpx.post(
            f"{url}/predict", content=npy(images), headers={"Content-Type": "application/x-npy"}, timeout=PATIENCE
        )
        from eenet.bundle import load

        expected = load(folder).at("50%")(images).exits.tolist()
        assert [p["exit"] for p in response.json()["predictions"]] == expected
        assert expected != case.scheduler.replay(case.records(case.fresh)).exits.tolist()


def test_what_cannot_be_served_is_one_line_and_exit_code_2(bundle: tuple[Path, Case], tmp_path: Path) -> None:
    folder, _ = bundle
    for arguments, message in (
        ((str(tmp_path / "nothing"),), "nothing"),
        ((str(folder), "--host", "0.0.0.0"), "set EENET_TOKEN"),
        ((str(folder), "--token-file", str(tmp_path / "none")), "there is no token file"),
        ((str(folder), "--budget", "1%"), "smallest feasible budget"),
    ):
        done = run("serve", *arguments, code=2)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_serving_a_bundle_of_graphs_imports_no_torch(bundle: tuple[Path, Case]) -> None:
    folder, _ = bundle
    code = (
        "import sys, json; from eenet.bundle import load; from eenet.serving.http import make_server, ServerOptions;"
        f"make_server(load({str(folder)!r}), ServerOptions(port=0));"
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "timm", "torchvision"} & set(json.loads(done.stdout))


def test_the_engine_needs_nothing_but_numpy() -> None:
    code = "import sys, eenet.serving; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "fastapi", "starlette", "uvicorn", "orjson"} & set(done.stdout.split())


def test_a_port_that_is_taken_is_said_so(bundle: tuple[Path, Case]) -> None:
    folder, _ = bundle
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = refused("serve", str(folder), "--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose another --port" in message
