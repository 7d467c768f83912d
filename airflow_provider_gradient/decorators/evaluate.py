"""``@task.gradient_evaluate``: a function is the metric, the task the evaluation by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import DecoratedOperator, determine_kwargs, task_decorator_factory

from airflow_provider_gradient.operators.evaluation import GradientEvaluateOperator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator


def gradient_evaluate_task(
    python_callable: Callable[[str, Any, Any], Any] | None = None, **arguments: Any
) -> TaskDecorator:
    """Evaluate by the metric that the function is.

    The function takes a completion's text, its reference (``None`` without a ``reference_column``) and the
    row's columns, and gives a finite number or a boolean. The task takes the completions, as
    :class:`~airflow_provider_gradient.operators.evaluation.GradientEvaluateOperator` has them::

        @task.gradient_evaluate(reference_column="answer")
        def as_long(output, reference, row):
            return len(output) >= len(reference)


        as_long(completions.output)

    :param python_callable: the function.
    :param arguments: of the operator, but for ``completions``. Further ``metrics`` come after the function,
        by whose name the report has its values.
    """

    def decorate(metric: Callable[[str, Any, Any], Any]) -> TaskDecorator:
        return task_decorator_factory(
            python_callable=_taking_completions(metric),
            decorated_operator_class=DecoratedEvaluateOperator,
            metric=metric,
            **arguments,
        )

    return cast("TaskDecorator", decorate) if python_callable is None else decorate(python_callable)


class DecoratedEvaluateOperator(DecoratedOperator, GradientEvaluateOperator):
    """Evaluates completions by a function.

    :param metric: the function.
    """

    custom_operator_name = "@task.gradient_evaluate"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *GradientEvaluateOperator.template_fields,
    )
    shallow_copy_attrs: Sequence[str] = (*DecoratedOperator.shallow_copy_attrs, "metric")

    def __init__(self, *, metric: Callable[[str, Any, Any], Any], **kwargs: Any) -> None:
        super().__init__(completions=(), **{"metrics": (), **kwargs})
        self.metric = metric

    def execute(self, context: Context) -> dict[str, Any] | None:
        """The report, as a dict."""
        from airflow_provider_gradient.evaluation.metrics import GivenFunction

        known: dict[str, Any] = {**context, **self.op_kwargs}
        self.completions = self.python_callable(
            *self.op_args, **determine_kwargs(self.python_callable, self.op_args, known)
        )
        own: Any = GivenFunction(name=self.metric.__name__, call=self.metric)
        self.metrics = [own, *self.metrics]
        report: dict[str, Any] | None = super().execute(context)
        return report


def _taking_completions(metric: Callable[[str, Any, Any], Any]) -> Callable[[Any], Any]:
    """A function with the metric's name and words that takes what the task takes, and gives it."""

    def task(completions: Any) -> Any:
        return completions

    task.__name__, task.__qualname__ = metric.__name__, metric.__qualname__
    task.__module__, task.__doc__ = metric.__module__, metric.__doc__
    return task
