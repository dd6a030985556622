"""Which steps of a run are complete, under which settings: one JSON file per step, written last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eenet._files import write_json
from eenet.errors import FileFormatError, InvalidInputError

_SCHEMA = 1


class Markers:
    """The markers in a folder. A step without one is not complete, whatever else lies there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, step: str, settings: Mapping[str, Any], *, seconds: float, result: Mapping[str, Any]) -> None:
        """Mark a step as complete."""
        value = {"schema": _SCHEMA, "step": step, "seconds": seconds, "settings": settings, "result": result}
        write_json(self._folder / f"{step}.json", value)

    def read(self, step: str) -> dict[str, Any] | None:
        """A step's marker; None where it is not complete."""
        path = self._folder / f"{step}.json"
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["schema"] > _SCHEMA:
                raise FileFormatError(
                    f"{str(path)!r} has schema {found['schema']}, this eenet reads up to {_SCHEMA}: upgrade eenet"
                )
            return {"settings": found["settings"], "seconds": found["seconds"], "result": found["result"]}
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise FileFormatError(
                f"{str(path)!r} is damaged ({error}); delete it, and the step {step!r} runs again"
            ) from error

    def complete(self, step: str, settings: Mapping[str, Any]) -> bool:
        """Whether a step is complete; raises `InvalidInputError` where it was made with other settings."""
        found = self.read(step)
        if found is None:
            return False
        changed = differences(found["settings"], _plain(settings))
        if changed:
            raise InvalidInputError(
                f"the step {step!r} in {str(self._folder.parent.parent)!r} was made with other settings "
                f"({'; '.join(changed[:3])}); choose another --out, or make it anew with --from {step}"
            )
        return True

    def remove(self, step: str) -> None:
        """Make a step incomplete."""
        (self._folder / f"{step}.json").unlink(missing_ok=True)


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Where two JSON values differ, as "path: now instead of before"."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in dict.fromkeys([*before, *now]):
            path = f"{where}.{key}" if where else str(key)
            found += differences(before.get(key), now.get(key), path)
        return found
    return [] if before == now else [f"{where}: {now!r} instead of {before!r}"]


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))
