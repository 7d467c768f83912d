"""A conversation as the text of a sample, with the words of the chosen roles to be learnt.

A chat template, as Hugging Face's tokenizers have them, turns a conversation into one text. Which part of it
is learnt is found in one of two ways:

- A template with ``{% generation %}`` blocks says so itself: they enclose the assistant's turns.
- Any other template is rendered again for each message, with one message more each time: what a message adds
  is its part. Of an answer's part, what the template writes to ask for an answer (``add_generation_prompt``)
  is context, and the rest is learnt. A template that changes earlier text when a message follows is refused.

In both, whatever a template puts before an answer by itself, such as ``<think></think>`` or a role's header,
is context and not learnt.

A message says itself whether it is learnt, where it says so: ``weight`` 0, as OpenAI's files have it, or
``train`` false make context of an answer. Any other key is either read by the template or refused, since what
no template shows would be left out of the training without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.tuning.chat_sandbox import TEMPLATE_DATE, ChatSandbox, Rendered
from airflow_provider_gradient.tuning.errors import SampleError

CHAT_TEMPLATES: dict[str, str] = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama2": (
        "{% for message in messages %}"
        "{% if message.role == 'system' %}[INST] <<SYS>>\n{{ message.content }}\n<</SYS>>\n\n"
        "{% elif message.role == 'user' %}"
        "{% if loop.first %}[INST] {% elif loop.previtem.role != 'system' %}<s>[INST] {% endif %}"
        "{{ message.content }} [/INST]"
        "{% else %} {{ message.content }} </s>{% endif %}"
        "{% endfor %}"
    ),
    "llama3": (
        "{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
        "{{ message.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "instruction": (
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %} {{ message.content }}"
        "{% else %}{{ '' if loop.first else '\n\n' }}"
        "{{ '### Instruction: ' if message.role == 'user' else '' }}{{ message.content }}"
        "{{ ' \n\n### Response:' if message.role == 'user' else '' }}{% endif %}"
        "{% endfor %}"
    ),
    "question": (
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %} {{ message.content }}"
        "{% else %}{{ '' if loop.first else '\n\n' }}"
        "{{ 'Question: ' if message.role == 'user' else '' }}{{ message.content }}"
        "{{ '\n\nAnswer:' if message.role == 'user' else '' }}{% endif %}"
        "{% endfor %}"
    ),
}
"""Templates by name: ``chatml``, ``llama2``, ``llama3``; ``instruction`` (``### Instruction: ...``) and
``question`` (``Question: ...``, which the built-in model knows). The opening token is the server's to add."""


_OWN_KEYS = ("role", "content", "weight", "train")
_CALLS = ("tool_calls", "function_call")
"""With these a message needs no content; only a template that reads them takes them."""
_PLACEHOLDER = "\ufdd2"
"""A noncharacter of Unicode in the place of a message's content."""


@dataclass(frozen=True, kw_only=True)
class ChatPart:
    """A piece of a rendered conversation.

    :ivar content: the message's own words, where the piece is learnt.
    """

    text: str
    trainable: bool
    content: str = ""


class ChatTemplate:
    """A checked chat template.

    :param template: one of :data:`CHAT_TEMPLATES` by name, or a template's text, which gets ``messages`` and
        ``add_generation_prompt``.
    :param trainable_roles: whose words are learnt.
    :raises InvalidRequestError: it is no template, or there are no roles.
    """

    def __init__(self, template: str, *, trainable_roles: Sequence[str] = ("assistant",)) -> None:
        if isinstance(trainable_roles, str) or not trainable_roles:
            raise InvalidRequestError(
                f"trainable_roles: a list of at least one role is needed (got {trainable_roles!r})"
            )
        self._roles = frozenset(trainable_roles)
        if template not in CHAT_TEMPLATES and "{" not in template:
            raise InvalidRequestError(
                f"chat_template: there is no {template!r}; there are {', '.join(CHAT_TEMPLATES)}, or give a "
                "Jinja template's text"
            )
        try:
            self._sandbox = ChatSandbox(CHAT_TEMPLATES.get(template, template))
        except jinja2.TemplateError as error:
            raise InvalidRequestError(f"chat_template is no template: {error}") from None
        if self._sandbox.marks_generation and self._roles != {"assistant"}:
            raise InvalidRequestError(
                "trainable_roles: this chat_template marks the assistant's words itself ({% generation %}), "
                "so no other role's can be learnt; leave trainable_roles out, or take another template"
            )

    @property
    def date(self) -> str | None:
        """The date that the template was told, as ``YYYY-MM-DD``; ``None`` where it has not asked for one."""
        return TEMPLATE_DATE.isoformat() if self._sandbox.is_dated else None

    def read(self, value: object, *, column: str, where: str) -> list[dict[str, Any]]:
        """The conversation that a column holds: a list of messages, or its JSON.

        A message is an object with ``role`` and ``content``, and perhaps ``weight`` (0 or 1), ``train`` (a
        boolean) and what else the template reads. Keys that are null or an empty list count as absent.

        :param where: the words for the row in messages.
        :raises SampleError: it is something else, says nothing, or has a key that nothing reads.
        """
        messages = _as_messages(value, column=column, where=where)
        for number, message in enumerate(messages):
            self._check(message, f"{where}: message {number} of column {column!r}")
        return messages

    def _check(self, message: Mapping[str, Any], what: str) -> None:
        unknown = [key for key in message if key not in _OWN_KEYS and key not in self._sandbox.names]
        if unknown:
            raise SampleError(f"{what} {_refusal_of_keys(unknown)}", reason="unknown_key")
        calls = any(key in message for key in _CALLS)
        for key in ("role", "content"):
            needless = key == "content" and calls and message["content"] is None
            if not needless and not isinstance(message.get(key), str):
                raise SampleError(f"{what} has no text in {key!r}", reason="invalid")
        if not calls and not message["content"].strip():
            raise SampleError(f"{what} is empty", reason="empty")
        wishes = _wishes(message, what)
        if len(wishes) > 1:
            raise SampleError(f"{what}: its weight and its train contradict each other", reason="weight")
        if True in wishes and message["role"] not in self._roles:
            raise SampleError(
                f"{what} is to be learnt, but its role {message['role']!r} is not among trainable_roles: "
                "name the role there, or leave weight and train out",
                reason="weight",
            )

    def parts(self, messages: Sequence[Mapping[str, Any]], where: str) -> list[ChatPart]:
        """The conversation, piece by piece.

        :param messages: as :meth:`read` gives them.
        :param where: the words for the row in messages.
        :raises SampleError: the template can't be filled in, or not be taken apart, or leaves an answer out.
        """
        whole = self._render(messages, where)
        turns = self._marked if self._sandbox.marks_generation else self._appended
        parts: list[ChatPart] = []
        end = 0
        for number, first, last in turns(messages, whole, where):
            start = self._start_of_answer(messages, number, whole, first, where)
            if start > end:
                parts.append(ChatPart(text=whole[end:start], trainable=False))
            content = messages[number]["content"] or ""
            parts.append(ChatPart(text=whole[start:last], trainable=True, content=content))
            end = last
        if len(whole) > end:
            parts.append(ChatPart(text=whole[end:], trainable=False))
        return parts

    def _marked(
        self, messages: Sequence[Mapping[str, Any]], whole: Rendered, where: str
    ) -> Iterator[tuple[int, int, int]]:
        """The answers to be learnt: number of the message, and where the block around it begins and ends."""
        blocks: list[tuple[int, int]] = []
        for first, last in whole.generated:
            if blocks and blocks[-1][1] == first:
                blocks[-1] = (blocks[-1][0], last)
            elif last > first:
                blocks.append((first, last))
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if len(blocks) != len(answers):
            raise SampleError(
                f"{where}: the chat template marks {len(blocks)} answers and the conversation has "
                f"{len(answers)}",
                reason="invalid",
            )
        for number, (first, last) in zip(answers, blocks, strict=True):
            if is_excluded(messages[number]):
                continue
            asked = self._render(messages[:number], where, ask=True)
            yield number, max(first, len(asked) if whole.startswith(asked) else 0), last

    def _appended(
        self, messages: Sequence[Mapping[str, Any]], whole: Rendered, where: str
    ) -> Iterator[tuple[int, int, int]]:
        """The messages to be learnt, each with where what it adds begins and ends, without what the template
        writes to ask for it."""
        text = ""
        for number, message in enumerate(messages):
            longer = self._render(messages[: number + 1], where)
            if not longer.startswith(text) or not whole.startswith(longer):
                raise SampleError(
                    f"{where}: with message {max(1, number)} the chat template changes the text before it, "
                    "so it can't be told whose words are whose; take a template that only appends, or one "
                    "with {% generation %} blocks",
                    reason="invalid",
                )
            if message["role"] in self._roles and not is_excluded(message) and len(longer) > len(text):
                asked = self._render(messages[:number], where, ask=True)
                yield number, max(len(text), _common_length(asked, longer)), len(longer)
            text = longer

    def _start_of_answer(
        self, messages: Sequence[Mapping[str, Any]], number: int, whole: str, first: int, where: str
    ) -> int:
        """Where what is learnt of a message begins: at ``first``, or after what the template put there.

        The template is rendered with another content and nothing else in the message, which tells its own
        text from the message's. What it makes of other keys, such as reasoning or a tool call, is learnt.
        """
        if not messages[number]["content"]:  # it calls a tool instead
            return first
        other = [*messages]
        other[number] = {"role": messages[number]["role"], "content": _PLACEHOLDER}
        before, found, after = self._render(other, where).partition(_PLACEHOLDER)
        if not found:
            raise SampleError(
                f"{where}: the chat template leaves out the words of message {number}; it may be one for "
                "pictures, whose content is a list",
                reason="invalid",
            )
        is_verbatim = whole.startswith(before) and whole.endswith(after)
        return len(before) if is_verbatim and whole[first : len(before)].strip() else first

    def _render(self, messages: Sequence[Mapping[str, Any]], where: str, *, ask: bool = False) -> Rendered:
        if not messages:
            return Rendered.of("")
        try:
            return self._sandbox.render(messages, ask=ask)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            RecursionError,
        ) as error:
            raise SampleError(
                f"{where}: chat_template can't be filled in: {error}", reason="invalid"
            ) from None


