"""The exceptions of eenet: a small family, each also a subclass of what callers already catch."""

from __future__ import annotations

from typing import Any


class EENetError(Exception):
    """Base of every exception raised on purpose by eenet."""


class InvalidInputError(EENetError, ValueError):
    """A value from the caller is not usable; the message names it, what was expected and the way out."""


class InfeasibleBudgetError(InvalidInputError):
    """The budget cannot be met.

    `smallest` is the smallest budget that can, in the unit of the costs.
    """

    def __init__(self, message: str, *, smallest: float) -> None:
        super().__init__(message)
        self.smallest = smallest

    def __reduce__(self) -> tuple[Any, ...]:
        """How it passes from one process to another: with the number that is not among its arguments."""
        return _infeasible, (str(self), self.smallest)


def _infeasible(message: str, smallest: float) -> InfeasibleBudgetError:
    return InfeasibleBudgetError(message, smallest=smallest)


class CutError(InvalidInputError):
    """A network cannot be cut as asked; the message names the module and, where one is at fault, the tensor."""


class FileFormatError(InvalidInputError):
    """A file is damaged, of a newer schema, or of a format that eenet refuses to read."""


class ExportError(EENetError, RuntimeError):
    """An exported bundle does not do what its model does; nothing was written."""


class NotFittedError(EENetError, RuntimeError):
    """A scheduler was used before `fit`."""


class OverloadedError(EENetError, RuntimeError):
    """There is no room for a request now; `retry_after` is the number of seconds after which there should be."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DrainingError(EENetError, RuntimeError):
    """A request came after the server began to go down."""


class MissingExtraError(EENetError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class ReliabilityWarning(UserWarning):
    """A result is usable but should be trusted less: a noisy measurement, a budget above the last exit."""
