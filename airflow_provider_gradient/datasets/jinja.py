"""Jinja over a row: a sandbox without a way out, and a rendering that leaves nothing out in silence.

A template sees the row's data and nothing behind it: ``.name`` and ``["name"]`` look into objects and lists
alone, so there are no methods (filters do their work: ``name | upper``, ``user | items``) and no
``__class__``, on whose way out of a sandbox most escapes rest. langchain-core's own jinja2 sandbox allows
attributes and methods, gives nothing for what is missing, and compiles the template anew for each row.

Missing and null are one. Such a value is false, and ``default`` has its replacement; whatever would put it
into the text is an error.

Wherever a value becomes text (written, joined by ``~`` or ``%``, given to a filter that takes text), it is
what :func:`~airflow_provider_gradient.datasets.as_text` gives: ``{{ tags }}`` is JSON, ``{{ done }}`` is
``true``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing, pass_environment

from airflow_provider_gradient.datasets.errors import DatasetError
from airflow_provider_gradient.datasets.values import as_text, without_text

_DATA = (str, int, float, list, tuple, dict)
_OF_TEXT = (
    *("capitalize", "center", "escape", "e", "forceescape", "indent", "lower", "replace", "string"),
    *("striptags", "title", "trim", "truncate", "upper", "urlize", "wordcount", "wordwrap"),
)
"""Jinja's filters that make text of what they are given."""


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


class _Code(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    intercepted_binops = frozenset(["%"])

    def __init__(self) -> None:
        super().__init__(undefined=_Absent, finalize=_printable)
        self.filters |= {name: _of_text(self.filters[name]) for name in _OF_TEXT}
        self.filters["format"] = _format
        self.filters["join"] = _join
        self.filters["tojson"] = _to_json
        self.filters["pprint"] = functools.partial(_to_json, indent=2)
        self.globals = {name: self.globals[name] for name in ("range", "namespace")}
        self.tests["none"] = lambda value: value is None or isinstance(value, _Absent)

    def joined(self, values: Iterable[Any]) -> str:
        """What ``~`` gives."""
        return "".join(str(_printable(value)) for value in values)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """``%``, the only operator that makes text of values."""
        if not isinstance(left, str):
            return super().call_binop(context, operator, left, right)
        if isinstance(right, Mapping):
            return _format(left, **right)
        return _format(left, *(right if isinstance(right, tuple) else (right,)))

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
            reason = without_text(row) or error
            raise DatasetError(f"{where}: {self._name} can't be filled in: {reason}") from None


def _printable(value: Any) -> Any:
    """The text of ``value``, if it is one that a row can hold.

    :raises UndefinedError: it is null.
    :raises SecurityError: it is something of the program's.
    :raises ValueError: it has no form in JSON.
    """
    if value is None:
        raise UndefinedError("a value that would be written is null")
    if not isinstance(value, (_Absent, *_DATA)):
        raise SecurityError(f"a {type(value).__name__} is nothing to write (a list is: `| list`, `| join`)")
    return value if isinstance(value, _Absent) else as_text(value)


def _told(value: Any) -> Any:
    """``value`` as a format such as ``%.2f`` takes it: numbers stay."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else _printable(value)


def _format(text: Any, *values: Any, **named: Any) -> str:
    """``"%s and %s" | format(a, b)``, or ``"%(x)s" | format(x=a)``."""
    given = {name: _told(value) for name, value in named.items()} or tuple(map(_told, values))
    return str(_printable(text)) % given


def _of_text(text_filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja's that is given the text of values."""
    place = 1 if hasattr(text_filter, "jinja_pass_arg") else 0  # behind the environment or context

    @functools.wraps(text_filter)
    def filter_(*args: Any, **kwargs: Any) -> Any:
        return text_filter(*args[:place], _printable(args[place]), *args[place + 1 :], **kwargs)

    return filter_


@pass_environment
def _join(environment: _Sandbox, values: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    return str(d).join(str(_printable(value)) for value in values)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own ``tojson`` escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