def _common_length(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def is_excluded(message: Mapping[str, Any]) -> bool:
    """Whether the message itself says that it is not to be learnt."""
    return message.get("weight") == 0 or message.get("train") is False


def _as_messages(value: object, *, column: str, where: str) -> list[dict[str, Any]]:
    """The objects in a column, without what is null or an empty list."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise SampleError(
                f"{where}: column {column!r} is no list of messages", reason="invalid"
            ) from None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise SampleError(f"{where}: column {column!r} is no list of messages", reason="invalid")
    if not value:
        raise SampleError(f"{where}: column {column!r} has no message in it", reason="empty")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise SampleError(
                f"{where}: message {number} of column {column!r} is no object with role and content",
                reason="invalid",
            )
        present = {key: told for key, told in message.items() if told is not None and told != []}
        messages.append({"content": None} | present)
    return messages


def _wishes(message: Mapping[str, Any], what: str) -> set[bool]:
    """What ``weight`` and ``train`` say, where they are given."""
    wishes = set()
    if "weight" in message:
        weight = message["weight"]
        if isinstance(weight, bool) or weight not in (0, 1):
            raise SampleError(
                f"{what} has the weight {weight!r}: it is 1 for a message to learn, 0 for one to leave out "
                "of the loss. What lies between is for whole rows, by multiplier_column",
                reason="weight",
            )
        wishes.add(weight == 1)
    if "train" in message:
        if not isinstance(message["train"], bool):
            raise SampleError(
                f"{what}: its train is {message['train']!r}, not true or false", reason="weight"
            )
        wishes.add(message["train"])
    return wishes


def _refusal_of_keys(unknown: Sequence[str]) -> str:
    named = f"unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}"
    if {"from", "value"} & set(unknown):
        return f"has the {named}: rename ShareGPT's 'from' to 'role' and 'value' to 'content'"
    return (
        f"has the {named}: a message has role, content, weight and train, and what the chat template reads. "
        "This template doesn't read them, so they would be left out of the training; take them out of the "
        "data, or give a template that shows them"
    )
