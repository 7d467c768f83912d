"""One name for each dataset and model, wherever it is spoken of: in an asset, and in OpenLineage.

A name never holds what a path may carry besides its place: the Airflow connection of
``s3://conn_id@bucket/key``, the password or the query of a URL.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

_LOCAL = ("file", "local")
_WITH_QUERIES = ("http", "https")


def model_uri(workspace_id: str, name: str) -> str:
    """``gradient://<workspace>/<name>``, of a model by its id or of an alias by its name."""
    return f"gradient://{workspace_id}/{name}"


def path_uri(path: object) -> str:
    """The URI of a file, a folder or a glob: ``file:///<absolute path>`` of a local one, else
    ``<protocol>://<bucket>/<key>``."""
    text = str(path)
    protocol, separator, rest = text.partition("://")
    if not separator or protocol in _LOCAL:
        path = rest if separator else text
        return f"file://{os.path.abspath(path)}"  # noqa: PTH100 - links are not followed
    if protocol in _WITH_QUERIES:
        rest = rest.partition("?")[0].partition("#")[0]
    authority, slash, key = rest.partition("/")
    return f"{protocol}://{authority.rpartition('@')[2]}{slash}{key}"


def dataset_uri(dataset: Any) -> str | None:
    """The URI of a dataset as operators take it: a path, an earlier task's manifest or a shard, whose dataset
    it is then; ``None`` of rows, which have no place."""
    if isinstance(dataset, Mapping):
        dataset = dataset.get("output_path") or dataset.get("scores_path") or dataset.get("source")
    if isinstance(dataset, str | os.PathLike) and os.fspath(dataset) not in ("", "inline"):
        return path_uri(dataset)
    return None


def asset_uri(uri: str) -> str:
    """``uri`` as Airflow's assets take it: in ASCII."""
    return "".join(character if character.isascii() else quote(character) for character in uri)


def openlineage_name(uri: str) -> tuple[str, str]:
    """Namespace and name, as OpenLineage has them by its naming conventions: ``file`` and the path of a local
    one, else ``<protocol>://<bucket>`` and the key."""
    protocol, _, rest = uri.partition("://")
    if protocol == "file":
        return "file", rest
    authority, _, key = rest.partition("/")
    return f"{protocol}://{authority}", key
