"""Chat templates in a sandbox: what Hugging Face's tokenizers offer a template, within bounds.

A tokenizer's chat template expects the environment that ``transformers`` renders it in: trimmed blocks, loop
controls, undefined names that print as nothing, ``raise_exception``, ``strftime_now``, a ``tojson`` that
keeps non-ASCII text, and the block ``{% generation %}`` around the words of the assistant. This module offers
the same.

Three things differ, because a template is data that runs inside somebody's task:

- It is bounded: :data:`MOST_PASSES` through its loops and :data:`MOST_CHARACTERS` of text. That ends a
  template that runs away by mistake; one that is made to fill the memory, by padding a text say, still can.
- ``strftime_now`` tells :data:`TEMPLATE_DATE`, always. A retry on another day must make the same samples.
- ``bos_token`` and its kin are empty: the server adds the opening token itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_DATE = date(2024, 7, 26)
"""The day that ``strftime_now`` tells: the one that Llama 3's own templates fall back to."""
MOST_PASSES = 100_000
"""Passes through loops that one rendering may make."""
MOST_CHARACTERS = 16 << 20
"""Characters that one rendering may give."""
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Noncharacters of Unicode: no text that is exchanged holds them."""
_COUNTER = "count_pass"
_SPECIAL_TOKENS = {f"{name}_token": "" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}


class Rendered(str):
    """The text of a rendering.

    :ivar generated: where the text inside ``{% generation %}`` blocks lies: pairs of first and last index, in
        the text's order.
    """

    generated: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, marked: str) -> Rendered:
        """From the text in which noncharacters mark the blocks."""
        spans: list[tuple[int, int]] = []
        pieces: list[str] = []
        length = 0
        for number, block in enumerate(marked.split(_OPEN)):
            inside, closed, after = block.partition(_CLOSE)
            if number and closed:
                spans.append((length, length + len(inside)))
            pieces += (inside, after)
            length += len(inside) + len(after)
        rendered = cls("".join(pieces))
        rendered.generated = tuple(spans)
        return rendered


class ChatSandbox:
    """A compiled chat template.

    :param text: Jinja, as a tokenizer's ``chat_template``.
    :ivar marks_generation: whether it has ``{% generation %}`` blocks.
    :ivar names: all attributes and keys that it speaks of.
    :ivar is_dated: whether a rendering has asked for the date.
    :raises jinja2.TemplateError: it is no template.
    """

    def __init__(self, text: str) -> None:
        environment = _Sandbox()
        environment.globals |= {"strftime_now": self._strftime_now, _COUNTER: self._count_pass}
        self._template = environment.from_string(text)
        parsed = environment.parse(text)
        attributes = {node.attr for node in parsed.find_all(nodes.Getattr)}
        constants = {node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str)}
        self.names = frozenset(attributes | constants)
        self._passes = 0
        self.marks_generation = environment.marks_generation
        self.is_dated = False

    def render(self, messages: Sequence[Mapping[str, Any]], *, ask: bool = False) -> Rendered:
        """The conversation as a text.

        :param ask: whether an answer is asked for (``add_generation_prompt``).
        :raises jinja2.TemplateError: the template refuses the conversation, or exceeds its bounds.
        :raises TypeError, ValueError, ArithmeticError, LookupError, RecursionError: an expression in it does.
        """
        self._passes = 0
        pieces: list[str] = []
        length = 0
        for piece in self._template.generate(
            messages=messages, add_generation_prompt=ask, tools=None, documents=None, **_SPECIAL_TOKENS
        ):
            length += len(piece)
            _check_length(length)
            pieces.append(piece)
        return Rendered.of("".join(pieces))

    def _count_pass(self) -> str:
        self._passes += 1
        if self._passes > MOST_PASSES:
            raise jinja2.TemplateError(f"it makes more than {MOST_PASSES:,} passes through its loops")
        return ""

    def _strftime_now(self, form: str) -> str:
        self.is_dated = True
        return TEMPLATE_DATE.strftime(form)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        self.marks_generation = False
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation, _CountedLoops],
        )
        self.globals["raise_exception"] = _refuse
        self.filters["tojson"] = _to_json

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The two operators that make something large of something small, within bounds."""
        if operator == "**" and isinstance(right, int | float) and right > 64:
            raise jinja2.TemplateError(f"the power {right} in it is too large")
        if operator == "*":
            for times, what in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(what, str | list | tuple):
                    _check_length(times * len(what))
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """``{% generation %}``: marks what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        self.environment.marks_generation = True  # type: ignore[attr-defined]
        mark = [nodes.Output([nodes.TemplateData(text)]).set_lineno(line) for text in (_OPEN, _CLOSE)]
        return [mark[0], *body, mark[1]]


class _CountedLoops(Extension):
    """Calls :meth:`ChatSandbox._count_pass` at the beginning of each pass through a loop."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """The template's tokens, with that call after the head of each loop."""
        before = ""
        in_head = False
        for token in stream:
            yield token
            in_head |= before == "block_begin" and token.test("name:for")
            before = token.type
            if in_head and token.type == "block_end":
                in_head = False
                for kind, value in (
                    ("variable_begin", "{{"),
                    ("name", _COUNTER),
                    ("lparen", "("),
                    ("rparen", ")"),
                    ("variable_end", "}}"),
                ):
                    yield Token(token.lineno, kind, value)


def _check_length(characters: int) -> None:
    if characters > MOST_CHARACTERS:
        raise jinja2.TemplateError(f"it makes a text of more than {MOST_CHARACTERS:,} characters")


def _refuse(message: object) -> None:
    """What chat templates call to refuse a conversation."""
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own ``tojson`` escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
