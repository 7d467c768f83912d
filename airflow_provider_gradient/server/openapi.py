"""The server's OpenAPI document: what operations 1 to 8, tokenize and the probes take and give on the wire.

Bodies come from the models that check them, so they can't drift apart; the rest is written out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from airflow_provider_gradient import __version__
from airflow_provider_gradient.api import (
    IDEMPOTENCY_KEY_HEADER,
    CompleteRequest,
    Completion,
    CreatedModel,
    CreateModelRequest,
    EmbeddingsModelList,
    EmbedRequest,
    EmbedResult,
    FineTuneRequest,
    FineTuneResult,
    ModelAdapterInfo,
    ModelList,
    TokenizeRequest,
    TokenizeResult,
)
from airflow_provider_gradient.server.access import WORKSPACE_HEADER

_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "What was sent is wrong; the message says what.",
    401: "The access token is missing or not valid here.",
    403: "The token doesn't open the workspace that the header names.",
    404: "There is no such thing in this workspace.",
    408: "The body didn't come in time.",
    413: "The body is larger than may be.",
    429: "The token used up its requests; Retry-After says when there are more.",
    499: "The client left.",
    500: "The server failed; its log says why.",
    503: "The server has too much to do or is stopping; nothing was done where there is a Retry-After.",
    507: "The server's disk is full; nothing was kept.",
}
_ALWAYS = (401, 403, 429, 500, 503)
_OF_BODIES = (400, 408, 413)
_ERROR = {
    "type": "object",
    "required": ["message"],
    "properties": {
        "message": {"type": "string", "minLength": 1},
        "type": {
            "enum": [
                "bodyParsingError",
                "failed",
                "modelIncapableOfFineTuning",
                "nanLoss",
                "queryOrPathParsingError",
                "ragRequiresAutoTemplating",
                "unknownBaseModel",
                "unknownModelAdapter",
                "unknownRagCollection",
                "unprocessableContent",
            ]
        },
        "payload": {"type": "object"},
    },
}
_MODEL_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 50, "maxLength": 50},
}
_SLUG = {"name": "slug", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_CAPABILITY = {
    "name": "capability",
    "in": "query",
    "schema": {"enum": ["complete", "fineTune", "any"], "default": "fineTune"},
}
_ONLY_BASE = {
    "name": "onlyBase",
    "in": "query",
    "description": "Both spellings of booleans are taken.",
    "schema": {"enum": ["true", "false", "True", "False"], "default": "false"},
}
_KEY = {
    "name": IDEMPOTENCY_KEY_HEADER,
    "in": "header",
    "description": "The same key with the same body gives the first answer again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """One operation. ``takes`` and ``gives`` are the models of its bodies, ``gives`` ``None`` for ``{}``."""

    id: str
    method: str
    path: str
    summary: str
    takes: type[BaseModel] | None = None
    gives: type[BaseModel] | None = None
    parameters: tuple[dict[str, Any], ...] = ()
    errors: tuple[int, ...] = ()


_OPERATIONS = (
    _Operation(
        id="listModels",
        method="get",
        path="/models",
        summary="Base models and the workspace's model adapters.",
        gives=ModelList,
        parameters=(_CAPABILITY, _ONLY_BASE),
        errors=(400,),
    ),
    _Operation(
        id="createModel",
        method="post",
        path="/models",
        summary="Make a model adapter.",
        takes=CreateModelRequest,
        gives=CreatedModel,
        parameters=(_KEY,),
        errors=(404, 507),
    ),
    _Operation(
        id="getModel",
        method="get",
        path="/models/{id}",
        summary="One model adapter.",
        gives=ModelAdapterInfo,
        parameters=(_MODEL_ID,),
        errors=(400, 404),
    ),
    _Operation(
        id="deleteModel",
        method="delete",
        path="/models/{id}",
        summary="Delete a model adapter.",
        parameters=(_MODEL_ID,),
        errors=(400, 404, 507),
    ),
    _Operation(
        id="completeModel",
        method="post",
        path="/models/{id}/complete",
        summary="Complete a text by a base model or a model adapter.",
        takes=CompleteRequest,
        gives=Completion,
        parameters=(_MODEL_ID,),
        errors=(404, 499),
    ),
    _Operation(
        id="fineTuneModel",
        method="post",
        path="/models/{id}/fine-tune",
        summary="Train a model adapter on samples.",
        takes=FineTuneRequest,
        gives=FineTuneResult,
        parameters=(_MODEL_ID, _KEY),
        errors=(404, 507),
    ),
    _Operation(
        id="tokenize",
        method="post",
        path="/models/{id}/tokenize",
        summary="The tokens that a base model or a model adapter reads for a text. Not in the published API.",
        takes=TokenizeRequest,
        gives=TokenizeResult,
        parameters=(_MODEL_ID,),
        errors=(404, 499),
    ),
    _Operation(
        id="listEmbeddings",
        method="get",
        path="/embeddings",
        summary="The embeddings models.",
        gives=EmbeddingsModelList,
    ),
    _Operation(
        id="generateEmbedding",
        method="post",
        path="/embeddings/{slug}",
        summary="The vectors of 1 to 256 texts.",
        takes=EmbedRequest,
        gives=EmbedResult,
        parameters=(_SLUG,),
        errors=(404, 499),
    ),
)


@cache
def openapi() -> dict[str, Any]:
    """The document, as OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in _OPERATIONS:
        paths.setdefault(f"/api{operation.path}", {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Gradient server", "version": __version__},
        "paths": paths | _probes(),
        "components": {
            "schemas": _schemas() | {"Error": _ERROR},
            "securitySchemes": {
                "accessToken": {"type": "http", "scheme": "bearer"},
                "workspace": {"type": "apiKey", "in": "header", "name": WORKSPACE_HEADER},
            },
        },
        "security": [{"accessToken": [], "workspace": []}],
    }


def _described(operation: _Operation) -> dict[str, Any]:
    errors = {*_ALWAYS, *operation.errors, *(_OF_BODIES if operation.takes else ())}
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": list(operation.parameters),
        "responses": {
            "200": _json("Success.", _reference(operation.gives) if operation.gives else {"type": "object"}),
            **{str(status): _json(_ERRORS[status], _reference("Error")) for status in sorted(errors)},
        },
    }
    if operation.takes:
        body = {"application/json": {"schema": _reference(operation.takes)}}
        described["requestBody"] = {"required": True, "content": body}
    return described


