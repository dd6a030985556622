"""`eenet plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli._console import new_table, output, print_json, waiting
from eenet.cli._options import Json, read_share
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.capacity import ReplicaPlan, StageTime


def plan(
    stages_ms: Annotated[
        str, typer.Option(help="Of each stage, a call + each sample in ms, such as 4+0.5,4+1,4+2.", show_default=False)
    ],
    exit_shares: Annotated[str, typer.Option(help="The share of samples at each exit, such as 40%,30%,30%.")],
    p99_ms: Annotated[float, typer.Option(help="99 % of the requests are answered within this.")],
    rate: Annotated[str | None, typer.Option(help="Requests per second, one or several: 100,1000.")] = None,
    replicas: Annotated[str | None, typer.Option(help="Or: replicas in all, such as 1,10,100.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Samples in a batch, at most.")] = 16,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long a call waits for others.")] = 2.0,
    hop_ms: Annotated[float, typer.Option(min=0, help="How long a call takes to reach a stage.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the simulated traffic.")] = 0,
    json_output: Json = False,
) -> None:
    """Plan a fleet: replicas of each stage for given traffic, or the traffic that given replicas can take.

    By simulation of the queues before the stages, requests of one sample at random times. One replica is one process
    that runs all stages, as eenet serve without --ray.

    Examples:

        eenet plan --stages-ms 4+1,4+2,4+4 --exit-shares 50%,30%,20% --p99-ms 100 --rate 500

        eenet plan --stages-ms 4+1,4+2,4+4 --exit-shares 50%,30%,20% --p99-ms 100 --replicas 1,10,100
    """
    from eenet.capacity import capacity as most
    from eenet.capacity import plan as fewest
    from eenet.serving.engine import EngineOptions

    if (rate is None) == (replicas is None):
        raise InvalidInputError("give either --rate or --replicas")
    stages = [_stage(text, stages_ms) for text in stages_ms.split(",")]
    shares = [_share(text, exit_shares) for text in exit_shares.split(",")]
    options = EngineOptions(max_batch=max_batch, max_wait=max_wait_ms / 1000)
    made: list[ReplicaPlan] = []
    common: dict[str, Any] = {"p99": p99_ms / 1000, "options": options, "hop": hop_ms / 1000, "seed": seed}
    with waiting("simulating"):
        for text in rate.split(",") if rate is not None else ():
            traffic = _number(text, "--rate", rate or "", "100,1000")
            made.append(fewest(stages, shares, rate=traffic, **common))
        for text in replicas.split(",") if replicas is not None else ():
            count = int(_number(text, "--replicas", replicas or "", "1,10,100"))
            made.append(most(stages, shares, replicas=count, **common))
    if json_output:
        rows = [
            {
                "rate": one.rate,
                "total": one.total,
                "replicas": list(one.replicas),
                "p50_ms": 1000 * one.p50,
                "p99_ms": 1000 * one.p99,
                "load": list(one.load),
            }
            for one in made
        ]
        print_json({"schema": 1, "plans": rows})
        return
    _show(made)


def _show(plans: list[ReplicaPlan]) -> None:
    table = new_table(left=("replicas", "of each stage"), right=("requests/s", "p50 ms", "p99 ms"))
    table.add_column("load", overflow="fold")
    for one in plans:
        load = f"{sum(one.load):.0%}" if not one.replicas else ", ".join(f"{share:.0%}" for share in one.load)
        table.add_row(
            str(one.total),
            ", ".join(map(str, one.replicas)) or "one process",
            f"{one.rate:.4g}",
            f"{1000 * one.p50:.1f}",
            f"{1000 * one.p99:.1f}",
            load,
        )
    output().print(table)


def _stage(text: str, given: str) -> StageTime:
    from eenet.capacity import StageTime

    fixed, _, per_sample = text.partition("+")
    usual = "4+0.5,8+1"
    return StageTime(
        _number(fixed, "--stages-ms", given, usual) / 1000, _number(per_sample, "--stages-ms", given, usual) / 1000
    )


def _share(text: str, given: str) -> float:
    try:
        return read_share(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"--exit-shares {given!r}: {error}") from error


def _number(text: str, option: str, given: str, usual: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidInputError(f"{option} is {given!r}, expected such as {usual}") from error
