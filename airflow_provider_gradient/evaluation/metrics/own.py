"""A metric of the user's own: a function, named by its dotted path or given as it is."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from airflow_provider_gradient.evaluation.metrics.base import Example, MeanMetric
from airflow_provider_gradient.evaluation.report import EvaluationError


class OwnFunction(MeanMetric):
    """The mean of what a function gives for each row; a row without a completion scores 0.

    :ivar function: ``module:function``, importable where the evaluation runs. It is called as
        ``function(output, reference, row)`` with the output's text, the reference as the row has it (``None``
        without a reference column) and the row's columns, and gives a finite number, or a boolean.
    """

    needs_reference: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float] | None] = None
    metric: Literal["function"] = "function"
    function: str

    @field_validator("function")
    @classmethod
    def _dotted(cls, path: str) -> str:
        module, colon, name = path.partition(":")
        if not (colon and name and module and all(part.isidentifier() for part in module.split("."))):
            raise ValueError(f"write it as module:function (got {path!r})")
        return path

    @cached_property
    def _call(self) -> Callable[[str, Any, Any], Any]:
        module, _, name = self.function.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise EvaluationError(f"the metric {self.function} can't be imported: {error}") from None
        if not callable(found):
            raise EvaluationError(f"the metric {self.function} is no function but {type(found).__name__}")
        return found  # type: ignore[no-any-return]

    def score(self, example: Example) -> float:
        """What the function gives."""
        return _finite(self._call(example.text, example.reference, example.row), self.function)


class GivenFunction(MeanMetric):
    """The same of a function that is at hand, for where its module can't be imported by name, such as a DAG
    file.

    :ivar call: the function; no part of what a report says of the metric.
    """

    needs_reference: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float] | None] = None
    metric: Literal["given_function"] = "given_function"
    call: Callable[[str, Any, Any], Any] = Field(exclude=True)

    def score(self, example: Example) -> float:
        """What the function gives."""
        return _finite(self.call(example.text, example.reference, example.row), self.name)


def _finite(found: Any, function: str) -> float:
    if not isinstance(found, bool | int | float) or not math.isfinite(found):
        raise EvaluationError(f"{function} gave {found!r}; a finite number or a boolean is needed")
    return float(found)
