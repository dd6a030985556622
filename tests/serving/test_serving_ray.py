"""A bundle on a real local Ray: each stage a deployment, the same answers, dead replicas, scaling, files in and out."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import serving_toys
from bundles import Case, bundle_up_to_nine, bundle_with_category, small_convolutions
from commands import refused, run
from files import npy
from optional import import_or_skip
from serving_toys import PATIENT, connect, serving
from waiting import PATIENCE, until

import eenet
from eenet.bundle import load
from eenet.errors import InvalidInputError
from eenet.predict import open_items, predict, predict_on_ray
from eenet.preprocessing import ImagePreprocessing
from eenet.serving.engine import EngineOptions
from eenet.serving.ray import RayOptions, StageScaling, app, start, stop

for _library in ("onnx", "onnxscript", "onnxruntime", "fastapi", "prometheus_client"):
    pytest.importorskip(_library, reason="needs the extras that export and serve")
pytest.importorskip("ray", reason="needs Ray: pip install 'eenet[ray]'")

pytestmark = [
    # Ray leaves sockets and log files to the garbage collector when it is shut down, and its settings are declared in
    # a way that pydantic, which it brings, will not take for ever.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

SETTINGS = {
    # How often queue lengths are reported: by default every 10 s, for which a test would wait.
    **{f"RAY_SERVE_{who}_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.2" for who in ("REPLICA", "HANDLE")},
    # On a busy machine a proxy takes longer to start than the 5 s after which Ray would kill it.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
TOKEN = "correct horse battery"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Case]:
    import_or_skip("torchvision")
    folder, case = tmp_path_factory.mktemp("ray") / "bundle", small_convolutions()
    # One in ten calibration samples is handed back, since no exit is sure of it.
    scheduler = eenet.MaxProbability().fit(
        case.records(case.inputs), eenet.ExitCosts([1.0, 2.0, 3.0]), budget="60%", abstain=0.1
    )
    case = replace(case, scheduler=scheduler)
    pixels = ImagePreprocessing((8, 8), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    case.export(folder, class_names=[f"kind {n}" for n in range(5)], preprocessing=pixels)
    return folder, case


def test_a_ray_that_predicting_starts_leaves_no_handler_behind(
    bundle: tuple[Path, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the tests that share a cluster: it starts Ray, and ends it."""
    ray = import_or_skip("ray")
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "photos").mkdir()
    pillow.new("RGB", (8, 8), "red").save(tmp_path / "photos" / "red.png")
    loaded, items = load(bundle[0]), open_items(tmp_path / "photos", "image")
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        assert predict_on_ray(loaded, items, tmp_path / "out.parquet", cpus=0.1, replicas=1).items == 1
        assert not ray.is_initialized()
        signal.raise_signal(signal.SIGTERM)
        assert ended == [signal.SIGTERM], "Ray's own handler ended the program"
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of its own on this machine, small; CPUs are logical."""
    ray = import_or_skip("ray")
    os.environ.update(SETTINGS)
    here = os.pathsep.join([str(Path(serving_toys.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )
    try:
        yield ray
    finally:
        stop()
        for name in SETTINGS:
            del os.environ[name]


def unused_port() -> int:
    """A port that no other program is given by chance until Ray listens there: those of port 0 are higher."""
    for port in range(20_000, 32_768):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def url(cluster: Any, bundle: tuple[Path, Case]) -> str:
    """The address of the bundle, served with a second replica of stage 1 where two calls wait for the first."""
    folder, _ = bundle
    token = folder.with_name("token")
    token.write_text(TOKEN)
    port = unused_port()
    steady = StageScaling(cpus=0.1)
    scaling = StageScaling(1, 2, target=1.0, cpus=0.1, upscale_delay=0.4, downscale_delay=600.0)
    options = RayOptions(
        stages=[steady, scaling, steady],
        ingress_cpus=0.1,
        adapt=False,
        token_file=str(token),
        inline_bytes=0,  # all remaining samples wait in the object store
        # A call waits for others long enough for a test to find it there.
        engine=EngineOptions(max_batch=64, max_wait=0.2),
        limits=PATIENT,
    )
    address = start(folder, options, port=port)
    assert address == f"http://127.0.0.1:{port}"
    return address


def two_stages() -> RayOptions:
    return RayOptions(stages=[StageScaling(cpus=0.1)] * 2, ingress_cpus=0.1, adapt=False, limits=PATIENT)


def replicas(ray: Any, stage: int) -> list[str]:
    """The names of the actors that are replicas of a stage."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(a["name"] for a in actors if a["name"].startswith(f"SERVE_REPLICA::eenet#stage-{stage}#"))


