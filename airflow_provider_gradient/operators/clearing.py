"""Whether a task that was cleared goes on with what it has done, or begins anew.

Clearing a task raises its ``max_tries`` to the tries so far and its retries; a retry leaves it as it is. So
``max_tries`` less the retries is the number of tries before the last clear: the same at every retry, another
after every clear. As part of a work's name it lets the work begin anew, and its retries find it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.operators.base import work_identity

if TYPE_CHECKING:
    from airflow.sdk import Context

OnClear = Literal["resume", "restart"]


def work_name(context: Context, *, on_clear: str) -> str:
    """What tells this piece of work from all others: dag, run, task and map index, and where a clear begins
    anew, how many tries were before it.

    :raises InvalidRequestError: ``on_clear`` is neither ``resume`` nor ``restart``.
    """
    if on_clear not in get_args(OnClear):
        raise InvalidRequestError(
            f"on_clear: must be one of {', '.join(get_args(OnClear))} (got {on_clear!r})"
        )
    name = "/".join(work_identity(context))
    instance = context["ti"]
    earlier = (instance.max_tries or 0) - (context["task"].retries or 0)
    return f"{name}/cleared after {earlier}" if on_clear == "restart" and earlier > 0 else name
