"""The exceptions of eenet; each is also a subclass of the built-in exception that callers catch already."""

from __future__ import annotations

from typing import Any

__all__ = [
    "CutError",
    "DrainingError",
    "EENetError",
    "ExportError",
    "FallbackWarning",
    "FileFormatError",
    "InfeasibleBudgetError",
    "InvalidInputError",
    "MemberError",
    "MissingExtraError",
    "NotFittedError",
    "OverloadedError",
    "ReliabilityWarning",
]


class EENetError(Exception):
    """Base of the exceptions that eenet raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, as between processes, with the attributes that are not among its arguments."""
        return _restored, (type(self), self.args, dict(vars(self)))


def _restored(cls: type[EENetError], args: tuple[Any, ...], attributes: dict[str, Any]) -> EENetError:
    error = cls.__new__(cls, *args)
    vars(error).update(attributes)
    return error


class InvalidInputError(EENetError, ValueError):
    """A value from the caller cannot be used; the message names it, what was expected and what to do."""


class InfeasibleBudgetError(InvalidInputError):
    """The budget cannot be met.

    `smallest` is the smallest budget that can, in the unit of the costs.
    """

    def __init__(self, message: str, *, smallest: float) -> None:
        super().__init__(message)
        self.smallest = smallest


class CutError(InvalidInputError):
    """A network cannot be cut as asked; the message names the module and, where one is at fault, the tensor."""


class FileFormatError(InvalidInputError):
    """A file is damaged, of a newer schema, or of a format that eenet refuses to read."""


class ExportError(EENetError, RuntimeError):
    """An exported bundle does not do what its model does; nothing was written."""


class MemberError(EENetError, RuntimeError):
    """A member of a `CallCascade` failed, or its answers cannot be used; what was answered until then is kept.

    `member` is its number and `rows` are the numbers of the samples that it did not answer. `output` is an
    `AdaptiveOutput` of the whole batch, with exit -1 and NaN where there is no answer yet, and `returned` what the
    member returned, if it did.
    """

    output: Any = None
    returned: Any = None

    def __init__(self, message: str, *, member: int, rows: Any) -> None:
        super().__init__(message)
        self.member = member
        self.rows = rows


class NotFittedError(EENetError, RuntimeError):
    """A scheduler was used before `fit`."""


class OverloadedError(EENetError, RuntimeError):
    """The queue is full; `retry_after` is the number of seconds after which to send the request again."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(EENetError, RuntimeError):
    """A request came after the server began to shut down."""


class MissingExtraError(EENetError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class ReliabilityWarning(UserWarning):
    """A result is usable but should be trusted less: a noisy measurement, a budget above the last exit."""


class FallbackWarning(ReliabilityWarning):
    """A simple rule is better than the method asked for and was taken in its place, or an exit was left out."""
