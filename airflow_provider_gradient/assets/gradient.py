"""What Airflow asks of the URI scheme ``gradient``: is this one right, and what is it in OpenLineage's words.

``gradient://<workspace>/<name>`` is a model by its id, or an alias by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset

from airflow_provider_gradient.lineage.uris import model_uri, openlineage_name

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from openlineage.client.event_v2 import Dataset


def create_asset(*, workspace_id: str, name: str, extra: dict[str, Any] | None = None) -> Asset:
    """The asset of a model or an alias.

    :param name: id of the model, or name of the alias.
    """
    return Asset(uri=model_uri(workspace_id, name), extra=extra)


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """The URI as it is.

    :raises ValueError: it lacks the workspace or the name, or has more than those.
    """
    name = uri.path.strip("/")
    if not uri.netloc or not name or "/" in name or uri.query or uri.fragment:
        raise ValueError(
            f"gradient:// must be followed by <workspace>/<model id or alias> (got {uri.geturl()!r})"
        )
    return uri._replace(path=f"/{name}")


def convert_asset_to_openlineage(asset: Asset, lineage_context: object) -> Dataset:  # noqa: ARG001 - Airflow gives it
    """The asset as OpenLineage's dataset: namespace ``gradient://<workspace>``, name the model or alias."""
    from openlineage.client.event_v2 import Dataset

    namespace, name = openlineage_name(asset.uri)
    return Dataset(namespace=namespace, name=name)
