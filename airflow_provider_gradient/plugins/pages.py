"""The pages: what a user may see of Gradient's work in this Airflow.

Every route asks for the right to see plugins' pages; a DAG's data is shown to those alone who may read the
DAG's tasks and XComs. All routes only read. There are no documentation routes, nothing is loaded from
elsewhere, and the templates escape all text, since models write some of it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Set
from datetime import UTC, datetime
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import (
    AccessView,
    ConnectionDetails,
    DagAccessEntity,
)
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_access_view
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import ChainableUndefined, Environment, PackageLoader

from airflow_provider_gradient.plugins import charts
from airflow_provider_gradient.plugins.adapters import workspace
from airflow_provider_gradient.plugins.records import Kind, Record, count, record, records
from airflow_provider_gradient.provider_info import DEFAULT_CONNECTION_ID

_PAGE_ROWS = 50
_CHART_POINTS = 200
"""Latest evaluations or promotions that charts and histories are made of."""

PageNumber = Annotated[int, Query(ge=1, le=1_000_000)]


def make_app() -> FastAPI:
    """The application that Airflow mounts."""
    app = FastAPI(
        title="Gradient",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
    )
    pages = _Pages()
    of_dags = [
        Depends(requires_access_dag("GET", entity))
        for entity in (DagAccessEntity.TASK_INSTANCE, DagAccessEntity.XCOM)
    ]

    @app.get("/")
    def start() -> RedirectResponse:
        return RedirectResponse("completions")

    @app.get("/completions", dependencies=of_dags)
    def completions(
        request: Request, user: GetUserDep, session: SessionDep, page: PageNumber = 1, dag_id: str = ""
    ) -> HTMLResponse:
        return pages.table(request, session, "completions", _readable(user, dag_id), page, dag_id)

    @app.get("/tunings", dependencies=of_dags)
    def tunings(
        request: Request, user: GetUserDep, session: SessionDep, page: PageNumber = 1, dag_id: str = ""
    ) -> HTMLResponse:
        return pages.table(request, session, "tunings", _readable(user, dag_id), page, dag_id)

    @app.get("/evaluations", dependencies=of_dags)
    def evaluations(
        request: Request, user: GetUserDep, session: SessionDep, page: PageNumber = 1, dag_id: str = ""
    ) -> HTMLResponse:
        dags = _readable(user, dag_id)
        latest = records(session, "evaluations", dag_ids=dags, limit=_CHART_POINTS)
        return pages.table(
            request, session, "evaluations", dags, page, dag_id, series=charts.evaluation_series(latest)
        )

    @app.get("/adapters", dependencies=of_dags)
    def adapters(
        request: Request,
        user: GetUserDep,
        session: SessionDep,
        conn_id: Annotated[str, Query(max_length=250)] = DEFAULT_CONNECTION_ID,
    ) -> HTMLResponse:
        _require_connection(user, conn_id)
        history = records(session, "promotions", dag_ids=_readable(user, ""), limit=_CHART_POINTS)
        return pages.render(
            request, "adapters.html", conn_id=conn_id, workspace=workspace(conn_id), promotions=history
        )

    @app.get("/task", dependencies=of_dags)
    def task(
        request: Request,
        session: SessionDep,
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: int = -1,
    ) -> HTMLResponse:
        found = record(session, dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index)
        if found is None:
            raise HTTPException(404, "No task of a Gradient operator")
        return pages.render(request, "task.html", record=found, live=_any_running([found]))

    return app


def _readable(user: Any, dag_id: str) -> Set[str]:
    """The DAGs whose data ``user`` may see; of ``dag_id`` alone, if that is given."""
    permitted: Set[str] = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    return permitted & {dag_id} if dag_id else permitted


def _require_connection(user: Any, conn_id: str) -> None:
    """Whoever may see the page sees the default connection's adapters; others are for those who may read the
    connection."""
    if conn_id != DEFAULT_CONNECTION_ID and not get_auth_manager().is_authorized_connection(
        method="GET", details=ConnectionDetails(conn_id=conn_id), user=user
    ):
        raise HTTPException(403, "No right to read this connection")


class _Pages:
    """Renders the templates."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=PackageLoader("airflow_provider_gradient.plugins"),
            autoescape=True,
            undefined=ChainableUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "when": _when,
            "ago": _ago,
            "number": _number,
            "tokens": _tokens,
            "pretty": _pretty,
        }
        self._templates.globals |= {"charts": charts}

    def table(
        self,
        request: Request,
        session: Any,
        kind: Kind,
        dags: Set[str],
        page: int,
        dag_id: str,
        **values: Any,
    ) -> HTMLResponse:
        """A page of the task instances of a kind."""
        offset = (page - 1) * _PAGE_ROWS
        found = records(session, kind, dag_ids=dags, limit=_PAGE_ROWS, offset=offset)
        total = count(session, kind, dag_ids=dags)
        return self.render(
            request,
            f"{kind}.html",
            records=found,
            page=page,
            pages=max(1, -(-total // _PAGE_ROWS)),
            total=total,
            dag_id=dag_id,
            live=_any_running(found),
            **values,
        )

    def render(self, request: Request, template: str, **values: Any) -> HTMLResponse:
        """A page with the headers that keep it to itself."""
        nonce = secrets.token_urlsafe(16)
        mounted_at = request.scope.get("root_path", "").rstrip("/")
        airflow_root = mounted_at.rpartition("/")[0] + "/"
        page = self._templates.get_template(template)
        html = page.render(
            nonce=nonce, airflow=airflow_root, active=template, now=datetime.now(UTC), **values
        )
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
        )
        return HTMLResponse(
            html,
            headers={
                "Content-Security-Policy": policy,
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-store",
                "Referrer-Policy": "same-origin",
            },
        )


def _any_running(found: Iterable[Record]) -> bool:
    return any(each.state == "running" for each in found)


def _when(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _ago(moment: datetime, now: datetime) -> str:
    hours = (now - moment).total_seconds() / 3600
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"


def _number(value: Any, digits: int = 0) -> str:
    return "" if not isinstance(value, int | float) else f"{value:,.{digits}f}"


def _tokens(manifest: dict[str, Any]) -> str:
    parts = [manifest.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return _number(sum(part for part in parts if isinstance(part, int))) if any(parts) else ""


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
