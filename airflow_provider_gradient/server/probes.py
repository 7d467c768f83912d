"""What machines that watch the server ask: whether it runs, whether it can work, how much it has to do.

None needs a token and none tells a secret.
"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_provider_gradient import __version__
from airflow_provider_gradient.server.routes import services_of


async def health(request: Request) -> JSONResponse:
    """That the server runs, and with which models."""
    slugs = services_of(request).catalogue.slugs
    return JSONResponse({"status": "ok", "version": __version__, "models": slugs})


async def ready(request: Request) -> JSONResponse:
    """Whether requests can be worked on: 200 if so, else 503 with the reason. The models are loaded before
    anything is answered."""
    services = services_of(request)
    if services.admission.closed:
        return JSONResponse({"status": "stopping"}, status_code=503)
    try:
        await run_in_threadpool(services.weights.check_writable)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return JSONResponse({"status": "not writable", "reason": reason}, status_code=503)
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    """The metrics, in Prometheus's text format."""
    return Response(generate_latest(services_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)


ROUTES = [
    Route(path, endpoint, methods=["GET"])
    for path, endpoint in (("/health", health), ("/ready", ready), ("/metrics", metrics))
]
