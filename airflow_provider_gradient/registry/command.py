"""``gradient alias list|show|promote|rollback``: the registry of aliases from a shell.

To list and to show, the registry's files are enough; what moves an alias asks the server whether the adapter
is there.
"""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import uuid4

import typer

from airflow_provider_gradient.api import InvalidRequestError, ModelAdapterInfo
from airflow_provider_gradient.datasets import DatasetError, as_path, path_error
from airflow_provider_gradient.printing import AsJson, print_json, print_table
from airflow_provider_gradient.registry.aliases import AliasRegistry
from airflow_provider_gradient.registry.promotion import Promotion

Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="Its name: a-z, 0-9, '.', '_' and '-'.")]
Reason = Annotated[str | None, typer.Option(help="Kept in the alias's history.")]


def open_registry(path: str | None, workspace_id: str | None) -> AliasRegistry:
    """The registry that Airflow's tasks use where they are told nothing else, or the one at ``path``.

    :raises InvalidRequestError: no workspace is named, or ``path`` is one that only Airflow can open.
    """
    if not workspace_id:
        raise InvalidRequestError("no workspace: give --workspace-id or GRADIENT_WORKSPACE_ID")
    if path is None:
        home = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
        return AliasRegistry(home / "gradient" / "registry", workspace_id=workspace_id)
    url = urlsplit(path)
    if url.scheme in {"s3", "gs"} and url.username:
        raise InvalidRequestError(
            f"--registry: {url.username}@ names an Airflow connection, which only Airflow can open; leave it "
            "out and put the credentials into the environment"
        )
    return AliasRegistry(path, workspace_id=workspace_id)


def list_aliases(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the aliases of the workspace, and what each stands for."""
    registry = ctx.obj.registry()
    current = [registry.current(alias) for alias in registry.aliases()]
    if as_json:
        print_json([each.to_dict() for each in current])
        return
    rows = [(each.alias, *_cells(each)) for each in current]
    print_table(("ALIAS", "VERSION", "MODEL", "SINCE", "BY"), rows)


def show_alias(ctx: typer.Context, alias: Alias, as_json: AsJson = False) -> None:
    """Show the history of an alias, the latest promotion first: the models and what spoke for them."""
    history = ctx.obj.registry().history(alias)[::-1]
    if as_json:
        print_json([each.to_dict() for each in history])
        return
    rows = [(*_cells(each), _figures(each), each.reason or "") for each in history]
    print_table(("VERSION", "MODEL", "SINCE", "BY", "FIGURES", "REASON"), rows)


def promote(
    ctx: typer.Context,
    alias: Alias,
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the model adapter.")],
    evaluation: Annotated[
        str | None,
        typer.Option(help="The report that speaks for it, as evaluate writes it; its gate must have passed."),
    ] = None,
    replaces: Annotated[
        str | None,
        typer.Option(help="Id that the alias must stand for until now; '' for nothing yet. Default: any."),
    ] = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Let an alias stand for a model adapter."""
    report = _report(evaluation) if evaluation is not None else None
    with ctx.obj.client() as client:
        model = next((each for each in client.list_models(capability="any") if each.id == model_id), None)
    if model is None:
        raise InvalidRequestError(f"ID: this workspace has no model {model_id}")
    version = model.latest_update_time.isoformat() if isinstance(model, ModelAdapterInfo) else None
    promotion = ctx.obj.registry().promote(
        alias,
        model_id,
        model_version=version,
        promoted_by=_who(),
        reason=reason,
        replaces=replaces,
        evaluation=report,
    )
    _tell(promotion, as_json=as_json)


def roll_back(
    ctx: typer.Context,
    alias: Alias,
    to_version: Annotated[
        int | None, typer.Option(help="Of its history. Default: the last one with another model.")
    ] = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Let an alias stand for an earlier model adapter again."""
    with ctx.obj.client() as client:
        existing = {each.id for each in client.list_models(capability="any")}
    promotion = ctx.obj.registry().roll_back(
        alias, existing=existing, to_version=to_version, promoted_by=_who(), reason=reason
    )
    _tell(promotion, as_json=as_json)


def _tell(promotion: Promotion, *, as_json: bool) -> None:
    if as_json:
        print_json(promotion.to_dict())
    else:
        typer.echo(
            f"alias:{promotion.alias} is {promotion.model_id} now (version {promotion.version}). "
            "DAGs scheduled on it are not told; a promotion by the operator tells them"
        )


def _who() -> str:
    """The person, and which of their commands: the same command twice is two promotions."""
    return f"cli/{getpass.getuser()}/{uuid4().hex[:8]}"


def _cells(promotion: Promotion) -> tuple[str, ...]:
    since = f"{promotion.promoted_at:%Y-%m-%d %H:%M:%S %Z}"
    version = str(promotion.version)
    if promotion.rollback_to is not None:
        version += f" (back to {promotion.rollback_to})"
    return version, promotion.model_id, since, promotion.promoted_by or ""


def _figures(promotion: Promotion) -> str:
    metrics = (promotion.evaluation or {}).get("metrics") or {}
    return ", ".join(f"{name} {metric['value']:.3f}" for name, metric in metrics.items())


def _report(path: str) -> dict[str, Any]:
    try:
        with as_path(path).open("rb") as file:
            report = json.loads(file.read())
    except OSError as error:
        raise path_error(path, "read", error) from error
    except ValueError as error:
        raise DatasetError(f"--evaluation {path}: no JSON ({error})") from None
    if not isinstance(report, dict) or "metrics" not in report:
        raise DatasetError(f"--evaluation {path}: no evaluation report; give the file of report_path")
    return report
