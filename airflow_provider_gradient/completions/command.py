"""The command that completes a dataset: ``gradient complete-dataset``.

Ctrl-C and SIGTERM stop it in good order: what was answered is in the journal by then, and the same command
goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any, TypeVar

import typer
import uvloop

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.completions import run
from airflow_provider_gradient.completions.estimate import CompletionEstimate, estimate_completions
from airflow_provider_gradient.completions.manifest import CompletionManifest
from airflow_provider_gradient.completions.stopping import RunUnfinishedError
from airflow_provider_gradient.datasets import as_path, path_error

T = TypeVar("T")

_ID_LENGTH = 50
_BAR_SECONDS = 0.5


def complete_dataset(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Id of a model, slug of a base model, or alias:NAME.")
    ],
    dataset: Annotated[
        str, typer.Argument(help="File, folder or glob of JSONL, CSV or Parquet; a path or a URL.")
    ],
    output: Annotated[str, typer.Argument(help="File to write: .jsonl or .parquet; a path or a URL.")],
    prompt_template: Annotated[
        str | None, typer.Option(help='Over the columns of a row: "Question: {question}".')
    ] = None,
    prompt_template_format: Annotated[
        str, typer.Option(help="Of the template: f-string, mustache or jinja2.")
    ] = "f-string",
    prompt_column: Annotated[str | None, typer.Option(help="The column that holds the prompt.")] = None,
    output_schema: Annotated[
        str | None,
        typer.Option(help="What answers must hold: a file with a JSON schema, or package.module:Model."),
    ] = None,
    max_output_retries: Annotated[
        int, typer.Option(help="How often a row whose answer is invalid is asked again.")
    ] = 0,
    id_column: Annotated[str | None, typer.Option(help="The column that names a row.")] = None,
    carry_column: Annotated[
        list[str] | None, typer.Option(help="A column to copy to the output; default: all. Repeatable.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests in flight at most.")] = 16,
    requests_per_minute: Annotated[float | None, typer.Option(help="Sent at most in any minute.")] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="Of prompts and completions, on average.")
    ] = None,
    max_error_rate: Annotated[
        float | None, typer.Option(help="Stop where a larger share of the last 100 rows failed: 0 to 1.")
    ] = None,
    row_deadline: Annotated[
        float | None, typer.Option(help="Seconds that a row may take, with all its repetitions.")
    ] = None,
    deduplicate: Annotated[
        bool, typer.Option("--deduplicate", help="Send rows of equal prompts once; needs --temperature 0.")
    ] = False,
    max_rows: Annotated[int | None, typer.Option(help="End after so many rows; go on another time.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="End after so many seconds.")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Check and count, send nothing, print the figures as JSON.")
    ] = False,
    auto_template: Annotated[
        bool | None,
        typer.Option(help="Wrap prompts in the model's recommended template; the server's default is yes."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "--max-generated-token-count", help="1 to 511.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token each time.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this share.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="One of the texts that a completion may be. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Complete every row of a dataset, and write a row for each.

    Stopped or killed, the same command goes on where it was. A bar on standard error shows how far it is;
    where that is no terminal, a line every ten seconds.
    """
    asked: dict[str, Any] = {
        "dataset": dataset,
        "output_path": output,
        "prompt_template": prompt_template,
        "prompt_template_format": prompt_template_format,
        "prompt_column": prompt_column,
        "output_schema": None if output_schema is None else _schema(output_schema),
        "max_output_retries": max_output_retries,
        "id_column": id_column,
        "carry_columns": carry_column or None,
        "deduplicate": deduplicate,
        "auto_template": auto_template,
        "max_generated_token_count": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "guidance": choice or None,
    }
    client = ctx.obj.async_client()
    model = ctx.obj.resolve(model)
    if estimate:
        figures = until_signalled(_estimate(client, model, **asked))
        typer.echo(json.dumps(figures.to_dict(), indent=2, ensure_ascii=False))
        return
    with unfinished_shown(lambda manifest: _print(manifest, as_json=as_json)):
        manifest = until_signalled(
            _complete(
                client,
                model,
                concurrency=concurrency,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                max_error_rate=max_error_rate,
                row_deadline=row_deadline,
                max_rows=max_rows,
                max_seconds=max_seconds,
                **asked,
            )
        )
    _print(manifest, as_json=as_json)
    if manifest.all_failed:
        raise typer.Exit(1)


async def _estimate(client: AsyncGradientClient, model: str, **arguments: Any) -> CompletionEstimate:
    async with client:
        return await estimate_completions(client, model_id=await _model_id(client, model), **arguments)


async def _complete(client: AsyncGradientClient, model: str, **arguments: Any) -> CompletionManifest:
    from airflow_provider_gradient.completions.progress_bar import ProgressBar

    async with client:
        model_id = await _model_id(client, model)
        with ProgressBar() as bar:
            return await run.complete_dataset(
                client, model_id=model_id, on_progress=bar, progress_seconds=_BAR_SECONDS, **arguments
            )


async def _model_id(client: AsyncGradientClient, model: str) -> str:
    return model if len(model) == _ID_LENGTH else (await client.find_base_model(model)).id


def _schema(given: str) -> dict[str, Any] | str:
    """A JSON schema out of its file, or the dotted path as it is."""
    path = as_path(given)
    if ":" in given and not path.exists():
        return given
    try:
        with path.open("rb") as file:
            schema = json.loads(file.read())
    except OSError as error:
        raise path_error(given, "read", error) from error
    except ValueError as error:
        raise InvalidRequestError(f"--output-schema: {given} is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"--output-schema: {given} holds no JSON object")
    return schema


def until_signalled(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives. A signal stops it, and ends the command as the shell counts signals."""
    received: list[int] = []

    async def stoppable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - uvloop.run makes one

        def stop(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        return await work

    with contextlib.suppress(asyncio.CancelledError):
        return uvloop.run(stoppable())
    typer.echo("Stopped. What was answered is kept: the same command goes on from there.", err=True)
    raise typer.Exit(128 + received[0])


@contextlib.contextmanager
def unfinished_shown(show: Callable[[Any], None]) -> Iterator[None]:
    """Within the block, a run that is not finished shows what there is before its error ends the command.

    :param show: prints a manifest.
    """
    try:
        yield
    except RunUnfinishedError as error:
        show(error.manifest)
        raise


def _print(manifest: CompletionManifest, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False))
        return
    counts = manifest.counts
    failed = f"; those without: {manifest.errors_path}" if manifest.errors_path else ""
    typer.echo(
        f"Wrote {manifest.output_path}: {counts.success} completions, {counts.error} errors, "
        f"{counts.invalid_output} invalid outputs in {manifest.seconds:.1f} s{failed}"
    )
    if manifest.ended is not None:
        left = f", and {manifest.left_over} failed for a reason that may pass" if manifest.left_over else ""
        typer.echo(
            f"{counts.not_run} rows were not run{left}: {manifest.ended}. The same command goes on with them"
        )
