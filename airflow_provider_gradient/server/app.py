"""The web application: the routes, what they work on, how errors look on the wire, and how it is run.

Success is always 200. An error is the API's JSON: a message, a type where the API has one, a payload where
the type has one; what no route foresaw says only that the server failed, and the log has the rest.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from airflow_provider_gradient.api import ApiError
from airflow_provider_gradient.server import embedding_routes, openapi, probes, routes
from airflow_provider_gradient.server.access import AccessCheck
from airflow_provider_gradient.server.admission import Admission, RequestRates
from airflow_provider_gradient.server.catalogue import Catalogue
from airflow_provider_gradient.server.connections import patient_for
from airflow_provider_gradient.server.devices import Placement
from airflow_provider_gradient.server.embeddings import EmbeddingsService
from airflow_provider_gradient.server.engine import Engine
from airflow_provider_gradient.server.failures import base_changed, failed
from airflow_provider_gradient.server.fingerprint import fingerprint
from airflow_provider_gradient.server.housekeeping import Housekeeping
from airflow_provider_gradient.server.metrics import Metrics
from airflow_provider_gradient.server.observing import Observed
from airflow_provider_gradient.server.routes import Services
from airflow_provider_gradient.server.settings import ServerSettings
from airflow_provider_gradient.server.store import Store
from airflow_provider_gradient.server.weights import AdapterWeights

_LOG = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that none sends on one that is just being closed."""
_LAST_SECONDS = 5
"""How long answers may take to be read by their clients once the models are stopped."""
_LOOK_SECONDS = 0.05


def load_services(settings: ServerSettings, *, store: Store) -> Services:
    """Load the models, and remove what a kill may have left of adapters.

    :param store: the records; the tokens in it are those that open the server.
    :raises StartError: a model can't be loaded.
    """
    limits = settings.limits
    weights = AdapterWeights(settings.data_dir / "adapters")
    housekeeping = Housekeeping(store, weights)
    housekeeping.start()
    fingerprints = {slug: fingerprint(path) for slug, path in settings.model_directories.items()}
    for adapter in store.adopt_bases(fingerprints):
        _LOG.warning("%s", base_changed(adapter.id, adapter.base_slug).message)
    engine = Engine(
        settings.model_directories,
        store=store,
        weights=weights,
        threads=settings.threads,
        placement=Placement.of(settings.device, settings.dtype),
        slots=settings.slots,
        retain=settings.retain,
        resident_adapters=limits.resident_adapters,
    )
    names = {slug: model.config.name for slug, model in engine.models.items()}
    context_lengths = {slug: model.context_length for slug, model in engine.models.items()}
    untunable = [slug for slug, model in engine.models.items() if not model.abilities.tuning]
    return Services(
        access=AccessCheck(store.accounts.opening, RequestRates(limits.requests_per_minute)),
        admission=Admission(limits.max_queue),
        catalogue=Catalogue(
            names=names, aliases=settings.aliases, context_lengths=context_lengths, untunable=untunable
        ),
        engine=engine,
        embeddings=EmbeddingsService(settings.embeddings_models, threads=settings.threads),
        fingerprints=fingerprints,
        housekeeping=housekeeping,
        limits=limits,
        metrics=Metrics(engine.load),
        store=store,
        weights=weights,
    )


def create_app(services: Services, *, docs: bool) -> ASGIApp:
    """The application: operations 1 to 8 under ``/api``, what watches it, and each request observed.

    :param docs: whether ``/docs`` and ``/openapi.json`` are there.
    """
    app = Starlette(
        routes=[*routes.ROUTES, *embedding_routes.ROUTES, *probes.ROUTES, *(openapi.ROUTES if docs else ())],
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_hang_up,
            Exception: _on_any_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.services = services
    return Observed(app, services.metrics)


class AppServer(uvicorn.Server):
    """Runs the application on a socket that listens already, until a signal.

    At the signal everything new is refused, what is under way gets some time to be answered, and then the
    models are stopped, so that the rest gets an answer too, if only that the server is stopping; last,
    connections are closed. ``engine_done`` tells afterwards whether the engine could be waited for.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=patient_for(services.limits.read_seconds),
                access_log=False,  # every request has its line already
                log_config=None,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_LAST_SECONDS,
            )
        )
        self.engine_done = False
        self._services = services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way, stop the models, then close the connections."""
        services = self._services
        services.admission.close()
        await self._finish(services.limits.grace_seconds)
        self.engine_done, _, _ = await asyncio.gather(
            asyncio.to_thread(services.engine.stop),
            asyncio.to_thread(services.embeddings.stop),
            asyncio.to_thread(services.housekeeping.stop),
        )
        await super().shutdown(sockets)

    async def _finish(self, seconds: float) -> None:
        """Wait until nothing is under way, so long at most, or until a second Ctrl-C."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self.force_exit or self._services.admission.idle):
                    await asyncio.sleep(_LOOK_SECONDS)


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
    """The client left before it was answered; nobody reads this, and the log shows it as others do."""
    return Response(status_code=499)


async def _on_any_error(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    answer = failed("the server failed on this request; its log says why")
    return JSONResponse(answer.to_wire(), status_code=answer.status)
