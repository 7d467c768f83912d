"""An auth manager for the tests of the page: rights by the user's name."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class RightsByName(SimpleAuthManager):
    """``stranger`` may read no DAG named ``secret…``, ``blind`` no XComs, ``outsider`` sees no plugins."""

    def is_authorized_dag(
        self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None
    ) -> bool:
        if user.username == "stranger" and details and details.id and details.id.startswith("secret"):
            return False
        if user.username == "blind" and access_entity is not None and access_entity.name == "XCOM":
            return False
        return super().is_authorized_dag(
            method=method, user=user, access_entity=access_entity, details=details
        )

    def is_authorized_view(self, *, access_view: AccessView, user: Any) -> bool:
        if user.username == "outsider" and access_view is AccessView.PLUGINS:
            return False
        return super().is_authorized_view(access_view=access_view, user=user)
