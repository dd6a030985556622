"""What can stop a training run, as exceptions; each is also a subclass of what callers already catch."""

from __future__ import annotations

from eenet.errors import EENetError


class TrainingDivergedError(EENetError, ArithmeticError):
    """The loss or a weight is no longer finite.

    `step` counts optimizer steps from 0, `exit_name` is the first exit whose loss is not finite (None for a weight).
    """

    def __init__(self, message: str, *, step: int, exit_name: str | None) -> None:
        super().__init__(message)
        self.step = step
        self.exit_name = exit_name


class OutOfSpaceError(EENetError, OSError):
    """There is not enough room on disk for what is to be written; nothing half-written is left."""
