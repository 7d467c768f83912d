"""The command that starts a server: ``gradient serve``, ``python -m airflow_provider_gradient.server``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from airflow_provider_gradient.server.settings import (
    DEFAULT_DATA_DIR,
    DEFAULT_PORT,
    Limits,
    LogFormat,
    ServerSettings,
    StartError,
)

_LIMITS = Limits()


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
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or mps; auto is CUDA where there is some, else the CPU.")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="auto, float32, bfloat16 or float16; auto is bfloat16 on CUDA, else float32."),
    ] = "auto",
    slots: Annotated[
        int | None,
        typer.Option(help="Completions of one base model at once.", show_default="what fits, at most 32"),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SLUG", help="Fine-tunes of this model hold what it knew (it costs time). Repeatable."
        ),
    ] = None,
    resident_adapters: Annotated[
        int, typer.Option(help="Model adapters of a base model kept in memory.")
    ] = _LIMITS.resident_adapters,
    max_body_mb: Annotated[
        int, typer.Option(help="Largest request body in MiB; 413 beyond.")
    ] = _LIMITS.max_body_mb,
    max_samples: Annotated[
        int, typer.Option(help="Most samples of one fine-tune call; 400 beyond.")
    ] = _LIMITS.max_samples,
    max_queue: Annotated[
        int, typer.Option(help="Most requests waiting or under way; 503 beyond.")
    ] = _LIMITS.max_queue,
    requests_per_minute: Annotated[
        int, typer.Option(help="Most requests of one token in a minute; 429 beyond.")
    ] = _LIMITS.requests_per_minute,
    read_seconds: Annotated[
        int, typer.Option(help="Seconds that a client may take to send its request.")
    ] = _LIMITS.read_seconds,
    grace_seconds: Annotated[
        int, typer.Option(help="Seconds that requests under way may take once the server is told to stop.")
    ] = _LIMITS.grace_seconds,
    log_format: Annotated[
        LogFormat, typer.Option(help="Lines for people, or a JSON object a line.")
    ] = "text",
    docs: Annotated[
        bool | None,
        typer.Option(help="Serve /docs and /openapi.json; by default on loopback addresses alone."),
    ] = None,
) -> None:
    """Start a Gradient server of your own, with its small built-in model.

    When it is ready it prints its address, the file that holds the access token and the workspace id made at
    the first start (readable by you alone), and the three lines that a client's shell needs; then how
    each base model is served. Ctrl-C or SIGTERM stops it: what is under way is finished first.
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
            device=device,
            dtype=dtype,
            slots=slots,
            retain=retain or (),
            limits=Limits(
                max_body_mb=max_body_mb,
                max_samples=max_samples,
                max_queue=max_queue,
                requests_per_minute=requests_per_minute,
                read_seconds=read_seconds,
                grace_seconds=grace_seconds,
                resident_adapters=resident_adapters,
            ),
            log_format=log_format,
            docs=docs,
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
