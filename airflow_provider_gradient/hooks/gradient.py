"""The hook: from a connection id to clients of the Gradient API.

A client must be made in the process that uses it, because its threads don't survive Airflow's fork: the hook
makes a new one at each call and keeps none.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.log import mask_secret

from airflow_provider_gradient.api import (
    ApiError,
    AuthenticationError,
    GradientConnectionError,
    GradientError,
    GradientTimeoutError,
    InvalidRequestError,
    InvalidResponseError,
    NotFoundError,
    PermissionDeniedError,
)
from airflow_provider_gradient.client import AsyncGradientClient, GradientClient, RetryPolicy
from airflow_provider_gradient.hooks.connection import (
    GradientConnection,
    StoredConnection,
    from_airflow,
    from_environment,
)
from airflow_provider_gradient.provider_info import (
    CONNECTION_TYPE,
    DEFAULT_CONNECTION_ID,
    HOOK_NAME,
    connection_fields,
    field_behaviour,
)

try:
    from airflow.sdk.exceptions import AirflowNotFoundException
except ImportError:  # Airflow 3.1
    from airflow.exceptions import AirflowNotFoundException  # type: ignore[attr-defined,unused-ignore]

if TYPE_CHECKING:
    from airflow_provider_gradient.langchain import GradientLLM
    from airflow_provider_gradient.registry import AliasRegistry


_TEST_SECONDS = 15.0
"""The longest a connection test takes: a person waits for it, and a thread of Airflow's API server."""


