"""Mustache over a row: langchain-core's syntax, and a rendering that leaves nothing out in silence.

langchain-core's own renderer escapes for HTML, which no prompt wants, and gives nothing for a name that isn't
there. Here ``{{name}}`` is the value as :func:`~airflow_provider_gradient.datasets.as_text` has it, and a
missing or null one is an error. Sections are what
asks whether there is a value: over a missing, null, false or empty one ``{{#name}}`` is skipped and
``{{^name}}`` rendered. Values are looked up in objects and lists alone, never as attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_gradient.datasets.errors import DatasetError
from airflow_provider_gradient.datasets.values import as_text, without_text


@dataclass(frozen=True, kw_only=True)
class _Section:
    """What stands between ``{{#name}}`` (or, ``inverted``, ``{{^name}}``) and ``{{/name}}``."""

    name: str
    inverted: bool
    parts: list[_Part]


@dataclass(frozen=True)
class _Variable:
    name: str


_Part = str | _Variable | _Section


class MustacheTemplate:
    """A checked template; see :class:`~airflow_provider_gradient.datasets.RowTemplate`."""

    def __init__(self, text: str, *, name: str = "prompt_template") -> None:
        # Imported here since it takes most of a second, and DAG files are parsed often.
        from langchain_core.utils.mustache import ChevronError, tokenize

        self._name = name
        try:
            tokens = list(tokenize(text))
        except ChevronError as error:
            raise DatasetError(f"{name} is no template: {' '.join(str(error).split())}") from None
        if partials := [key for kind, key in tokens if kind == "partial"]:
            raise DatasetError(f"{name}: {{{{> {partials[0]}}}}}: there are no partials here")
        if all(kind == "literal" for kind, _ in tokens):
            raise DatasetError(f"{name} names no column, so every row would give the same text: {text!r}")
        self._parts = _parts(iter(tokens))

    def render(self, row: Mapping[str, Any], where: str) -> str:
        """The text for ``row``.

        :param where: the words for the row in the message.
        :raises DatasetError: a value that goes into the text is missing or null (the message has the columns
            there are), or JSON has no form for it.
        """
        try:
            return _render(self._parts, [row])
        except LookupError as error:
            there = ", ".join(repr(name) for name in row) or "none"
            raise DatasetError(
                f"{where}: {error.args[0]!r}, which {self._name} names, is missing or null; its columns: "
                f"{there}"
            ) from None
        except ValueError as error:
            reason = without_text(row) or error
            raise DatasetError(f"{where}: {self._name} can't be filled in: {reason}") from None


def _parts(tokens: Iterator[tuple[str, str]]) -> list[_Part]:
    parts: list[_Part] = []
    for kind, key in tokens:
        if kind == "end":
            break
        if kind == "literal":
            parts.append(key)
        elif kind in ("variable", "no escape"):
            parts.append(_Variable(key))
        elif kind in ("section", "inverted section"):
            inverted = kind == "inverted section"
            parts.append(_Section(name=key, inverted=inverted, parts=_parts(tokens)))
    return parts


def _render(parts: Sequence[_Part], scopes: list[Any]) -> str:
    """:param scopes: the row, then what the sections around these parts chose, the innermost last.
    :raises LookupError: the name of a value that is missing or null.
    """
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        elif isinstance(part, _Variable):
            value = _value(part.name, scopes)
            if value is None:
                raise LookupError(part.name)
            text += as_text(value)
        else:
            value = _value(part.name, scopes)
            if part.inverted:
                text += "" if value else _render(part.parts, scopes)
            elif value:
                chosen = value if isinstance(value, list | tuple) else [value]
                text += "".join(_render(part.parts, [*scopes, item]) for item in chosen)
    return text


def _value(name: str, scopes: Sequence[Any]) -> Any:
    """What the innermost scope that has ``name`` holds there; ``None`` where none has."""
    if name == ".":
        return scopes[-1]
    for scope in reversed(scopes):
        value = scope
        try:
            for part in name.split("."):
                value = _step(value, part)
        except LookupError:
            continue
        return value
    return None


def _step(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value[part]
    if isinstance(value, list | tuple) and part.isdecimal():
        return value[int(part)]
    raise LookupError
