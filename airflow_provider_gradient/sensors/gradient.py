"""Sensors that wait for a Gradient server, or for an adapter on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.sdk import BaseSensorOperator
from airflow.sdk.bases.sensor import PokeReturnValue

from airflow_provider_gradient.api import GradientError, InvalidRequestError
from airflow_provider_gradient.hooks.gradient import GradientHook
from airflow_provider_gradient.provider_info import DEFAULT_CONNECTION_ID
from airflow_provider_gradient.triggers.awaited import PASSING, POLL_SECONDS, Awaited
from airflow_provider_gradient.triggers.gradient import GradientTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class _GradientSensor(BaseSensorOperator):
    """Waits for something that the server's list of models tells.

    While the server can't be reached, refuses for load or fails (429, 5xx), it is waited for; a wrong token
    or workspace fails the task at once.

    :param gradient_conn_id: id of the Airflow connection.
    :param deferrable: wait in the triggerer, without a worker; by default as ``[operators]
        default_deferrable`` says.
    :param poke_interval: seconds between two questions; the triggerer keeps to it too.
    :param timeout: seconds after which the task fails, or with ``soft_fail`` is skipped; of a deferred task,
        since it was deferred.
    """

    ui_color = "#e8e4fb"

    def __init__(
        self,
        *,
        gradient_conn_id: str = DEFAULT_CONNECTION_ID,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gradient_conn_id = gradient_conn_id
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.deferrable = deferrable

    @property
    def hook(self) -> GradientHook:
        """A hook of this sensor's connection."""
        return GradientHook(self.gradient_conn_id)

    def awaited(self) -> Awaited:
        """What is waited for."""
        return Awaited()

    def poke(self, context: Context) -> PokeReturnValue:
        """One question."""
        awaited = self.awaited()
        with self.hook.get_conn(within=POLL_SECONDS) as client:
            try:
                found = awaited.found(client.list_models(capability="any"))
            except PASSING as error:
                self.log.info("Not ready: %s", error)
                found = None
        return PokeReturnValue(is_done=found is not None, xcom_value=found)

    def execute(self, context: Context) -> Any:
        """What is found: see the class."""
        if not self.deferrable:
            return super().execute(context)
        asked = self.poke(context)
        if asked.is_done:
            return asked.xcom_value
        self.defer(
            trigger=GradientTrigger(
                gradient_conn_id=self.gradient_conn_id,
                awaited=self.awaited().to_dict(),
                poll_interval=self.poke_interval,
            ),
            method_name="found",
            timeout=timedelta(seconds=self.timeout),
        )
        return None

    def found(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """What the trigger found.

        :raises GradientError: waiting would have been in vain.
        """
        if "error" in event:
            raise GradientError(event["error"])
        found: dict[str, Any] = event["found"]
        return found


class GradientServerReadySensor(_GradientSensor):
    """Waits until the server answers.

    XCom: a dict with ``models``, how many the workspace has. The parameters are those of any sensor, with
    ``gradient_conn_id`` and ``deferrable``.
    """

    template_fields: Sequence[str] = ("gradient_conn_id",)


class GradientModelAdapterSensor(_GradientSensor):
    """Waits until there is an adapter, or until it changed.

    XCom: the adapter, a dict with ``id``, ``name``, ``base_model_id`` and ``latest_update_time``.

    :param model_id: of the adapter, or ``alias:<name>`` for the one that it stands for when the task begins.
    :param name: of the adapter, instead; of several, the one that was updated last is taken.
    :param changed_since: a moment, or its ISO 8601 text; the adapter must have been updated after it.
    """

    template_fields: Sequence[str] = ("gradient_conn_id", "model_id", "name", "changed_since")

    def __init__(
        self,
        *,
        model_id: str | None = None,
        name: str | None = None,
        changed_since: datetime | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_id = model_id
        self.name = name
        self.changed_since = changed_since
        if (model_id is None) == (name is None):
            raise InvalidRequestError("Give exactly one of model_id and name")

    def awaited(self) -> Awaited:
        """The adapter.

        :raises InvalidRequestError: ``changed_since`` is no moment.
        :raises UnknownAliasError: nothing was promoted to the alias.
        """
        return Awaited(
            model_id=None if self.model_id is None else self.hook.resolve(self.model_id),
            name=self.name,
            changed_since=_moment(self.changed_since),
        )


def _moment(value: datetime | str | None) -> str | None:
    if isinstance(value, datetime):
        return value.isoformat()
    if value in (None, "", "None"):  # a template that rendered to nothing
        return None
    try:
        return datetime.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise InvalidRequestError(
            f"changed_since: must be a moment in ISO 8601, such as 2026-11-01T06:00:00+00:00 (got {value!r})"
        ) from None
