"""From an Airflow connection, or the environment where there is none, to the arguments of a client.

Nothing here does I/O, so that the hook's synchronous and asynchronous halves read a connection alike. A
connection that exists is used alone: what it lacks is an error that names the field, never filled in from the
environment, or a task could talk to another server than its connection says.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.client import ResponseLimits, Timeouts

TOKEN_VARIABLE = "GRADIENT_ACCESS_TOKEN"  # noqa: S105 - the variable's name
WORKSPACE_VARIABLE = "GRADIENT_WORKSPACE_ID"
URL_VARIABLE = "GRADIENT_API_URL"

_TIMEOUT_FIELDS = {"connect": "connect_timeout", "read": "read_timeout", "total": "total_timeout"}
_LIMIT_FIELD = "max_response_bytes"


class StoredConnection(Protocol):
    """What is read of an Airflow connection."""

    conn_id: str
    conn_type: str | None
    host: str | None
    port: int | None
    schema: str | None
    password: str | None
    extra: str | None


@dataclass(frozen=True, kw_only=True)
class GradientConnection:
    """Where a Gradient server is and how to speak to it.

    :param base_url: of the API; ``None`` for the client's default.
    :param verify: ``True``, or the path of a PEM file with authorities to trust besides the system's.
    """

    access_token: str = field(repr=False)
    workspace_id: str
    base_url: str | None
    timeouts: Timeouts = Timeouts()  # noqa: RUF009 - frozen
    limits: ResponseLimits = ResponseLimits()  # noqa: RUF009 - frozen
    verify: bool | str = True

    @property
    def client_arguments(self) -> dict[str, Any]:
        """Keyword arguments of :class:`GradientClient` and :class:`AsyncGradientClient`."""
        return {
            "access_token": self.access_token,
            "workspace_id": self.workspace_id,
            "base_url": self.base_url,
            "timeouts": self.timeouts,
            "limits": self.limits,
            "verify": self.verify,
        }


def from_environment(conn_id: str, environment: Mapping[str, str] | None = None) -> GradientConnection:
    """The connection that the environment variables describe, for where Airflow knows no ``conn_id``.

    :raises InvalidRequestError: names the variables that are missing.
    """
    environment = os.environ if environment is None else environment
    missing = [name for name in (TOKEN_VARIABLE, WORKSPACE_VARIABLE) if not environment.get(name)]
    if missing:
        raise InvalidRequestError(
            f"There is no Airflow connection {conn_id!r}, and the environment doesn't stand in for it: "
            f"{' and '.join(missing)} not set. Create a connection of type Gradient, or set "
            f"{TOKEN_VARIABLE}, {WORKSPACE_VARIABLE} and {URL_VARIABLE}."
        )
    return GradientConnection(
        access_token=environment[TOKEN_VARIABLE],
        workspace_id=environment[WORKSPACE_VARIABLE],
        base_url=environment.get(URL_VARIABLE) or None,
    )


def from_airflow(connection: StoredConnection) -> GradientConnection:
    """The connection as Airflow stores it: token in ``password``, URL in ``host``, the rest in ``extra``.

    A host without a scheme means https, on the loopback interface http; ``schema`` and ``port``, which
    connections given as a URI have, are honoured.

    :raises InvalidRequestError: names the fields that are missing or wrong.
    """
    name = f"The Airflow connection {connection.conn_id!r}"
    extra = _extra(connection.extra, name=name)
    workspace_id = extra.get("workspace_id")
    missing = [
        label
        for label, value in {
            "a server URL (field host)": connection.host,
            "an access token (field password)": connection.password,
            "a workspace id (workspace_id in extra)": workspace_id,
        }.items()
        if not value
    ]
    if missing or not connection.password:
        raise InvalidRequestError(f"{name} lacks {', '.join(missing)}.")
    ca_bundle = extra.get("ca_bundle")
    return GradientConnection(
        access_token=connection.password,
        workspace_id=str(workspace_id),
        base_url=_base_url(connection, name=name),
        timeouts=_timeouts(extra, name=name),
        limits=_limits(extra, name=name),
        verify=str(ca_bundle) if ca_bundle else True,
    )


def _extra(text: str | None, *, name: str) -> dict[str, Any]:
    try:
        extra = json.loads(text or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise InvalidRequestError(f"{name}: extra must be a JSON object.")
    return extra


def _base_url(connection: StoredConnection, *, name: str) -> str:
    host = (connection.host or "").strip()
    if "://" not in host:
        scheme = connection.schema if connection.schema in ("http", "https") else None
        host = f"{scheme or _usual_scheme(host)}://{host}"
    parts = urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidRequestError(
            f"{name}: host must be an http or https URL such as https://gradient.example.com/api."
        )
    if connection.port and ":" not in parts.netloc.rpartition("]")[2]:
        parts = parts._replace(netloc=f"{parts.netloc}:{connection.port}")
    return urlunsplit(parts)


def _usual_scheme(host: str) -> str:
    hostname = urlsplit(f"//{host}").hostname or ""
    if hostname == "localhost":
        return "http"
    try:
        return "http" if ipaddress.ip_address(hostname).is_loopback else "https"
    except ValueError:
        return "https"


def _timeouts(extra: Mapping[str, Any], *, name: str) -> Timeouts:
    given = {
        argument: _seconds(extra[key], name=name, key=key)
        for argument, key in _TIMEOUT_FIELDS.items()
        if extra.get(key) not in (None, "")
    }
    return Timeouts(**given)


def _limits(extra: Mapping[str, Any], *, name: str) -> ResponseLimits:
    given = extra.get(_LIMIT_FIELD)
    if given in (None, ""):
        return ResponseLimits()
    try:
        return ResponseLimits(body_bytes=int(given) if isinstance(given, str) else given)
    except ValueError:
        raise InvalidRequestError(
            f"{name}: {_LIMIT_FIELD} must be a whole number of bytes above 0 (got {given!r})."
        ) from None


def _seconds(value: object, *, name: str, key: str) -> float:
    try:
        seconds = float(value) if isinstance(value, str | int | float) and value is not True else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidRequestError(f"{name}: {key} must be a number of seconds above 0 (got {value!r}).")
    return seconds
