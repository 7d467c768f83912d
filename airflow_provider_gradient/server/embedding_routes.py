"""Operations 7 and 8 of the Gradient API: list the embeddings models, embed texts.

The API gives these operations' errors no type: whatever is wrong is a message alone.
"""

from __future__ import annotations

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_provider_gradient.api import (
    BadRequestError,
    EmbeddingsModelInfo,
    EmbeddingsModelList,
    EmbedRequest,
)
from airflow_provider_gradient.server.failures import bad_body
from airflow_provider_gradient.server.reading import answered_unless_gone, read_body
from airflow_provider_gradient.server.routes import Services, operation


@operation
async def list_embeddings_models(_request: Request, services: Services, _workspace: str) -> JSONResponse:
    """The models, the default first; all workspaces have the same."""
    models = [EmbeddingsModelInfo(slug=slug) for slug in services.embeddings.slugs]
    return JSONResponse(EmbeddingsModelList(embeddings_models=models).to_wire())


@operation
async def embed(request: Request, services: Services, _workspace: str) -> Response:
    """The vectors of 1 to 256 texts, in their order."""
    try:
        body = EmbedRequest.model_validate_json(await read_body(request, services.limits))
    except ValidationError as error:
        raise BadRequestError(bad_body(error).message, status=400) from None
    with services.admission.admitted():
        vectors = services.embeddings.embed(request.path_params["slug"], [each.input for each in body.inputs])
        return Response(await answered_unless_gone(request, vectors), media_type="application/json")


ROUTES = [
    Route("/api/embeddings", list_embeddings_models, methods=["GET"]),
    Route("/api/embeddings/{slug}", embed, methods=["POST"]),
]
