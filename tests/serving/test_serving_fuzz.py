"""Any bytes become arrays or a refusal with the right status; nothing else is raised."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from files import npy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_toys import Gray, InProcess, Spec, Words, scripted_logits

from eenet.serving.engine import Limits

LIMITS = Limits(max_pixels=10_000, max_samples=8, max_text=200)
REFUSALS = {400, 413, 415, 422}
KINDS: dict[str, Any] = {"array": None, "image": Gray(), "text": Words()}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, InProcess]]:
    made = {kind: InProcess(preprocessing, LIMITS) for kind, preprocessing in KINDS.items()}
    yield made
    for server in made.values():
        server.close()


def tried(server: InProcess, content_type: str, body: bytes) -> Any:
    """The arrays that a body became, which are finite and bounded; None where it was refused."""
    status, answer = server.post(content_type, body)
    if status != 200:
        assert status in REFUSALS, answer
        assert 0 < len(json.loads(answer)["detail"]) < 1000
    arrays = server.decoded
    assert status != 200 or arrays is not None
    for array in (arrays or {}).values():
        assert isinstance(array, np.ndarray)
        assert array.ndim >= 1
        assert 1 <= len(array) <= LIMITS.max_samples
        assert array.dtype.kind in "fiub"
        assert array.dtype.kind != "f" or np.isfinite(array).all()
    return arrays


def file_of(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


GRADIENT = Image.fromarray(np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3))
SEEDS = {
    "array": [npy(scripted_logits([0, 1], 3)), npy(np.zeros((2, 6), ">f8")), npy(np.asfortranarray(np.ones((3, 6))))],
    "image": [file_of(GRADIENT, form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP")],
    "json": [json.dumps({"inputs": scripted_logits([0, 2], 3).tolist()}).encode(), b'{"text": "hello there"}'],
    "form": [
        b'--x\r\nContent-Disposition: form-data; name="x"; filename="a"\r\n\r\n'
        + npy(scripted_logits([0], 3))
        + b"\r\n--x--\r\n"
    ],
}


@st.composite
def mutated(draw: st.DrawFn, kind: str) -> bytes:
    """A good body with some bytes changed, cut out, doubled or put in."""
    body = bytearray(draw(st.sampled_from(SEEDS[kind])))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(body) - 1)))
        change = draw(st.sampled_from(["set", "cut", "double", "insert"]))
        if change == "set" and body:
            body[at] = draw(st.integers(0, 255))
        elif change == "cut":
            del body[at : at + draw(st.integers(1, 40))]
        elif change == "double":
            body[at:at] = body[at : at + draw(st.integers(1, 40))]
        else:
            body[at:at] = draw(st.binary(max_size=12))
    return bytes(body)


TYPES = st.sampled_from(
    ["application/json", "application/x-npy", "image/png", "application/octet-stream", "text/plain", "", "a/b"]
)


Servers = dict[str, InProcess]


@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), content_type=TYPES, body=st.binary(max_size=300))
def test_any_bytes_of_any_type(servers: Servers, kind: str, content_type: str, body: bytes) -> None:
    tried(servers[kind], content_type, body)


@settings(max_examples=600, deadline=None)
@given(body=mutated("array"))
def test_damaged_npy(servers: Servers, body: bytes) -> None:
    arrays = tried(servers["array"], "application/x-npy", body)
    if arrays is not None:
        expected = np.load(io.BytesIO(body), allow_pickle=False)
        np.testing.assert_array_equal(arrays["x"].reshape(expected.shape), expected)


HEADS = st.text(alphabet="{}[]()'\",:-+*.0123456789LxjeTrueFalsedcpotnhi_< \n\\#", max_size=200) | st.text(max_size=100)


@settings(max_examples=400, deadline=None)
@given(head=HEADS, version=st.integers(0, 4), rest=st.binary(max_size=50))
def test_any_head_of_an_npy_file(servers: Servers, head: str, version: int, rest: bytes) -> None:
    text = head.encode()
    length = len(text).to_bytes(2 if version < 2 else 4, "little")
    tried(servers["array"], "application/x-npy", b"\x93NUMPY" + bytes([version, 0]) + length + text + rest)


@pytest.mark.parametrize(
    "head",
    [
        *(b"(" * 900, b"-" * 900 + b"1", b"[" * 400 + b"]" * 400, b"{'a': " * 150, b"1L", b"\\\n", b"'''", b"9" * 900),
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 6L), }",
        b"{'descr': [('a', '<f4'), ('b', ('<f4', (" + b"9" * 300 + b",)))], 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<f4', 'fortran_order': 1, 'shape': (1, 6), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': [1, 6], }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 70 + b"), }",
    ],
)
def test_heads_that_are_hard_to_read(servers: Servers, head: bytes) -> None:
    body = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(24)
    assert tried(servers["array"], "application/x-npy", body) is None


@settings(max_examples=400, deadline=None)
@given(body=mutated("image"))
def test_damaged_images(servers: Servers, body: bytes) -> None:
    tried(servers["image"], "image/png", body)


@settings(max_examples=300, deadline=None)
@given(body=mutated("json"), kind=st.sampled_from(["array", "text"]))
def test_damaged_json(servers: Servers, body: bytes, kind: str) -> None:
    tried(servers[kind], "application/json", body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["x", "text", "a"]), inner, max_size=3),
    max_leaves=30,
)


@settings(max_examples=400, deadline=None)
@given(value=JSON, key=st.sampled_from(["inputs", "text", "texts", "more"]), kind=st.sampled_from(["array", "text"]))
def test_json_of_any_structure(servers: Servers, value: Any, key: str, kind: str) -> None:
    tried(servers[kind], "application/json", json.dumps({key: value}).encode())


@settings(max_examples=300, deadline=None)
@given(
    value=st.lists(
        st.lists(
            st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70), min_size=6, max_size=6
        ),
        min_size=1,
        max_size=8,
    )
)
def test_numbers_that_fit_are_taken_as_they_are(servers: Servers, value: list[list[float]]) -> None:
    arrays = tried(servers["array"], "application/json", json.dumps({"inputs": value}).encode())
    with np.errstate(over="ignore"):
        expected = np.array([[float(one) for one in row] for row in value]).astype(np.float32)
    if arrays is None:
        assert not np.isfinite(expected).all() or np.asarray(value).dtype == np.object_ or abs(expected).max() > 2**62
    else:
        np.testing.assert_array_equal(arrays["x"], expected)


@pytest.mark.parametrize(
    ("given", "taken"),
    [([[1, 0]], [[True, False]]), ([[True, False]], [[True, False]]), ([[1, 2]], None), ([[1.0, 0.0]], None)],
)
def test_a_mask_may_be_of_zeros_and_ones(given: list[Any], taken: list[Any] | None) -> None:
    server = InProcess(None, LIMITS, Spec("mask", "bool", ("batch", 2)))
    inputs = {"x": scripted_logits([0], 3).tolist(), "mask": given}
    try:
        arrays = tried(server, "application/json", json.dumps({"inputs": inputs}).encode())
    finally:
        server.close()
    if taken is None:
        assert arrays is None
    else:
        assert arrays["mask"].dtype == np.bool_
        assert arrays["mask"].tolist() == taken


HEADERS = st.just("; boundary=x") | st.text() | st.text().map("; boundary=x; charset={}".format)
CODECS = ["undefined", "idna", "punycode", "hex", "zlib", "utf-16", "utf-7", "unicode_escape", "raw_unicode_escape"]


@settings(max_examples=400, deadline=None)
@given(body=mutated("form") | st.binary(max_size=200), header=HEADERS, kind=st.sampled_from(sorted(KINDS)))
def test_damaged_forms(servers: Servers, body: bytes, header: str, kind: str) -> None:
    tried(servers[kind], f"multipart/form-data{header}", body)


@pytest.mark.parametrize("codec", CODECS)
def test_forms_in_unusual_charsets(servers: Servers, codec: str) -> None:
    for body in (SEEDS["form"][0], SEEDS["form"][0].replace(b'"x"', b'"\xff\xfe\\x"')):
        tried(servers["array"], f"multipart/form-data; boundary=x; charset={codec}", body)


def test_a_form_that_holds_too_much_is_refused(servers: Servers) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="x"; filename="a"\r\n\r\n\r\n'
    field = b'--x\r\nContent-Disposition: form-data; name="x"\r\n\r\nhi\r\n'
    header, end = "multipart/form-data; boundary=x", b"--x--\r\n"
    for form in (part * 9, field * 9, part * 4 + field * 4 + part):
        assert servers["array"].post(header, form + end)[0] in (413, 422)
    assert servers["array"].post(header, part * 9 + end) == (413, '{"detail":"the form has more than 8 files"}')
    for lines in (b"a: " + b"b" * 10_000 + b"\r\n", b"a: b\r\n" * 1000):
        assert servers["array"].post(header, b"--x\r\n" + lines + part[5:] + end)[0] == 400


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "WEBP"])
def test_an_image_larger_than_allowed_is_refused_in_every_format(servers: Servers, form: str) -> None:
    body = file_of(Image.new("L", (101, 100)).convert("RGB"), form)
    status, answer = servers["image"].post("image/png", body)
    assert (status, "101 x 100 pixels" in answer) == (413, True)


def test_formats_that_pillow_reads_but_the_server_does_not_take_are_refused(servers: Servers) -> None:
    for form in ("TIFF", "PPM", "TGA", "ICO", "PCX"):
        status, answer = servers["image"].post("image/png", file_of(GRADIENT, form))
        assert (status, "cannot be read; send one of PNG" in answer) == (422, True)
