"""The exceptions of eenet; each is also a subclass of the built-in exception that callers catch already."""

from __future__ import annotations

import re
from typing import Any

__all__ = [
    "CutError",
    "DrainingError",
    "EENetError",
    "ExportError",
    "FallbackWarning",
    "FileFormatError",
    "InfeasibleBudgetError",
    "InfeasibleError",
    "InvalidInputError",
    "MemberError",
    "MissingExtraError",
    "NotFittedError",
    "OutOfSpaceError",
    "OverloadedError",
    "ReliabilityWarning",
]


class EENetError(Exception):
    """Base of the exceptions that eenet raises on purpose.

    Examples
    --------
    >>> from eenet.errors import EENetError, InvalidInputError
    >>> issubclass(InvalidInputError, EENetError)
    True
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, as between processes, with the attributes that are not among its arguments."""
        return _restored, (type(self), self.args, dict(vars(self)))


def _restored(cls: type[EENetError], args: tuple[Any, ...], attributes: dict[str, Any]) -> EENetError:
    error = cls.__new__(cls, *args)
    vars(error).update(attributes)
    return error


def kind_of(value: object) -> str:
    """What a message calls a value that cannot be used: "an int", "a Tensor", "None"."""
    return "None" if value is None else with_article(type(value).__name__)


def with_article(name: str) -> str:
    """A class's name with "a" or "an", as it is spoken: "an EENet", "an MSDNet" and "an ndarray", but "a UNet"."""
    spoken = name.lstrip("_")
    if spoken[:2].isupper():  # the first letters are spoken one by one
        vowel = spoken[0] in "AEFHILMNORSX"
    else:
        vowel = bool(re.match("[aeio]|u(?!ni|s[ei])|ndarray", spoken, re.IGNORECASE))
    return f"{'an' if vowel else 'a'} {name}"


class InvalidInputError(EENetError, ValueError):
    """A value from the caller cannot be used; the message names it, what was expected and what to do.

    Examples
    --------
    >>> import eenet
    >>> try:
    ...     eenet.ExitCosts([2.0, 1.0])
    ... except eenet.errors.InvalidInputError:
    ...     print("costs rise from exit to exit")
    costs rise from exit to exit
    """


class InfeasibleError(InvalidInputError):
    """No policy does what is asked, on the samples at hand: the message says what could be kept in its place.

    What is asked may be a budget (`InfeasibleBudgetError`), a share to hand back, an error or an accuracy.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> try:
    ...     eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=1.1, max_error=0.01)
    ... except eenet.errors.InfeasibleError:
    ...     print("too many samples exit early to keep the others' error so low")
    too many samples exit early to keep the others' error so low
    """


class InfeasibleBudgetError(InfeasibleError):
    """The budget cannot be met.

    `smallest` is the smallest budget that can, in the unit of the costs.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> try:
    ...     eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=0.5)
    ... except eenet.InfeasibleBudgetError as error:
    ...     error.smallest
    1.0
    """

    def __init__(self, message: str, *, smallest: float) -> None:
        super().__init__(message)
        self.smallest = smallest


class CutError(InvalidInputError):
    """A network cannot be cut as asked; the message names the module and, where one is at fault, the tensor.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> try:
    ...     eenet.cut(network, at=["nowhere"], example=torch.randn(2, 4))
    ... except eenet.errors.CutError as error:
    ...     print(str(error)[:24])
    cannot cut at 'nowhere':
    """


class FileFormatError(InvalidInputError):
    """A file is damaged, of a newer schema, or of a format that eenet refuses to read.

    Examples
    --------
    >>> import eenet
    >>> from pathlib import Path
    >>> _ = Path("a.safetensors").write_bytes(b"not a scheduler")
    >>> try:
    ...     eenet.load_scheduler("a.safetensors")
    ... except eenet.errors.FileFormatError:
    ...     print("refused")
    refused
    """


class ExportError(EENetError, RuntimeError):
    """An exported bundle does not do what its model does; nothing was written.

    Examples
    --------
    >>> from eenet.errors import EENetError, ExportError
    >>> issubclass(ExportError, EENetError)
    True
    """


class MemberError(EENetError, RuntimeError):
    """A member of a `CallCascade` failed, or its answers cannot be used; what was answered until then is kept.

    `member` is its number and `rows` are the numbers of the samples that it did not answer. `output` is an
    `AdaptiveOutput` of the whole batch, with exit -1 and NaN where there is no answer yet, and `returned` what the
    member returned, if it did.

    Examples
    --------
    >>> MemberError("the second member failed", member=1, rows=[3, 4]).rows
    [3, 4]
    """

    output: Any = None
    returned: Any = None

    def __init__(self, message: str, *, member: int, rows: Any) -> None:
        super().__init__(message)
        self.member = member
        self.rows = rows


class NotFittedError(EENetError, RuntimeError):
    """A scheduler was used before `fit`.

    Examples
    --------
    >>> import eenet
    >>> try:
    ...     eenet.MaxProbability().policy
    ... except eenet.errors.NotFittedError:
    ...     print("fit comes first")
    fit comes first
    """


class OverloadedError(EENetError, RuntimeError):
    """The queue is full; `retry_after` is the number of seconds after which to send the request again.

    Examples
    --------
    >>> from eenet.errors import OverloadedError
    >>> OverloadedError("1024 samples are inside", retry_after=2.0).retry_after
    2.0
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(EENetError, RuntimeError):
    """A request came after the server began to shut down.

    Examples
    --------
    >>> from eenet.errors import DrainingError, EENetError
    >>> issubclass(DrainingError, EENetError)
    True
    """


class MissingExtraError(EENetError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it.

    Examples
    --------
    >>> from eenet.errors import MissingExtraError
    >>> issubclass(MissingExtraError, ImportError)
    True
    """


class OutOfSpaceError(EENetError, OSError):
    """There is not enough space on disk for what is to be written; nothing half-written is left.

    Examples
    --------
    >>> from eenet.errors import OutOfSpaceError
    >>> issubclass(OutOfSpaceError, OSError)
    True
    """


class ReliabilityWarning(UserWarning):
    """A result is usable but should be trusted less: a noisy measurement, a budget above the last exit.

    Examples
    --------
    >>> import warnings
    >>> from eenet.errors import ReliabilityWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", ReliabilityWarning)  # what cannot be trusted stops the program
    """


class FallbackWarning(ReliabilityWarning):
    """A simple rule is better than the method asked for and was taken in its place, or an exit was left out.

    Examples
    --------
    >>> import warnings
    >>> from eenet.errors import FallbackWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", FallbackWarning)  # `scheduler.fallback` says the same
    """
