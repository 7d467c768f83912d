"""Operations 1 to 6 of the Gradient API, and tokenize, an extra.

Bodies and parameters are read as they come and checked against the strict models of the wire, so that
whatever is wrong with one gives the API's own ``bodyParsingError`` or ``queryOrPathParsingError``.
Operations are plain functions of a request and its workspace: having dependencies solved took longer than
most of what they do.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_provider_gradient.api import (
    IDEMPOTENCY_KEY_HEADER,
    KEYS_HEADER,
    KEYS_HONOURED,
    CompleteRequest,
    CreatedModel,
    CreateModelRequest,
    FineTuneRequest,
    ModelAdapterInfo,
    ModelList,
    TokenizeRequest,
)
from airflow_provider_gradient.server.access import AccessCheck
from airflow_provider_gradient.server.admission import Admission
from airflow_provider_gradient.server.catalogue import (
    BASE_MODEL_SUFFIX,
    Catalogue,
    base_model_id,
    new_adapter_id,
)
from airflow_provider_gradient.server.embeddings import EmbeddingsService
from airflow_provider_gradient.server.engine import Engine
from airflow_provider_gradient.server.failures import (
    bad_body,
    bad_parameter,
    base_changed,
    base_not_tunable,
    cannot_be_tuned,
    no_rag,
    stopping,
    too_many_samples,
    unknown_adapter,
    unknown_base,
)
from airflow_provider_gradient.server.housekeeping import Housekeeping
from airflow_provider_gradient.server.metrics import Metrics
from airflow_provider_gradient.server.reading import answered_unless_gone, read_body
from airflow_provider_gradient.server.settings import Limits
from airflow_provider_gradient.server.store import AdapterRecord, RepeatableCall, Store
from airflow_provider_gradient.server.weights import AdapterWeights

_ID_LENGTH = 50
_LONGEST_KEY = 255
_CAPABILITIES = ("complete", "fineTune", "any")
_BOOLEANS = {"true": True, "True": True, "false": False, "False": False}

RequestT = TypeVar("RequestT", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the operations work on."""

    access: AccessCheck
    admission: Admission
    catalogue: Catalogue
    engine: Engine
    embeddings: EmbeddingsService
    fingerprints: Mapping[str, str]
    housekeeping: Housekeeping
    limits: Limits
    metrics: Metrics
    store: Store
    weights: AdapterWeights


Endpoint = Callable[[Request], Awaitable[Response]]


def services_of(request: Request) -> Services:
    """What the operations work on."""
    return cast(Services, request.app.state.services)


def operation(work: Callable[[Request, Services, str], Awaitable[Response]]) -> Endpoint:
    """An operation of the API, given its services and the caller's workspace; refuses whoever has none, and
    everybody once the server is stopping."""

    @wraps(work)
    async def endpoint(request: Request) -> Response:
        services = services_of(request)
        workspace = services.access.workspace_of(request)
        if services.admission.closed:
            raise stopping()
        request.state.workspace = workspace  # for the log
        return await work(request, services, workspace)

    return endpoint


@operation
async def list_models(request: Request, services: Services, workspace: str) -> JSONResponse:
    """The base models and, unless ``onlyBase``, the workspace's adapters, as far as they have the
    ``capability``: all can complete, and an adapter can be fine-tuned where its base model can."""
    capability = request.query_params.get("capability", "fineTune")
    if capability not in _CAPABILITIES:
        raise bad_parameter("capability", f"must be one of {', '.join(_CAPABILITIES)}")
    only_base = _BOOLEANS.get(request.query_params.get("onlyBase", "false"))
    if only_base is None:
        raise bad_parameter("onlyBase", "must be true or false")
    records = [] if only_base else await run_in_threadpool(services.store.adapters, workspace_id=workspace)
    if capability == "fineTune":
        records = [record for record in records if record.base_slug not in services.catalogue.untunable]
    entries = services.catalogue.entries()
    bases = [entry for entry in entries if capability == "any" or capability in entry.capabilities]
    models = [*bases, *map(_adapter_info, records)]
    return JSONResponse(ModelList(models=models).to_wire())


