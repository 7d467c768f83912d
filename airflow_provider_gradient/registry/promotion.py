"""One step in an alias's history: which adapter it stands for since when, and why.

What led there is kept with it: the evaluation that spoke for the adapter and the tuning that made it, so that
dataset, samples, adapter and scores can be followed back from an alias long after the XComs are gone.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime

from airflow_provider_gradient.api import GradientError
from airflow_provider_gradient.datasets import KeptRecord

SCHEMA_VERSION = 1

_OF_EVALUATION = (
    "source",
    "model_id",
    "rows",
    "counts",
    "metrics",
    "gate",
    "comparison",
    "scores_path",
    "report_path",
    "page_path",
)
_OF_TUNING = (
    "model_id",
    "fingerprint",
    "samples",
    "epochs",
    "batch_size",
    "seed",
    "calls",
    "epoch_losses",
    "trainable_tokens",
    "curve_path",
)


class RegistryError(GradientError, ValueError):
    """A registry can't be read or written, or what is asked of it makes no sense."""


class UnknownAliasError(RegistryError):
    """No adapter was ever promoted to this alias."""


class RegistryConflictError(RegistryError):
    """The alias stands for another adapter than the one that was to be replaced."""


class Promotion(KeptRecord):
    """An alias began to stand for an adapter.

    :ivar version: 1 for an alias's first promotion, and one more for each further one.
    :ivar model_version: when the adapter was last tuned, at that time; ``None`` for a base model.
    :ivar promoted_by: the piece of work or the person that did it.
    :ivar rollback_to: the version whose adapter this one brought back, or ``None``.
    :ivar evaluation: what the evaluation report said, without its slices.
    :ivar tuning: what the tuning report said, without its single calls.
    """

    kind = "promotion"
    error = RegistryError

    schema_version: int = SCHEMA_VERSION
    alias: str
    version: int
    model_id: str
    model_version: str | None = None
    promoted_at: AwareDatetime
    promoted_by: str | None = None
    reason: str | None = None
    rollback_to: int | None = None
    evaluation: dict[str, Any] | None = None
    tuning: dict[str, Any] | None = None


def next_promotion(
    alias: str,
    current: Promotion | None,
    *,
    model_id: str,
    now: datetime,
    model_version: str | None = None,
    promoted_by: str | None = None,
    reason: str | None = None,
    replaces: str | None = None,
    evaluation: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | None = None,
) -> Promotion:
    """The promotion that follows ``current``.

    :param replaces: id of the adapter that the alias must stand for, ``""`` where it must stand for nothing
        yet; ``None`` for whatever it is.
    :raises RegistryConflictError: it stands for another.
    :raises RegistryError: a report is not this adapter's, or the evaluation's gate did not pass.
    """
    if replaces is not None and replaces != (current.model_id if current else ""):
        expected = f"to be taken over from {replaces}" if replaces else "to stand for nothing yet"
        now_it_is = "nothing yet" if current is None else f"{current.model_id} (version {current.version})"
        raise RegistryConflictError(
            f"alias {alias!r} was {expected}, but stands for {now_it_is}: the champion changed since it was "
            "compared with. Evaluate against the new one"
        )
    for name, report in {"evaluation": evaluation, "tuning": tuning}.items():
        if report is not None and report.get("model_id") not in (None, model_id):
            raise RegistryError(
                f"{name}: the report is of the model {report['model_id']}, not of {model_id}, which is to be "
                "promoted"
            )
    gate = (evaluation or {}).get("gate") or {}
    if gate.get("verdict", "pass") != "pass":
        raise RegistryError(
            f"evaluation: its gate's verdict is {gate['verdict']!r}; only one that passed is promoted. "
            f"Reasons: {gate.get('reasons')}"
        )
    return Promotion(
        alias=alias,
        version=1 if current is None else current.version + 1,
        model_id=model_id,
        model_version=model_version,
        promoted_at=now,
        promoted_by=promoted_by,
        reason=reason,
        evaluation=_chosen(evaluation, _OF_EVALUATION),
        tuning=_chosen(tuning, _OF_TUNING),
    )


def rollback(
    history: list[Promotion],
    *,
    existing: Container[str],
    now: datetime,
    to_version: int | None = None,
    promoted_by: str | None = None,
    reason: str | None = None,
) -> Promotion:
    """The promotion that brings back an earlier one's adapter.

    :param history: of the alias, oldest first, not empty.
    :param existing: ids of the models that are still there.
    :param to_version: ``None`` for the last version with another adapter, still there, than the current one.
    :raises RegistryError: there is none such.
    """
    current = history[-1]
    if to_version is None:
        earlier = [each for each in history if each.model_id != current.model_id]
    else:
        earlier = [each for each in history[:-1] if each.version == to_version]
    if not (left := [each for each in earlier if each.model_id in existing]):
        wanted = "earlier adapter" if to_version is None else f"earlier version {to_version}"
        deleted = "".join(f"; {each.model_id} (version {each.version}) was deleted" for each in earlier)
        raise RegistryError(f"alias {current.alias!r} has no {wanted} to go back to{deleted}")
    back_to = left[-1]
    return back_to.model_copy(
        update={
            "version": current.version + 1,
            "promoted_at": now,
            "promoted_by": promoted_by,
            "reason": reason,
            "rollback_to": back_to.version,
        }
    )


def _chosen(report: Mapping[str, Any] | None, fields: tuple[str, ...]) -> dict[str, Any] | None:
    return None if report is None else {name: report[name] for name in fields if name in report}
