"""Finding data on disk, and saying what was expected and what is there when it cannot be found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from eenet.errors import InvalidInputError

_SHOWN = 8
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


def show(folder: Path) -> str:
    """What is in a folder, in a few words; for one that is not there, what is in its nearest parent."""
    if not folder.exists():
        parent = next((p for p in folder.absolute().parents if p.is_dir()), None)
        return "it does not exist" if parent is None else f"it does not exist; {str(parent)!r} holds {_listing(parent)}"
    if not folder.is_dir():
        return "it is a file, not a folder"
    return f"it holds {_listing(folder)}"


def _listing(folder: Path) -> str:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


class MissingDataError(InvalidInputError):
    """Data is not where it should be; the message says what was expected and what is there."""


def missing(what: str, root: Path, expected: str, remedy: str) -> MissingDataError:
    """The error for data that is not where it should be."""
    return MissingDataError(f"no {what} in {str(root)!r}: {show(root)}. Expected {expected}. {remedy}")


def first_folder(root: Path, candidates: Sequence[str], *, holding: Sequence[str]) -> Path | None:
    """The first of `root/candidate` that holds a file or folder that matches one of the patterns of `holding`."""
    for candidate in candidates:
        folder = root / candidate if candidate else root
        if folder.is_dir() and any(next(folder.glob(pattern), None) is not None for pattern in holding):
            return folder
    return None


def parquet_shards(root: Path, candidates: Sequence[str], split: str) -> list[Path]:
    """The parquet files of a split in the first candidate folder that has any, in order; raises when one is missing."""
    folder = first_folder(root, candidates, holding=(f"{split}-*.parquet", f"{split}.parquet"))
    if folder is None:
        return []
    shards = sorted(folder.glob(f"{split}-*.parquet")) or [folder / f"{split}.parquet"]
    numbered = [match for path in shards if (match := _SHARD.search(path.name))]
    if numbered and len(numbered) == len(shards):
        total = int(numbered[0].group(2))
        absent = sorted(set(range(total)) - {int(match.group(1)) for match in numbered})
        if absent or any(int(match.group(2)) != total for match in numbered):
            names = ", ".join(f"{split}-{k:05d}-of-{total:05d}.parquet" for k in absent[:_SHOWN])
            raise InvalidInputError(
                f"{str(folder)!r} holds {len(shards)} of the {total} parquet files of split {split!r}: "
                f"{names or 'files of another numbering'} {'is' if len(absent) == 1 else 'are'} wrong or missing; "
                "fetch the split again"
            )
    return shards
