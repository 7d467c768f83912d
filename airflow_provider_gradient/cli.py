"""The command ``gradient``: a Gradient server's operations, and a server of one's own.

Results go to standard output, as a table or text for people or, with ``--json``, as one JSON value for
machines. An error is one line on standard error; the exit status is 2 where what was asked is wrong and
nothing was sent, 1 where it failed. No traceback and no access token is ever shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from airflow_provider_gradient import __version__
from airflow_provider_gradient.api import (
    BaseModelInfo,
    Capability,
    GradientError,
    InvalidRequestError,
    ModelAdapterInfo,
    PermissionDeniedError,
)
from airflow_provider_gradient.client import AsyncGradientClient, GradientClient, RetryPolicy, Timeouts
from airflow_provider_gradient.completions.command import complete_dataset
from airflow_provider_gradient.datasets import DatasetError, read_rows
from airflow_provider_gradient.embeddings.command import embed_dataset
from airflow_provider_gradient.printing import AsJson, print_json, print_table
from airflow_provider_gradient.registry import AliasRegistry, alias_of
from airflow_provider_gradient.registry import command as aliases
from airflow_provider_gradient.server import admin
from airflow_provider_gradient.server.command import serve
from airflow_provider_gradient.server.settings import DEFAULT_DATA_DIR

_ID_LENGTH = 50
_WRONG = (InvalidRequestError, DatasetError)


class _Commands(TyperGroup):
    """Commands whose errors are one line."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command; an error of ours ends it with its exit status."""
        try:
            return super().invoke(ctx)
        except GradientError as error:
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            _fail(f"{error}{notes}", status=2 if isinstance(error, _WRONG) else 1)


def _fail(message: str, *, status: int) -> NoReturn:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)