@operation
async def create_model(request: Request, services: Services, workspace: str) -> JSONResponse:
    """A new adapter, equal to its base model until its first fine-tune."""
    body = await _body(request, CreateModelRequest)
    call = _repeatable(request, workspace, body)
    base_slug = services.catalogue.slug_of(body.model.base_model_id)
    if base_slug is None:
        raise unknown_base(body.model.base_model_id, services.catalogue.slugs)
    if base_slug in services.catalogue.untunable:
        raise cannot_be_tuned(base_slug)
    policy = services.engine.models[base_slug].config.training
    initial = body.initial_hyperparameters
    lora = initial.lora_hyperparameters if initial else None
    training = initial.training_arguments if initial else None
    adapter_id = await run_in_threadpool(
        services.store.create_adapter,
        id=new_adapter_id(),
        workspace_id=workspace,
        name=body.model.name,
        base_slug=base_slug,
        rank=(lora.rank if lora else None) or policy.default_rank,
        learning_rate=(training.learning_rate if training else None) or policy.default_learning_rate,
        base_fingerprint=services.fingerprints[base_slug],
        call=call,
    )
    return _answer(CreatedModel(id=adapter_id).to_wire(), call)


@operation
async def get_model(request: Request, services: Services, workspace: str) -> JSONResponse:
    """One adapter, and whether idempotency keys count here. Base models can't be read."""
    info = _adapter_info(_adapter(services, workspace, _model_id(request)))
    return JSONResponse(info.to_wire(), headers={KEYS_HEADER: KEYS_HONOURED})


@operation
async def delete_model(request: Request, services: Services, workspace: str) -> JSONResponse:
    """An adapter is gone with this answer, from memory too; its files go a little later."""
    model_id = _model_id(request)
    record = _adapter(services, workspace, model_id)
    if not await run_in_threadpool(services.store.delete_adapter, model_id, workspace_id=workspace):
        raise unknown_adapter(model_id)
    await asyncio.wrap_future(services.engine.forget(record))
    return JSONResponse({})


@operation
async def complete(request: Request, services: Services, workspace: str) -> JSONResponse:
    """A completion, with the extras ``usage`` and ``modelVersion`` (fine-tunes so far; 0 for a base)."""
    model_id = _model_id(request)
    body = await _body(request, CompleteRequest)
    base_slug, record = _served_model(services, workspace, model_id)
    if body.rag is not None:
        raise no_rag(auto_template=body.auto_template)
    with services.admission.admitted():
        answer = services.engine.complete(base_slug, record, body)
        return JSONResponse(await answered_unless_gone(request, answer))


@operation
async def fine_tune(request: Request, services: Services, workspace: str) -> JSONResponse:
    """One training call; answered when the new weights are on the disk."""
    model_id = _model_id(request)
    body = await _body(request, FineTuneRequest)
    if model_id.endswith(BASE_MODEL_SUFFIX):
        raise base_not_tunable(model_id)
    record = _served_adapter(services, workspace, model_id)
    if record.base_slug in services.catalogue.untunable:
        raise cannot_be_tuned(record.base_slug)
    if len(body.samples) > services.limits.max_samples:
        raise too_many_samples(len(body.samples), services.limits.max_samples)
    call = _repeatable(request, workspace, body)
    with services.admission.admitted():
        answer = services.engine.fine_tune(record, body, call=call)
        return _answer(await asyncio.wrap_future(answer), call)


@operation
async def tokenize(request: Request, services: Services, workspace: str) -> JSONResponse:
    """The tokens that a base model or an adapter reads for a query; an extra."""
    model_id = _model_id(request)
    body = await _body(request, TokenizeRequest)
    base_slug, _ = _served_model(services, workspace, model_id)
    with services.admission.admitted():
        answer = services.engine.tokenize(base_slug, body)
        return JSONResponse(await answered_unless_gone(request, answer))


