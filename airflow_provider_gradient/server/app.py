"""The web application: the routes, what they work on, how errors look on the wire, and how it is run.

Success is always 200. An error is the API's JSON: a message, a type where the API has one, a payload where
the type has one; what no route foresaw says only that the server failed, and the log has the rest.
"""

from __future__ import annotations

import asyncio
import logging
import socket

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from airflow_provider_gradient import __version__
from airflow_provider_gradient.api import ApiError
from airflow_provider_gradient.server.access import AccessCheck
from airflow_provider_gradient.server.catalogue import Catalogue
from airflow_provider_gradient.server.embedding_routes import embedding_router
from airflow_provider_gradient.server.embeddings import EmbeddingsService
from airflow_provider_gradient.server.engine import Engine
from airflow_provider_gradient.server.failures import failed
from airflow_provider_gradient.server.routes import Services, router
from airflow_provider_gradient.server.settings import ServerSettings
from airflow_provider_gradient.server.store import Store
from airflow_provider_gradient.server.weights import AdapterWeights

_LOG = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that none sends on one that is just being closed."""
_GRACE_SECONDS = 5
"""How long answers may take to be read by their clients once the server stops."""


def load_services(settings: ServerSettings, *, store: Store) -> Services:
    """Load the models, and remove what a kill may have left of adapters.

    :param store: the records; the tokens in it are those that open the server.
    :raises StartError: a model can't be loaded.
    """
    weights = AdapterWeights(settings.data_dir / "adapters")
    weights.sweep(store.versions())
    engine = Engine(settings.model_directories, store=store, weights=weights, threads=settings.threads)
    names = {slug: model.config.name for slug, model in engine.models.items()}
    return Services(
        access=AccessCheck(store.tokens()),
        catalogue=Catalogue(names=names, aliases=settings.aliases),
        engine=engine,
        embeddings=EmbeddingsService(settings.embeddings_models, threads=settings.threads),
        store=store,
    )


def create_app(services: Services) -> FastAPI:
    """The application: operations 1 to 8 under ``/api``, and ``/health``."""
    app = FastAPI(
        title="Gradient server",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.include_router(router)
    app.include_router(embedding_router)
    app.add_api_route("/health", _health)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_hang_up)
    app.add_exception_handler(Exception, _on_any_error)
    return app


class AppServer(uvicorn.Server):
    """Runs the application on a socket that listens already, until a signal.

    At the signal the models are stopped first, so that every request under way gets an answer, if only that
    the server is stopping; then connections are closed. ``engine_done`` tells afterwards whether it could
    be waited for.
    """

    def __init__(self, app: FastAPI, services: Services) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self.engine_done = False
        self._services = services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the models, then close the connections."""
        self.engine_done, _ = await asyncio.gather(
            asyncio.to_thread(self._services.engine.stop), asyncio.to_thread(self._services.embeddings.stop)
        )
        await super().shutdown(sockets)


async def _health(request: Request) -> JSONResponse:
    """That the server runs, for anyone who asks: no token needed, no secret told."""
    services: Services = request.app.state.services
    return JSONResponse({"status": "ok", "version": __version__, "models": services.catalogue.slugs})


async def _on_api_error(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ApiError):
        raise error
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after is not None:
        headers["Retry-After"] = f"{error.retry_after:.0f}"
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
