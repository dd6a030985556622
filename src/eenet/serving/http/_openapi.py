"""The OpenAPI document, made for the model that is served."""

from __future__ import annotations

from typing import Any

import numpy as np

import eenet
from eenet.serving.engine._limits import Limits
from eenet.serving.engine._servable import InputSpec, Servable
from eenet.serving.http._decode import NPY, Decoder

_ERROR = {"$ref": "#/components/schemas/Error"}


def describe(servable: Servable, decoder: Decoder, limits: Limits) -> dict[str, Any]:
    """The document for one server."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "eenet",
            "version": eenet.__version__,
            "description": "A multi-exit network behind a server that batches by stage and keeps a budget.",
        },
        "paths": {
            "/predict": {"post": _predict(servable, decoder, limits)},
            "/budget": {"put": _budget(servable)},
            "/health": {"get": _state("Whether the server is alive.", "alive")},
            "/ready": {"get": _state("Whether it takes requests.", "ready")},
            "/info": {
                "get": _operation(
                    "What is served, its budget, and recent traffic.",
                    {"200": _content("The description.", {"type": "object"})},
                )
            },
            "/metrics": {
                "get": _operation(
                    "Counters in the text format of Prometheus.",
                    {
                        "200": {
                            "description": "The counters.",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        }
                    },
                )
            },
        },
        "components": {
            "schemas": {"Error": _object({"detail": {"type": "string"}}), "Answer": _answer(servable)},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _predict(servable: Servable, decoder: Decoder, limits: Limits) -> dict[str, Any]:
    schemas = [_object({"inputs": _inputs(servable, limits)})]
    if decoder.kind == "text":
        text = {"type": "string", "minLength": 1, "maxLength": limits.max_text}
        schemas.append(_object({"text": text}))
        schemas.append(
            _object({"texts": {"type": "array", "items": text, "minItems": 1, "maxItems": limits.max_samples}})
        )
    content: dict[str, Any] = {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
    file = {"type": "string", "format": "binary"}
    for kind in decoder.content_types[1:]:
        if kind == "multipart/form-data" and decoder.kind == "image":
            files = {"type": "array", "items": file, "minItems": 1, "maxItems": limits.max_samples}
            content[kind] = {"schema": _object({"file": files})}
        elif kind == "multipart/form-data":
            content[kind] = {"schema": _object({spec.name: file for spec in servable.inputs})}
        else:
            content[kind] = {"schema": {"type": "string", "minLength": 1} if kind == "text/plain" else file}
    refusals = {
        "400": "The body is not what its content type says.",
        "408": "The body came too slowly.",
        "413": "The body is too large, or holds too many samples.",
        "415": "The content type is not taken.",
        "422": "The inputs have the wrong names, shapes, dtypes or values.",
        "500": "The network failed on this request.",
        "504": "There was no answer in time.",
    }
    answer = _content("An answer for each sample, in order.", {"$ref": "#/components/schemas/Answer"})
    answer["content"][NPY[0]] = {"schema": {"type": "string", "format": "binary"}}
    return {
        **_operation(
            "Predict for one sample or many.",
            {
                "200": answer,
                **{status: _content(text, _ERROR) for status, text in refusals.items()},
                "503": {**_content("There is no room now.", _ERROR), "headers": {"Retry-After": _header("Seconds.")}},
            },
        ),
        "parameters": [
            _query("full", {"type": "boolean", "default": False}, "Switch the early exits off for this request."),
            _query("timeout_ms", {"type": "integer", "minimum": 1, "maximum": 600_000}, "How long to wait at most."),
        ],
        "requestBody": {"required": True, "content": content},
    }


def _inputs(servable: Servable, limits: Limits) -> dict[str, Any]:
    specs = list(servable.inputs)
    many = {spec.name: _nested(spec, limits) for spec in specs}
    one = {spec.name: schema["items"] for spec, schema in zip(specs, many.values(), strict=True)}
    if len(specs) == 1:
        name = specs[0].name
        return {"anyOf": [many[name], one[name]]}
    return {"anyOf": [_object(many), _object(one)]}


def _nested(spec: InputSpec, limits: Limits) -> dict[str, Any]:
    """The schema of a batch: nested arrays of numbers."""
    dtype = np.dtype(spec.dtype)
    schema: dict[str, Any]
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        schema = {"type": "number", "minimum": -most, "maximum": most}
    elif dtype.kind == "b":
        schema = {"type": "boolean"}
    else:
        bounds = np.iinfo(dtype)
        schema = {"type": "integer", "minimum": int(bounds.min), "maximum": int(bounds.max)}
    for size in reversed(spec.shape[1:]):
        bound = {"minItems": 1} if isinstance(size, str) else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bound}
    return {"type": "array", "items": schema, "minItems": 1, "maxItems": limits.max_samples}


def _answer(servable: Servable) -> dict[str, Any]:
    exits, classes = servable.backend.num_exits, servable.backend.num_classes
    prediction = {
        "type": "object",
        "required": ["class", "name", "exit", "cost"],
        "properties": {
            "class": {"type": "integer", "minimum": 0, "maximum": classes - 1},
            "name": {"type": ["string", "null"]},
            "probability": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "exit": {"type": "integer", "minimum": 0, "maximum": exits - 1},
            "cost": {"type": "number"},
        },
    }
    return _object(
        {
            "predictions": {"type": "array", "items": prediction, "minItems": 1},
            "cost_unit": {"type": "string"},
            "full_cost": {"type": "number"},
            "milliseconds": {"type": "number", "minimum": 0},
        }
    )


def _budget(servable: Servable) -> dict[str, Any]:
    number = {"type": "number", "minimum": servable.costs[0], "description": f"In {servable.costs.unit}."}
    text = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?( *[A-Za-z_]+|%)$", "examples": ["60%"]}
    budget = {"anyOf": [number, text]}
    answer = _object({"budget": {"type": "number"}, "unit": {"type": "string"}})
    refusals = {
        "400": "The body is not JSON.",
        "401": "The token is missing or wrong.",
        "403": "The server was started without a token.",
        "408": "The body came too slowly.",
        "413": "The body is too large.",
        "422": "The budget cannot be met.",
    }
    return {
        **_operation(
            "Keep to another budget from now on.",
            {
                "200": _content("The budget in force.", answer),
                **{status: _content(text, _ERROR) for status, text in refusals.items()},
            },
        ),
        "security": [{"token": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _object({"budget": budget})}},
        },
    }


def _state(summary: str, word: str) -> dict[str, Any]:
    return _operation(
        summary,
        {"200": _content("Yes.", _object({"status": {"const": word}})), "503": _content("No.", _ERROR)},
    )


def _operation(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": responses}


def _content(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _header(text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": "integer"}}