ROUTES = [
    Route(f"/api/models{path}", endpoint, methods=[method])
    for method, path, endpoint in (
        ("GET", "", list_models),
        ("POST", "", create_model),
        ("GET", "/{id}", get_model),
        ("DELETE", "/{id}", delete_model),
        ("POST", "/{id}/complete", complete),
        ("POST", "/{id}/fine-tune", fine_tune),
        ("POST", "/{id}/tokenize", tokenize),
    )
]


# --- reading requests --------------------------------------------------------------------------------------


def _model_id(request: Request) -> str:
    model_id: str = request.path_params["id"]
    if len(model_id) != _ID_LENGTH:
        raise bad_parameter(
            "id", f"a model's id has exactly {_ID_LENGTH} characters, this one {len(model_id)}"
        )
    return model_id


async def _body(request: Request, model: type[RequestT]) -> RequestT:
    try:
        return model.model_validate_json(await read_body(request, services_of(request).limits))
    except ValidationError as error:
        raise bad_body(error) from None


def _repeatable(request: Request, workspace: str, body: BaseModel) -> RepeatableCall | None:
    """The call's idempotency key with what it stands for: operation, path and body."""
    key = request.headers.get(IDEMPOTENCY_KEY_HEADER)
    if key is None:
        return None
    if not 0 < len(key) <= _LONGEST_KEY:
        raise bad_parameter(IDEMPOTENCY_KEY_HEADER, f"must have 1 to {_LONGEST_KEY} characters")
    fields = body.model_dump(mode="json", by_alias=True, exclude_none=True)
    meant = json.dumps([request.method, request.url.path, fields], sort_keys=True)
    return RepeatableCall(workspace_id=workspace, key=key, digest=hashlib.sha256(meant.encode()).hexdigest())


def _adapter(services: Services, workspace: str, model_id: str) -> AdapterRecord:
    """The workspace's adapter; another's is as unknown as one that never was."""
    record = services.store.adapter(model_id)
    if record is None or record.workspace_id != workspace:
        raise unknown_adapter(model_id)
    return record


def _served_model(services: Services, workspace: str, model_id: str) -> tuple[str, AdapterRecord | None]:
    """The slug of a base model, or that of an adapter's with the adapter."""
    if not model_id.endswith(BASE_MODEL_SUFFIX):
        record = _served_adapter(services, workspace, model_id)
        return record.base_slug, record
    slug = services.catalogue.slug_of(model_id)
    if slug is None:
        raise unknown_base(model_id, services.catalogue.slugs)
    return slug, None


def _served_adapter(services: Services, workspace: str, model_id: str) -> AdapterRecord:
    """The workspace's adapter, if this server has its base model at present, and with the weights that the
    adapter was tuned on."""
    record = _adapter(services, workspace, model_id)
    if record.base_slug not in services.engine.models:
        raise unknown_base(record.base_slug, services.catalogue.slugs)
    if record.base_fingerprint != services.fingerprints[record.base_slug]:
        raise base_changed(record.id, record.base_slug)
    return record


# --- writing answers ---------------------------------------------------------------------------------------


def _adapter_info(record: AdapterRecord) -> ModelAdapterInfo:
    return ModelAdapterInfo.model_validate(
        {
            "id": record.id,
            "name": record.name,
            "base_model_id": base_model_id(record.base_slug),
            "latest_update_time": record.updated_at,
        }
    )


def _answer(body: dict[str, Any], call: RepeatableCall | None) -> JSONResponse:
    """The answer to a call that may be repeated; the echoed key tells a client that keys count here."""
    return JSONResponse(body, headers={IDEMPOTENCY_KEY_HEADER: call.key} if call else None)
