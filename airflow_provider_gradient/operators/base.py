"""What the operators share: the connection, the road into asyncio and out of it again, and the values that
templates leave behind.

A piece of work is known by its dag, task, run and map index, never by the try number: a retry must find what
the attempt before it did. ``on_kill`` only asks the work to stop; what a retry needs is on disk before,
because neither a kill nor a time-out leaves the event loop the time to write.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop
from airflow.sdk import BaseOperator

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.hooks.gradient import GradientHook
from airflow_provider_gradient.lineage import model_uri
from airflow_provider_gradient.provider_info import DEFAULT_CONNECTION_ID

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_gradient.client import AsyncGradientClient

T = TypeVar("T")
NumberT = TypeVar("NumberT", int, float)


class TakesPaths(BaseOperator):
    """An operator whose template fields may hold local paths.

    Airflow 3.1 takes them for earlier tasks' outputs, since both have a method ``resolve``.
    """

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """A local path as it is, all else as Airflow renders it."""
        return content if type(content) is type(Path()) else super().render_template(content, *args, **kwargs)


class GradientOperator(TakesPaths):
    """An operator that works through a Gradient connection.

    :param gradient_conn_id: id of the Airflow connection; where there is none, the ``GRADIENT_*`` environment
        variables serve.
    """

    ui_color = "#e8e4fb"

    def __init__(self, *, gradient_conn_id: str = DEFAULT_CONNECTION_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gradient_conn_id = gradient_conn_id
        self._work: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._workspace_id = ""

    @property
    def hook(self) -> GradientHook:
        """A hook of this operator's connection."""
        return GradientHook(self.gradient_conn_id)

    def model_uris(self, *model_ids: str | None) -> list[str]:
        """The URIs of models and aliases in the workspace that :meth:`run_async` worked in."""
        from airflow_provider_gradient.registry import alias_of

        names = dict.fromkeys(alias_of(model_id) or model_id for model_id in model_ids if model_id)
        return [model_uri(self._workspace_id, name) for name in names]

    def run_async(self, work: Callable[[AsyncGradientClient], Awaitable[T]]) -> T:
        """What ``work`` gives back, done with a client made for it here, after Airflow's fork.

        A handler of signals may raise in any callback of the event loop, which would tell it to the log and
        go on: Airflow's does so at the end of ``execution_timeout``. Here it ends the work.

        :raises RuntimeError: the task was killed meanwhile.
        """
        raised: list[BaseException] = []

        async def with_client() -> T:
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None  # noqa: S101 - uvloop.run makes one
            self._work = loop, task

            def end(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
                error = context.get("exception")
                if error is None or isinstance(error, Exception):
                    loop.default_exception_handler(context)
                else:
                    raised.append(error)
                    task.cancel()

            loop.set_exception_handler(end)
            async with await self.hook.get_async_conn() as client:
                self._workspace_id = client.workspace_id
                return await work(client)

        try:
            return uvloop.run(with_client())
        except asyncio.CancelledError:
            if raised:
                raise raised[0] from None
            raise RuntimeError(
                "The task was stopped. What was acknowledged is in its journal; a retry goes on from there."
            ) from None
        finally:
            self._work = None

    def on_kill(self) -> None:
        """Ask the work to stop."""
        if self._work is not None:
            loop, task = self._work
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)


class InlineRows(Sequence[Mapping[str, Any]]):
    """Rows given in the DAG file or by an earlier task. Airflow neither renders them with Jinja, since a
    row's text is data, nor shows them among the rendered fields."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __repr__(self) -> str:
        return f"<rows given inline: {len(self)}>"


class RowsField:
    """A template field that takes a path, rows, or an earlier task's output of either or manifest.

    Rows become :class:`InlineRows` whenever they are set, be it by the DAG file, by a mapped task's expansion
    or when Airflow resolves an earlier task's output.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = f"_{name}"

    def __get__(self, operator: object, owner: type | None = None) -> Any:
        return self if operator is None else getattr(operator, self._attribute)

    def __set__(self, operator: object, value: object) -> None:
        if isinstance(value, Sequence) and not isinstance(value, str | bytes | InlineRows):
            value = InlineRows(value)
        object.__setattr__(operator, self._attribute, value)


