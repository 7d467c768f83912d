"""Structured output: an answer's text parsed as JSON and validated, or told what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from airflow_provider_gradient.api import InvalidRequestError, describe_validation_error
from airflow_provider_gradient.completions.dotted_path import import_path
from airflow_provider_gradient.completions.json_answers import NoJsonError, find_json
from airflow_provider_gradient.datasets import dump_row

_SHOWN = 500
"""Characters of a message about an answer."""


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
            value = self._validate(find_json(text))
            dump_row(value)  # what can't be written must not end the run when it is
        except (OutputMismatchError, NoJsonError) as error:
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
