"""What an output looks like, whatever would be right: patterns, JSON, length, refusals."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.evaluation.metrics.base import Example, MeanMetric
from airflow_provider_gradient.evaluation.report import EvaluationError

if TYPE_CHECKING:
    from airflow_provider_gradient.completions.output_schema import OutputSchema

REFUSALS = (
    r"\bI(?: a|['\u2019])m (?:sorry|afraid|unable|not able|not sure)\b",
    r"\bI (?:apologi[sz]e|regret)\b",
    r"\bI (?:can(?:not| not|['\u2019]t)|could(?: not|n['\u2019]t)|won['\u2019]t|will not)\b",
    r"\bI do(?: not|n['\u2019]t) know\b",
    r"\bas an? (?:AI|(?:large )?language model)\b",
)
"""English phrases by which models decline to answer."""


class Regex(MeanMetric):
    """1 if ``pattern`` is found anywhere in the output, in Unicode's normal form C, else 0.

    :ivar pattern: of Python's :mod:`re`, which may begin with flags such as ``(?i)``.
    """

    is_rate: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    metric: Literal["regex"] = "regex"
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern

    def score(self, example: Example) -> float:
        """0 or 1."""
        return float(bool(re.search(self.pattern, example.plain)))


class JsonSchema(MeanMetric):
    """1 if the output holds JSON that ``schema`` allows, else 0. It is found and checked as ``output_schema``
    of a run over a dataset does it: in a Markdown fence or in the midst of words too, and not mended.

    Source: JSON Schema, in the version that the schema's ``$schema`` names, else 2020-12, as the package
    jsonschema has it; ``format`` is not checked.

    :ivar schema: the schema itself.
    """

    is_rate: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    metric: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] | bool = Field(alias="schema")

    @cached_property
    def _schema(self) -> OutputSchema:
        from airflow_provider_gradient.completions.output_schema import OutputSchema

        schema = self.json_schema
        if isinstance(schema, bool):
            schema = {} if schema else {"not": {}}
        try:
            return OutputSchema(schema)
        except InvalidRequestError as error:
            reason = str(error).removeprefix("output_schema")
            raise EvaluationError(f"{self.name}.schema{reason}") from None

    def score(self, example: Example) -> float:
        """0 or 1."""
        from airflow_provider_gradient.completions.output_schema import OutputMismatchError

        try:
            self._schema.parse(example.text)
        except OutputMismatchError:
            return 0.0
        return 1.0


class Length(MeanMetric):
    """The length of the output.

    :ivar unit: ``characters`` (code points in Unicode's normal form C) or ``words``.
    """

    higher_is_better: ClassVar[bool | None] = None
    needs_reference: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float] | None] = None
    metric: Literal["length"] = "length"
    unit: Literal["characters", "words"] = "characters"

    def score(self, example: Example) -> float:
        """Characters or words."""
        return float(len(example.plain if self.unit == "characters" else example.words))


class Refusal(MeanMetric):
    """1 if the output is empty or says that it gives no answer, else 0; a row without a completion is 1.

    :ivar patterns: regular expressions, capitals and small letters alike, of which any one found is a
        refusal; by default :data:`REFUSALS`, which are English.
    """

    is_rate: ClassVar[bool] = True
    higher_is_better: ClassVar[bool | None] = False
    needs_reference: ClassVar[bool] = False
    failed: ClassVar[float] = 1.0
    metric: Literal["refusal"] = "refusal"
    patterns: tuple[str, ...] = REFUSALS

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    def score(self, example: Example) -> float:
        """0 or 1."""
        text = example.plain
        return float(
            not text.strip() or any(re.search(pattern, text, re.IGNORECASE) for pattern in self.patterns)
        )
