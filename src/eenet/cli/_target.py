"""The model that a command is about: a demo folder, a saved model, or a function of the caller's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.models import MultiExitModel


def run_files(target: str) -> Path | None:
    """Where a folder of `eenet demo`, `train` or `reproduce` has its model and inputs for it; None for others."""
    work = Path(target) / "work"
    return work if (work / "model" / "model.json").is_file() else None


def load_target(target: str, *, allow: Sequence[str] = ()) -> tuple[MultiExitModel, Any]:
    """A model and an example input; raises `InvalidInputError` for a target that gives none.

    `allow` lists the import paths that a saved model may call to build a network of the caller's own.
    """
    from eenet.models import MultiExitModel

    if ":" not in target or Path(target).is_dir():
        if not Path(target).is_dir():
            raise InvalidInputError(
                f"{target!r} is neither a folder nor package.module:function; run eenet demo first, or name a function "
                "that returns a MultiExitModel"
            )
        work = run_files(target)
        model = _saved(target if work is None else str(work / "model"), allow)
        args, kwargs = model.staged.example
        return model, args or kwargs
    made = _function(target)()
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], MultiExitModel):
        return made
    if isinstance(made, MultiExitModel):
        return made, _example_of(made, target)
    raise InvalidInputError(
        f"{target} returned {type(made).__name__}, expected a MultiExitModel (see eenet.attach) or (model, example)"
    )


def _saved(folder: str, allow: Sequence[str]) -> MultiExitModel:
    """What `save_pretrained` wrote; its network may be a function of the current folder, where it is allowed."""
    from eenet.models import MultiExitModel

    with current_folder_importable():
        return MultiExitModel.from_pretrained(folder, allow=allow)


def _function(target: str) -> Any:
    module_name, _, name = target.partition(":")
    try:
        with current_folder_importable():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"{target!r}: there is no module {error.name!r} in the current folder or among the installed packages"
        ) from error
    except ValueError as error:
        raise InvalidInputError(f"{target!r} cannot be read ({error}); give package.module:function") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InvalidInputError(f"{target!r}: module {module_name!r} has no function {name!r}")
    return function


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Modules of the current folder can be imported, as with `python -m`."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _example_of(model: MultiExitModel, target: str) -> Any:
    """Noise of the shape the model was cut with, where that leaves no choice."""
    import torch

    inputs = model.staged.inference_stages[0].inputs
    shape = inputs[0].shape[1:]
    if len(inputs) != 1 or not inputs[0].dtype.is_floating_point or not all(isinstance(size, int) for size in shape):
        raise InvalidInputError(
            f"{target} returned a model whose input cannot be made up; return (model, example) with an example input"
        )
    return torch.randn(4, *(int(size) for size in shape), dtype=inputs[0].dtype)