def metric(url: str, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = httpx.get(f"{url}/metrics", timeout=PATIENCE).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def ask(client: httpx.Client, url: str, images: np.ndarray) -> list[int]:
    """The exits of some images."""
    headers = {"Content-Type": "application/x-npy"}
    response = client.post(f"{url}/predict", content=npy(images), headers=headers)
    assert response.status_code == 200, response.text
    return [prediction["exit"] for prediction in response.json()["predictions"]]


def test_the_file_for_serve_deploy_is_valid_and_builds_the_same_deployments(
    bundle: tuple[Path, Case], tmp_path: Path
) -> None:
    yaml, schema = import_or_skip("yaml"), import_or_skip("ray.serve.schema")
    folder, _ = bundle
    (tmp_path / "token").write_text(TOKEN)
    out = tmp_path / "cluster.yaml"
    words = ["--replicas", "1:2,1:4,2:8", "--cpus", "0.5,1,2", "--target", "4", "--max-batch", "8", "--budget", "50%"]
    words += ["--host", "0.0.0.0", "--port", "80", "--token-file", str(tmp_path / "token")]
    run("serve", str(folder), "--ray", "--write-yaml", str(out), *words)
    document = yaml.safe_load(out.read_text(encoding="utf-8"))
    schema.ServeDeploySchema.model_validate(document)
    (application,) = document["applications"]
    assert TOKEN not in out.read_text(encoding="utf-8"), "the file names where the token is"
    stages = [one for one in application["deployments"] if one["name"].startswith("stage-")]
    assert [one["autoscaling_config"]["max_replicas"] for one in stages] == [2, 4, 8]
    assert [one["autoscaling_config"]["min_replicas"] for one in stages] == [1, 1, 2]
    assert [one["ray_actor_options"]["num_cpus"] for one in stages] == [0.5, 1.0, 2.0]
    assert {one["autoscaling_config"]["target_ongoing_requests"] for one in stages} == {4.0}
    module, _, name = application["import_path"].partition(":")
    built = getattr(importlib.import_module(module), name)(application["args"])
    names = {argument._bound_deployment.name for argument in (*built._bound_deployment.init_args[2:], built)}
    assert names == {one["name"] for one in application["deployments"]}
    assert built._bound_deployment.init_args[1].engine.max_batch == 8
    assert built._bound_deployment.init_args[1].budget == "50%"


def test_options_are_read_from_files_of_older_versions() -> None:
    options = RayOptions(adapt=False, engine=EngineOptions(max_delay=2.0), stages=[StageScaling(1, 2)])
    assert RayOptions.from_dict(options.to_dict()) == options
    old = {"hold": False, "engine": {"max_hold": 2.0}, "stages": [{"max_replicas": 2}]}
    assert RayOptions.from_dict(old) == options


def test_what_cannot_be_laid_out_is_refused(bundle: tuple[Path, Case], tmp_path: Path) -> None:
    folder, _ = bundle
    out = ["--write-yaml", str(tmp_path / "x.yaml")]
    assert "2 stages are described, but the bundle has 3" in refused(
        "serve", str(folder), "--ray", "--replicas", "1,2", *out
    )
    assert "--cpus has 2 entries, expected 1 or 3" in refused(
        "serve", str(folder), "--ray", "--replicas", "1,2,3", "--cpus", "1,2", *out
    )
    assert "expected such as 1:4,2:8" in refused("serve", str(folder), "--ray", "--replicas", "many", *out)
    assert "min_replicas is 3 and max_replicas 2" in refused("serve", str(folder), "--ray", "--replicas", "3:2", *out)
    assert "needs a token" in refused("serve", str(folder), "--ray", "--host", "0.0.0.0", *out)
    assert "add --ray" in refused("serve", str(folder), *out)
    with pytest.raises(InvalidInputError, match="'bundle', the path of a folder"):
        app({})
    with pytest.raises(InvalidInputError, match=r"those of eenet\.serving\.ray\.RayOptions"):
        app({"bundle": str(folder), "stags": []})
    assert not (tmp_path / "x.yaml").exists()


def test_the_exits_are_those_of_replay_and_each_stage_is_a_deployment(
    url: str, bundle: tuple[Path, Case], cluster: Any
) -> None:
    _, case = bundle
    (images,) = case.arrays.values()
    expected = case.scheduler.replay(case.records(case.fresh)).exits.tolist()
    assert len(set(expected)) == 3, "samples leave at each exit"
    with httpx.Client(timeout=PATIENCE) as client:
        assert ask(client, url, images) == expected
        assert [ask(client, url, images[n : n + 1])[0] for n in range(8)] == expected[:8]
    assert [len(replicas(cluster, k)) for k in range(3)] == [1, 1, 1]


def test_the_http_interface_is_that_of_the_plain_server(url: str, bundle: tuple[Path, Case]) -> None:
    _, case = bundle
    (images,) = case.arrays.values()
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        assert client.get("/health").json() == {"status": "alive"}
        assert client.get("/ready").json() == {"status": "ready"}
        info = client.get("/info").json()
        assert info["num_exits"] == 3
        assert info["class_names"][0] == "kind 0"
        assert info["traffic"]["waiting"] == [0, 0, 0]
        assert {"/predict", "/budget", "/metrics"} <= set(client.get("/openapi.json").json()["paths"])
        assert "<html" in client.get("/").text
        whole = client.post("/predict?full=true", json={"inputs": images[:2].tolist()}).json()["predictions"]
        assert [one["exit"] for one in whole] == [2, 2]
        headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
        answered = client.post("/predict", content=npy(images[:4]), headers=headers)
        assert np.load(io.BytesIO(answered.content)).shape == (4, 5)
        assert len(answered.headers["X-Exits"].split(",")) == 4
        assert client.post("/predict", json={"inputs": [[1.0]]}).status_code == 422
        assert client.post("/predict", content=b"\x00", headers={"Content-Type": "text/x"}).status_code == 415
        assert 'eenet_samples_total{exit="2"}' in client.get("/metrics").text
        assert metric(url, "eenet_batch_samples_count") > 0
        assert client.put("/budget", json={"budget": "50%"}).status_code == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        before = info["budget"]
        assert client.put("/budget", json={"budget": 3.0}, headers=bearer).json() == {"budget": 3.0, "unit": "ms"}
        assert client.get("/info").json()["budget"] == 3.0
        assert client.put("/budget", json={"budget": before}, headers=bearer).status_code == 200
        assert client.put("/budget", json={"budget": 0.1}, headers=bearer).status_code == 422


def test_samples_are_handed_back_and_each_exit_is_shown_as_by_the_bundle_itself(
    url: str, bundle: tuple[Path, Case]
) -> None:
    folder, case = bundle
    (images,) = case.arrays.values()
    alone = load(folder)(images)
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        answer = client.post("/predict", json={"inputs": images.tolist()}).json()["predictions"]
        assert [one["abstained"] for one in answer] == alone.abstained.tolist()
        assert alone.abstained.any()
        back = int(alone.abstained.argmax())
        for n in (0, back):
            answer = client.post("/predict?exits=true", json={"inputs": images[n : n + 1].tolist()}).json()
            (taken,), shown = answer["predictions"], answer["exits"]
            assert [one["exit"] for one in shown] == [0, 1, 2]
            assert [one["leaves"] for one in shown].index(True) == taken["exit"] == alone.exits[n]
            assert {name: shown[taken["exit"]][name] for name in taken} == taken
        assert shown[2]["abstained"]
        refused = client.post("/predict?exits=true", json={"inputs": images[:2].tolist()})
        assert (refused.status_code, refused.json()["detail"][:28]) == (422, "exits=true is for one sample")


def test_replicas_killed_under_load_cost_no_answer_and_a_stage_scales_up(
    url: str, bundle: tuple[Path, Case], cluster: Any
) -> None:
    _, case = bundle
    (images,) = case.arrays.values()
    expected = case.scheduler.replay(case.records(case.fresh)).exits.tolist()
    ended = threading.Event()
    answered: list[int] = []

    def client(number: int) -> int:
        rng, asked = np.random.default_rng(number), 0
        with httpx.Client(timeout=PATIENCE) as session:
            while not ended.is_set():
                rows = rng.choice(len(images), 16)
                assert ask(session, url, images[rows]) == [expected[row] for row in rows]
                asked += 1
                answered.append(number)
        return asked

    def kill() -> None:
        found: list[str] = []

        def two() -> bool:
            found[:] = replicas(cluster, 1)
            return len(found) == 2

        until(two)  # also: what was killed before has been replaced
        with contextlib.suppress(ValueError):  # where this is the one that was killed before; the caller tries again
            cluster.kill(cluster.get_actor(found[0], namespace="serve"), no_restart=True)
        gone = len(answered)
        until(lambda: len(answered) > gone + 16)  # each client has an answer from after it

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        try:
            until(lambda: len(replicas(cluster, 1)) == 2)  # the queue before stage 1 is longer than its target
            assert [len(replicas(cluster, k)) for k in (0, 2)] == [1, 1], "the others have as many as they are allowed"
            kill()
            while metric(url, "eenet_calls_sent_again_total") == 0:  # the one that was killed was idle just then
                kill()
        finally:
            ended.set()
        assert all(one.result() > 0 for one in clients)
    assert metric(url, "eenet_calls_sent_again_total") > 0, "a replica died under a call"
    assert metric(url, 'eenet_requests_total{status="5') == 0


class Stopped(Exception):  # noqa: N818 - stands for a kill
    pass


def stopped_at(count: int, report: Callable[[int], None] = lambda _: None) -> Callable[[int], None]:
    def progress(done: int) -> None:
        report(done)
        if done >= count:
            raise Stopped

    return progress


def rows(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = import_or_skip("pyarrow.parquet").read_table(path).to_pydict()
    return found


def test_files_are_predicted_on_ray_as_in_one_process_and_a_stopped_run_goes_on(
    cluster: Any, bundle: tuple[Path, Case], tmp_path: Path
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    folder, photos = bundle[0], tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for n in range(30):
        pillow.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(photos / f"{n:02d}.png")
    (photos / "13.png").write_bytes(b"not an image")
    loaded, items = load(folder), open_items(photos, "image")
    alone = predict(loaded, items, tmp_path / "alone.parquet", batch_size=3, piece=4)

    out = tmp_path / "spread.parquet"
    with pytest.raises(Stopped):
        predict(loaded, items, out, batch_size=3, piece=4, progress=stopped_at(12))
    (tmp_path / "spread.parquet.partial" / "piece-000000.parquet").unlink()  # what is missing need not be the end
    reported: list[int] = []
    with pytest.raises(Stopped):
        predict_on_ray(
            loaded, items, out, batch_size=3, piece=4, cpus=0.1, replicas=1, progress=stopped_at(9, reported.append)
        )
    assert reported[0] == 4, "what was done without Ray is kept"
    assert not out.exists()
    words = ["--batch-size", 3, "--piece", 4, "--ray", "--replicas", 2, "--json"]
    printed = json.loads(run("predict", folder, photos, "--out", out, *words).stdout)
    assert printed["resumed"] >= 9, "and so is what was done on it"
    assert rows(out) == rows(tmp_path / "alone.parquet")
    assert rows(out)["id"] == [f"{n:02d}.png" for n in range(30)]
    assert (printed["items"], printed["failed"]) == (30, 1)
    assert tuple(printed["exit_shares"]) == alone.exit_shares


def test_a_cascade_has_replicas_for_each_of_its_members(cluster: Any, url: str, tmp_path: Path) -> None:
    """The last test here: its application takes the place of the one that the others ask."""
    torch = import_or_skip("torch")
    nn = torch.nn
    small = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    big = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    x = torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    model = eenet.cascade([small, big], x[:2], inputs=[{"mean": [0.5], "std": [2.0]}, None])
    records = eenet.collect(model, [(x, model(x)[1].argmax(1))])  # the big one is right
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 10.0]), 5.0, fallback=False)
    bundle = eenet.export(model, scheduler, tmp_path / "bundle", example=x[:2], measure=False)
    expected = bundle(x.numpy()).exits.tolist()
    assert set(expected) == {0, 1}
    stages = [StageScaling(cpus=0.1), StageScaling(2, 2, cpus=0.1)]
    assert start(tmp_path / "bundle", RayOptions(stages=stages, ingress_cpus=0.1, adapt=False, limits=PATIENT)) is None
    until(lambda: [len(replicas(cluster, k)) for k in (0, 1)] == [1, 2])
    headers = {"Content-Type": "application/x-npy"}
    answered = httpx.post(f"{url}/predict", content=npy(x.numpy()), headers=headers, timeout=PATIENCE)
    assert [one["exit"] for one in answered.json()["predictions"]] == expected


