"""The command that starts a server: ``gradient serve``, ``python -m airflow_provider_gradient.server``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from airflow_provider_gradient.server.settings import (
    DEFAULT_DATA_DIR,
    DEFAULT_PORT,
    ServerSettings,
    StartError,
)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.")] = DEFAULT_PORT,
    data_dir: Annotated[
        Path, typer.Option(help="Folder of records, adapters and credentials.")
    ] = DEFAULT_DATA_DIR,
    base_model: Annotated[
        list[str] | None,
        typer.Option(metavar="SLUG=PATH", help="Serve a local Hugging Face model directory too. Repeatable."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(metavar="ALIAS=SLUG", help="One more slug for a model. Repeatable."),
    ] = None,
    embeddings_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SLUG=PATH",
            help="Serve a local sentence-embedding directory; as bge-large it replaces the built-in one. "
            "Repeatable.",
        ),
    ] = None,
    access_token: Annotated[
        str | None,
        typer.Option(
            envvar="GRADIENT_ACCESS_TOKEN",
            help="What clients must send; made at the first start if neither it nor the workspace is given. "
            "Prefer the variable: others can read options.",
        ),
    ] = None,
    workspace_id: Annotated[
        str | None, typer.Option(envvar="GRADIENT_WORKSPACE_ID", help="The workspace that the token opens.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
) -> None:
    """Start a Gradient server of your own, with its small built-in model.

    It prints one line when it is ready: its address, and the file that holds the access token and the
    workspace id made at the first start (readable by you alone; source it in a shell). Ctrl-C stops it.
    """
    try:
        settings = ServerSettings(
            data_dir=data_dir,
            host=host,
            port=port,
            access_token=access_token or None,
            workspace_id=workspace_id or None,
            base_models={slug: Path(path) for slug, path in _pairs("--base-model", base_model or [])},
            aliases=dict(_pairs("--alias", alias or [])),
            embeddings_models={
                slug: Path(path) for slug, path in _pairs("--embeddings-model", embeddings_model or [])
            },
            threads=threads,
        )
        from airflow_provider_gradient.server.serving import serve as run

        run(settings)
    except StartError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        typer.echo(
            f"Error: {error.name} is missing: pip install 'airflow-provider-gradient[server]'", err=True
        )
        raise typer.Exit(1) from None


def _pairs(option: str, values: Sequence[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for value in values:
        left, separator, right = value.partition("=")
        if not (left and separator and right):
            raise StartError(f"{option} {value}: must be two names with '=' between them")
        if left in dict(pairs):
            raise StartError(f"{option} {value}: {left!r} is given twice")
        pairs.append((left, right))
    return pairs
