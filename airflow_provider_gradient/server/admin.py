"""``gradient workspace create``, ``gradient token create|revoke``, and what the lists show: who may use a
server of one's own.

All work on the server's data directory, whether or not it runs at the moment; what they change counts for a
running server after a second.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.server.settings import DEFAULT_DATA_DIR, StartError

if TYPE_CHECKING:
    from airflow_provider_gradient.server.accounts import Accounts, TokenRecord, WorkspaceRecord

DataDir = Annotated[Path, typer.Option(help="The server's folder of records and adapters.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def create_workspace(
    name: Annotated[str, typer.Argument(help="The workspace's name, which no other has.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a workspace on a server of your own and print its id."""
    with _accounts(data_dir) as accounts:
        typer.echo(accounts.create_workspace(name))


def create_token(
    workspace: Annotated[
        str | None,
        typer.Option(help="Id or name of the workspace that it opens; the only one there is by default."),
    ] = None,
    name: Annotated[str, typer.Option(help="Says to people what it is for.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Make an access token for a server of your own, and print what a client needs of it.

    The token is shown this once: the server keeps only its hash. A new data directory gets a workspace too.
    """
    with _accounts(data_dir) as accounts:
        if workspace is None and not accounts.workspaces():
            workspace = accounts.create_workspace("default")
        workspace_id = accounts.find_workspace(workspace)
        token = accounts.create_token(workspace_id=workspace_id, name=name)
    if as_json:
        typer.echo(json.dumps({"accessToken": token, "workspaceId": workspace_id}, indent=2))
    else:
        typer.echo(f"export GRADIENT_ACCESS_TOKEN={shlex.quote(token)}")
        typer.echo(f"export GRADIENT_WORKSPACE_ID={shlex.quote(workspace_id)}")


def workspaces(data_dir: Path) -> list[WorkspaceRecord]:
    """The workspaces of a server of one's own."""
    with _accounts(data_dir) as accounts:
        return accounts.workspaces()


def tokens(data_dir: Path) -> list[TokenRecord]:
    """The access tokens of a server of one's own, without the tokens themselves."""
    with _accounts(data_dir) as accounts:
        return accounts.tokens()


def revoke_token(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="The token's id, as 'gradient token list' has it.")
    ],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Let an access token open nothing any more, now and after a restart."""
    with _accounts(data_dir) as accounts:
        accounts.revoke(token_id)
    typer.echo(f"revoked {token_id}")


@contextmanager
def _accounts(data_dir: Path) -> Iterator[Accounts]:
    """The accounts in a server's data directory, made if missing."""
    try:
        from airflow_provider_gradient.server.database import DATABASE_FILE
        from airflow_provider_gradient.server.store import Store

        directory = data_dir.expanduser().absolute()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        store = Store(directory / DATABASE_FILE)
    except ModuleNotFoundError as error:
        raise InvalidRequestError(
            f"{error.name} is missing: pip install 'airflow-provider-gradient[server]'"
        ) from None
    except (OSError, StartError) as error:
        raise InvalidRequestError(f"--data-dir {data_dir}: {error}") from None
    try:
        yield store.accounts
    finally:
        store.close()
