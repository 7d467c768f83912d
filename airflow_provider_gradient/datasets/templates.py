"""Text made of a row: a template whose fields name columns.

Templates have langchain-core's three formats. In its f-string format ``{column}`` stands for a value, ``{{``
for a brace; :mod:`.mustache` and :mod:`.jinja` are the others. A field that a row lacks, or that is null
there, is an error and never the text "None": whoever renders every row before sending the first knows that
all of them make sense. Values that are no strings are written as JSON; see :mod:`.values`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, get_args

from airflow_provider_gradient.datasets.errors import DatasetError
from airflow_provider_gradient.datasets.values import as_text, without_text

TemplateFormat = Literal["f-string", "mustache", "jinja2"]
"""langchain-core's names for them."""


class Template(Protocol):
    """Gives the text for a row."""

    def render(self, row: Mapping[str, Any], where: str) -> str:
        """The text for ``row``.

        :param where: the words for the row in the message.
        :raises DatasetError: a value that goes into the text is missing or null.
        """


def row_template(
    text: str, *, format: TemplateFormat = "f-string", name: str = "prompt_template"
) -> Template:
    """The template that ``text`` is.

    :param name: the parameter it was given as, for messages.
    :raises DatasetError: it is none, or names no column, or there is no such format.
    """
    if format == "mustache":
        from airflow_provider_gradient.datasets.mustache import MustacheTemplate

        return MustacheTemplate(text, name=name)
    if format == "jinja2":
        from airflow_provider_gradient.datasets.jinja import JinjaTemplate

        return JinjaTemplate(text, name=name)
    if format != "f-string":
        known = ", ".join(get_args(TemplateFormat))
        raise DatasetError(f"{name}_format: there is no format {format!r}; there are {known}")
    return RowTemplate(text, name=name)


class RowTemplate:
    """A checked template of the f-string format.

    :param text: the template.
    :param name: the parameter it was given as, for messages.
    :raises DatasetError: it is no template, or names no column, so that every row would give the same text.
    """

    def __init__(self, text: str, *, name: str = "prompt_template") -> None:
        self.text = text
        self._name = name
        try:
            self.columns = tuple(sorted(set(_fields(text))))
        except ValueError as error:
            raise DatasetError(f"{name} is no template: {error}") from None
        if not self.columns:
            raise DatasetError(f"{name} names no column, so every row would give the same text: {text!r}")
        if "" in self.columns:
            raise DatasetError(f"{name}: {{}} names no column; write {{column}}, and {{{{ for a brace")
        if bad := [column for column in self.columns if column.isdecimal() or set(".[") & set(column)]:
            raise DatasetError(
                f"{name} is no template: {{{bad[0]}}} is no column's name, which has no '.' and no '[' in "
                "it and is no number; write {{ for a brace"
            )

    def render(self, row: Mapping[str, Any], where: str) -> str:
        """The text for ``row``.

        :param where: the words for the row in the message.
        :raises DatasetError: a column is missing or null; the message has the columns there are.
        """
        values = {
            column: column_value(row, column, where=where, parameter=self._name) for column in self.columns
        }
        try:
            return self.text.format_map({column: _formattable(value) for column, value in values.items()})
        except (ValueError, TypeError) as error:
            reason = without_text(values) or error
            raise DatasetError(f"{where}: {self._name} can't be filled in: {reason}") from None


def _fields(text: str) -> Iterator[str]:
    """The names of the fields in a template of the f-string format, those within format specifications too.

    :raises ValueError: it is no such template.
    """
    for _, field, specification, _ in string.Formatter().parse(text):
        if field is not None:
            yield field
            yield from _fields(specification or "")


def _formattable(value: Any) -> Any:
    """``value`` in a form that a field such as ``{price:.2f}`` can format: a string, a number, or the text of
    anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else as_text(value)


def column_value(row: Mapping[str, Any], column: str, *, where: str, parameter: str) -> Any:
    """What ``row`` has in ``column``.

    :param where: the words for the row in the message.
    :param parameter: the parameter that asks for the column, for the message.
    :raises DatasetError: the column is missing or null.
    """
    if column not in row:
        there = ", ".join(repr(name) for name in row) or "none"
        raise DatasetError(f"{where} has no column {column!r}, which {parameter} names; its columns: {there}")
    if row[column] is None:
        raise DatasetError(f"{where}: column {column!r}, which {parameter} names, is null")
    return row[column]
