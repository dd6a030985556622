"""Checks of single values of a recipe: each gives the value as it is used, or raises `RefusedError`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], Any]


class RefusedError(ValueError):
    """A value that a check refuses; the field says what was expected."""


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RefusedError
    return " ".join(value.split())


def whole(least: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RefusedError
        return value

    return check


def positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise RefusedError
    return float(value)


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RefusedError
    return value


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RefusedError
    return dict(value)


def many(check: Check) -> Check:
    def every(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not value:
            raise RefusedError
        return tuple(check(item) for item in value)

    return every


def or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def amount(value: Any) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise RefusedError


def part(value: Any) -> tuple[str, int | float | None]:
    if isinstance(value, str):
        return text(value), None
    if isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str):
        return value[0], None if value[1] is None else amount(value[1])
    raise RefusedError


def held_out(value: Any) -> int | float | str:
    return value if value == "calibration" else amount(value)


def budget(value: Any) -> str:
    if isinstance(value, str) and value.endswith("%"):
        try:
            share = float(value[:-1])
        except ValueError as error:
            raise RefusedError from error
        if 0 < share <= 100:
            return value
    raise RefusedError


def unit(value: Any) -> str:
    if value not in ("ms", "cpu_ms", "flops"):
        raise RefusedError
    return str(value)


def rising(value: Any) -> tuple[float, ...]:
    costs: tuple[float, ...] = many(positive)(value)
    if len(costs) < 2 or list(costs) != sorted(set(costs)):
        raise RefusedError
    return costs
