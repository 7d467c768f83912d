"""The web application: the routes, what they work on, and how errors look on the wire.

Success is always 200. An error is the API's JSON: a message, a type where the API has one, a payload where
the type has one; what no route foresaw says only that the server failed, and the log has the rest.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from airflow_provider_gradient import __version__
from airflow_provider_gradient.api import ApiError
from airflow_provider_gradient.server.access import AccessCheck
from airflow_provider_gradient.server.catalogue import Catalogue
from airflow_provider_gradient.server.engine import Engine
from airflow_provider_gradient.server.failures import failed
from airflow_provider_gradient.server.routes import Services, router
from airflow_provider_gradient.server.settings import ServerSettings
from airflow_provider_gradient.server.store import Store
from airflow_provider_gradient.server.weights import AdapterWeights

_LOG = logging.getLogger(__name__)


def create_app(settings: ServerSettings, *, store: Store) -> FastAPI:
    """The application with its models loaded; it owns the store from here on and closes it at its end.

    :param store: the records; the tokens in it are those that open the server.
    :raises StartError: a model can't be loaded.
    """
    weights = AdapterWeights(settings.data_dir / "adapters")
    weights.sweep(store.versions())
    engine = Engine(settings.model_directories, store=store, weights=weights, threads=settings.threads)
    names = {slug: model.config.name for slug, model in engine.models.items()}
    services = Services(
        access=AccessCheck(store.tokens()),
        catalogue=Catalogue(names=names, aliases=settings.aliases),
        engine=engine,
        store=store,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.stop()
        store.close()

    app = FastAPI(
        title="Gradient server",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.services = services
    app.include_router(router)
    app.add_api_route("/health", _health)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_hang_up)
    app.add_exception_handler(Exception, _on_any_error)
    return app


async def _health(request: Request) -> JSONResponse:
    """That the server runs, for anyone who asks: no token needed, no secret told."""
    services: Services = request.app.state.services
    return JSONResponse({"status": "ok", "version": __version__, "models": services.catalogue.slugs})


async def _on_api_error(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ApiError):
        raise error
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse(error.to_wire(), status_code=error.status, headers=headers)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    """No such route, or no such method on it."""
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse({"message": message}, status_code=error.status_code, headers=error.headers)


async def _on_hang_up(_request: Request, _error: Exception) -> Response:
    """The client left before its request was whole; nobody reads this."""
    return Response(status_code=400)


async def _on_any_error(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    answer = failed("the server failed on this request; its log says why")
    return JSONResponse(answer.to_wire(), status_code=answer.status)
