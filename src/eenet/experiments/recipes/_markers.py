"""The markers of complete steps: what was done with which settings, so that a run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eenet._files import write_json
from eenet.errors import FileFormatError, InvalidInputError

_SCHEMA = 1


class OtherSettingsError(InvalidInputError):
    """The folder holds a step that was made with other settings."""


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
            marker = json.loads(path.read_text(encoding="utf-8"))
            if marker["schema"] > _SCHEMA:
                raise FileFormatError(
                    f"{str(path)!r} has schema {marker['schema']}, this eenet reads up to {_SCHEMA}: upgrade eenet"
                )
            return {"settings": marker["settings"], "seconds": marker["seconds"], "result": marker["result"]}
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise FileFormatError(
                f"{str(path)!r} is damaged ({error}); delete it, and the step {step!r} runs again"
            ) from error

    def complete(self, step: str, settings: Mapping[str, Any]) -> bool:
        """Whether a step is complete; raises `InvalidInputError` where it was made with other settings."""
        marker = self.read(step)
        if marker is None:
            return False
        changed = _differences(_as_today(marker["settings"]), _plain(settings))
        if changed:
            raise OtherSettingsError(
                f"the step {step!r} in {str(self._folder.parent.parent)!r} was made with other settings "
                f"({'; '.join(changed[:3])}); choose another --out, or make it again with --from {step}"
            )
        return True

    def remove(self, step: str) -> None:
        """Make a step incomplete."""
        (self._folder / f"{step}.json").unlink(missing_ok=True)


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Where two JSON values differ, as "path: now instead of before"."""
    if isinstance(before, dict) and isinstance(now, dict):
        differences = []
        for key in dict.fromkeys([*before, *now]):
            if where in _NEW and key in _NEW[where] and key not in before and now[key] == _NEW[where][key]:
                continue
            path = f"{where}.{key}" if where else str(key)
            differences += _differences(before.get(key), now.get(key), path)
        return differences
    return [] if before == now else [f"{where}: {now!r} instead of {before!r}"]


# Fields that markers of eenet 0.1 do not have.
_NEW: dict[str, dict[str, Any]] = {
    "model": {"exits": [], "weights_classes": None},
    "train": {
        "channels_last": False,
        "teacher": None,
        # and those of eenet 0.2 before the options of fine-tuning
        "layer_decay": 1.0,
        "ensemble_weight": 0.0,
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "ema_decay": None,
        "head_epochs": 0,
        "cache_crops": 1,
    },
    "profile": {"scheduler": False, "full_batches": True},
    "evaluation": {"rounds": 0},
}


def _as_today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a marker under today's names."""
    training = settings.get("train")
    if isinstance(training, dict) and "optimiser" in training:
        training = {"optimizer" if key == "optimiser" else key: value for key, value in training.items()}
    return {**settings, "train": training} if training is not None else dict(settings)


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))
