"""The command that embeds a dataset: ``gradient embed-dataset``.

Ctrl-C and SIGTERM stop it in good order, as they stop ``gradient complete-dataset``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions.command import unfinished_shown, until_signalled
from airflow_provider_gradient.embeddings import run
from airflow_provider_gradient.embeddings.manifest import EmbeddingManifest

_BAR_SECONDS = 0.5


def embed_dataset(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Slug of an embeddings model: bge-large.")],
    dataset: Annotated[
        str, typer.Argument(help="File, folder or glob of JSONL, CSV or Parquet; a path or a URL.")
    ],
    output: Annotated[str, typer.Argument(help="File to write: .parquet or .jsonl; a path or a URL.")],
    text_template: Annotated[
        str | None, typer.Option(help='Over the columns of a row: "{title}: {body}".')
    ] = None,
    text_template_format: Annotated[
        str, typer.Option(help="Of the template: f-string, mustache or jinja2.")
    ] = "f-string",
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The column that names a row.")] = None,
    carry_column: Annotated[
        list[str] | None, typer.Option(help="A column to copy to the output; default: all. Repeatable.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts a request, 1 to 256.")] = 64,
    concurrency: Annotated[int, typer.Option(help="Requests in flight at most.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Embed a text of every row of a dataset, and write a row for each.

    Stopped or killed, the same command goes on where it was. A bar on standard error shows how far it is;
    where that is no terminal, a line every ten seconds.
    """
    with unfinished_shown(lambda manifest: _print(manifest, as_json=as_json)):
        manifest = until_signalled(
            _embed(
                ctx.obj.async_client(),
                model=model,
                dataset=dataset,
                output_path=output,
                text_template=text_template,
                text_template_format=text_template_format,
                text_column=text_column,
                id_column=id_column,
                carry_columns=carry_column or None,
                batch_size=batch_size,
                concurrency=concurrency,
            )
        )
    _print(manifest, as_json=as_json)
    if manifest.all_failed:
        raise typer.Exit(1)


async def _embed(client: AsyncGradientClient, **arguments: Any) -> EmbeddingManifest:
    from airflow_provider_gradient.completions.progress_bar import ProgressBar

    async with client:
        with ProgressBar() as bar:
            return await run.embed_dataset(
                client, on_progress=bar, progress_seconds=_BAR_SECONDS, **arguments
            )


def _print(manifest: EmbeddingManifest, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False))
        return
    counts = manifest.counts
    failed = f"; those without: {manifest.errors_path}" if manifest.errors_path else ""
    typer.echo(
        f"Wrote {manifest.output_path}: {counts.success} vectors of {manifest.dimensions} dimensions, "
        f"{counts.error} errors in {manifest.seconds:.1f} s{failed}"
    )