def located(value: Any) -> Any:
    """A URL such as ``s3://conn_id@bucket/key``, or the one in an earlier task's manifest, or those in a
    shard, as a path that its Airflow connection opens; anything else, local paths and rows among them, as it
    is."""
    if isinstance(value, Mapping) and "pieces" in value:
        return {**value, "pieces": [{**piece, "path": located(piece["path"])} for piece in value["pieces"]]}
    if isinstance(value, Mapping) and "output_path" in value:
        value = value["output_path"]
    if isinstance(value, str) and "://" in value:
        from airflow.sdk import ObjectStoragePath

        return ObjectStoragePath(value)
    return value


def located_manifest(value: Any) -> Any:
    """An earlier task's manifest whose files are at a URL, as the path of its file, so that the connection in
    the URL opens them; a path or another manifest as :func:`located` has it."""
    if isinstance(value, Mapping) and "://" in str(value.get("output_path")):
        from airflow_provider_gradient.completions.output import manifest_path

        return manifest_path(located(value))
    return value if isinstance(value, Mapping) else located(value)


def number(field: str, value: Any, kind: type[NumberT]) -> NumberT:
    """The number that ``value`` is, or that its template rendered to.

    :raises InvalidRequestError: names the field.
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            converted = kind(value)
        except (ValueError, OverflowError):
            pass
        else:
            if not isinstance(value, float) or converted == value:
                return converted
    wanted = "a whole number" if kind is int else "a number"
    raise InvalidRequestError(f"{field}: must be {wanted} (got {value!r})")


def optional_number(field: str, value: Any, kind: type[NumberT]) -> NumberT | None:
    """Like :func:`number`; ``None``, or a template that rendered to nothing, is ``None``."""
    return None if value is None or value == "" else number(field, value, kind)


def boolean(field: str, value: Any) -> bool:
    """Whether ``value`` is true, or its template rendered to ``True``.

    :raises InvalidRequestError: it is neither true nor false; names the field.
    """
    known = {"true": True, "false": False, "": False, "none": False}
    if (text := str(value).strip().lower()) in known:
        return known[text]
    raise InvalidRequestError(f"{field}: must be true or false (got {value!r})")


def check_at_least_one(**fields: Any) -> None:
    """Refuse numbers below 1 that stand in the DAG file; templates are checked when they are rendered.

    :raises InvalidRequestError: names the field.
    """
    for field, value in fields.items():
        if isinstance(value, int | float) and (value < 1 or isinstance(value, bool)):
            raise InvalidRequestError(f"{field}: must be at least 1 (got {value!r})")


def literals(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``fields`` whose values are known when the DAG file is read: no templates, no earlier
    outputs."""
    return dict(_known(fields))


def _known(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, str | list | tuple):
            if not _templated(value):
                yield name, value
        elif isinstance(value, bool | int | float):
            yield name, value


def _templated(value: Any) -> bool:
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, list | tuple):
        return any(_templated(element) for element in value)
    return not isinstance(value, int | float)


def work_identity(context: Context) -> tuple[str, str, str, str]:
    """Dag, run, task and map index: what a retry has in common with the attempt before it."""
    instance = context["ti"]
    return instance.dag_id, instance.run_id, instance.task_id, str(instance.map_index)


def idempotency_key(context: Context, *parts: object) -> str:
    """A key that is the same at every try of this task, and another for every other task, run or
    ``parts``."""
    text = "\x1f".join([*work_identity(context), *map(str, parts)])
    return hashlib.sha256(text.encode()).hexdigest()
