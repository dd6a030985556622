"""What the interface takes and sends, as models: FastAPI makes the OpenAPI document from them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from eenet.serving.engine._model import InputSpec, Model
from eenet.serving.engine._request import Limits

NPY = ("application/x-npy", "application/npy")


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(_Object):
    """Why a request was refused."""

    detail: str


class Status(_Object):
    """The state of the server."""

    status: Literal["alive", "ready"]


class Prediction(_Object):
    """The answer for one sample."""

    class_: int = Field(alias="class", ge=-1, description="-1 where the sample is handed back.")
    abstained: bool = Field(description="Whether the sample is handed back, since no exit is sure of it.")
    name: str | None = Field(description="What the class is called.")
    probability: float | None = Field(None, ge=0, le=1, description="Of the class.")
    share: float | None = Field(None, ge=0, le=1, description="Of the pixels that have the class.")
    exit: int = Field(ge=0, description="Where the sample left, from 0.")
    cost: float = Field(description="What the exit costs.")
    truncated: bool | None = Field(
        None, description="Of a text: whether it has more tokens than are taken, so that not all of it was read."
    )
    empty: bool | None = Field(None, description="Of a text: whether it holds no token.")


class ExitAnswer(Prediction):
    """What one exit says of a sample, whether it left there or not."""

    score: float | None = Field(description="How sure the exit is; none at the last, which takes what is left.")
    threshold: float | None = Field(description="From which score on a sample leaves; none where the exit is off.")
    leaves: bool = Field(description="Whether the sample would leave here, had it not left before.")


class Answer(_Object):
    """The answers for all samples of a request, in order."""

    predictions: list[Prediction] = Field(min_length=1)
    cost_unit: str
    full_cost: float = Field(description="What the last exit costs, with the heads and decisions on the way.")
    plain_cost: float | None = Field(description="What the plain network costs, without exits; null where not known.")
    milliseconds: float = Field(ge=0)
    exits: list[ExitAnswer] | None = Field(None, description="With exits=true: each exit, the last included.")


class NewBudget(_Object):
    """A budget per sample."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    budget: StrictInt | StrictFloat | StrictStr = Field(
        description="In the unit of the costs, or a text such as '60%'.", examples=["60%"]
    )


class SetBudget(_Object):
    """The budget in force."""

    budget: float
    unit: str


class Input(_Object):
    """An input of the network."""

    name: str
    dtype: str
    shape: list[int | str]


class Traffic(_Object):
    """Recent traffic."""

    exit_shares: list[float] | None
    mean_cost: float | None
    waiting: list[int] = Field(description="Samples before each stage.")


class Budgets(_Object):
    """The budgets of a bundle from the smallest up, a list for each column."""

    budget: list[float]
    planned_cost: list[float]
    calibration_accuracy: list[float | None] = Field(description="Of the samples that are answered; none unlabeled.")
    handed_back: list[float | None] = Field(
        description="The share of the calibration samples that is handed back; none where none may be."
    )


class Info(BaseModel):
    """What is served; bundles say more of themselves."""

    name: str = Field(default="", description="Of its folder: of a bundle.")
    digest: str = Field(
        default="", description="The SHA-256 of all of it, manifest_sha256 in its manifest: of a bundle."
    )
    kind: Literal["array", "image", "text"]
    num_exits: int
    num_classes: int
    class_names: list[str] | None
    inputs: list[Input]
    costs: dict[str, Any]
    costs_from: str = Field(default="", description="Where the costs were measured: of a bundle.")
    measured_elsewhere: str | None = Field(
        default=None, description="What to do where they are of another machine or number of threads: of a bundle."
    )
    runtime: str = Field(default="", description="What runs the stages: of a bundle.")
    precision: dict[str, str] = Field(
        default_factory=dict, description="fp32 or int8, of each stage and head: of a bundle."
    )
    budgets: Budgets | None = Field(default=None, description="Which there are: of a bundle.")
    budget: float
    budget_changes: bool = Field(description="Whether PUT /budget is on.")
    traffic: Traffic


class Point(_Object):
    """The traffic of some seconds."""

    time: float = Field(description="When they began, in seconds since 1970.")
    samples: int = Field(ge=0, description="Those that were answered.")
    exit_shares: list[float] = Field(description="Of the answered; zeros where none was.")
    mean_cost: float = Field(description="What a sample that was begun cost, answered or not.")
    budget: float = Field(description="What it might cost.")
    handed_back: int = Field(ge=0, description="Samples of which no exit was sure.")


