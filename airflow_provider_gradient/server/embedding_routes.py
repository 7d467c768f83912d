"""Operations 7 and 8 of the Gradient API: list the embeddings models, embed texts.

The API gives these operations' errors no type: whatever is wrong is a message alone.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from airflow_provider_gradient.api import (
    BadRequestError,
    EmbeddingsModelInfo,
    EmbeddingsModelList,
    EmbedRequest,
)
from airflow_provider_gradient.server.failures import bad_body
from airflow_provider_gradient.server.routes import ServicesDep, workspace_of_caller

embedding_router = APIRouter(prefix="/api/embeddings", dependencies=[Depends(workspace_of_caller)])


@embedding_router.get("")
async def list_embeddings_models(services: ServicesDep) -> JSONResponse:
    """The models, the default first; all workspaces have the same."""
    models = [EmbeddingsModelInfo(slug=slug) for slug in services.embeddings.slugs]
    return JSONResponse(EmbeddingsModelList(embeddings_models=models).to_wire())


@embedding_router.post("/{slug}")
async def embed(request: Request, services: ServicesDep, slug: str) -> Response:
    """The vectors of 1 to 256 texts, in their order."""
    try:
        body = EmbedRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise BadRequestError(bad_body(error).message, status=400) from None
    vectors = services.embeddings.embed(slug, [each.input for each in body.inputs])
    return Response(await asyncio.wrap_future(vectors), media_type="application/json")
