"""The HTTP interface, by a real client on loopback."""

from __future__ import annotations

import copy
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bundles import bundle_up_to_nine, bundle_with_category, up_to_nine, with_category
from commands import TOKEN
from files import npy
from optional import import_or_skip
from PIL import Image
from serving_toys import (
    PATIENT,
    Gray,
    Spec,
    TableBackend,
    ToyModel,
    Words,
    connect,
    fitted,
    flat,
    listens,
    scripted_logits,
    scripted_policy,
    serving,
)
from waiting import PATIENCE, until

import eenet
from eenet.control import BudgetController
from eenet.errors import CutError, InvalidInputError
from eenet.runtime import Live
from eenet.scheduler import ThresholdPolicy
from eenet.serving.engine import EngineOptions, FixedBudget, LocalService, ServedModel
from eenet.serving.http import ServerOptions
from eenet.testing import toy_logits
from networks import conv_model

LEAVE_AT = [2, 0, 1, 0, 2]


def png(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def arrays() -> Iterator[httpx.Client]:
    with serving(ToyModel()) as url, connect(url) as client:
        yield client


@pytest.fixture(scope="module")
def images() -> Iterator[httpx.Client]:
    limits = replace(PATIENT, max_pixels=10_000, max_samples=4, max_body=100_000)
    with serving(ToyModel(Gray()), limits=limits) as url, connect(url) as client:
        yield client


@pytest.fixture(scope="module")
def texts() -> Iterator[httpx.Client]:
    with serving(ToyModel(Words()), limits=replace(PATIENT, max_text=50)) as url, connect(url) as client:
        yield client


def exits(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [prediction["exit"] for prediction in response.json()["predictions"]]


def post_npy(client: httpx.Client, array: np.ndarray, **more: Any) -> httpx.Response:
    return client.post("/predict", content=npy(array), headers={"Content-Type": "application/x-npy"}, **more)


def test_arrays_as_json_or_npy_one_or_many(arrays: httpx.Client) -> None:
    x = scripted_logits(LEAVE_AT, 3)
    response = arrays.post("/predict", json={"inputs": x.tolist()})
    assert exits(response) == LEAVE_AT
    answer = response.json()
    assert [p["class"] for p in answer["predictions"]] == [0, 1, 0, 1, 0]
    assert [p["name"] for p in answer["predictions"][:2]] == ["even", "odd"]
    assert [p["cost"] for p in answer["predictions"]] == [3.0, 1.0, 2.0, 1.0, 3.0]
    assert all(p["probability"] > 0.99 for p in answer["predictions"])
    assert (answer["full_cost"], answer["plain_cost"], answer["cost_unit"]) == (3.0, None, "ms")
    assert answer["milliseconds"] > 0
    assert exits(arrays.post("/predict", json={"inputs": x[1].tolist()})) == [0]
    assert exits(arrays.post("/predict", json={"inputs": {"x": x.tolist()}})) == LEAVE_AT
    assert exits(post_npy(arrays, x)) == LEAVE_AT
    assert exits(post_npy(arrays, x[2])) == [1]
    assert exits(post_npy(arrays, np.asfortranarray(x))) == LEAVE_AT
    assert exits(post_npy(arrays, x.astype(">f4"))) == LEAVE_AT
    assert exits(arrays.post("/predict", files={"x": ("x.npy", npy(x))})) == LEAVE_AT


def test_an_answer_has_the_cost_of_the_plain_network_beside_that_of_the_last_exit() -> None:
    model = ToyModel()
    model.costs = eenet.ExitCosts(model.costs.values, "ms", plain=2.5)
    with serving(model) as url, connect(url) as client:
        answer = client.post("/predict", json={"inputs": scripted_logits([0], 3).tolist()}).json()
        assert (answer["full_cost"], answer["plain_cost"]) == (3.0, 2.5)
        schema = client.get("/openapi.json").json()["components"]["schemas"]["Answer"]["properties"]
        assert "without exits; null where not known" in schema["plain_cost"]["description"]


def test_logits_come_back_as_npy_when_asked_for(arrays: httpx.Client) -> None:
    x = scripted_logits(LEAVE_AT, 3)
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    response = arrays.post("/predict", content=npy(x), headers=headers)
    logits = np.load(io.BytesIO(response.content), allow_pickle=False)
    np.testing.assert_array_equal(logits, x.reshape(5, 3, 2)[np.arange(5), LEAVE_AT])
    assert response.headers["x-exits"] == "2,0,1,0,2"


def test_the_early_exits_can_be_switched_off_for_a_request(arrays: httpx.Client) -> None:
    before = arrays.get("/metrics").text
    assert exits(post_npy(arrays, scripted_logits(LEAVE_AT, 3), params={"full": "true"})) == [2] * 5
    after = arrays.get("/metrics").text
    shares = [line for line in before.splitlines() if line.startswith("eenet_samples_total")]
    assert [line for line in after.splitlines() if line.startswith("eenet_samples_total")] == shares


def test_what_each_exit_says_of_one_sample(arrays: httpx.Client) -> None:
    x = scripted_logits([1], 3)
    before = arrays.get("/info").json()["traffic"]
    answer = post_npy(arrays, x, params={"exits": "true"}).json()
    assert answer["predictions"][0]["exit"] == 1
    first, second, last = answer["exits"]
    assert [one["exit"] for one in answer["exits"]] == [0, 1, 2]
    assert [one["leaves"] for one in answer["exits"]] == [False, True, True]
    assert first["score"] < first["threshold"] <= second["score"]  # probabilities, as the thresholds are shown
    assert (last["score"], last["threshold"]) == (None, None)
    assert {name: second[name] for name in answer["predictions"][0]} == answer["predictions"][0]
    assert "exits" not in post_npy(arrays, x).json()
    refused = post_npy(arrays, scripted_logits([0, 1], 3), params={"exits": "true"})
    assert (refused.status_code, refused.json()["detail"][:28]) == (422, "exits=true is for one sample")
    assert arrays.get("/info").json()["traffic"].keys() == before.keys()


def test_samples_that_no_exit_is_sure_of_are_handed_back() -> None:
    model = ToyModel()
    controller = FixedBudget(model.scheduler)
    controller.policy = replace(scripted_policy(3), abstains_below=5.0)
    x = scripted_logits([0, 3, 2], 3)  # no exit says anything of the second
    with serving(model, controller) as url, connect(url) as client:
        answers = post_npy(client, x).json()["predictions"]
        assert [(one["exit"], one["abstained"]) for one in answers] == [(0, False), (2, True), (2, False)]
        headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
        assert client.post("/predict", content=npy(x), headers=headers).headers["x-abstained"] == "0,1,0"
        shown = post_npy(client, x[1:2], params={"exits": "true"}).json()["exits"]
        assert [one["abstained"] for one in shown] == [False, False, True]
        assert "eenet_abstained_total 3.0" in client.get("/metrics").text


BAD_JSON: list[tuple[bytes, int, str]] = [
    (b"", 400, "not JSON"),
    (b"{", 400, "not JSON"),
    (b'{"inputs": NaN}', 400, "not JSON"),
    (b'{"inputs": [1, 2, 3, 4, 5, Infinity]}', 400, "not JSON"),
    (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "not JSON"),
    (b'{"inputs": ' + b"[" * 200 + b"1" + b"]" * 200 + b"}", 422, "nested too deeply"),
    (b"[]", 422, "the body is no JSON object; expected a JSON object with 'inputs' and nothing else"),
    (b"{}", 422, "the body has no key; expected"),
    (b'{"inputs": [1, 2], "more": 1}', 422, "the body has 'inputs', 'more'; expected"),
    (b'{"texts": ["a"]}', 422, "the body has 'texts'; expected a JSON object with 'inputs' and nothing else"),
    (
        b'{"x": [1, 2, 3, 4, 5, 6]}',
        422,
        """the body has 'x'; expected a JSON object with 'inputs' and nothing else, as {"inputs": {"x": ...}}""",
    ),
    (json.dumps({"k" * 1000: 1, **{str(n): n for n in range(50)}}).encode(), 422, f"has '{'k' * 60}...', '0', '1'"),
    (b'{"inputs": [[1, 2], [3]]}', 422, "ragged"),
    (b'{"inputs": [1, 2, 3, 4, 5, "6"]}', 422, "strings or objects"),
    (b'{"inputs": [1, 2, 3, 4, 5, null]}', 422, "does not hold numbers"),
    (b'{"inputs": [1, 2, 3, 4, 5, true]}', 422, "does not hold numbers"),
    (b'{"inputs": [1, 2, 3, 4, 5, {"a": 1}]}', 422, "strings or objects"),
    (b'{"inputs": [1, 2, 3, 4, 5, 1e300]}', 422, "which is no float32"),
    (b'{"inputs": [1, 2, 3, 4, 5, -3.5e38]}', 422, "which is no float32"),
    (b'{"inputs": [1, 2, 3, 4, 5]}', 422, "expected float32"),
    (b'{"inputs": []}', 422, "float32"),
    (b'{"inputs": [[]]}', 422, "float32"),
    (b'{"inputs": 1}', 422, "single number"),
    (b'{"inputs": {"y": [1, 2, 3, 4, 5, 6]}}', 422, "the network has no input 'y'; expected ['x'] and nothing else"),
    (b'{"inputs": {"x": [1, 2, 3, 4, 5, 6], "y": 1}}', 422, "the network has no input 'y'; expected ['x']"),
    (b'{"inputs": {}}', 422, "the inputs lack 'x'; expected ['x']"),
    (b'{"inputs": ' + json.dumps([[0.5] * 6] * 257).encode() + b"}", 413, "257 samples"),
    (b'{"inputs": "' + b"a" * 5_000_000 + b'"}', 413, "more than the 4194304 bytes"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD_JSON)
def test_json_that_cannot_be_used_gets_the_right_refusal(
    arrays: httpx.Client, body: bytes, status: int, message: str
) -> None:
    response = arrays.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, message in response.json()["detail"]) == (status, True), response.text


def test_strings_of_very_different_lengths_take_no_memory(arrays: httpx.Client) -> None:
    body = b'{"inputs": ["' + b"a" * 1_500_000 + b'"' + b',"b"' * 500_000 + b"]}"  # as an array: 3 terabytes
    response = arrays.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


def damaged(old: bytes, new: bytes) -> bytes:
    content = npy(scripted_logits([0], 3))
    assert old in content
    return content.replace(old, new)


BAD_NPY: list[tuple[bytes, int, str]] = [
    (b"", 400, "not an .npy file"),
    (b"PK\x03\x04" + bytes(100), 400, "not an .npy file"),
    (npy(scripted_logits([0], 3))[:-1], 400, "cut off"),
    (npy(scripted_logits([0], 3)) + b"x", 400, "cut off"),
    (npy(scripted_logits([0], 3))[:40], 400, "damaged"),
    (damaged(b"(1, 6), }          ", b"(999999999999, 6),}"), 400, "cut off"),
    (damaged(b"(1, 6), }", b"exit(1) }"), 400, "damaged"),
    (damaged(b"'<f4'", b"'|O4'"), 422, "expected numbers"),
    (damaged(b"'<f4'", b"'<f3'"), 400, "damaged"),
    (damaged(b"'<f4'", b"'<m8'"), 422, "expected numbers"),
    (npy(np.array([{"a": 1}], dtype=object)), 422, "expected numbers"),
    (npy(np.array(["a"])), 422, "expected numbers"),
    (npy(np.zeros(2, dtype=[("a", "f4")])), 422, "expected numbers"),
    (damaged(b"(1, 6), }", b"(-1, -6)}"), 400, "cut off"),
    (damaged(b"'<f4'", b"(((1" + b"(" * 1), 400, "damaged"),
    (b"\x93NUMPY\x03\x00" + npy(scripted_logits([0], 3))[8:], 400, "damaged"),
    (b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 65535, 400, "damaged"),
    (npy(np.zeros((2, 6))), 422, "float64"),
    (npy(np.zeros((2, 7), np.float32)), 422, "(2, 7)"),
    (npy(np.zeros((2, 2, 6), np.float32)), 422, "(2, 2, 6)"),
    (npy(np.full((2, 6), np.nan, np.float32)), 422, "NaN"),
    (npy(np.full((2, 6), np.inf, np.float32)), 422, "infinity"),
    (npy(np.zeros((0, 6), np.float32)), 422, "no sample"),
    (npy(np.zeros((257, 6), np.float32)), 413, "257 samples"),
    (npy(np.float32(1)), 422, "single number"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD_NPY)
def test_npy_that_cannot_be_used_gets_the_right_refusal(
    arrays: httpx.Client, body: bytes, status: int, message: str
) -> None:
    response = arrays.post("/predict", content=body, headers={"Content-Type": "application/x-npy"})
    assert (response.status_code, message in response.json()["detail"]) == (status, True), response.text


def test_images_one_or_many(images: httpx.Client) -> None:
    for content_type in ("image/png", "application/octet-stream", "image/png; charset=binary"):
        assert exits(images.post("/predict", content=png(250), headers={"Content-Type": content_type})) == [0]
    files = [("file", (f"{n}.png", png(level))) for n, level in enumerate((10, 250, 100))]
    assert exits(images.post("/predict", files=files)) == [2, 0, 1]
    assert exits(images.post("/predict", json={"inputs": scripted_logits([1, 2], 3).tolist()})) == [1, 2]


def test_images_that_cannot_be_used_get_the_right_refusal(images: httpx.Client) -> None:
    def post(content: bytes, content_type: str = "image/png") -> tuple[int, str]:
        response = images.post("/predict", content=content, headers={"Content-Type": content_type})
        return response.status_code, response.json()["detail"]

    assert post(b"") == (422, "image 0 cannot be read; send one of PNG, JPEG, WEBP, GIF, BMP")
    assert post(b"<svg/>", "image/svg+xml")[0] == 422
    assert post(png(9)[:45])[0] == 422
    assert post(png(9, (4000, 4000)))[0] == 413
    status, detail = post(png(9, (101, 100)))
    assert (status, "at most 10000" in detail) == (413, True)
    assert post(png(9, (1, 60))) == (422, "image 0 is 1 x 60, expected sides at most a factor of 50 apart")
    assert post(bytes(100_001))[0] == 413
    for n in range(5, 8):  # more than four files
        files = [("file", (f"{n}.png", png(1))) for _ in range(n)]
        assert images.post("/predict", files=files).status_code == 413


def test_a_bomb_of_a_hundred_megapixels_is_refused_unopened(images: httpx.Client) -> None:
    head = bytearray(png(0))
    head[16:24] = (30_000).to_bytes(4, "big") * 2  # the size that the header tells
    import zlib

    head[29:33] = zlib.crc32(bytes(head[12:29])).to_bytes(4, "big")
    began = time.process_time()
    response = images.post("/predict", content=bytes(head), headers={"Content-Type": "image/png"})
    assert response.status_code == 413, response.text
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("content_type", "body", "status", "message"),
    [
        ("multipart/form-data", b"", 400, "Missing boundary"),
        (
            "multipart/form-data; boundary=x; charset=undefined",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n',
            400,
            "cannot be read",
        ),
        ("multipart/form-data; boundary=x", b"", 400, "cut off"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data", 400, "cannot be read|cut off"),
        ("multipart/form-data; boundary=x", b"nonsense", 400, "cannot be read"),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 422, "holds no file"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nhi\r\n--x--\r\n',
            422,
            "no named file",
        ),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nhi\r\n--x--\r\n", 400, "must be provided"),
        ("text/plain", b"hello", 415, "'text/plain' is not taken; send application/json"),
        ("", b"hello", 415, "''"),
        ("application/x-www-form-urlencoded", b"a=b", 415, "is not taken"),
    ],
)
def test_forms_and_content_types_that_cannot_be_used(
    images: httpx.Client, content_type: str, body: bytes, status: int, message: str
) -> None:
    response = images.post("/predict", content=body, headers={"Content-Type": content_type})
    assert response.status_code == status, response.text
    assert any(one in response.json()["detail"] for one in message.split("|"))


def test_texts_one_or_many(texts: httpx.Client) -> None:
    assert exits(texts.post("/predict", json={"text": "one"})) == [0]
    assert exits(texts.post("/predict", json={"texts": ["one two three", "one", "one two"]})) == [2, 0, 1]
    assert exits(texts.post("/predict", content="één twee", headers={"Content-Type": "text/plain"})) == [1]
    assert exits(texts.post("/predict", json={"inputs": scripted_logits([1, 2], 3).tolist()})) == [1, 2]
    for body, status, message in (
        ({"text": ""}, 422, "no word"),
        ({"text": 1}, 422, "no string"),
        ({"texts": "one"}, 422, "no list of strings"),
        ({"texts": ["one", 2]}, 422, "no list of strings"),
        ({"texts": []}, 422, "no sample"),
        ({"texts": ["a"] * 300}, 413, "300 samples"),
        ({"text": "a" * 51}, 413, "51 characters"),
    ):
        response = texts.post("/predict", json=body)
        assert (response.status_code, message in response.json()["detail"]) == (status, True), response.text
    for content, content_type in ((b"\xff\xfe", "text/plain"), (b'{"text": "\\ud800"}', "application/json")):
        response = texts.post("/predict", content=content, headers={"Content-Type": content_type})
        assert response.status_code == 400


def test_health_readiness_info_and_metrics(arrays: httpx.Client) -> None:
    assert arrays.get("/health").json() == {"status": "alive"}
    assert arrays.get("/ready").json() == {"status": "ready"}
    post_npy(arrays, scripted_logits([0, 0, 1, 2], 3))
    info = arrays.get("/info").json()
    assert info["num_exits"] == 3
    assert info["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 6]}]
    assert (info["budget"], info["class_names"], info["kind"]) == (2.0, ["even", "odd"], "array")
    assert sum(info["traffic"]["exit_shares"]) == pytest.approx(1.0)
    assert 1.0 <= info["traffic"]["mean_cost"] <= 3.0
    response = arrays.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in response.text.splitlines()
        if not line.startswith("#")
    }
    assert values['eenet_requests_total{status="200"}'] >= 1
    assert values['eenet_samples_total{exit="0"}'] >= 2
    assert values['eenet_queue_samples{stage="1"}'] == 0
    assert values["eenet_budget"] == 2.0
    assert values["eenet_mean_cost"] == pytest.approx(info["traffic"]["mean_cost"])
    assert values["eenet_request_seconds_count"] >= 1
    assert values['eenet_batch_samples_count{stage="0"}'] >= 1


def test_recent_traffic_over_time_and_the_last_samples_with_their_scores() -> None:
    model = ToyModel()
    with serving(model, BudgetController(model.scheduler)) as url, connect(url) as client:
        empty = client.get("/traffic").json()
        assert (empty["points"], empty["samples"], empty["unit"]) == ([], [], "ms")
        assert empty["drift"]["samples"] == 0
        post_npy(client, scripted_logits([0, 1, 2, 1, 0, 0], 3))
        client.post("/predict?full=true", json={"inputs": scripted_logits([0], 3).tolist()})
        traffic = client.get("/traffic").json()
        assert sum(point["samples"] for point in traffic["points"]) == 6  # the run without exits does not count
        (point,) = traffic["points"]
        assert point["exit_shares"] == pytest.approx([1 / 2, 1 / 3, 1 / 6])
        assert point["mean_cost"] == pytest.approx((3 * 1 + 2 * 2 + 3) / 6)
        assert (point["budget"], point["handed_back"]) == (2.0, 0)
        assert abs(traffic["now"] - point["time"]) < 3600
        drift = traffic["drift"]
        assert drift["samples"] == 6
        shown = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        assert float(shown["eenet_drift_alarm"]) == drift["alarm"]
        assert float(shown["eenet_drift_p_value"]) == pytest.approx(drift["p_value"])
        planned = [float(shown[f'eenet_planned_exit_share{{exit="{k}"}}']) for k in range(3)]
        assert planned == pytest.approx(drift["planned"])
        samples = traffic["samples"][::-1]
        assert [one["exit"] for one in samples] == [0, 1, 2, 1]  # the first four of a request
        assert [len(one["scores"]) for one in samples] == [1, 2, 2, 2]
        for one in samples:
            passed = [score < t for score, t in zip(one["scores"], one["thresholds"], strict=False)]
            assert passed == [True] * min(one["exit"], 2) + [False] * (one["exit"] < 2)
            assert one["name"] == ("even", "odd")[one["class"]]
            assert 0.5 <= one["probability"] <= 1
            assert set(one) == {
                "time", "exit", "cost", "class", "name", "probability", "abstained", "scores", "thresholds"
            }  # fmt: skip


def test_the_last_samples_are_for_those_who_have_the_token_of_a_server_that_has_one() -> None:
    """Such a server can be reached from other machines, and these are the answers that others were given."""
    with serving(ToyModel(), token=TOKEN) as url, connect(url) as client:
        post_npy(client, scripted_logits([0, 1], 3))
        for headers in ({}, {"Authorization": "Bearer another one"}, {"Authorization": f"Basic {TOKEN}"}):
            traffic = client.get("/traffic", headers=headers).json()
            assert (len(traffic["points"]), traffic["samples"]) == (1, [])
        assert len(client.get("/traffic", headers={"Authorization": f"Bearer {TOKEN}"}).json()["samples"]) == 2


@pytest.mark.parametrize(
    ("show", "token", "direct", "forwarded"),
    [(None, None, 2, 0), (True, None, 2, 2), (False, None, 0, 0), (None, TOKEN, 2, 2), (False, TOKEN, 0, 0)],
)
def test_the_last_samples_are_not_for_those_behind_a_proxy_unless_asked(
    show: bool | None, token: str | None, direct: int, forwarded: int
) -> None:
    with serving(ToyModel(), token=token, show_samples=show) as url, connect(url) as client:
        post_npy(client, scripted_logits([0, 1], 3))
        known = {"Authorization": f"Bearer {token}"} if token else {}
        for header in (None, "X-Forwarded-For", "Forwarded", "X-Real-IP"):
            headers = known if header is None else {**known, header: "10.0.0.7"}
            traffic = client.get("/traffic", headers=headers).json()
            assert len(traffic["points"]) == 1
            assert len(traffic["samples"]) == (direct if header is None else forwarded)


def test_a_server_that_does_not_adapt_knows_no_drift(arrays: httpx.Client) -> None:
    assert arrays.get("/traffic").json()["drift"] is None
    assert "eenet_drift_alarm NaN" in arrays.get("/metrics").text


def test_unknown_paths_methods_and_parameters(arrays: httpx.Client) -> None:
    assert arrays.get("/nothing").status_code == 404
    response = arrays.get("/predict")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    x = scripted_logits([0], 3)
    for params in ({"timeout_ms": "0"}, {"timeout_ms": "soon"}, {"full": "perhaps"}):
        response = post_npy(arrays, x, params=params)
        assert response.status_code == 422
        assert response.json()["detail"].startswith("query.")


class SlowBackend(TableBackend):
    """Waits before a stage until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.go = threading.Event()
        self.entered = threading.Event()

    def run(self, k: int, live: Live, *, observe: bool) -> Any:
        self.entered.set()
        assert self.go.wait(PATIENCE)
        return super().run(k, live, observe=observe)


def test_a_request_past_its_deadline_gets_504_and_leaves_the_queue() -> None:
    backend = SlowBackend()
    with serving(ToyModel(backend=backend)) as url, connect(url) as client:
        response = post_npy(client, scripted_logits([2], 3), params={"timeout_ms": "50"})
        assert response.status_code == 504
        assert "within 0.05 s" in response.json()["detail"]
        backend.go.set()
        assert exits(post_npy(client, scripted_logits([2], 3))) == [2]
        # The late one went no further than stage 0, which on a busy machine it may not even have reached in time.
        assert [k for k, _ in backend.calls][-3:] == [0, 1, 2]
        assert [k for k, _ in backend.calls][:-3] in ([0], [])


def test_the_request_of_a_client_that_disconnects_is_cancelled() -> None:
    backend = SlowBackend()
    with serving(ToyModel(backend=backend)) as url:
        body = npy(scripted_logits([2], 3))
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n"
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80), timeout=PATIENCE) as leaves:
            leaves.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert backend.entered.wait(PATIENCE)
        with connect(url) as client:
            until(lambda: 'status="499"' in client.get("/metrics").text)
            backend.go.set()
            assert exits(post_npy(client, scripted_logits([1], 3))) == [1]
        assert [k for k, _ in backend.calls] == [0, 0, 1]


def test_a_full_server_answers_503_with_a_time_to_come_back() -> None:
    backend = SlowBackend()
    engine = EngineOptions(max_batch=2, max_samples=4, max_wait=0.0)
    with serving(ToyModel(backend=backend), engine=engine) as url, connect(url) as client:
        x = scripted_logits([0, 0], 3)
        with ThreadPoolExecutor(2) as pool:
            accepted = [pool.submit(post_npy, client, x) for _ in range(2)]
            until(lambda: client.get("/info").json()["traffic"]["waiting"][0] == 2)
            refused = post_npy(client, x)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "the limit is 4" in refused.json()["detail"]
            too_many = post_npy(client, scripted_logits([0] * 5, 3))
            assert (too_many.status_code, "send it in parts" in too_many.json()["detail"]) == (422, True)
            backend.go.set()
            assert [exits(one.result()) for one in accepted] == [[0, 0]] * 2
        assert exits(post_npy(client, x)) == [0, 0]


def go_when_it_listens_no_more(url: str, go: threading.Event) -> None:
    try:
        until(lambda: not listens(url))
    finally:
        go.set()


def test_stopping_answers_every_accepted_request() -> None:
    backend = SlowBackend()
    with ThreadPoolExecutor(9) as pool:
        with serving(ToyModel(backend=backend), engine=EngineOptions(max_batch=2, max_wait=0.0)) as url:
            client = connect(url)
            accepted = [pool.submit(post_npy, client, scripted_logits([0], 3))]
            assert backend.entered.wait(PATIENCE)
            accepted += [pool.submit(post_npy, client, scripted_logits([k % 3], 3)) for k in range(1, 8)]
            with connect(url) as other:
                until(lambda: sum(other.get("/info").json()["traffic"]["waiting"]) == 7)
            pool.submit(go_when_it_listens_no_more, url, backend.go)
        assert [exits(one.result()) for one in accepted] == [[k % 3] for k in range(8)]
        client.close()


def test_a_network_that_fails_ends_its_request_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    backend = SlowBackend()
    with serving(ToyModel(backend=backend)) as url, connect(url) as client:
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(post_npy, client, scripted_logits([0], 3))
            assert backend.entered.wait(PATIENCE)
            bad = pool.submit(post_npy, client, np.full((1, 6), TableBackend.poison, np.float32))
            good = pool.submit(post_npy, client, scripted_logits([2], 3))
            until(lambda: client.get("/info").json()["traffic"]["waiting"][0] == 2)
            backend.go.set()
            assert exits(first.result()) == [0]
            assert exits(good.result()) == [2]
            assert bad.result().status_code == 500
            assert "poison" not in bad.result().text
        assert client.get("/health").status_code == 200
        assert 'eenet_failed_batches_total{stage="0"} 2.0' in client.get("/metrics").text
    assert "a poisonous sample" in caplog.text


@pytest.mark.parametrize("served", ["a bundle", "a model in PyTorch"])
def test_inputs_that_are_longer_than_the_network_takes_are_refused_with_the_longest(
    served: str, tmp_path: Path
) -> None:
    import_or_skip("onnxscript")
    bundle = bundle_up_to_nine(tmp_path / "bundle")
    model = bundle if served == "a bundle" else ServedModel(up_to_nine()[0], bundle.scheduler)
    with serving(model) as url, connect(url) as client:
        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(post_npy, client, np.zeros((2, n, 4), np.float32)) for n in (9, 20, 10, 5)]
            answers = [one.result() for one in sent]
        assert [one.status_code for one in answers] == [200, 422, 422, 200]
        for length, answer in ((20, answers[1]), (10, answers[2])):
            expected = f"the inputs have length {length} (time), expected one up to 9, which is the longest that the"
            assert expected in answer.json()["detail"]


@pytest.mark.parametrize("served", ["a bundle", "a model in PyTorch"])
def test_a_number_that_is_no_row_of_a_table_is_refused(served: str, tmp_path: Path) -> None:
    import_or_skip("onnxscript")
    bundle = bundle_with_category(tmp_path / "bundle")
    model = bundle if served == "a bundle" else ServedModel(with_category()[0], bundle.scheduler)
    with serving(model) as url, connect(url) as client:
        for kind, status in ((5, 200), (-1, 422), (6, 422)):
            answer = client.post("/predict", json={"inputs": {"x": [[0.0] * 4], "kind": [kind]}})
            assert answer.status_code == status, answer.text
            assert status == 200 or "no row of the network's table (nn.Embedding)" in answer.json()["detail"]


class Budgets:
    """A controller that a test can look into."""

    def __init__(self) -> None:
        self.policy = scripted_policy(3)
        self.budget = 2.0
        self.seen: list[int] = []
        self.budgets: list[Any] = []

    def observe(self, exits: Any, policy: ThresholdPolicy | None = None) -> None:
        assert policy is self.policy
        self.seen += exits.tolist()

    def observe_costs(self, costs: Any, policy: ThresholdPolicy | None = None) -> None:
        """Of requests without an answer."""

    def set_budget(self, budget: Any) -> None:
        if budget == "40%":
            raise InvalidInputError("the smallest feasible budget is 1.5 ms")
        self.budgets.append(budget)
        self.budget = 3.0
        self.policy = scripted_policy(3)
        self.policy.enabled[:] = False


def test_the_budget_changes_while_running_with_the_token() -> None:
    budgets = Budgets()
    model = ToyModel()
    with serving(model, budgets, token=TOKEN) as url, connect(url) as client:
        assert exits(post_npy(client, scripted_logits([0, 1, 2], 3))) == [0, 1, 2]
        assert budgets.seen == [0, 1, 2]
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            response = client.put("/budget", json={"budget": 2.5}, headers=headers)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        for body, status in (
            (b"{", 400),
            (b"[]", 422),
            (b'{"budget": true}', 422),
            (b'{"budget": "40%"}', 422),
            (b'{"budget": 1, "more": 1}', 422),
        ):
            assert client.put("/budget", content=body).status_code == status, body
        assert client.get("/info").json()["budget"] == 2.0
        response = client.put("/budget", json={"budget": "100%"})
        assert response.json() == {"budget": 3.0, "unit": "ms"}
        assert budgets.budgets == ["100%"]
        assert exits(post_npy(client, scripted_logits([0, 1, 2], 3))) == [2, 2, 2]
        assert "eenet_budget 3.0" in client.get("/metrics").text


def test_without_a_token_the_budget_cannot_be_changed(arrays: httpx.Client) -> None:
    response = arrays.put("/budget", json={"budget": 2.5}, headers={"Authorization": "Bearer None"})
    assert response.status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a_host_beyond_loopback_needs_a_token(host: str) -> None:
    with pytest.raises(InvalidInputError, match="set EENET_TOKEN"):
        ServerOptions(host=host)
    assert ServerOptions(host=host, token=TOKEN).host == host
    with pytest.raises(InvalidInputError, match="fewer than 8 characters"):
        ServerOptions(token="short")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert ServerOptions(host=host).token is None


def test_a_model_in_pytorch_is_served_as_it_is() -> None:
    model = conv_model(1)
    import torch

    x = torch.randn(24, 3, 8, 8)
    scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0, 3.0]), budget=1.8)
    expected = eenet.AdaptiveModel(model, scheduler)(x)
    with serving(ServedModel(model, scheduler)) as url, connect(url) as client:
        answer = post_npy(client, x.numpy())
        assert exits(answer) == expected.exits.tolist()
        assert [p["class"] for p in answer.json()["predictions"]] == expected.logits.argmax(1).tolist()
        assert client.get("/info").json()["exits"] == ["first", "second", "output"]
    changed = copy.deepcopy(model)  # `conv_model` gives every test the same one
    changed.backbone.second = torch.nn.Identity()
    with pytest.raises(CutError, match="module 'second' was replaced by another Identity"):
        ServedModel(changed, scheduler)


def test_several_inputs_go_by_name() -> None:
    class Two(TableBackend):
        def enter(self, inputs: Any) -> Live:
            return super().enter({"x": inputs["x"] + inputs["shift"].astype(np.float32)})

    model = ToyModel(backend=Two(3, 2))
    model.inputs = [Spec("x", "float32", ("batch", 6)), Spec("shift", "int64", ("batch", 1))]
    x = scripted_logits([0, 2], 3).tolist()
    with serving(model) as url, connect(url) as client:
        assert exits(client.post("/predict", json={"inputs": {"x": x, "shift": [[3], [4]]}})) == [0, 2]
        assert exits(client.post("/predict", json={"inputs": {"x": x[0], "shift": [3]}})) == [0]
        files = {"x": ("x", npy(np.array(x, np.float32))), "shift": ("shift", npy(np.array([[3], [4]])))}
        assert exits(client.post("/predict", files=files)) == [0, 2]
        for inputs, message in (
            (x, "has the inputs ['shift', 'x']"),
            ({"x": x}, "the inputs lack 'shift'; expected ['shift', 'x']"),
            ({"x": x, "shift": [[3], [4]], "scale": [1]}, "the network has no input 'scale'; expected ['shift', 'x']"),
            ({"x": x, "shift": [[0.5], [1]]}, "does not hold whole numbers"),
            ({"x": x, "shift": [[2**63], [1]]}, "which is no int64|does not hold whole numbers"),
        ):
            response = client.post("/predict", json={"inputs": inputs})
            assert response.status_code == 422
            assert any(one in response.json()["detail"] for one in message.split("|")), response.text


def test_several_workers_run_stages_at_the_same_time() -> None:
    together = threading.Barrier(2)

    class Meeting(TableBackend):
        def run(self, k: int, live: Live, *, observe: bool) -> Any:
            together.wait(PATIENCE)  # broken, which is an error, unless the other worker is here too
            return super().run(k, live, observe=observe)

    model = ToyModel(backend=Meeting(3, 2))
    engine = EngineOptions(max_batch=1, max_wait=0.0)
    with (
        serving(model, workers=2, engine=engine) as url,
        connect(url) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        both = [pool.submit(post_npy, client, scripted_logits([0], 3)) for _ in range(2)]
        assert [exits(one.result()) for one in both] == [[0], [0]]
    with pytest.raises(InvalidInputError, match="workers is 0"):
        LocalService(model, Budgets(), workers=0)


def test_the_budget_is_held_in_traffic_that_is_harder_than_the_calibration_set() -> None:
    logits, labels = toy_logits(600, 3, 2, seed=1)
    scheduler, costs = fitted(eenet.MaxProbability, logits, labels, 0.4)
    hard = flat(0.3 * toy_logits(1200, 3, 2, seed=2)[0])
    model = ToyModel()
    model.scheduler, model.costs = scheduler, costs
    spent = {}
    for controller in (FixedBudget(scheduler), BudgetController(scheduler)):
        with serving(model, controller) as url, connect(url) as client:
            taken: list[int] = []
            for start in range(0, len(hard), 10):
                taken += exits(post_npy(client, hard[start : start + 10]))
        spent[type(controller)] = float(costs.values[taken[400:]].mean())
    assert spent[FixedBudget] > 1.1 * scheduler.budget
    assert spent[BudgetController] == pytest.approx(scheduler.budget, rel=0.05)


def test_a_budget_that_cannot_be_met_is_refused_and_changes_nothing() -> None:
    logits, labels = toy_logits(600, 3, 2, seed=1)
    model = ToyModel()
    model.scheduler, model.costs = fitted(eenet.MaxProbability, logits, labels, 0.4)
    controller = BudgetController(model.scheduler)
    with serving(model, controller, token=TOKEN) as url, connect(url) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        for budget in (-1, 0, "nonsense", "10%", 0.5):
            assert client.put("/budget", json={"budget": budget}).status_code == 422, budget
        assert client.get("/info").json()["budget"] == model.scheduler.budget
        assert client.put("/budget", json={"budget": "90%"}).json()["budget"] == pytest.approx(2.7)
        assert client.put("/budget", json={"budget": 1e9}).json()["budget"] == 3.0  # no more can be spent