class Sample(_Object):
    """Where a sample left, and why; its input is not kept."""

    time: float = Field(description="Of the answer, in seconds since 1970.")
    exit: int = Field(ge=0, description="From 0.")
    cost: float = Field(description="What the exit costs.")
    class_: int | None = Field(alias="class", ge=-1, description="-1 where it is handed back; none of images.")
    name: str | None = Field(description="What the class is called.")
    probability: float | None = Field(ge=0, le=1, description="Of the class.")
    abstained: bool = Field(description="Whether it is handed back.")
    scores: list[float | None] = Field(description="At the exits that it passed, and where it left; not at the last.")
    thresholds: list[float | None] = Field(description="From which score on a sample left; none where an exit is off.")


class Drift(_Object):
    """Whether samples still take the exits that the calibration records say."""

    samples: int = Field(ge=0, description="That were tested.")
    shares: list[float] | None = Field(description="Of the exits that they took.")
    planned: list[float] | None = Field(description="What the records say of the policies they went by.")
    p_value: float = Field(ge=0, le=1)
    alarm: bool
    alarm_at: int | None = Field(description="After how many samples it came.")


class RecentTraffic(_Object):
    """What recent traffic did, for the page."""

    now: float = Field(description="The time of the server, in seconds since 1970.")
    seconds: float = Field(description="Of each point; there are none without traffic.")
    unit: str = Field(description="Of costs and budgets.")
    points: list[Point]
    drift: Drift | None = Field(description="None where the server does not adapt, or cannot know.")
    samples: list[Sample] = Field(
        description="The first of each request, the newest first; none on a Ray cluster, nor without the token of a "
        "server that has one."
    )


BAD_BODY = {
    400: "The body is not what its content type says.",
    408: "The body came too slowly.",
    413: "The body is too large, or holds too many samples.",
}
REFUSED_PREDICT = {
    **BAD_BODY,
    415: "The content type is not taken.",
    422: "The inputs have the wrong names, shapes, dtypes or values.",
    500: "The network failed on this request.",
    504: "There was no answer in time.",
}
REFUSED_BUDGET = {
    **BAD_BODY,
    401: "The token is missing or wrong.",
    403: "The server was started without a token.",
    422: "The budget cannot be met.",
}


def refusals(texts: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """The responses of a path that refuses with these statuses."""
    return {status: {"model": Error, "description": text} for status, text in texts.items()}


def file_content() -> dict[str, Any]:
    """The content of a response that is an .npy file."""
    return {NPY[0]: {"schema": {"type": "string", "format": "binary"}}}


def json_body(schema: dict[str, Any], **other: dict[str, Any]) -> dict[str, Any]:
    """What is added to the document of a path that reads its body by itself, within limits."""
    content = {"application/json": {"schema": schema}, **other}
    return {"requestBody": {"required": True, "content": content}}


def predict_body(model: Model, content_types: list[str], limits: Limits) -> dict[str, Any]:
    """The bodies that `POST /predict` takes: they depend on the model."""
    kind = model.preprocessing.kind
    schemas = [_object({"inputs": _inputs(model, limits)})]
    if kind == "text":
        text = {"type": "string", "minLength": 1, "maxLength": limits.max_text}
        texts = {"type": "array", "items": text, "minItems": 1, "maxItems": limits.max_samples}
        schemas += [_object({"text": text}), _object({"texts": texts})]
    file = {"type": "string", "format": "binary"}
    others: dict[str, Any] = {}
    for content_type in content_types[1:]:
        schema: dict[str, Any] = {"type": "string", "minLength": 1} if content_type == "text/plain" else file
        if content_type == "multipart/form-data" and kind == "image":
            files = {"type": "array", "items": file, "minItems": 1, "maxItems": limits.max_samples}
            schema = _object({"file": files})
        elif content_type == "multipart/form-data":
            schema = _object({spec.name: file for spec in model.inputs})
        others[content_type] = {"schema": schema}
    return json_body(schemas[0] if len(schemas) == 1 else {"anyOf": schemas}, **others)


def _inputs(model: Model, limits: Limits) -> dict[str, Any]:
    many = {spec.name: _nested(spec, limits) for spec in model.inputs}
    one = {name: schema["items"] for name, schema in many.items()}
    if len(many) == 1:
        return {"anyOf": [*many.values(), *one.values()]}
    return {"anyOf": [_object(many), _object(one)]}


def _nested(spec: InputSpec, limits: Limits) -> dict[str, Any]:
    """The schema of a batch: nested arrays of numbers."""
    dtype = np.dtype(spec.dtype)
    schema: dict[str, Any] = {"type": "boolean"}
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        schema = {"type": "number", "minimum": -most, "maximum": most}
    elif dtype.kind != "b":
        bounds = np.iinfo(dtype)
        schema = {"type": "integer", "minimum": int(bounds.min), "maximum": int(bounds.max)}
    for size in reversed(spec.shape[1:]):
        bound = {"minItems": 1} if isinstance(size, str) else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bound}
    return {"type": "array", "items": schema, "minItems": 1, "maxItems": limits.max_samples}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": False}
