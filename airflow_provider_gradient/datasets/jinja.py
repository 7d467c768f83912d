"""Jinja over a row: a sandbox without a way out, and a rendering that leaves nothing out in silence.

A template sees the row's data and nothing behind it: ``.name`` and ``["name"]`` look into objects and lists
alone, so there are no methods (filters do their work: ``name | upper``, ``user | items``) and no
``__class__``, on whose way out of a sandbox most escapes rest. langchain-core's own jinja2 sandbox allows
attributes and methods, gives nothing for what is missing, and compiles the template anew for each row.

Missing and null are one. Such a value is false, and ``default`` has its replacement; whatever would put it
into the text is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing

from airflow_provider_gradient.datasets.errors import DatasetError

_DATA = (str, int, float, list, tuple, dict)


class _Absent(StrictUndefined):
    """A value that is missing or null."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    @property
    def _undefined_message(self) -> str:
        name = self._undefined_name
        if self._undefined_obj is missing:
            return f"column {name!r} is missing or null"
        there = ", ".join(map(repr, self._undefined_obj)) if isinstance(self._undefined_obj, Mapping) else ""
        return f"{name!r} is missing or null{f' beside {there}' if there else ''}"


class _Sandbox(ImmutableSandboxedEnvironment):
    def __init__(self) -> None:
        super().__init__(undefined=_Absent, finalize=_printable)
        self.globals = {name: self.globals[name] for name in ("range", "namespace")}
        self.filters["tojson"] = _to_json
        self.tests["none"] = lambda value: value is None or isinstance(value, _Absent)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext | Namespace):
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, _Absent):
            return obj
        if isinstance(obj, str | list | tuple) and isinstance(argument, int):
            value = obj[argument] if -len(obj) <= argument < len(obj) else None
        elif isinstance(obj, Mapping):
            value = obj.get(argument)
        else:
            raise SecurityError(
                f"{type(obj).__name__} values have no {argument!r} here: there are no attributes and "
                "methods, only the keys of objects, the places of lists, and filters"
            )
        return self.undefined(obj=obj, name=argument) if value is None else value


class JinjaTemplate:
    """A checked template; see :class:`~airflow_provider_gradient.datasets.RowTemplate`."""

    def __init__(self, text: str, *, name: str = "prompt_template") -> None:
        self._name = name
        sandbox = _Sandbox()
        try:
            parsed = sandbox.parse(text)
            self._template = sandbox.from_string(text)
        except TemplateSyntaxError as error:
            raise DatasetError(f"{name} is no template: line {error.lineno}: {error.message}") from None
        if next(meta.find_referenced_templates(parsed), "") != "":
            raise DatasetError(f"{name}: there are no other templates here to include, import or extend")
        if not meta.find_undeclared_variables(parsed):
            raise DatasetError(f"{name} names no column, so every row would give the same text: {text!r}")

    def render(self, row: Mapping[str, Any], where: str) -> str:
        """The text for ``row``.

        :param where: the words for the row in the message.
        :raises DatasetError: a value that goes into the text is missing or null (the message has the columns
            there are), the template asks for what the sandbox does not give, or can't be rendered.
        """
        try:
            return self._template.render({name: value for name, value in row.items() if value is not None})
        except UndefinedError as error:
            there = ", ".join(repr(name) for name in row) or "none"
            raise DatasetError(
                f"{where}: {error}, and {self._name} needs it; the row's columns: {there}"
            ) from None
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise DatasetError(f"{where}: {self._name} can't be filled in: {error}") from None


def _printable(value: Any) -> Any:
    """``value``, if it is one that a row can hold.

    :raises UndefinedError: it is null.
    :raises SecurityError: it is something of the program's.
    """
    if value is None:
        raise UndefinedError("a value that would be written is null")
    if not isinstance(value, (_Absent, *_DATA)):
        raise SecurityError(f"a {type(value).__name__} is nothing to write (a list is: `| list`, `| join`)")
    return value


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own ``tojson`` escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