def _probes() -> dict[str, Any]:
    """What needs no token."""
    status = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
    up, down = _json("It runs.", status), _json("Not at this moment.", status)
    text = {
        "description": "Prometheus's text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    return {
        path: {"get": {"operationId": path[1:], "security": [], "responses": responses}}
        for path, responses in {
            "/health": {"200": up},
            "/ready": {"200": up, "503": down},
            "/metrics": {"200": text},
        }.items()
    }


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _reference(model: type[BaseModel] | str) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model if isinstance(model, str) else model.__name__)}


def _schemas() -> dict[str, Any]:
    bodies: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = []
    for each in _OPERATIONS:
        if each.takes:
            bodies.append((each.takes, "validation"))
        if each.gives:
            bodies.append((each.gives, "serialization"))
    _, document = models_json_schema(bodies, ref_template=_REF)
    schemas: dict[str, Any] = document["$defs"]
    for answer in ("Completion", "FineTuneResult"):
        schemas[answer]["properties"]["modelVersion"] = {
            "type": "integer",
            "minimum": 0,
            "description": "Fine-tunes of the adapter so far; 0 for a base model.",
        }
    return schemas


async def _document(_request: Request) -> JSONResponse:
    return JSONResponse(openapi())


async def _page(_request: Request) -> HTMLResponse:
    return HTMLResponse(_PAGE)


_SWAGGER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5"
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Gradient server</title>
<link rel="stylesheet" href="{_SWAGGER}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{_SWAGGER}/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{url: "/openapi.json", dom_id: "#swagger-ui"}})</script>
</body>
</html>
"""

ROUTES = [
    Route("/openapi.json", _document, methods=["GET"]),
    Route("/docs", _page, methods=["GET"]),
]
