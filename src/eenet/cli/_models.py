"""The model that a command is about: a saved one, a trained one by its name, a folder of a run, or a function."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from eenet._files import sha256_of
from eenet._pretrained import DESCRIPTION, find_model, model_names
from eenet.cli._console import waiting
from eenet.errors import FileFormatError, InvalidInputError, kind_of

if TYPE_CHECKING:
    from eenet.models import MultiExitModel

OR_FUNCTION = ", and no package.module:function"
_MAKING = "tracing the network, cutting it into stages and checking them"


@dataclass(frozen=True)
class ModelFiles:
    """Where the model of a folder is, and what there may be beside it.

    `inputs` is the folder of classes.txt, preprocessing.json, samples.npz and calibration.npz, `records` that of
    calibration.safetensors, test.safetensors and metrics.json.
    """

    model: Path
    inputs: Path
    records: Path

    def input(self, name: str) -> Path | None:
        """A file of `inputs`, where it is there."""
        path = self.inputs / name
        return path if path.is_file() else None

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file that a bundle of the model can be made of, by its path."""
        folders = {"model": self.model.rglob("*"), "inputs": self._described()}
        found = {f"records/{name}": self.records / name for name in ("calibration.safetensors", "metrics.json")}
        for kind, files in folders.items():
            found |= {f"{kind}/{file.relative_to(getattr(self, kind)).as_posix()}": file for file in files}
        return {name: sha256_of(file) for name, file in sorted(found.items()) if file.is_file()}

    def _described(self) -> Iterator[Path]:
        """What says how inputs are made: the files, and the tokenizer in its folder."""
        yield from (self.inputs / name for name in ("classes.txt", "preprocessing.json", "samples.npz"))
        yield from (self.inputs / "preprocessing").rglob("*")

    def calibration(self) -> Path | None:
        """The calibration records, where they are there."""
        path = self.records / "calibration.safetensors"
        return path if path.is_file() else None

    def batch_size(self) -> int:
        """The batch size that the costs of the model's results are of; 1 where nothing says so."""
        path = self.records / "metrics.json"
        if not path.is_file():
            return 1
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["costs"]["batch_size"] or 1)
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(
                f"{str(path)!r} is not what eenet reproduce writes ({error!r} is missing or wrong)"
            ) from error


def model_files(target: str | Path) -> ModelFiles | None:
    """The files of a saved model, a trained one by its name, or a folder of `eenet demo`, `train` or `reproduce`.

    None for what is no such folder, such as a bundle.
    """
    folder = Path(target)
    work = folder / "work"
    if (work / "model" / DESCRIPTION).is_file():
        return ModelFiles(work / "model", work, folder)
    if (folder / "manifest.json").is_file():
        return None
    # What is kept of a run when its work is deleted has the same form as a model that ships.
    known = folder if folder.exists() else model_names().get(str(target), folder)
    places = (folder, folder / "model", known)
    model = next((one for one in places if (one / DESCRIPTION).is_file()), None)
    return None if model is None else ModelFiles(model, model, model)


def file_beside(target: Path, name: str) -> Path | None:
    """A file of records or costs beside a trained model, where the target is one, by its name or folder, and has it."""
    files = None if target.is_file() else model_files(target)
    path = None if files is None else files.records / name
    return path if path is not None and path.is_file() else None


def records_of(targets: Sequence[Path], costs: Sequence[str] | None, part: str) -> tuple[list[Path], list[str] | None]:
    """Files of records, with trained models replaced by their records of that part, and what the exits of one cost."""
    paths = [_records_or_file(target, part) for target in targets]
    known = file_beside(targets[0], "metrics.json") if len(targets) == 1 and paths[0] != targets[0] else None
    given = [] if known is None else [str(known)]
    return paths, list(costs or given) or None


def _records_or_file(target: Path, part: str) -> Path:
    if not target.suffix and not target.exists():
        find_model(target, expected=", and no file of predictions")
    return file_beside(target, f"{part}.safetensors") or target


def load_target(target: str, *, allow: Sequence[str] = (), backbone: str | None = None) -> tuple[MultiExitModel, Any]:
    """A model and an example input; raises `InvalidInputError` for a target that gives none.

    `allow` lists the import paths that a saved model may call to build a network of the caller's own; `backbone` says
    where the weights of its network are, where they are not in it.
    """
    from eenet.models import MultiExitModel

    if ":" not in target or Path(target).is_dir():
        files = model_files(target)
        folder = files.model if files is not None else find_model(target, expected=OR_FUNCTION)
        with waiting(_MAKING):
            model = load_saved(folder, allow, backbone)
        args, kwargs = model.staged.example
        return model, args or kwargs
    if backbone is not None:
        raise InvalidInputError(f"--backbone is for a saved model, and {target!r} is a function; leave it out")
    with waiting(_MAKING):
        made = function_at(target)()
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], MultiExitModel):
        return made
    if isinstance(made, MultiExitModel):
        return made, _example_of(made, target)
    raise InvalidInputError(
        f"{target} returned {kind_of(made)}, expected a MultiExitModel (see eenet.attach) or (model, example)"
    )


def load_saved(folder: Path, allow: Sequence[str], backbone: str | None = None) -> MultiExitModel:
    """What `save_pretrained` wrote; its network may be a function of the current folder, where it is allowed."""
    from eenet.models import MultiExitModel

    with current_folder_importable():
        return MultiExitModel.from_pretrained(folder, allow=allow, backbone=backbone)


def function_at(target: str) -> Any:
    """The function that package.module:function names, looked up from the current folder too."""
    module_name, _, name = target.partition(":")
    with current_folder_importable():
        module = module_at(module_name, target)
    function = getattr(module, name, None)
    if not callable(function):
        raise InvalidInputError(f"{target!r}: module {module_name!r} has no function {name!r}")
    return function


def module_at(name: str, target: str, expected: str = "package.module:function") -> ModuleType:
    """Import a module by its name; raises `InvalidInputError`, which names `target`, where there is none."""
    if name.endswith(".py"):
        raise InvalidInputError(
            f"{target!r} is the name of a file; give {expected}, such as {Path(name).stem!r}, with its folder as the "
            "current one or in PYTHONPATH"
        )
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"{target!r}: there is no module {error.name!r} in the current folder or among the installed packages"
        ) from error
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{target!r} cannot be read ({error}); give {expected}") from error


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
