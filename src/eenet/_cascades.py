"""What members of a cascade must have in common: samples, labels, classes and task; several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError, kind_of
from eenet.tasks import UTILITIES, Segmentation


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
    what = kind_of(members) + (f" of {len(given)}" if isinstance(given, (list, tuple)) else "")
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
    """The labels of a cascade, and what each member's answers are worth.

    Labels in one member are enough: the others' predictions are compared with them. Raises `InvalidInputError` where
    labels differ or some members lack them, and where utilities do not mean the same.
    """
    labels: NDArray[np.intp] | None = None
    for number, member in enumerate(members):
        if labels is None:
            labels, labeled = member.labels, number
        elif member.labels is not None:
            _require_same_labels(labels, member.labels, labeled, number)
    if labels is not None:
        _require_same_meaning(members, labels)
    elif all(member.pixel_counts is not None and member.utility is not None for member in members):
        _require_same_utility_of_pixels(members)
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


def _require_same_meaning(members: Sequence[Records], labels: NDArray[np.intp]) -> None:
    """Raise where one member's utility is 1 for the label and 0 for others, and that of another is not.

    A utility that is there may be either by chance: then one answer to one sample must not be worth two things.
    """
    right = [member.predictions == labels for member in members]
    given = [member.utility for member in members]
    own = [number for number, utility in enumerate(given) if utility is not None and (utility != right[number]).any()]
    for number, utility in enumerate(given):
        if not own or number in own:
            continue
        other = own[0]
        pairs = [(k, j) for k in range(len(right[number])) for j in range(len(right[other]))]
        mine, theirs = members[number].predictions, members[other].predictions
        worth = given[other]
        assert worth is not None
        if utility is None or any(((mine[k] == theirs[j]) & (utility[k] != worth[j])).any() for k, j in pairs):
            raise InvalidInputError(
                f"member {number} has answers that are worth 1 where they are the label and 0 elsewhere, member "
                f"{other} has a utility of its own; give utility= of one meaning when making the records of all"
            )


def _require_same_utility_of_pixels(members: Sequence[Records]) -> None:
    """Raise where images are worth their pixel accuracy to one member, and to another their mean IoU, or neither."""
    common = _utilities_of(members[0])
    for number, member in enumerate(members):
        names = _utilities_of(member)
        if names != common and not names & common:
            one, other = (" or ".join(sorted(n)) or "a utility of their own" for n in (names, common))
            raise InvalidInputError(
                f"member {number} has images that are worth {one}, member 0 {other}; collect all with one task, such "
                "as Segmentation(utility='mean_iou')"
            )
        common = names & common


def _utilities_of(member: Records) -> set[str]:
    """The utilities of `Segmentation` that a member's may be, by its pixel counts."""
    assert member.utility is not None
    assert member.pixel_counts is not None
    worth = {name: Segmentation(utility=name).utility_of for name in UTILITIES}
    return {
        name
        for name, of in worth.items()
        if np.allclose(np.nan_to_num([of(counts) for counts in member.pixel_counts]), member.utility, atol=1e-6)
    }
