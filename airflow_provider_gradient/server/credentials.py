"""The access token and the workspace id of a server, made at its first start unless they are given.

The file is the user's copy, readable by its owner alone; the server itself keeps only the token's hash. Its
address is brought up to date at every start, since a free port differs from start to start.
"""

from __future__ import annotations

import os
import secrets
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_gradient.server.accounts import Accounts, new_workspace_id
from airflow_provider_gradient.server.settings import ServerSettings, StartError

FILE_NAME = "credentials.env"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a client must send.

    :param access_token: ``None`` where only tokens made by command open the server.
    :param workspace_id: ``None`` where these open several workspaces.
    :param path: the file that holds both, ``None`` where the user has them.
    """

    access_token: str | None = field(repr=False)
    workspace_id: str | None
    path: Path | None


def check_tokens(settings: ServerSettings, accounts: Accounts, *, on_loopback: bool) -> None:
    """Refuse a start with a revoked token, and one that other machines could reach before anybody has made a
    token for it.

    :raises StartError: says what to do.
    """
    path = settings.data_dir / FILE_NAME
    of_file = _read(path) if settings.access_token is None and path.exists() else None
    token = of_file.access_token if of_file else settings.access_token
    if token is not None and accounts.is_revoked(token):
        where = f"the access token in {path}" if of_file else "the access token given"
        remedy = "remove that file to have a new one made" if of_file else "give another"
        raise StartError(f"{where} was revoked: {remedy}")
    if not on_loopback and token is None and not accounts.opening():
        raise StartError(
            f"--host {settings.host}: other machines can reach that, and nobody has made an access token. "
            "Make one with 'gradient token create' and this --data-dir, or give "
            "GRADIENT_ACCESS_TOKEN and GRADIENT_WORKSPACE_ID."
        )


def resolve_credentials(settings: ServerSettings, accounts: Accounts, *, url: str) -> Credentials:
    """Those given; else those of the data directory's file, with its address made ``url``; else those made by
    command, if there are; else new ones, written there. They are on record then.

    :raises StartError: the file is there but isn't one of ours.
    """
    if settings.access_token and settings.workspace_id:
        accounts.grant(token=settings.access_token, workspace_id=settings.workspace_id)
        return Credentials(access_token=settings.access_token, workspace_id=settings.workspace_id, path=None)
    path = settings.data_dir / FILE_NAME
    credentials = _read(path) if path.exists() else None
    if credentials is None:
        if any(token.origin == "command" and not token.revoked_at for token in accounts.tokens()):
            accounts.withdraw()
            opened = set(accounts.opening().values())
            workspace = opened.pop() if len(opened) == 1 else None
            return Credentials(access_token=None, workspace_id=workspace, path=None)
        credentials = _Written(
            access_token=secrets.token_urlsafe(32),
            workspace_id=accounts.start_workspace() or new_workspace_id(),
        )
    _write(path, credentials, url)
    accounts.grant(token=credentials.access_token, workspace_id=credentials.workspace_id)
    return Credentials(
        access_token=credentials.access_token, workspace_id=credentials.workspace_id, path=path
    )


def ready_lines(url: str, credentials: Credentials) -> str:
    """What is printed when the server is ready: where it is, and the lines of the shell that a client needs.
    No secret is among them, since standard output may well be a log."""
    where, token = "are those you gave", "...  # the one you gave"
    if credentials.path is not None:
        where = f"are in {credentials.path}"
        token = f'"$(. {shlex.quote(str(credentials.path))} && echo "$GRADIENT_ACCESS_TOKEN")"'
    elif credentials.access_token is None:
        where, token = "are those made by command", "...  # one that 'gradient token create' printed"
    workspace = credentials.workspace_id or "...  # the one of that token"
    return "\n".join(
        [
            f"Gradient server ready at {url} (access token and workspace id {where})",
            f"export GRADIENT_API_URL={url}",
            f"export GRADIENT_WORKSPACE_ID={workspace}",
            f"export GRADIENT_ACCESS_TOKEN={token}",
        ]
    )


@dataclass(frozen=True, kw_only=True)
class _Written:
    """The file's content."""

    access_token: str = field(repr=False)
    workspace_id: str


def _read(path: Path) -> _Written:
    values: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        values[name.strip()] = "".join(shlex.split(value))
    try:
        return _Written(
            access_token=values["GRADIENT_ACCESS_TOKEN"], workspace_id=values["GRADIENT_WORKSPACE_ID"]
        )
    except KeyError as missing:
        raise StartError(
            f"{path} lacks {missing.args[0]}: mend it, or remove it to have new credentials made"
        ) from None


def _write(path: Path, credentials: _Written, url: str) -> None:
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
