"""The plugin that Airflow loads: a page in the navigation, served by Airflow's API server."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_gradient.provider_info import PAGE_PREFIX


class _BuiltWhenAsked:
    """An ASGI application that imports FastAPI at its first request: the scheduler, the workers and the
    triggerer load plugins too."""

    _app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from airflow_provider_gradient.plugins.pages import make_app

            self._app = make_app()
        await self._app(scope, receive, send)


_VIEW = {
    "name": "Gradient",
    "href": f"{PAGE_PREFIX}/",
    "destination": "nav",
    "category": "browse",
    "url_route": "gradient",
}


class GradientPlugin(AirflowPlugin):
    """Completions, evaluations, tunings and adapters on one page."""

    name = "gradient"
    fastapi_apps = [{"app": _BuiltWhenAsked(), "url_prefix": PAGE_PREFIX, "name": "Gradient"}]  # noqa: RUF012
    external_views = [_VIEW]  # noqa: RUF012 - lists, as Airflow declares them
