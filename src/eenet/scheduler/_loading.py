"""Reading what `Scheduler.save` wrote, in this eenet or an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._files import read_arrays
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError, InvalidInputError
from eenet.scheduler._fitted import PolicyTable, abstains_from
from eenet.scheduler._policy import Score, ThresholdPolicy, score_from_arrays
from eenet.scheduler._reports import dead_exit_from, fallback_from
from eenet.scheduler._scheduler import SCHEMA, TABLE, Scheduler, State


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
    arrays, header = read_arrays(path, kind="scheduler", schema=SCHEMA)
    try:
        costs = ExitCosts.from_dict(header["costs"])
        numbers, name, score = dict(header["numbers"]), str(header["name"]), header["score"]
        if not isinstance(score, str):
            raise TypeError(f"the score is a {type(score).__name__}")
        classes = int(header["num_classes"])
        own = str(header.get("policy_score", score))
        policy = _policy_from(arrays, own, classes, path, len(costs)) if numbers else None
        fallbacks = [fallback_from(taken) for taken in header.get("fallbacks", ())]
        fallback = fallback_from(header.get("fallback"))
        left_out = tuple(map(dead_exit_from, header.get("left_out", ())))
        promises, as_it_is = dict(header.get("promises", {})), bool(header.get("as_it_is", False))
    except KeyError as error:
        raise FileFormatError(f"{str(path)!r} lacks {error.args[0]!r}; save the scheduler again") from error
    except TypeError as error:
        raise FileFormatError(f"{str(path)!r} has a damaged header ({error}); save the scheduler again") from error
    parts = {n.removeprefix(TABLE): a for n, a in arrays.items() if n.startswith(TABLE)}
    if parts:
        table = PolicyTable.from_arrays(parts, score=score, num_classes=classes, costs=costs, fallbacks=fallbacks)
    elif policy is not None:  # written before schedulers had tables: its one budget is all it knows
        budgets, spent = np.array([numbers["budget"]]), np.array([numbers["calibration_cost"]])
        table = PolicyTable(budgets, spent, np.array([np.nan]), (policy,), costs)
    else:
        raise FileFormatError(f"{str(path)!r} holds neither a policy nor a table of them; save the scheduler again")
    if "parameters" in header:
        given = {n.removeprefix("given."): a for n, a in arrays.items() if n.startswith("given.")}
        if "given_score" in header:
            main = score_from_arrays(str(header["given_score"]), given)
        else:
            main = next(p.score for p in table.policies if p.score.name == score)
        scheduler = _with_parameters(header, main, path)
    else:
        scheduler = _of_name(name, score)
    scheduler._state = State(table, policy, numbers, promises, fallback, left_out, as_it_is)
    return scheduler


def _with_parameters(header: Mapping[str, Any], score: Score, path: str | Path) -> Scheduler:
    """The scheduler that a file describes, not fitted."""
    known = _classes()
    name, parameters = header.get("class"), header["parameters"]
    if not isinstance(parameters, dict):
        raise FileFormatError(f"{str(path)!r} has damaged parameters; save the scheduler again")
    if name not in known:
        message = f"{header['name']} is of a class {name!r} that is not imported here; import it before loading"
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


def _policy_from(
    arrays: dict[str, NDArray[Any]], score: str, classes: int, path: str | Path, exits: int
) -> ThresholdPolicy:
    fitted = score_from_arrays(score, {n[6:]: a for n, a in arrays.items() if n.startswith("score.")})
    enabled, below = arrays["enabled"].astype(np.bool_), abstains_from(arrays.get("abstains_below"))
    policy = ThresholdPolicy(fitted, arrays["thresholds"], enabled, classes, below)
    if not (policy.thresholds.shape == policy.enabled.shape == (exits - 1,)):
        raise FileFormatError(
            f"{str(path)!r} has {len(policy.thresholds)} thresholds for {exits} exits; save the scheduler again"
        )
    return policy
