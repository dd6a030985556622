"""Bundles that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bundles import CASES, Case


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives case and folder of an exported bundle by the name of its case; each is exported once."""
    made: dict[str, tuple[Case, Path]] = {}

    def give(name: str) -> tuple[Case, Path]:
        if name not in made:
            case, folder = CASES[name](), tmp_path_factory.mktemp("bundles") / name
            case.export(folder)
            made[name] = (case, folder)
        return made[name]

    return give
