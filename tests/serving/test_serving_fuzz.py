"""Whatever bytes come in, the decoders give arrays or say no: they never raise anything else, and never take long."""

from __future__ import annotations

import functools
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_toys import Grey, ToyServable, Words, scripted_logits

from eenet.errors import InvalidInputError
from eenet.serving.engine import Limits, RefusedError
from eenet.serving.http._body import form_files
from eenet.serving.http._decode import Decoder, npy_array

LIMITS = Limits(max_pixels=10_000, max_samples=8, max_text=200)
REFUSALS = {400, 413, 415, 422}


@functools.cache
def decoder(kind: str) -> Decoder:
    return Decoder(ToyServable({"array": None, "image": Grey(), "text": Words()}[kind]), LIMITS)


def tried(function: Any, *arguments: Any) -> Any:
    """What it gives, or None where it says no in one of the ways it may."""
    try:
        return function(*arguments)
    except RefusedError as error:
        said, status = str(error), error.status
    except InvalidInputError as error:
        said, status = str(error), 422
    assert status in REFUSALS
    assert 0 < len(said) < 1000
    return None


def check(arrays: Any) -> None:
    """What is let through is finite and bounded; its shape is the back end's to check."""
    if arrays is not None:
        for array in arrays.values():
            assert isinstance(array, np.ndarray)
            assert array.ndim >= 1
            assert 1 <= len(array) <= LIMITS.max_samples
            assert array.dtype.kind in "fiub"
            assert array.dtype.kind != "f" or np.isfinite(array).all()


def file_of(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
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


@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from(["array", "image", "text"]), content_type=TYPES, body=st.binary(max_size=300))
def test_any_bytes_of_any_type(kind: str, content_type: str, body: bytes) -> None:
    check(tried(decoder(kind), content_type, body))


@settings(max_examples=400, deadline=None)
@given(body=mutated("array"))
def test_damaged_npy(body: bytes) -> None:
    array = tried(npy_array, body)
    if array is not None:
        expected = np.load(io.BytesIO(body), allow_pickle=False)
        np.testing.assert_array_equal(array, expected)
    check(tried(decoder("array"), "application/x-npy", body))


@settings(max_examples=400, deadline=None)
@given(body=mutated("image"))
def test_damaged_images(body: bytes) -> None:
    check(tried(decoder("image"), "image/png", body))


@settings(max_examples=300, deadline=None)
@given(body=mutated("json"), kind=st.sampled_from(["array", "text"]))
def test_damaged_json(body: bytes, kind: str) -> None:
    check(tried(decoder(kind), "application/json", body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["x", "text", "a"]), inner, max_size=3),
    max_leaves=30,
)


@settings(max_examples=400, deadline=None)
@given(value=JSON, key=st.sampled_from(["inputs", "text", "texts", "more"]), kind=st.sampled_from(["array", "text"]))
def test_json_of_any_structure(value: Any, key: str, kind: str) -> None:
    check(tried(decoder(kind), "application/json", json.dumps({key: value}).encode()))


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
def test_numbers_that_fit_come_through_as_they_are(value: list[list[float]]) -> None:
    arrays = tried(decoder("array"), "application/json", json.dumps({"inputs": value}).encode())
    check(arrays)
    with np.errstate(over="ignore"):
        expected = np.array([[float(one) for one in row] for row in value]).astype(np.float32)
    if arrays is None:
        assert not np.isfinite(expected).all() or np.asarray(value).dtype == np.object_ or abs(expected).max() > 2**62
    else:
        np.testing.assert_array_equal(arrays["x"], expected)


@settings(max_examples=300, deadline=None)
@given(body=mutated("form") | st.binary(max_size=200), header=st.just("multipart/form-data; boundary=x") | st.text())
def test_damaged_forms(body: bytes, header: str) -> None:
    parts = tried(form_files, header, body, 3)
    if parts is not None:
        assert len(parts) <= 3
        check(tried(decoder("array").from_parts, parts))


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "WEBP"])
def test_an_image_larger_than_allowed_is_refused_in_every_format(form: str) -> None:
    body = file_of(Image.new("L", (101, 100)).convert("RGB"), form)
    with pytest.raises(RefusedError, match="101 x 100 pixels") as refused:
        decoder("image")("image/png", body)
    assert refused.value.status == 413


def test_formats_that_pillow_would_read_but_nobody_needs_are_refused() -> None:
    for form in ("TIFF", "PPM", "TGA", "ICO", "PCX"):
        with pytest.raises(RefusedError, match="cannot be read; send one of PNG"):
            decoder("image")("image/png", file_of(GRADIENT, form))
