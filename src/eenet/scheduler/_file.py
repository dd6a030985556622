"""The file of a fitted scheduler: written, and read in this eenet's schema or an earlier one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._files import read_arrays, write_arrays
from eenet._values import short
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError, InvalidInputError, kind_of
from eenet.scheduler._fitted import PolicyTable, State, abstains_from
from eenet.scheduler._policy import SCORES, Score, ThresholdPolicy, score_from_arrays
from eenet.scheduler._reports import dead_exit_from, fallback_from, to_dict

_SCHEMA = 3  # 2 where no policy abstains, which an eenet before it would not know of
_TABLE = "table."


def write_scheduler(
    path: str | Path,
    described: Mapping[str, str],
    parameters: Mapping[str, Any],
    state: State,
    score: str | Score,
) -> None:
    """Write what was fitted, with the name and class in `described`, the parameters, and a score that was given."""
    table = state.fitted.table
    arrays: dict[str, NDArray[Any]] = {f"{_TABLE}{name}": a for name, a in table.to_arrays().items()}
    header = {
        **described,
        "parameters": _plain(parameters),
        "score": table.score_name,
        "num_classes": table.policies[0].num_classes,
        "costs": state.fitted.costs.to_dict(),
        "numbers": dict(state.numbers),
        "promises": dict(state.promises),
    }
    if table.fallbacks or state.fallback is not None:
        header["fallbacks"] = [to_dict(taken) for taken in table.fallbacks]
        header["fallback"] = to_dict(state.fallback)
    if state.as_it_is:
        header["as_it_is"] = True
    if state.fitted_to is not None:
        header["fitted_to"] = state.fitted_to
    if state.network is not None:
        header["network"] = state.network
    if state.left_out:
        header["left_out"] = [to_dict(dead) for dead in state.left_out]
    if isinstance(score, Score) and table.score_name != score.name:  # no policy has it
        header["given_score"] = score.name
        arrays |= {f"given.{name}": array for name, array in score.to_arrays().items()}
    if state.policy is not None:
        policy = state.policy
        _require_name(policy.score)
        header["policy_score"] = policy.score.name
        arrays |= {"thresholds": policy.thresholds, "enabled": policy.enabled.astype(np.uint8)}
        arrays |= {f"score.{name}": array for name, array in policy.score.to_arrays().items()}
        if policy.abstains_below is not None:
            arrays["abstains_below"] = np.array([policy.abstains_below])
    abstains = "abstains_below" in arrays or f"{_TABLE}abstains_below" in arrays
    write_arrays(path, arrays, kind="scheduler", schema=_SCHEMA if abstains else _SCHEMA - 1, header=header)


def _require_name(score: Score) -> None:
    """Raise `InvalidInputError` for a score that its name does not find: loaded, it would be another, or none."""
    classes = type(score), SCORES.get(score.name)
    cls, known = (f"{one.__module__}.{one.__qualname__}" if one else "" for one in classes)
    if cls != known:  # a class that was defined again, as in a notebook, is the same
        raise InvalidInputError(
            f"the score {cls} has the name {score.name!r}, by which a file would find {known or 'none'}; give the "
            "class a name of its own, name = '...'"
        )


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON can hold them; a score that was given is None, since the file has it in its policies."""
    plain = {name: None if isinstance(value, Score) else value for name, value in parameters.items()}
    # Numbers of numpy, such as the exit that an argmax gives, are no JSON.
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in plain.items()}
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the parameters {short(dict(parameters))} cannot be saved: {error}") from error
    return plain


def read_scheduler(path: str | Path) -> tuple[dict[str, Any], Score | None, State]:
    """The header of a file, the score that a scheduler with parameters has, and what was fitted.

    Raises `FileFormatError` for any other file.
    """
    arrays, header = read_arrays(path, kind="scheduler", schema=_SCHEMA)
    try:
        costs = ExitCosts.from_dict(header["costs"])
        header = {**header, "name": str(header["name"])}
        numbers, score = dict(header["numbers"]), header["score"]
        if not isinstance(score, str):
            raise TypeError(f"the score is {kind_of(score)}")
        classes = int(header["num_classes"])
        own = str(header.get("policy_score", score))
        policy = _policy_from(arrays, own, classes, path, len(costs)) if numbers else None
        fallbacks = [fallback_from(taken) for taken in header.get("fallbacks", ())]
        fallback = fallback_from(header.get("fallback"))
        left_out = tuple(map(dead_exit_from, header.get("left_out", ())))
        promises, as_it_is = dict(header.get("promises", {})), bool(header.get("as_it_is", False))
        fitted_to, network = header.get("fitted_to"), header.get("network")
    except KeyError as error:
        raise FileFormatError(f"{str(path)!r} lacks {error.args[0]!r}; save the scheduler again") from error
    except TypeError as error:
        raise FileFormatError(f"{str(path)!r} has a damaged header ({error}); save the scheduler again") from error
    parts = {n.removeprefix(_TABLE): a for n, a in arrays.items() if n.startswith(_TABLE)}
    if parts:
        table = PolicyTable.from_arrays(parts, score=score, num_classes=classes, costs=costs, fallbacks=fallbacks)
    elif policy is not None:  # written before schedulers had tables: its one budget is all it knows
        budgets, spent = np.array([numbers["budget"]]), np.array([numbers["calibration_cost"]])
        table = PolicyTable(budgets, spent, np.array([np.nan]), (policy,), costs)
    else:
        raise FileFormatError(f"{str(path)!r} holds neither a policy nor a table of them; save the scheduler again")
    state = State(table, policy, numbers, promises, fallback, left_out, as_it_is, fitted_to, network)
    if "parameters" not in header:
        return header, None, state
    if "given_score" in header:
        given = {n.removeprefix("given."): a for n, a in arrays.items() if n.startswith("given.")}
        return header, score_from_arrays(str(header["given_score"]), given), state
    return header, next(p.score for p in table.policies if p.score.name == score), state


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
