"""The page of public names is complete."""

from __future__ import annotations

from api_page import PAGE, page

import eenet

_STALE = "out of date: run `PYTHONPATH=src:tests/support python tests/support/api_page.py`"


def test_every_public_name_is_on_the_page() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), _STALE
    for name in eenet.__all__:
        assert name == "__version__" or f"`{name}`" in page()
