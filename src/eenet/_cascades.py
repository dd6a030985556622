"""What members of a cascade must have in common: samples, labels, classes and task; several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError


class Records(Protocol):
    """What is asked here of `eenet.records.ExitRecords`."""

    predictions: NDArray[np.intp]
    labels: NDArray[np.intp] | None
    utility: NDArray[np.float32] | None
    pixel_counts: NDArray[np.int64] | None

    @property
    def pooled(self) -> Mapping[str, NDArray[np.float64]]: ...

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...


def require_several(members: Any) -> tuple[Sequence[Any], tuple[str, ...] | None]:
    """The members, and their names where a mapping gives them.

    Raises `InvalidInputError` unless there are at least two, and for names that are no identifiers.
    """
    names = tuple(members) if isinstance(members, Mapping) else None
    for name in names or ():
        if not isinstance(name, str) or not name.isidentifier() or name == "output":
            raise InvalidInputError(
                f"{name!r} is no name for a member of a cascade; expected letters, digits and _, not first a digit, "
                "such as 'small', and not 'output'"
            )
    given = members if names is None else list(members.values())
    if isinstance(given, (list, tuple)) and len(given) >= 2:
        return given, names
    what = f"a {type(members).__name__}" + (f" of {len(given)}" if isinstance(given, (list, tuple)) else "")
    raise InvalidInputError(
        f"members are {what}, expected a list of at least two, or a mapping of names to them: the models of a cascade, "
        "in order"
    )


def require_same_task(first: Records, member: Records, number: int) -> None:
    """Raise unless a member of a cascade has the samples, the classes and the task of the first."""
    if len(member) != len(first):
        raise InvalidInputError(
            f"member {number} has records of {len(member)} samples, member 0 of {len(first)}; give all members' "
            "records of the same samples, in the same order"
        )
    if member.num_classes != first.num_classes:
        raise InvalidInputError(
            f"member {number} has {member.num_classes} classes, member 0 has {first.num_classes}; a cascade answers "
            "with the classes of its task: give every member a column for each, in the same order"
        )
    if sorted(member.pooled) != sorted(first.pooled) or (member.pixel_counts is None) != (first.pixel_counts is None):
        one, other = (_task_of(records) for records in (first, member))
        raise InvalidInputError(
            f"member {number} has records of {other}, member 0 of {one}; members of a cascade do the same task"
        )
    counts = member.pixel_counts
    if counts is not None and first.pixel_counts is not None:
        differs = (counts[0, :, :, 2] != first.pixel_counts[0, :, :, 2]).any(axis=1)
        if differs.any():
            n = int(differs.argmax())
            raise InvalidInputError(
                f"member {number} has other label maps than member 0 for {differs.sum()} of {len(differs)} samples, "
                f"the first of them {n}; give the records of the same samples in the same order"
            )


def _require_same_labels(labels: NDArray[np.intp], other: NDArray[np.intp], labeled: int, number: int) -> None:
    differs = labels != other
    if not differs.any():
        return
    n = int(differs.argmax())
    order = "; both have the same labels in another order" if np.array_equal(np.sort(labels), np.sort(other)) else ""
    raise InvalidInputError(
        f"member {number} has other labels than member {labeled} for {differs.sum()} of {len(labels)} samples: of "
        f"sample {n} {other[n]} and {labels[n]}{order}; give the records of the same samples in the same order"
    )


def _task_of(records: Records) -> str:
    if not records.pooled:
        return "one class for each sample"
    counted = "with" if records.pixel_counts is not None else "without"
    return f"a class for each pixel, {counted} labels"


def labels_and_utility(
    members: Sequence[Records],
) -> tuple[NDArray[np.intp] | None, list[NDArray[np.float32]] | None]:
    """The labels of a cascade, and what each member's answers are worth; raises where labels differ or some lack them.

    Labels in one member are enough: the others' predictions are compared with them.
    """
    labels: NDArray[np.intp] | None = None
    for number, member in enumerate(members):
        if labels is None:
            labels, labeled = member.labels, number
        elif member.labels is not None:
            _require_same_labels(labels, member.labels, labeled, number)
    known = []
    for member in members:
        if member.utility is not None:
            known.append(member.utility)
        elif labels is not None:
            known.append((member.predictions == labels).astype(np.float32))
    if known and len(known) < len(members):
        number = next(number for number, member in enumerate(members) if member.utility is None)
        raise InvalidInputError(
            f"member {number} has no labels, others have, and what its answers are worth cannot be told from theirs; "
            "give its records labels, or make all without"
        )
    return labels, known or None
