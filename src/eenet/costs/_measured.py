"""The costs of exits out of a file: of a measurement at several batch sizes, or of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eenet._files import read_json
from eenet._timing import doubt
from eenet._warn import warn
from eenet.costs._exit_costs import IN_RUNS, ExitCosts
from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning


def load_costs(path: str | Path, unit: str | None = None, batch_size: int | None = None) -> ExitCosts:
    """The costs in a JSON file: of `eenet profile --json`, of `ExitCosts.to_dict`, or a recipe's `metrics.json`.

    Parameters
    ----------
    path : path
        The file.
    unit : str, optional
        "ms", "cpu_ms" or "flops". Of a profile, "ms" is the default; of others, the unit that they have.
    batch_size : int, optional
        The batch size of a profile that was measured at several.

    Returns
    -------
    ExitCosts

    Raises
    ------
    InvalidInputError
        For a unit or a batch size that the file does not have.
    FileFormatError
        If it is no such file.

    Warns
    -----
    ReliabilityWarning
        For times that are not to be trusted, with the reason.

    Examples
    --------
    >>> import json, tempfile
    >>> import eenet
    >>> path = Path(tempfile.mkdtemp()) / "costs.json"
    >>> _ = path.write_text(json.dumps(eenet.ExitCosts([1.0, 2.0], plain=1.9).to_dict()))
    >>> eenet.load_costs(path)
    ExitCosts([1, 2], unit='ms', plain=1.9)
    """
    data, name = read_json(path, "write it with eenet profile --json"), repr(str(path))
    one = data.get("costs", data) if "batch_sizes" not in data else data
    if isinstance(one, Mapping) and "values" in one:
        costs = ExitCosts.from_dict(one)
        if unit is not None and unit != costs.unit:
            raise InvalidInputError(f"the costs in {name} are in {costs.unit!r}, not in {unit!r}")
        return costs
    try:
        tables, sizes = data["costs"], list(data["batch_sizes"])
        unit = unit or "ms"
        if unit not in tables:
            raise InvalidInputError(f"{name} has no costs in {unit!r}; there are {sorted(tables)}")
        size = sizes[0] if batch_size is None and len(sizes) == 1 else batch_size
        if size is None or size not in sizes:
            chosen = "no batch size" if batch_size is None else f"batch size {batch_size}"
            raise InvalidInputError(f"{name} has costs at batch sizes {sizes}, {chosen} was given; choose one of them")
        return costs_at(data, unit, size, named=f"the costs in {name}")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise FileFormatError(
            f"{name} is not what eenet profile --json prints ({error!r} is missing or wrong)"
        ) from error


def costs_at(data: Mapping[str, Any], unit: str, batch_size: int, *, named: str = "the costs") -> ExitCosts:
    """The costs in one unit at one of the measured batch sizes; warns of those, `named`, that are not to be trusted."""
    row = list(data["batch_sizes"]).index(batch_size)
    device, plain, runs_of = data.get("device"), data.get("plain", {}), data.get("runs", {})
    why = doubt(data["costs"], data["spreads"], plain, unit, row, device)
    if why:
        warn(f"{named} at batch size {batch_size} {why}", ReliabilityWarning)
    runs = runs_of[unit][row] if unit in runs_of else ()
    # A scheduler's step is a few dozen operations on the host: it takes time, but has no counted FLOPs.
    not_in = (("scheduler",) if unit == "flops" else ()) + (IN_RUNS if runs_of and not runs else ())
    return ExitCosts(
        data["costs"][unit][row],
        unit,
        batch_size=batch_size,
        spread=data["spreads"][unit][row],
        device=device,
        includes=tuple(part for part in data.get("includes", ()) if part not in not_in),
        plain=plain[unit][row] if unit in plain else None,
        percentiles={name: values[row] for name, values in data.get("percentiles", {}).get(unit, {}).items()},
        runs=runs,
    )
