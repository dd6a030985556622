"""A model and its scheduler as a folder of graphs: manifest, export, verification, loading."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eenet.bundle._export import export as export
    from eenet.bundle._load import LoadedBundle as LoadedBundle
    from eenet.bundle._load import load as load
    from eenet.bundle._manifest import sealed as sealed
    from eenet.bundle._plan import measure as measure

_HOMES = {
    "LoadedBundle": "_load",
    "export": "_export",
    "load": "_load",
    "measure": "_plan",
    "sealed": "_manifest",
}


__all__ = ["LoadedBundle", "export", "load", "measure"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'eenet.bundle' has no attribute {name!r}")
    value = getattr(import_module(f"eenet.bundle.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
