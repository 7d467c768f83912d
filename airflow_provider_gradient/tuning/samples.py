"""Rows to samples, and what can be wrong with a sample by itself.

All of it is found before the first call. The published SDK dropped keys that it did not know and so trained
on prompts without their answers; here an unknown key is an error that names the row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from airflow_provider_gradient.api import InvalidRequestError, Sample, describe_validation_error
from airflow_provider_gradient.datasets import (
    Dataset,
    RowTemplate,
    as_text,
    column_value,
    describe_row,
    open_dataset,
    read_rows,
)
from airflow_provider_gradient.tuning.chat import ChatTemplate, is_excluded
from airflow_provider_gradient.tuning.errors import SampleError

_KEYS = ("inputs", "fineTuningParameters", "fine_tuning_parameters")
_ANSWER_KEYS = ("response", "completion", "output", "answer", "prompt", "messages", "text")


@dataclass(frozen=True, kw_only=True)
class BuiltSample:
    """A sample, with what its row says beside it.

    :ivar asked: the prompts that it teaches an answer to, each as the model reads it and, where the row tells
        them apart, without the template's words; empty where the sample is one text without a mask.
    :ivar prompt: what the model reads before the last answer; ``None`` where that can't be told.
    :ivar answer: the last answer's own words.
    """

    sample: Sample
    asked: tuple[str, ...]
    prompt: str | None
    answer: str | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a row becomes a sample: by two templates, from a conversation, or as it is.

    :param prompt_template: f-string over the row's columns; context, unless ``train_on_prompt``.
    :param completion_template: the same, for the text to learn, which follows the prompt as it is.
    :param messages_column: holds a conversation: a list of objects with ``role`` and ``content``.
    :param chat_template: its form; see :class:`~airflow_provider_gradient.tuning.ChatTemplate`.
    :param trainable_roles: whose words of the conversation are learnt.
    :param multiplier_column: holds the weight of a row's loss, above 0.
    :param extra_columns: further keys that ready-made samples may have.
    :raises InvalidRequestError: these don't go together.
    """

    prompt_template: str | None = None
    completion_template: str | None = None
    messages_column: str | None = None
    chat_template: str | None = None
    trainable_roles: Sequence[str] = ("assistant",)
    multiplier_column: str | None = None
    train_on_prompt: bool = False
    extra_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.prompt_template is None) != (self.completion_template is None):
            raise InvalidRequestError("give prompt_template and completion_template together, or neither")
        if (self.messages_column is None) != (self.chat_template is None):
            raise InvalidRequestError("give messages_column and chat_template together, or neither")
        if self.messages_column is not None and self.prompt_template is not None:
            raise InvalidRequestError(
                "give templates for prompt and completion, or a chat_template, not both"
            )
        if self.train_on_prompt and self.messages_column is not None:
            raise InvalidRequestError(
                "train_on_prompt: in a conversation trainable_roles says what is learnt"
            )
        if self.train_on_prompt and self.prompt_template is None:
            raise InvalidRequestError("train_on_prompt: ready-made samples say themselves what is trainable")

    def builder(self) -> SampleBuilder:
        """What makes the samples."""
        if self.prompt_template is not None and self.completion_template is not None:
            return _FromTemplates(self, self.prompt_template, self.completion_template)
        if self.messages_column is not None and self.chat_template is not None:
            return _FromMessages(self, self.messages_column, self.chat_template)
        return _ReadyMade(self)


