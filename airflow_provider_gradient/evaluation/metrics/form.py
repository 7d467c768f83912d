"""What an output looks like, whatever would be right: patterns, JSON, length, refusals."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from airflow_provider_gradient.evaluation.metrics.base import Example, MeanMetric
from airflow_provider_gradient.evaluation.report import EvaluationError

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
    """1 if the output, white space around it aside, is JSON (RFC 8259) that ``schema`` allows, else 0.

    Source: JSON Schema, in the version that the schema's ``$schema`` names, else 2020-12, as the package
    jsonschema has it; ``format`` is not checked.

    :ivar schema: the schema itself.
    """

    is_rate: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    metric: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] | bool = Field(alias="schema")

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import validators
        from jsonschema.exceptions import SchemaError

        kind = validators.validator_for(self.json_schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(self.json_schema)
        except SchemaError as error:
            raise EvaluationError(f"json_schema: this is no JSON schema: {error.message}") from None
        return kind(self.json_schema)

    def score(self, example: Example) -> float:
        """0 or 1."""
        try:
            value = json.loads(example.text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return 0.0
        return float(self._validator.is_valid(value))


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


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")
