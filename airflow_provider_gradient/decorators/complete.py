"""``@task.gradient_complete``: a function gives what to complete, the task completes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import DecoratedOperator, determine_kwargs, task_decorator_factory

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.operators.completions import (
    GradientCompleteDatasetOperator,
    GradientCompleteOperator,
)

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator


def gradient_complete_task(
    python_callable: Callable[..., Any] | None = None, **arguments: Any
) -> TaskDecorator:
    """Complete what the function returns: one prompt, or with ``output_path`` a dataset.

    Without ``output_path``, the function returns the prompt, a text, and the task is a
    :class:`~airflow_provider_gradient.operators.completions.GradientCompleteOperator`. With it, the function
    returns rows, or a path or an earlier manifest, and the task is a
    :class:`~airflow_provider_gradient.operators.completions.GradientCompleteDatasetOperator`. What the
    function returns is not rendered by Jinja: braces in it are text.

    :param python_callable: the function.
    :param arguments: of the operator, but for ``query`` and ``dataset``.
    """
    is_dataset = "output_path" in arguments
    if not is_dataset:
        arguments.setdefault("multiple_outputs", True)
    return task_decorator_factory(
        python_callable=python_callable,
        decorated_operator_class=DecoratedCompleteDatasetOperator
        if is_dataset
        else DecoratedCompleteOperator,
        **arguments,
    )


class _Function(DecoratedOperator):
    """A task that begins by calling its function."""

    custom_operator_name = "@task.gradient_complete"
    overwrite_rtif_after_execution = True
    """Airflow's UI shows what was completed."""

    def returned(self, context: Context) -> Any:
        """What the function returns."""
        known: dict[str, Any] = {**context, **self.op_kwargs}
        return self.python_callable(
            *self.op_args, **determine_kwargs(self.python_callable, self.op_args, known)
        )


class DecoratedCompleteOperator(_Function, GradientCompleteOperator):
    """Completes the prompt that its function returns."""

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *GradientCompleteOperator.template_fields,
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(query="", **kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        """The completion."""
        prompt = self.returned(context)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidRequestError(
                f"{self.python_callable.__name__}: must return a prompt, a text that is not empty (got "
                f"{type(prompt).__name__}); to complete rows, give the decorator an output_path"
            )
        self.query = prompt
        completion: dict[str, Any] = super().execute(context)
        return completion


class DecoratedCompleteDatasetOperator(_Function, GradientCompleteDatasetOperator):
    """Completes the rows that its function returns."""

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *GradientCompleteDatasetOperator.template_fields,
    )

    def execute(self, context: Context) -> dict[str, Any]:
        """The manifest, as a dict."""
        dataset = self.returned(context)
        if not isinstance(dataset, str | Mapping | Sequence) and not hasattr(dataset, "__fspath__"):
            raise InvalidRequestError(
                f"{self.python_callable.__name__}: must return rows, a path or an earlier manifest (got "
                f"{type(dataset).__name__})"
            )
        self.dataset = dataset
        manifest: dict[str, Any] = super().execute(context)
        return manifest
