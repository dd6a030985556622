"""Samples that cannot be read: named, counted, and refused or skipped; never dropped in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eenet.errors import FileFormatError, InvalidInputError

ON_CORRUPT = ("refuse", "skip")
_NAMED = 5


@dataclass(frozen=True)
class CorruptSample:
    """A sample that cannot be read: its file (and row) and the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def require_policy(on_corrupt: str) -> None:
    """Raise `InvalidInputError` unless `on_corrupt` is "refuse" or "skip"."""
    if on_corrupt not in ON_CORRUPT:
        raise InvalidInputError(f"on_corrupt is {on_corrupt!r}, expected one of {list(ON_CORRUPT)}")


def describe(corrupt: Sequence[CorruptSample], samples: int) -> str:
    """How many cannot be read, and the first of them by name; `samples` is how many there are in all."""
    named = "; ".join(map(str, corrupt[:_NAMED]))
    more = f"; and {len(corrupt) - _NAMED} more" if len(corrupt) > _NAMED else ""
    return f"{len(corrupt)} of {samples} samples cannot be read: {named}{more}"


def settle(corrupt: Sequence[CorruptSample], usable: int, on_corrupt: str) -> None:
    """Raise `FileFormatError` when there are corrupt samples and they are to be refused, or nothing else is left."""
    if not corrupt:
        return
    found = describe(corrupt, usable + len(corrupt))
    if on_corrupt == "refuse":
        raise FileFormatError(f'{found}. Repair or fetch them again, or leave them out with on_corrupt="skip"')
    if not usable:
        raise FileFormatError(f"{found}. Nothing is left when they are skipped; fetch the data again")
