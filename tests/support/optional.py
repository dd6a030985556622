"""Optional libraries for tests, imported as the product does."""

from __future__ import annotations

from typing import Any

import pytest

from eenet._extras import require
from eenet.errors import MissingExtraError


def import_or_skip(name: str) -> Any:
    """Import torchvision, timm, transformers or one of their modules; skip the test where it is not installed."""
    try:
        return require(name, "dev")
    except MissingExtraError as error:
        pytest.skip(str(error))
