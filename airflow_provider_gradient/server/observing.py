"""What is seen of every request, around the whole application: its id, its line in the log, its part in the
metrics.

The id is the client's own where it sent a sane one, so that its log and ours can be laid side by side, and is
returned with every answer. The line has what happened and to what kind of request, never what was in it.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_provider_gradient.server.logs import REQUEST_ID
from airflow_provider_gradient.server.metrics import Metrics

REQUEST_ID_HEADER = "X-Request-Id"
_LOG = logging.getLogger("airflow_provider_gradient.server.requests")
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET = ("health", "ready", "metrics")
"""Asked every few seconds by machines: they get no line unless they fail."""


class Observed:
    """The application, observed."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        within = REQUEST_ID.set(request_id)
        began = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            if not status:  # else it was answered and logged as a failure already
                raise
        finally:
            self._tell(scope, status, time.perf_counter() - began)
            REQUEST_ID.reset(within)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        operation = str(getattr(scope.get("endpoint"), "__name__", "none"))
        self._metrics.answered(operation=operation, status=status, seconds=seconds)
        if operation in _QUIET and status == 200:
            return
        fields: dict[str, Any] = {
            "method": scope["method"],
            "path": scope["path"],
            "operation": operation,
            "status": status,
            "seconds": round(seconds, 4),
        }
        if "workspace" in scope.get("state", {}):
            fields["workspace"] = scope["state"]["workspace"]
        _LOG.info(
            "%s %s %d %.3f s",
            scope["method"],
            repr(scope["path"])[1:-1],
            status,
            seconds,
            extra={"fields": fields},
        )


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
