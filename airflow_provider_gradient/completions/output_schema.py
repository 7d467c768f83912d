"""Structured output: an answer's text parsed as JSON and validated, or told what is wrong with it.

Models wrap JSON in words, so it is found in them: the whole text is tried, then what stands in a Markdown
fence, then what begins at the first bracket. But it is never mended. langchain-core's JSON parser closes what
is open, so that an answer that was cut at its token limit passes for a whole one; here it doesn't.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from airflow_provider_gradient.api import InvalidRequestError, describe_validation_error
from airflow_provider_gradient.completions.dotted_path import import_path
from airflow_provider_gradient.datasets import dump_row

_DEEPEST = 100
"""Lists and objects within one another that an answer may have: more is a model that repeats itself, and
would exhaust the stack of whoever checks or reads it."""
_SHOWN = 500
"""Characters of a message about an answer."""
_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_BRACKET = re.compile(r"[{\[]")


class OutputMismatchError(ValueError):
    """A text is not what the schema asks for; the message says why."""


class OutputSchema:
    """What an answer has to be.

    :param schema: a pydantic model, a JSON schema, or the dotted path (``package.module:Name``) of either.
    :raises InvalidRequestError: it is none of these, or no JSON schema that can be checked against.
    """

    def __init__(self, schema: type[BaseModel] | Mapping[str, Any] | str) -> None:
        if isinstance(schema, str):
            schema = import_path(schema, parameter="output_schema")
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            self.json_schema: dict[str, Any] = schema.model_json_schema()
            self._validate = _by_model(schema)
        elif isinstance(schema, Mapping):
            self.json_schema = dict(schema)
            self._validate = _by_json_schema(self.json_schema)
        else:
            raise InvalidRequestError(
                "output_schema: a pydantic model or a JSON schema (a dict) is needed, or the dotted path "
                f"of one, not {schema!r}"
            )

    def parse(self, text: str) -> Any:
        """The JSON value in ``text``, as the schema has it; of a pydantic model with its defaults filled in.

        :raises OutputMismatchError: there is none, or it is not what the schema asks for.
        """
        try:
            value = self._validate(_shallow(_find_json(text)))
            dump_row(value)  # what can't be written must not end the run when it is
        except OutputMismatchError as error:
            message = str(error)
        except (RecursionError, OverflowError, ValueError, TypeError) as error:
            message = f"it can't be checked or kept: {type(error).__name__}: {error}"
        else:
            return value
        raise OutputMismatchError(message if len(message) <= _SHOWN else f"{message[: _SHOWN - 3]}...")


def _by_model(model: type[BaseModel]) -> Callable[[Any], Any]:
    def validate(value: Any) -> Any:
        try:
            # as JSON, where a strict model takes a date's text for a date
            return model.model_validate_json(json.dumps(value)).model_dump(mode="json")
        except ValidationError as error:
            raise OutputMismatchError(describe_validation_error(error)) from None
        except Exception as error:  # a validator's own: the answer is paid for and kept
            raise OutputMismatchError(f"{type(error).__name__}: {error}") from error

    return validate


def _by_json_schema(schema: dict[str, Any]) -> Callable[[Any], Any]:
    from jsonschema import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema, format_checker=kind.FORMAT_CHECKER)  # "regex" is one
    except SchemaError as error:
        raise InvalidRequestError(
            f"output_schema is no JSON schema: {error.json_path}: {error.message}"
        ) from None
    _check_references(schema)
    checker = kind(schema, registry=Registry())  # an empty one, so that nothing is fetched for a reference

    def validate(value: Any) -> Any:
        errors = sorted(checker.iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
        if errors:
            raise OutputMismatchError(
                "; ".join(f"{_place(error.json_path)}{error.message}" for error in errors)
            )
        return value

    return validate


def _place(json_path: str) -> str:
    """``$.items[0].name`` as ``items[0].name: ``; nothing for the whole value."""
    path = json_path.removeprefix("$").removeprefix(".")
    return f"{path}: " if path else ""


def _check_references(schema: dict[str, Any]) -> None:
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, specification_with

    declared = schema.get("$schema")
    specification = specification_with(declared, default=DRAFT202012) if declared else DRAFT202012
    resolver = Registry().resolver_with_root(specification.create_resource(schema))
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise InvalidRequestError(
                f"output_schema: there is nothing at the $ref {reference!r}; references must lead to a "
                "part of the schema itself"
            ) from None


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is too large a number")
    return number


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant, parse_float=_finite)
"""Lets line ends stand in strings, which models write so."""


def _shallow(value: Any) -> Any:
    """``value``.

    :raises OutputMismatchError: it is nested too deeply.
    """
    containers = [value]
    for _ in range(_DEEPEST):
        inner = itertools.chain.from_iterable(
            each.values() if isinstance(each, dict) else each
            for each in containers
            if isinstance(each, dict | list)
        )
        containers = [each for each in inner if isinstance(each, dict | list)]
        if not containers:
            return value
    raise OutputMismatchError(f"it is nested more than {_DEEPEST} deep")


def _find_json(text: str) -> Any:
    candidates = [text.strip(), *(fenced.strip() for fenced in _FENCE.findall(text))]
    if bracket := _BRACKET.search(text):
        candidates.append(text[bracket.start() :])
    reason = ""
    for number, candidate in enumerate(candidates):
        try:
            return _DECODER.raw_decode(candidate)[0] if number else _DECODER.decode(candidate)
        except json.JSONDecodeError as error:
            reason = error.msg
        except ValueError as error:
            reason = str(error)
        except RecursionError:
            reason = "it is nested too deeply"
    raise OutputMismatchError(f"no JSON: {reason}")