class GradientHook(BaseHook):
    """Talks to a Gradient server by an Airflow connection of type ``gradient``.

    Where no connection of that id exists, the environment variables ``GRADIENT_ACCESS_TOKEN``,
    ``GRADIENT_WORKSPACE_ID`` and ``GRADIENT_API_URL`` serve; a connection that exists is used alone.

    :param gradient_conn_id: id of the connection.
    """

    conn_name_attr = "gradient_conn_id"
    default_conn_name = DEFAULT_CONNECTION_ID
    conn_type = CONNECTION_TYPE
    hook_name = HOOK_NAME

    def __init__(self, gradient_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gradient_conn_id = gradient_conn_id

    def get_conn(self, *, within: float | None = None) -> GradientClient:
        """A new client; close it or use it in ``with``.

        :param within: seconds that a call may take at most, then without retries, for where a person waits;
            ``None`` for the connection's own time-outs.
        :raises InvalidRequestError: the connection lacks a field or has a wrong one; the message names it.
        """
        return _client(self._connection(), within=within)

    async def get_async_conn(self, *, within: float | None = None) -> AsyncGradientClient:
        """A new asynchronous client for the running loop: ``async with await hook.get_async_conn() as
        client``.

        :param within: seconds that a call may take at most, then without retries, for what asks again by
            itself; ``None`` for the connection's own time-outs.
        :raises InvalidRequestError: the connection lacks a field or has a wrong one; the message names it.
        """
        return AsyncGradientClient(**_client_arguments(await self._aconnection(), within=within))

    def get_llm(self, model_id: str, **params: Any) -> GradientLLM:
        """The model as a langchain-core LLM, for ``prompt | llm | parser``.

        :param model_id: of a base model or an adapter, or ``alias:<name>``.
        :param params: further parameters of :class:`~airflow_provider_gradient.langchain.GradientLLM`, such
            as ``temperature``.
        """
        from airflow_provider_gradient.langchain import GradientLLM

        return GradientLLM(model_id=self.resolve(model_id), client=self.get_conn(), **params)

    def get_registry(self) -> AliasRegistry:
        """The aliases of the connection's workspace, in the folder that ``[gradient] registry`` of Airflow's
        configuration names; by default ``$AIRFLOW_HOME/gradient/registry``, which one machine sees alone."""
        from airflow_provider_gradient.registry import AliasRegistry

        return AliasRegistry(_registry_path(), workspace_id=self._connection().workspace_id)

    def resolve(self, model_id: str) -> str:
        """The id of the adapter that ``alias:<name>`` stands for; any other id as it is.

        :raises UnknownAliasError: nothing was promoted to the alias.
        """
        from airflow_provider_gradient.registry import alias_of

        return model_id if alias_of(model_id) is None else self.get_registry().resolve(model_id)

    def test_connection(self) -> tuple[bool, str]:
        """Whether the server answers a real call, and what is wrong where it doesn't.

        Lists the models once, without retries, and waits no longer than 15 seconds.
        """
        try:
            connection = self._connection()
            with _client(connection, within=_TEST_SECONDS) as client:
                models = client.list_models(capability="any")
        except InvalidRequestError as error:
            return False, str(error)
        except (GradientError, OSError) as error:
            return False, _diagnosis(error, connection)
        return True, f"Connected to {client.base_url}: {len(models)} models in this workspace."

    def stored_connection(self) -> StoredConnection | None:
        """The connection as Airflow has it, or ``None`` where the environment stands in for it."""
        try:
            return self.get_connection(self.gradient_conn_id)
        except AirflowNotFoundException:
            return None

    def _connection(self) -> GradientConnection:
        stored = self.stored_connection()
        if stored is None:
            connection = from_environment(self.gradient_conn_id)
            mask_secret(connection.access_token)
            return connection
        return from_airflow(stored)

    async def _aconnection(self) -> GradientConnection:
        try:
            stored = await self.aget_connection(self.gradient_conn_id)
        except AirflowNotFoundException:
            connection = from_environment(self.gradient_conn_id)
            await _amask(connection.access_token)
            return connection
        return from_airflow(stored)

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's own fields for Airflow 3.1, which doesn't read them from the provider's metadata."""
        from wtforms import StringField  # type: ignore[import-untyped,unused-ignore]

        return {
            name: StringField(field["label"], description=field["description"])
            for name, field in connection_fields().items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The form's standard fields for Airflow 3.1, which doesn't read them from the provider's
        metadata."""
        return {name.replace("-", "_"): value for name, value in field_behaviour().items()}


def _client(connection: GradientConnection, *, within: float | None) -> GradientClient:
    return GradientClient(**_client_arguments(connection, within=within))


def _client_arguments(connection: GradientConnection, *, within: float | None) -> dict[str, Any]:
    if within is None:
        return connection.client_arguments
    return connection.client_arguments | {
        "timeouts": connection.timeouts.within(within),
        "retries": RetryPolicy(attempts=1),
    }


def _registry_path() -> Any:
    from airflow.configuration import conf

    path = conf.get("gradient", "registry", fallback="")
    if "://" in path:
        from airflow.sdk import ObjectStoragePath

        return ObjectStoragePath(path)
    home = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
    return path or home / "gradient" / "registry"


async def _amask(secret: str) -> None:
    try:
        from airflow.sdk.log import amask_secret
    except ImportError:  # Airflow 3.1
        mask_secret(secret)
    else:
        await amask_secret(secret)


def _diagnosis(error: Exception, connection: GradientConnection) -> str:
    """What is wrong, in the words of the connection form."""
    url = connection.base_url or "the default URL"
    if isinstance(error, AuthenticationError):
        return f"The server at {url} refused the access token (401): {error.message}"
    if isinstance(error, PermissionDeniedError):
        return (
            f"The token is not allowed in workspace {connection.workspace_id!r} (403): {error.message} "
            "Check the workspace id."
        )
    if isinstance(error, InvalidResponseError | NotFoundError):
        return f"Something answers at {url}, but it is not a Gradient server; check the server URL. {error}"
    if isinstance(error, ApiError):
        return f"The Gradient server at {url} reports an error: {error}"
    if (
        any(isinstance(cause, ssl.SSLError) for cause in _causes(error))
        or "certificate" in str(error).lower()
    ):
        return (
            f"No secure connection to {url}: {error}. Check the certificate, and the CA bundle of this "
            "connection if the server has a private one."
        )
    if isinstance(error, GradientTimeoutError):
        return f"The server at {url} did not answer in time: {error}"
    if isinstance(error, GradientConnectionError):
        return f"No route to {url}: {error}. Check the server URL and that the server runs."
    return f"{type(error).__name__}: {error}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
