"""A conversation as the text of a sample, with the words of the chosen roles to be learnt.

A chat template, as Hugging Face's tokenizers have them, gives a text and does not say which part of it is
whose. So a conversation is rendered again and again, each time with one message more: what a message adds is
its part. Of an answer's part, what the template also writes to ask for an answer (``add_generation_prompt``)
is context, the rest is learnt. A template whose text changes where a message follows can't be taken apart so,
and is refused. Templates run in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from airflow_provider_gradient.api import InvalidRequestError
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
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(CHAT_TEMPLATES.get(template, template))
        except jinja2.TemplateError as error:
            raise InvalidRequestError(f"chat_template is no template: {error}") from None

    def parts(self, messages: Sequence[Mapping[str, Any]], where: str) -> list[ChatPart]:
        """The conversation, piece by piece.

        :param messages: as :func:`read_messages` gives them.
        :param where: the words for the row in messages.
        :raises SampleError: the template can't be filled in, or not be taken apart.
        """
        parts: list[ChatPart] = []
        text = ""
        for count, message in enumerate(messages, 1):
            longer = self._render(messages[:count], where)
            if not longer.startswith(text):
                raise SampleError(
                    f"{where}: with message {count - 1} the chat template changes the text before it, so it "
                    "can't be told whose words are whose; write a template that only appends",
                    reason="invalid",
                )
            trainable = message["role"] in self._roles
            asked = self._render(messages[: count - 1], where, ask=True) if trainable else ""
            start = len(asked) if asked and longer.startswith(asked) else len(text)
            if start > len(text):
                parts.append(ChatPart(text=longer[len(text) : start], trainable=False))
            if len(longer) > start:
                content = message["content"] if trainable else ""
                parts.append(ChatPart(text=longer[start:], trainable=trainable, content=content))
            text = longer
        return parts

    def _render(self, messages: Sequence[Mapping[str, Any]], where: str, *, ask: bool = False) -> str:
        if not messages:
            return ""
        try:
            return self._template.render(messages=messages, add_generation_prompt=ask)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise SampleError(
                f"{where}: chat_template can't be filled in: {error}", reason="invalid"
            ) from None


def _refuse(message: object) -> None:
    """What chat templates call to refuse a conversation."""
    raise jinja2.TemplateError(str(message))


def read_messages(value: object, *, column: str, where: str) -> list[dict[str, Any]]:
    """The conversation that a column holds: a list of objects with ``role`` and ``content``, or its JSON.

    :raises SampleError: it is something else, or says nothing.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise SampleError(
                f"{where}: column {column!r} is no list of messages", reason="invalid"
            ) from None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise SampleError(f"{where}: column {column!r} is no list of messages", reason="invalid")
    if not value:
        raise SampleError(f"{where}: column {column!r} has no message in it", reason="empty")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise SampleError(
                f"{where}: message {number} of column {column!r} is no object with role and content",
                reason="invalid",
            )
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise SampleError(
                    f"{where}: message {number} of column {column!r} has no text in {key!r}", reason="invalid"
                )
        if not message["content"].strip():
            raise SampleError(f"{where}: message {number} of column {column!r} is empty", reason="empty")
    return [dict(message) for message in value]