_OPTIONS: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(cls=_Commands, help="Gradient: complete with LLMs, fine-tune them, serve them.", **_OPTIONS)
model = typer.Typer(help="Base models and model adapters.", **_OPTIONS)
workspace = typer.Typer(help="Workspaces.", **_OPTIONS)
app.add_typer(model, name="model")
token = typer.Typer(help="Access tokens of a server of your own.", **_OPTIONS)
app.add_typer(workspace, name="workspace")
app.add_typer(token, name="token")
app.command("serve")(serve)
app.command("complete-dataset")(complete_dataset)
alias = typer.Typer(help="Aliases: names that stand for model adapters.", **_OPTIONS)
app.add_typer(alias, name="alias")
alias.command("list")(aliases.list_aliases)
alias.command("show")(aliases.show_alias)
alias.command("promote")(aliases.promote)
alias.command("rollback")(aliases.roll_back)
app.command("embed-dataset")(embed_dataset)
workspace.command("create")(admin.create_workspace)
token.command("create")(admin.create_token)
token.command("revoke")(admin.revoke_token)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Id of a model, slug of a base model, or alias:NAME.")
]


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What goes before the command."""

    api_url: str | None
    workspace_id: str | None
    ca_bundle: str | None
    timeout: float
    registry_path: str | None

    def client(self) -> GradientClient:
        """A client; the token is taken from the environment alone, where other users can't read it."""
        return GradientClient(
            base_url=self.api_url,
            workspace_id=self.workspace_id,
            verify=self.ca_bundle or True,
            timeouts=Timeouts(total=self.timeout),
            retries=RetryPolicy(attempts=3),  # someone waits for the answer
        )

    def async_client(self) -> AsyncGradientClient:
        """An asynchronous client, as patient with a row as an operator's."""
        return AsyncGradientClient(
            base_url=self.api_url,
            workspace_id=self.workspace_id,
            verify=self.ca_bundle or True,
            timeouts=Timeouts(total=self.timeout),
        )

    def registry(self) -> AliasRegistry:
        """The workspace's aliases; neither a server nor Airflow is asked."""
        return aliases.open_registry(self.registry_path, self.workspace_id)

    def resolve(self, model: str) -> str:
        """The id that ``alias:<name>`` stands for; anything else as it is."""
        return model if alias_of(model) is None else self.registry().resolve(model)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gradient {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    ctx: typer.Context,
    api_url: Annotated[
        str | None,
        typer.Option(
            envvar="GRADIENT_API_URL", help="The server, with or without /api. Default: Gradient's own."
        ),
    ] = None,
    workspace_id: Annotated[
        str | None, typer.Option(envvar="GRADIENT_WORKSPACE_ID", help="The workspace whose models are used.")
    ] = None,
    ca_bundle: Annotated[
        Path | None, typer.Option(help="PEM file of certificate authorities to trust besides the system's.")
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(
            envvar=["GRADIENT_REGISTRY", "AIRFLOW__GRADIENT__REGISTRY"],
            help="Folder of the aliases, a path or a URL. Default: gradient/registry in AIRFLOW_HOME.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a call may take, retries included.")] = 600.0,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Talk to a Gradient server. The access token comes from GRADIENT_ACCESS_TOKEN."""
    ctx.obj = _Settings(
        api_url=api_url,
        workspace_id=workspace_id,
        ca_bundle=str(ca_bundle) if ca_bundle else None,
        timeout=timeout,
        registry_path=registry,
    )


# --- models ------------------------------------------------------------------------------------------------


@model.command("list")
def list_models(
    ctx: typer.Context,
    only_base: Annotated[bool, typer.Option("--only-base", help="Without model adapters.")] = False,
    capability: Annotated[
        str, typer.Option(help="Only models that can do this: complete, fineTune, or any of them.")
    ] = "any",
    as_json: AsJson = False,
) -> None:
    """List the models of the workspace."""
    with ctx.obj.client() as client:
        models = client.list_models(capability=cast(Capability, capability), only_base=only_base)
    if as_json:
        print_json([each.to_wire() for each in models])
        return
    slugs = {each.id: each.slug for each in models if isinstance(each, BaseModelInfo)}
    print_table(("TYPE", "NAME", "ID", "BASE MODEL", "CAPABILITIES", "UPDATED"), _model_rows(models, slugs))


def _model_rows(
    models: Sequence[BaseModelInfo | ModelAdapterInfo], slugs: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    for each in models:
        if isinstance(each, BaseModelInfo):
            yield "base", each.slug, each.id, "", ", ".join(each.capabilities), ""
        else:
            base = slugs.get(each.base_model_id, each.base_model_id)
            yield "adapter", each.name, each.id, base, "", f"{each.latest_update_time:%Y-%m-%d %H:%M:%S %Z}"


@model.command("create")
def create_model(
    ctx: typer.Context,
    base_model: Annotated[str, typer.Argument(help="Slug or id of the base model.")],
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    rank: Annotated[int | None, typer.Option(help="Of its LoRA matrices, 1 to 32.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Above 0 and below 1.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a model adapter and print its id."""
    with ctx.obj.client() as client:
        model_id = client.create_model_adapter(
            base_model_id=_model_id(client, base_model), name=name, rank=rank, learning_rate=learning_rate
        )
    if as_json:
        print_json({"id": model_id})
    else:
        typer.echo(model_id)


@model.command("delete")
def delete_models(
    ctx: typer.Context,
    model_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of model adapters.")],
    as_json: AsJson = False,
) -> None:
    """Delete model adapters."""
    with ctx.obj.client() as client:
        for model_id in model_ids:
            client.delete_model(model_id)
            if not as_json:
                typer.echo(f"deleted {model_id}")
    if as_json:
        print_json({"deleted": model_ids})


@workspace.command("list")
def list_workspaces(
    ctx: typer.Context,
    data_dir: Annotated[
        Path | None, typer.Option(help="List all workspaces in this data folder of a server of your own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the workspace in use, and whether the server accepts it.

    The API cannot list workspaces: this is the one that is configured. The exit status is 1 where the server
    refuses it. With --data-dir, list those of a server of your own.
    """
    if data_dir is not None:
        found = admin.workspaces(data_dir)
        if as_json:
            print_json([asdict(each) for each in found])
        else:
            head = ("ID", "NAME", "TOKENS", "ADAPTERS", "CREATED")
            rows = [(w.id, w.name, str(w.tokens), str(w.adapters), w.created_at[:19]) for w in found]
            print_table(head, rows)
        return
    with ctx.obj.client() as client:
        try:
            models: int | None = len(client.list_models())
        except PermissionDeniedError:
            models = None
    accepted = models is not None
    if as_json:
        in_use = {
            "id": client.workspace_id,
            "apiUrl": client.base_url,
            "accepted": accepted,
            "models": models,
        }
        print_json([in_use])
    else:
        status = "accepted" if accepted else "refused"
        row = (client.workspace_id, status, "" if models is None else str(models), client.base_url)
        print_table(("ID", "STATUS", "MODELS", "SERVER"), [row])
    if not accepted:
        raise typer.Exit(1)


@token.command("list")
def list_tokens(
    data_dir: Annotated[
        Path, typer.Option(help="The server's folder of records and adapters.")
    ] = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List the access tokens of a server of your own, without the tokens themselves."""
    found = admin.tokens(data_dir)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    rows = [
        (
            each.id,
            each.name,
            each.workspace_id,
            each.origin,
            each.created_at[:19],
            (each.revoked_at or "")[:19],
        )
        for each in found
    ]
    print_table(("ID", "NAME", "WORKSPACE", "MADE BY", "CREATED", "REVOKED"), rows)


# --- complete, fine-tune -----------------------------------------------------------------------------------


@app.command()
def complete(
    ctx: typer.Context,
    model_: ModelArgument,
    query: Annotated[str, typer.Argument(help="The text to complete; - reads standard input.")],
    auto_template: Annotated[
        bool | None,
        typer.Option(help="Wrap the query in the model's recommended template; the server's default is yes."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "--max-generated-token-count", help="1 to 511.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token each time.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this share.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="One of the texts that the completion may be. Repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Complete a text and print what the model adds."""
    text = _standard_input().removesuffix("\n") if query == "-" else query
    with ctx.obj.client() as client:
        completion = client.complete(
            _model_id(client, ctx.obj.resolve(model_)),
            text,
            auto_template=auto_template,
            max_generated_token_count=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance=choice or None,
        )
    if as_json:
        print_json(completion.to_wire())
    else:
        typer.echo(completion.generated_output)


@app.command("fine-tune")
def fine_tune(
    ctx: typer.Context,
    model_id: Annotated[str, typer.Argument(help="Id of the model adapter, or alias:NAME.")],
    samples: Annotated[
        str | None,
        typer.Argument(
            help='JSONL file of samples, each {"inputs": ...} as in the API; - reads standard input.'
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A sample that is plain text. Repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model adapter on samples, in one call, and print the loss before the update."""
    given: list[Mapping[str, Any]] = [{"inputs": each} for each in text or ()]
    if samples is not None:
        given += read_rows("/dev/stdin" if samples == "-" else samples)
    if not given:
        raise InvalidRequestError("no samples: name a JSONL file, - for standard input, or give --text")
    with ctx.obj.client() as client:
        result = client.fine_tune(ctx.obj.resolve(model_id), given)
    if as_json:
        print_json(result.to_wire() | {"samples": len(given), "meanLoss": result.mean_loss})
    else:
        typer.echo(
            f"{len(given)} samples, {result.number_of_trainable_tokens} trainable tokens, "
            f"mean loss {result.mean_loss:.4f} before the update"
        )


# --- in and out --------------------------------------------------------------------------------------------


def _model_id(client: GradientClient, id_or_slug: str) -> str:
    """The id itself, or that of the base model of this slug; the API's ids have 50 characters."""
    return id_or_slug if len(id_or_slug) == _ID_LENGTH else client.find_base_model(id_or_slug).id


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("standard input is not UTF-8") from None