def test_inputs_that_are_longer_than_the_network_takes_are_refused_with_the_longest(
    cluster: Any, url: str, tmp_path: Path
) -> None:
    """After the others, for the same reason."""
    bundle_up_to_nine(tmp_path / "bundle")
    start(
        tmp_path / "bundle",
        RayOptions(stages=[StageScaling(cpus=0.1)] * 2, ingress_cpus=0.1, adapt=False, limits=PATIENT),
    )

    def posted(length: int) -> httpx.Response:
        inputs = npy(np.zeros((2, length, 4), np.float32))
        return httpx.post(
            f"{url}/predict", content=inputs, headers={"Content-Type": "application/x-npy"}, timeout=PATIENCE
        )

    until(lambda: posted(9).status_code == 200)  # as long as the application before it answers, no length fits
    answered = posted(20)
    assert answered.status_code == 422
    expected = "the inputs have length 20 (time), expected one up to 9, which is the longest that the network takes"
    assert expected in answered.json()["detail"]
    assert posted(5).status_code == 200


def test_what_the_plain_server_refuses_is_refused_in_the_same_words(cluster: Any, url: str, tmp_path: Path) -> None:
    """After the others, for the same reason."""
    bundle, zeros = bundle_with_category(tmp_path / "bundle"), [[0.0] * 4]
    start(
        tmp_path / "bundle",
        RayOptions(stages=[StageScaling(cpus=0.1)] * 2, ingress_cpus=0.1, adapt=False, limits=PATIENT),
    )
    bodies: list[Any] = [{"inputs": {"x": zeros, "kind": [kind]}} for kind in (5, -1, 6, 2**62, 1.5, None, "a")]
    bodies += [{"inputs": {"x": zeros * 3, "kind": kinds}} for kinds in ([1, 6, 2], [1, 2], [[1], [2], [3]])]
    bodies += [{"inputs": {"x": [[1e300] * 4], "kind": [1]}}, {"inputs": {"x": zeros}}, {"inputs": zeros}, {}, []]
    asked = [("/predict", body) for body in bodies]
    asked += [(f"/predict?{query}", bodies[2]) for query in ("full=true", "exits=true", "full=x", "timeout_ms=0")]

    def answers(client: httpx.Client) -> list[tuple[int, Any]]:
        posted = [client.post(path, json=body) for path, body in asked]
        return [(one.status_code, one.json().get("detail")) for one in posted]

    with serving(bundle) as plain, connect(plain) as here, connect(url) as there:
        until(lambda: there.post("/predict", json=bodies[0]).status_code == 200)  # until then the one before answers
        expected = answers(here)
        assert answers(there) == expected
    assert [status for status, _ in expected] == [200, *[422] * (len(asked) - 1)]
    assert all("no row of the network's table (nn.Embedding): its rows are 0 to 5" in expected[n][1] for n in (1, 2, 3))