class SampleBuilder(ABC):
    """Makes samples of rows."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    @abstractmethod
    def build(self, row: Mapping[str, Any], where: str) -> BuiltSample:
        """The row's sample, sound by itself.

        :param where: the words for the row in messages.
        :raises SampleError: a text is empty, nothing is trainable, a key unknown, or the weight is no number
            above 0.
        :raises DatasetError: the row lacks a column.
        """

    def asked(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """The prompts of a row that need not hold an answer.

        :raises SampleError, DatasetError: as :meth:`build`.
        """
        built = self.build(row, where)
        return built.asked or tuple(segment.value for segment in built.sample.segments)


class _FromTemplates(SampleBuilder):
    def __init__(self, recipe: Recipe, prompt_template: str, completion_template: str) -> None:
        super().__init__(recipe)
        self._prompts = RowTemplate(prompt_template)
        self._completions = RowTemplate(completion_template, name="completion_template")

    def build(self, row: Mapping[str, Any], where: str) -> BuiltSample:
        asked = self.asked(row, where)
        prompt, completion = asked[0], self._completions.render(row, where)
        for name, text in (("prompt", prompt), ("completion", completion)):
            if not text.strip():
                raise SampleError(f"{where}: the {name} is empty", reason="empty")
        inputs: Any = prompt + completion
        if not self._recipe.train_on_prompt:
            inputs = [{"value": prompt, "trainable": False}, {"value": completion}]
        fields = {"inputs": inputs} | _weight(row, self._recipe.multiplier_column, where)
        return BuiltSample(
            sample=_checked(fields, where), asked=asked, prompt=prompt, answer=completion.strip()
        )

    def asked(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        return asked_by(self._prompts, row, where)


class _FromMessages(SampleBuilder):
    def __init__(self, recipe: Recipe, messages_column: str, chat_template: str) -> None:
        super().__init__(recipe)
        self._column = messages_column
        self._template = ChatTemplate(chat_template, trainable_roles=recipe.trainable_roles)

    def build(self, row: Mapping[str, Any], where: str) -> BuiltSample:
        value = column_value(row, self._column, where=where, parameter="messages_column")
        messages = self._template.read(value, column=self._column, where=where)
        parts = self._template.parts(messages, where)
        if not any(part.trainable for part in parts):
            raise SampleError(
                f"{where}: nothing is trainable: no message has a role of trainable_roles (by default the "
                "assistant's) without being left out by its weight or train",
                reason="untrainable",
            )
        segments: list[dict[str, Any]] = []
        for part in parts:
            mask: dict[str, Any] = {} if part.trainable else {"trainable": False}
            if segments and ("trainable" in segments[-1]) == ("trainable" in mask):
                segments[-1]["value"] += part.text
            else:
                segments.append({"value": part.text} | mask)
        fields = {"inputs": segments} | _weight(row, self._recipe.multiplier_column, where)
        sample = _checked(fields, where)
        learnt = [number for number, part in enumerate(parts) if part.trainable]
        prompts = ["".join(part.text for part in parts[:number]) for number in learnt]
        asked = tuple(prompt for prompt in prompts if prompt.strip())
        return BuiltSample(
            sample=sample,
            asked=asked + _words_of_users(messages),
            prompt=prompts[-1] or None,
            answer=parts[learnt[-1]].content.strip(),
        )


class _ReadyMade(SampleBuilder):
    def build(self, row: Mapping[str, Any], where: str) -> BuiltSample:
        column = self._recipe.multiplier_column
        extra = {column, *self._recipe.extra_columns}
        fields = {name: value for name, value in row.items() if name not in extra}
        _refuse_unknown_keys(fields, where)
        if weight := _weight(row, column, where):
            if any(fields.get(name) is not None for name in _KEYS[1:]):
                raise SampleError(
                    f"{where} has a multiplier of its own and one in {column!r}", reason="weight"
                )
            fields = {"inputs": fields.get("inputs")} | weight
        sample = _checked(fields, where)
        segments = sample.segments
        learnt = [number for number, segment in enumerate(segments) if segment.trainable is not False]
        prompts = ["".join(segment.value for segment in segments[:number]) for number in learnt]
        return BuiltSample(
            sample=sample,
            asked=tuple(prompt for prompt in prompts if prompt.strip()),
            prompt=prompts[-1] or None,
            answer=segments[learnt[-1]].value.strip(),
        )


def asked_by(template: RowTemplate, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The prompt that a template makes of a row, and the values in it alone, so that another template around
    the same question doesn't hide that it is the same.

    :raises DatasetError: a column is missing or null.
    """
    prompt = template.render(row, where)
    return prompt, " ".join(as_text(row[column]) for column in template.columns)


