"""Schedulers from their files: of their class, with their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eenet.errors import FileFormatError, InvalidInputError
from eenet.scheduler._file import read_scheduler
from eenet.scheduler._policy import Score
from eenet.scheduler._scheduler import Scheduler


def load_scheduler(path: str | Path) -> Scheduler:
    """A fitted scheduler of its class and with its parameters, from what `Scheduler.save` wrote.

    Parameters
    ----------
    path : str or Path
        A file of this eenet or an earlier one.

    Returns
    -------
    Scheduler
        It can be fitted again, unless it is from a file without parameters.

    Raises
    ------
    FileFormatError
        For any other file.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> scheduler = eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=2.0)
    >>> scheduler.save("scheduler.safetensors")
    >>> eenet.load_scheduler("scheduler.safetensors") == scheduler
    True
    """
    header, score, state = read_scheduler(path)
    if score is None:  # written before schedulers had parameters
        scheduler = _of_name(str(header["name"]), str(header["score"]))
    else:
        scheduler = _with_parameters(header, score, path)
    scheduler._state = state
    return scheduler


def _with_parameters(header: Mapping[str, Any], score: Score, path: str | Path) -> Scheduler:
    """The scheduler that a file describes, not fitted."""
    known = _classes()
    name, parameters = header.get("class"), header["parameters"]
    if not isinstance(parameters, dict):
        raise FileFormatError(f"{str(path)!r} has damaged parameters; save the scheduler again")
    if name not in known:
        message = f"{header['name']} is of a class {name!r} that is not imported here; import its module before loading"
        return _refused(Scheduler(score), header["name"], f"{message}, then it can be fitted again")
    given: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in parameters.items()}
    if "score" in given and given["score"] is None:
        given["score"] = score
    try:
        return known[name](**given)
    except (TypeError, InvalidInputError) as error:
        raise FileFormatError(
            f"{str(path)!r} has parameters that {name} does not take ({error}); upgrade eenet, or save it again"
        ) from error


def _of_name(name: str, score: str) -> Scheduler:
    """A scheduler from a file without parameters, by its name there, such as "EENet" or "Static(1)"; not fitted."""
    kind, _, argument = name.partition("(")
    made = _classes().get(kind)
    message = f"{name} was loaded from a file without its parameters and cannot be fitted again; make a new one"
    given = argument.removesuffix(")")
    if made is None or made is Scheduler:
        return _refused(Scheduler(score), name, message)
    if not given:
        return _refused(made(), name, message)
    value: Any = int(given) if given.isdecimal() else given
    return _refused(made(value), name, message)


def _refused(scheduler: Scheduler, name: str, message: str) -> Scheduler:
    scheduler._name, scheduler._refused = name, message
    return scheduler


def _classes() -> dict[str, type[Scheduler]]:
    """The class of schedulers and all its subclasses by name."""
    classes: dict[str, type[Scheduler]] = {}
    waiting: list[type[Scheduler]] = [Scheduler]
    while waiting:
        made = waiting.pop()
        classes.setdefault(made.__name__, made)
        waiting += made.__subclasses__()
    return classes
