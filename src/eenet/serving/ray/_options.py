"""The options of a bundle on a Ray cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from eenet.errors import InvalidInputError
from eenet.serving.engine._request import EngineOptions, Limits
from eenet.serving.ray._stage import INLINE_BYTES

_MOST_REPLICAS = 100_000
_RENAMED = {"hold": "adapt", "max_hold": "max_delay"}  # names in files that older versions wrote


@dataclass(frozen=True)
class StageScaling:
    """How many replicas a stage has, and what each of them reserves.

    Parameters
    ----------
    min_replicas, max_replicas : int
        Ray Serve keeps between these many.
    target : float
        Calls that a replica should have, running or waiting; a call has at most a batch of samples.
    cpus : float
        CPUs that a replica reserves.
    memory : int
        Bytes that a replica reserves; None reserves none.
    upscale_delay, downscale_delay : float
        Seconds above or below the target until replicas are added or removed.

    Examples
    --------
    >>> from eenet.serving.ray import StageScaling
    >>> StageScaling(min_replicas=1, max_replicas=4, cpus=0.5).cpus
    0.5
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target: float = 16.0
    cpus: float = 1.0
    memory: int | None = None
    upscale_delay: float = 10.0
    downscale_delay: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas <= _MOST_REPLICAS:
            raise InvalidInputError(
                f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}, expected 1 or "
                "more, ascending"
            )
        for name in ("target", "cpus", "upscale_delay", "downscale_delay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (name == "target" and value == 0):
                raise InvalidInputError(f"{name} is {value!r}, expected a number, 0 or more")

    def deployment(self, max_batch: int) -> dict[str, Any]:
        """The options of a Ray Serve deployment."""
        resources: dict[str, Any] = {"num_cpus": self.cpus}
        if self.memory is not None:
            resources["memory"] = self.memory
        # A replica takes in enough calls for a batch to form while another runs; the others wait where they may still
        # go to any replica.
        return {
            "max_ongoing_requests": max(2 * max_batch, math.ceil(2 * self.target)),
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target,
                "upscale_delay_s": self.upscale_delay,
                "downscale_delay_s": self.downscale_delay,
            },
            "ray_actor_options": resources,
        }


@dataclass(frozen=True)
class RayOptions:
    """How a bundle is served on Ray, where every stage is a deployment of its own.

    Parameters
    ----------
    stages : sequence of StageScaling
        One for each stage, or one for all.
    budget : float or str
        Another budget than the bundle's.
    adapt : bool
        Whether a `BudgetController` adapts the policy, so that traffic costs the budget.
    token_file : str
        Holds the token for `PUT /budget`; by default the variable EENET_TOKEN does, where the ingress runs.
    workers, threads : int
        Runs of a stage at the same time in a replica, and threads of a run.
    allow : sequence of str
        Import paths that a bundle of weights may call; see `eenet.bundle.load`.
    retries : int
        How often a call is sent again when replicas die.
    ingress_cpus : float
        CPUs reserved for the process that handles HTTP and decodes.
    inline_bytes : int
        Live tensors of up to this size travel with a call, through the ingress; larger ones wait in Ray's object store.
    engine : EngineOptions
        How batches are formed.
    limits : Limits
        What a request may cost.
    show_samples : bool
        Whether the last samples are shown; see `eenet.serving.http.ServerOptions`.

    Examples
    --------
    >>> from eenet.serving.ray import RayOptions, StageScaling
    >>> RayOptions(stages=[StageScaling(max_replicas=4)]).scaling(3)[2].max_replicas
    4
    """

    stages: Sequence[StageScaling] = (StageScaling(),)
    budget: str | float | None = None
    adapt: bool = True
    token_file: str | None = None
    workers: int = 1
    threads: int | None = 1
    allow: Sequence[str] = ()
    retries: int = 3
    ingress_cpus: float = 1.0
    inline_bytes: int = INLINE_BYTES
    engine: EngineOptions = field(default_factory=EngineOptions)
    limits: Limits = field(default_factory=Limits)
    show_samples: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("retries", 0), ("inline_bytes", 0)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}, expected {least} or more")

    def scaling(self, num_exits: int) -> list[StageScaling]:
        """That of each of K stages; raises `InvalidInputError` where there are neither one nor K."""
        if len(self.stages) not in (1, num_exits):
            raise InvalidInputError(
                f"{len(self.stages)} stages are described, but the bundle has {num_exits}; give one for all or one each"
            )
        return list(self.stages) * (num_exits if len(self.stages) == 1 else 1)

    def to_dict(self) -> dict[str, Any]:
        """Everything that differs from the defaults, for a YAML; `from_dict` reads it."""
        data: dict[str, Any] = {}
        for one in fields(self):
            value, usual = getattr(self, one.name), getattr(RayOptions(), one.name)
            if value != usual:
                if one.name == "stages":
                    data[one.name] = [_plain(stage, StageScaling()) for stage in value]
                elif one.name in ("engine", "limits"):
                    data[one.name] = _plain(value, usual)
                else:
                    data[one.name] = list(value) if one.name == "allow" else value
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RayOptions:
        """The options of what `to_dict` gave; raises `InvalidInputError` for names or values that are not there."""
        made = {_RENAMED.get(name, name): value for name, value in data.items()}
        try:
            for name, kind in (("engine", EngineOptions), ("limits", Limits)):
                if name in made:
                    made[name] = kind(**{_RENAMED.get(key, key): value for key, value in made[name].items()})
            if "stages" in made:
                made["stages"] = [StageScaling(**stage) for stage in made["stages"]]
            return cls(**made)
        except TypeError as error:
            raise InvalidInputError(
                f"the options {dict(data)!r} cannot be used ({error}); they are those of eenet.serving.ray.RayOptions"
            ) from error


def _plain(value: Any, usual: Any) -> dict[str, Any]:
    values = {one.name: getattr(value, one.name) for one in fields(value)}
    return {name: one for name, one in values.items() if one != getattr(usual, name)}