def _words_of_users(messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What was said up to each answer that is learnt, without the template's words and the system's."""
    said, asked = "", []
    for message in messages:
        if message["role"] == "user":
            said = f"{said} {message['content']}".strip()
        elif message["role"] == "assistant" and said and said not in asked and not is_excluded(message):
            asked.append(said)
    return tuple(asked)


def build_samples(
    rows: Dataset,
    *,
    prompt_template: str,
    completion_template: str,
    multiplier_column: str | None = None,
    train_on_prompt: bool = False,
) -> Iterator[dict[str, Any]]:
    """A sample a row, as the API has it: the prompt as context, the completion to be learnt.

    :param prompt_template: f-string over the row's columns.
    :param completion_template: the same; the text follows the prompt as it is, so let one of the two have the
        space or line feed between them.
    :param multiplier_column: holds the weight of the row's loss, above 0.
    :param train_on_prompt: learn the prompt's text as well.
    :raises SampleError: a text is empty, or a weight is no number above 0.
    :raises DatasetError: a row can't be read or lacks a column.
    """
    recipe = Recipe(
        prompt_template=prompt_template,
        completion_template=completion_template,
        multiplier_column=multiplier_column,
        train_on_prompt=train_on_prompt,
    )
    for built in _built(rows, recipe):
        yield built.to_wire()


def check_samples(
    samples: Dataset, *, multiplier_column: str | None = None, group_column: str | None = None
) -> Iterator[Sample]:
    """Ready-made samples, checked one by one.

    :param multiplier_column: a further key of each sample that holds its weight.
    :param group_column: a further key that is no part of the sample.
    :raises SampleError: a sample has an unknown key, an empty text, nothing trainable, or a weight that is no
        number above 0.
    :raises DatasetError: a row can't be read.
    """
    extra = () if group_column is None else (group_column,)
    yield from _built(samples, Recipe(multiplier_column=multiplier_column, extra_columns=extra))


def _built(rows: Dataset, recipe: Recipe) -> Iterator[Sample]:
    rows = open_dataset(rows)
    builder = recipe.builder()
    for index, row in enumerate(read_rows(rows)):
        yield builder.build(row, describe_row(rows, index)).sample


def _weight(row: Mapping[str, Any], column: str | None, where: str) -> dict[str, Any]:
    if column is None:
        return {}
    value = column_value(row, column, where=where, parameter="multiplier_column")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise SampleError(
            f"{where}: the multiplier in column {column!r} must be above 0, not {value!r}", reason="weight"
        )
    return {"fineTuningParameters": {"multiplier": value}}


def _refuse_unknown_keys(fields: Mapping[str, Any], where: str) -> None:
    unknown = [name for name in fields if name not in _KEYS]
    if not unknown:
        return
    hint = "a sample has inputs and fineTuningParameters"
    if any(name in _ANSWER_KEYS for name in unknown):
        hint = (
            "a sample's text is all in inputs. Give prompt_template and completion_template to build samples "
            'from columns, or write inputs as [{"value": prompt, "trainable": false}, {"value": answer}]'
        )
    raise SampleError(f"{where}: unknown {_plural('key', unknown)}; {hint}", reason="unknown_key")


def _plural(noun: str, names: list[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(repr(name) for name in names)}"


def _checked(fields: Mapping[str, Any], where: str) -> Sample:
    try:
        sample = Sample.model_validate(dict(fields))
    except ValidationError as error:
        message = f"{where}: {describe_validation_error(error)}"
        kinds = {detail["type"] for detail in error.errors(include_url=False)}
        empty = kinds <= {"string_too_short", "too_short"}
        raise SampleError(message, reason="empty" if empty else "invalid") from None
    if not sample.is_trainable:
        raise SampleError(
            f"{where}: nothing is trainable; leave trainable out, or true, where the answer stands",
            reason="untrainable",
        )
    if not any(segment.value.strip() for segment in sample.segments if segment.trainable is not False):
        raise SampleError(f"{where}: the text to learn is empty", reason="empty")
    return sample
