"""Tasks: what the logits of an exit mean, for the scheduler (`Evidence`) and for the score (utility).

A task works on host arrays, so that every back end computes the same evidence. `shown` says which part of an exit's
logits it needs there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from eenet.errors import InvalidInputError
from eenet.tasks._evidence import LOG_ODDS_LIMIT as LOG_ODDS_LIMIT
from eenet.tasks._evidence import POOLED as POOLED
from eenet.tasks._evidence import VOTES as VOTES
from eenet.tasks._evidence import Classification, Evidence, Task
from eenet.tasks._evidence import UnknownVotesError as UnknownVotesError
from eenet.tasks._evidence import softmax as softmax
from eenet.tasks._segmentation import UTILITIES as UTILITIES
from eenet.tasks._segmentation import Segmentation, mean_iou

__all__ = ["Classification", "Evidence", "Segmentation", "Task", "mean_iou"]

_TASKS: dict[str, type[Classification] | type[Segmentation]] = {
    "classification": Classification,
    "segmentation": Segmentation,
}


def describe_task(task: Task) -> dict[str, Any]:
    """A JSON-ready description of a task, read back by `task_from`."""
    if not isinstance(task, (Classification, Segmentation)):
        raise InvalidInputError(f"the task {task.name!r} is not one of {sorted(_TASKS)}, so it cannot be written down")
    return asdict(task)


def task_from(description: Mapping[str, Any]) -> Task:
    """The task of what `describe_task` gave; raises `InvalidInputError` for any other."""
    made = _TASKS.get(description.get("name", ""))
    options = {name: value for name, value in description.items() if name != "name"}
    known = {f.name for f in fields(made)} if made else set()
    if made is None or not set(options) <= known:
        raise InvalidInputError(f"{dict(description)} describes no task; expected the name one of {sorted(_TASKS)}")
    return made(**options)
