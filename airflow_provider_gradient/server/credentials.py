"""The access token and the workspace id of a server, made at its first start unless they are given.

The file is the user's copy, readable by its owner alone; the server itself keeps only the token's hash. Its
address is brought up to date at every start, since a free port differs from start to start.
"""

from __future__ import annotations

import os
import secrets
import shlex
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_gradient.server.settings import ServerSettings, StartError

FILE_NAME = "credentials.env"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a client must send. ``path`` is the file that holds them, ``None`` where the user gave them."""

    access_token: str = field(repr=False)
    workspace_id: str
    path: Path | None


def resolve_credentials(settings: ServerSettings, *, url: str, workspace_id: str | None) -> Credentials:
    """Those given; else those of the data directory's file, with its address made ``url``; else new ones,
    written there.

    :param workspace_id: the workspace on record, kept when the file is gone and a new token is made.
    :raises StartError: the file is there but isn't one of ours.
    """
    if settings.access_token and settings.workspace_id:
        return Credentials(access_token=settings.access_token, workspace_id=settings.workspace_id, path=None)
    path = settings.data_dir / FILE_NAME
    credentials = _read(path) if path.exists() else None
    if credentials is None:
        credentials = Credentials(
            access_token=secrets.token_urlsafe(32),
            workspace_id=workspace_id or f"{uuid.uuid4()}_workspace",
            path=path,
        )
    _write(path, credentials, url)
    return credentials


def _read(path: Path) -> Credentials:
    values: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        values[name.strip()] = "".join(shlex.split(value))
    try:
        return Credentials(
            access_token=values["GRADIENT_ACCESS_TOKEN"],
            workspace_id=values["GRADIENT_WORKSPACE_ID"],
            path=path,
        )
    except KeyError as missing:
        raise StartError(
            f"{path} lacks {missing.args[0]}: mend it, or remove it to have new credentials made"
        ) from None


def _write(path: Path, credentials: Credentials, url: str) -> None:
    values = {
        "GRADIENT_API_URL": url,
        "GRADIENT_ACCESS_TOKEN": credentials.access_token,
        "GRADIENT_WORKSPACE_ID": credentials.workspace_id,
    }
    aside = path.with_suffix(".tmp")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
    aside.replace(path)
