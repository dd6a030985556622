"""The page of public names is complete."""

from __future__ import annotations

from api_page import PAGE, page
from optional import import_or_skip

import eenet

_STALE = "out of date: run `PYTHONPATH=src:tests/support python tests/support/api_page.py`"


def test_every_public_name_is_on_the_page() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), _STALE
    for name in eenet.__all__:
        assert name == "__version__" or f"`{name}`" in page()


def test_the_page_of_what_works_with_what_is_what_was_found() -> None:
    for library in ("torch", "onnx", "onnxscript", "onnxruntime"):
        import_or_skip(library)
    import matrix_page

    found = matrix_page.page()
    assert matrix_page.PAGE.read_text(encoding="utf-8") == found, "out of date: run tests/support/matrix_page.py"
