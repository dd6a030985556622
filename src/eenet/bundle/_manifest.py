"""The manifest of a bundle: what is in the folder, with a checksum for each file and one for itself.

Nothing in a bundle is trusted before its checksum is that of the manifest, and no name in the manifest may lead out of
the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eenet._files import left_aside
from eenet.errors import FileFormatError, InvalidInputError, kind_of, with_article
from eenet.runtime import TensorSpec

MANIFEST = "manifest.json"
FORMAT, SCHEMA = "eenet.bundle", 1
BACKENDS = ("onnx", "torch", "aoti")
"""What a bundle's stages can be: ONNX graphs, or the weights of a network that PyTorch builds again, and with "aoti"
compiles on the machine that loads it: a bundle holds no code."""

_CHECKSUM = "manifest_sha256"
_MOST_BYTES = 16 * 1024 * 1024  # of the manifest, which for a thousand classes and twenty exits has some 100 kB
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_KINDS = {
    "backend": str, "task": dict, "logits": dict, "exits": list, "scheduler": str, "costs": dict, "budgets": list,
    "preprocessing": dict, "made_with": dict, "eenet": str,
}  # fmt: skip
_OPTIONAL = {
    "profile": dict, "records": str, "plain": str, "plain_int8": str, "example": list, "network": str,
    "precision": dict, "quantization": dict, "asked": dict,
}  # fmt: skip
"""What not all bundles have: measured costs, calibration records, the plain network, what inputs look like, a digest of
the weights, the share of the plain network or the last exit that was asked for as budget, and of bundles with stages in
int8 which parts those are and how they were chosen."""
OF_PLAIN, OF_LAST = "plain", "last"

_AGAIN = "get the bundle again, or export it again"


@dataclass(frozen=True)
class StageSpec:
    """A stage: the tensors before it, and its files.

    `graph` computes the tensors before the next stage and, where `feature` is not None, one more: the feature that
    `head` makes logits of. Where `feature` is None the feature is the tensor number `passed_feature` of those. Of the
    last stage `graph` gives the logits. Both files are None in a bundle that does not hold graphs.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    graph: str | None
    head: str | None
    passed_feature: int | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "name": self.name,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "graph": self.graph,
            "head": self.head,
            "passed_feature": self.passed_feature,
        }

    @classmethod
    def from_dict(cls, data: Any) -> StageSpec:
        """The stage of what `to_dict` gave; raises ValueError or KeyError for anything else."""
        inputs = tuple(TensorSpec.from_dict(one) for one in data["inputs"])
        if not any(spec.batch_dim is not None for spec in inputs):
            raise ValueError(f"no tensor before stage {data['name']!r} holds samples")
        return cls(str(data["name"]), inputs, data["graph"], data["head"], data["passed_feature"])


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says, checked; `data` is all of it and `root` the folder."""

    root: Path
    data: Mapping[str, Any]
    stages: tuple[StageSpec, ...]

    @property
    def backend(self) -> str:
        """One of `BACKENDS`."""
        return str(self.data["backend"])

    @property
    def digest(self) -> str:
        """The SHA-256 of the manifest, and so of the bundle: the manifest has the SHA-256 of every other file."""
        return _checksum({key: value for key, value in self.data.items() if key != _CHECKSUM})

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.stages)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.data["num_classes"])

    @property
    def precision(self) -> dict[str, str]:
        """The precision of each stage and head, by its name; fp32 where a bundle does not say it."""
        said = self.data.get("precision") or {}
        names = [*(f"stages.{k}" for k in range(self.num_exits)), *(f"heads.{k}" for k in range(self.num_exits - 1))]
        return {name: str(said.get(name, "fp32")) for name in names}

    def path(self, name: str) -> Path:
        """The path of a file of the bundle; raises `FileFormatError` for a name that is not one, or a link."""
        if name not in self.data["files"]:
            raise FileFormatError(f"{self._manifest!r} names the file {name!r}, for which it has no checksum; {_AGAIN}")
        path = self.root
        for part in name.split("/"):
            path = path / part
            if path.is_symlink():
                raise FileFormatError(
                    f"{str(path)!r} is a link: the files of a bundle must lie in its folder; put the file itself there"
                )
        if not path.is_file():
            raise FileFormatError(f"{str(self.root)!r} lacks the file {name!r} that its manifest lists; {_AGAIN}")
        return path

    def read(self, name: str) -> bytes:
        """The content of a file; raises `FileFormatError` unless it is what was written, to the last byte."""
        path, expected = self.path(name), self.data["files"][name]
        size = path.stat().st_size
        if size != expected["bytes"]:
            cut = "truncated" if size < expected["bytes"] else "another file"
            raise FileFormatError(
                f"{str(path)!r} has {size} bytes, expected {expected['bytes']}: it is {cut}; {_AGAIN}"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise FileFormatError(
                f"{str(path)!r} is damaged, or belongs to another bundle: its SHA-256 is not the one in {MANIFEST}; "
                f"{_AGAIN}"
            )
        return content

    def check(self) -> None:
        """Read every file of the bundle; raises `FileFormatError` for the first that is not what was written."""
        for name in self.data["files"]:
            self.read(name)

    @property
    def _manifest(self) -> str:
        return str(self.root / MANIFEST)


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a checksum of itself."""
    return {**data, _CHECKSUM: _checksum(data)}


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a bundle.

    Raises `InvalidInputError` for a folder that holds none, `FileFormatError` for one that is damaged, of a newer
    schema, or names files outside the folder.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise InvalidInputError(f"the bundle is {kind_of(folder)}, expected the folder that eenet.export wrote")
    root = Path(folder)
    path = root / MANIFEST
    if not path.is_file() or path.is_symlink():
        what = "it is a link" if path.is_symlink() else f"there is no such folder{left_aside(root)}"
        if root.is_dir() and not path.is_symlink():
            what = f"it holds {', '.join(sorted(file.name for file in root.iterdir())[:8]) or 'nothing'}"
        raise InvalidInputError(
            f"{str(root)!r} holds no {MANIFEST} ({what}); expected a folder that eenet.export or eenet export wrote"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise FileFormatError(f"{str(path)!r} has {path.stat().st_size} bytes, which no manifest has; {_AGAIN}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{str(path)!r} is damaged or truncated ({error}); {_AGAIN}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise FileFormatError(f"{str(path)!r} does not describe a bundle: expected the format {FORMAT!r}")
    # Before the checksum: what a newer schema means by it is not known here.
    schema = data.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise FileFormatError(
            f"{str(path)!r} has schema {schema!r}, this eenet reads up to {SCHEMA}: upgrade eenet to read it"
        )
    checksum = data.pop(_CHECKSUM, None)
    if checksum != _checksum(data):
        raise FileFormatError(f"{str(path)!r} is damaged: its content does not fit the checksum in it; {_AGAIN}")
    try:
        _check_files(data["files"])
        manifest = Manifest(root, data, tuple(StageSpec.from_dict(one) for one in data["stages"]))
        _check(manifest)
    except KeyError as error:
        raise FileFormatError(f"{str(path)!r} lacks {error.args[0]!r}; {_AGAIN}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{str(path)!r} is no manifest of a bundle: {error}; {_AGAIN}") from error
    return manifest


def _checksum(data: Mapping[str, Any]) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_files(files: Any) -> None:
    for name, expected in files.items():
        parts = name.split("/")
        if not all(_PART.fullmatch(part) for part in parts) or len(parts) > 3 or name == MANIFEST:
            raise ValueError(f"the file name {name!r} is not a plain path inside the folder")
        if type(expected["bytes"]) is not int or not re.fullmatch(r"[0-9a-f]{64}", expected["sha256"]):
            raise ValueError(f"the file {name!r} has no size and checksum")


def _check(manifest: Manifest) -> None:
    data = manifest.data
    for key, kind in _KINDS.items():
        if not isinstance(data[key], kind):
            raise ValueError(f"{key!r} is {data[key]!r}, expected {with_article(kind.__name__)}")
    for key, kind in _OPTIONAL.items():
        if not isinstance(data.get(key), kind | None):
            raise ValueError(f"{key!r} is {data[key]!r}, expected {with_article(kind.__name__)} or none")
    TensorSpec.from_dict(data["logits"])
    asked = data.get("asked")
    if asked is not None and not (isinstance(asked["share"], float) and asked["share"] > 0):
        raise ValueError(f"the budget that was asked for is {asked!r}, expected a share")
    if asked is not None and asked["of"] not in (OF_PLAIN, OF_LAST):
        raise ValueError(f"the budget that was asked for is a share of {asked['of']!r}, expected {OF_PLAIN}, {OF_LAST}")
    if data["backend"] not in BACKENDS:
        raise ValueError(f"the backend {data['backend']!r} is not known; expected one of {list(BACKENDS)}")
    if len(manifest.stages) < 2 or type(data["num_classes"]) is not int or data["num_classes"] < 2:
        raise ValueError(f"{len(manifest.stages)} stages and {data['num_classes']!r} classes")
    if len(data["exits"]) != len(manifest.stages):
        raise ValueError(f"{len(data['exits'])} exits for {len(manifest.stages)} stages")
    names = data["class_names"]
    if names is not None and (not isinstance(names, list) or len(names) != data["num_classes"]):
        raise ValueError(f"the class names are {names!r}, expected {data['num_classes']} of them or none")
    if not all(isinstance(name, str) for name in (*data["exits"], *(names or ()))):
        raise ValueError("a name of an exit or a class is no text")
    more = [data.get("records"), data.get("plain"), data.get("plain_int8")]
    for name in (data["scheduler"], *more, *[file for stage in manifest.stages for file in (stage.graph, stage.head)]):
        if name is not None and name not in data["files"]:
            raise ValueError(f"the file {name!r} has no checksum")
    if data["backend"] == "onnx":
        for k, stage in enumerate(manifest.stages):
            last = k == len(manifest.stages) - 1
            if stage.graph is None or (stage.head is None) is not last:
                raise ValueError(f"stage {stage.name!r} has no graph, or lacks its head")
            following = () if last else manifest.stages[k + 1].inputs
            if stage.passed_feature is not None and stage.passed_feature not in range(len(following)):
                raise ValueError(f"stage {stage.name!r} has its feature at {stage.passed_feature!r}")
