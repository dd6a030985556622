"""The costs of exits out of a measurement at several batch sizes, as `eenet profile --json` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eenet._timing import doubt
from eenet._warn import warn
from eenet.costs._exit_costs import IN_RUNS, ExitCosts
from eenet.errors import ReliabilityWarning


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
