"""Trained models by name: those that ship with eenet, and those in the folders of EENET_MODELS."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from eenet.errors import InvalidInputError

DESCRIPTION = "model.json"
"""The file by which the folder of a saved model is recognized."""

_FOLDERS = "EENET_MODELS"


def model_names() -> dict[str, Path]:
    """The models that can be loaded by a name, and their folders: those of EENET_MODELS, then those that ship."""
    given = [Path(part) for part in os.environ.get(_FOLDERS, "").split(os.pathsep) if part]
    package = Path(__file__).parent
    # In an installed package, and in the repository, where they stand beside the other results.
    ours = [package / "models" / "shipped", package.parents[1] / "results"]
    found: dict[str, Path] = {}
    for parent in (*given, *ours):
        for child in sorted(parent.iterdir()) if parent.is_dir() else []:
            folder = next((one for one in (child, child / "model") if (one / DESCRIPTION).is_file()), None)
            if folder is not None:
                found.setdefault(child.name, folder)
    return found


def find_model(name: str | Path, *, expected: str = "", holds: Sequence[str] = (DESCRIPTION,)) -> Path:
    """The folder of a model: a path that is there, its folder `model`, or a name of `model_names`.

    A path that is there always wins. Raises `InvalidInputError` where it has the name of a model and none of the files
    in `holds`, and for other names, which lists those that there are; `expected` says what else is taken.
    """
    path = Path(name)
    if path.name != str(name):
        return path
    if path.exists():
        folders = (path, path / "model")
        held = next((folder for folder in folders if any((folder / one).exists() for one in holds)), None)
        note = hidden_model(name)
        if held is None and note:
            raise InvalidInputError(f"{str(name)!r} in the current folder has no {' or '.join(holds)}{note}")
        return held or path
    known = model_names()
    if str(name) in known:
        return known[str(name)]
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidInputError(
        f"{str(name)!r} is neither a folder nor the name of a model{expected}; {hint}there are "
        f"{', '.join(known) or 'none'} (the environment variable {_FOLDERS} names folders with more of them)"
    )


def hidden_model(name: str | Path) -> str:
    """The end of an error about a path of the current folder that has the name of a model; "" for others."""
    path = Path(name)
    if path.name != str(name) or not path.exists() or str(name) not in model_names():
        return ""
    return "; for the trained model of this name run in another folder, or rename this one"
