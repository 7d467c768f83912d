"""Rows to samples, and what can be wrong with a sample.

All of it is found before the first call. The published SDK dropped keys that it did not know and so trained
on prompts without their answers; here an unknown key is an error that names the row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from airflow_provider_gradient.api import (
    GradientError,
    InvalidRequestError,
    Sample,
    describe_validation_error,
)
from airflow_provider_gradient.datasets import (
    Dataset,
    RowTemplate,
    column_value,
    describe_row,
    dump_row,
    open_dataset,
    read_rows,
)

_KEYS = ("inputs", "fineTuningParameters", "fine_tuning_parameters")
_ANSWER_KEYS = ("response", "completion", "output", "answer", "prompt", "messages", "text")


class SampleError(GradientError, ValueError):
    """A sample can't be trained on; the message names its row and what is wrong."""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Checked samples.

    :ivar source: where they come from, for messages.
    :ivar groups: the indices of the samples that say the same thing in other words; every sample is in one.
    """

    source: Dataset
    samples: tuple[Sample, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over samples and groups, in hexadecimal."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(dump_row(sample.to_wire()))
        digest.update(dump_row(self.groups))
        return digest.hexdigest()


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
    prompts = RowTemplate(prompt_template)
    completions = RowTemplate(completion_template, name="completion_template")
    rows = open_dataset(rows)
    for index, row in enumerate(read_rows(rows)):
        where = describe_row(rows, index)
        prompt, completion = prompts.render(row, where), completions.render(row, where)
        for name, text in (("prompt", prompt), ("completion", completion)):
            if not text.strip():
                raise SampleError(f"{where}: the {name} is empty")
        inputs: Any = prompt + completion
        if not train_on_prompt:
            inputs = [{"value": prompt, "trainable": False}, {"value": completion}]
        yield {"inputs": inputs} | _weight(row, multiplier_column, where)


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
    samples = open_dataset(samples)
    for index, row in enumerate(read_rows(samples)):
        where = describe_row(samples, index)
        extra = {multiplier_column, group_column} - {None}
        fields = {name: value for name, value in row.items() if name not in extra}
        _refuse_unknown_keys(fields, where)
        if weight := _weight(row, multiplier_column, where):
            if any(fields.get(name) is not None for name in _KEYS[1:]):
                raise SampleError(f"{where} has a multiplier of its own and one in {multiplier_column!r}")
            fields = {"inputs": fields.get("inputs")} | weight
        yield _checked(fields, where)


def training_set(
    samples: Dataset,
    *,
    prompt_template: str | None = None,
    completion_template: str | None = None,
    multiplier_column: str | None = None,
    train_on_prompt: bool = False,
    group_column: str | None = None,
) -> TrainingSet:
    """All samples, checked, from rows if there are templates and ready-made otherwise.

    :raises InvalidRequestError: one template is given without the other.
    :raises SampleError: as :func:`build_samples` and :func:`check_samples`.
    :raises DatasetError: a row can't be read or lacks a column.
    """
    if (prompt_template is None) != (completion_template is None):
        raise InvalidRequestError("give prompt_template and completion_template together, or neither")
    samples = open_dataset(samples)
    if prompt_template is not None and completion_template is not None:
        built = build_samples(
            samples,
            prompt_template=prompt_template,
            completion_template=completion_template,
            multiplier_column=multiplier_column,
            train_on_prompt=train_on_prompt,
        )
        checked = tuple(_checked(fields, describe_row(samples, index)) for index, fields in enumerate(built))
    elif train_on_prompt:
        raise InvalidRequestError("train_on_prompt: ready-made samples say themselves what is trainable")
    else:
        checked = tuple(
            check_samples(samples, multiplier_column=multiplier_column, group_column=group_column)
        )
    return TrainingSet(source=samples, samples=checked, groups=_groups(samples, group_column, len(checked)))


def _groups(rows: Dataset, column: str | None, count: int) -> tuple[tuple[int, ...], ...]:
    if column is None:
        return tuple((index,) for index in range(count))
    groups: dict[bytes, list[int]] = {}
    for index, row in enumerate(read_rows(rows)):
        value = column_value(row, column, where=describe_row(rows, index), parameter="group_column")
        groups.setdefault(dump_row(value), []).append(index)
    return tuple(tuple(group) for group in groups.values())


def _weight(row: Mapping[str, Any], column: str | None, where: str) -> dict[str, Any]:
    if column is None:
        return {}
    value = column_value(row, column, where=where, parameter="multiplier_column")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise SampleError(f"{where}: the multiplier in column {column!r} must be above 0, not {value!r}")
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
    raise SampleError(f"{where}: unknown {_plural('key', unknown)}; {hint}")


def _plural(noun: str, names: list[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(repr(name) for name in names)}"


def _checked(fields: Mapping[str, Any], where: str) -> Sample:
    try:
        sample = Sample.model_validate(dict(fields))
    except ValidationError as error:
        raise SampleError(f"{where}: {describe_validation_error(error)}") from None
    if not sample.is_trainable:
        raise SampleError(
            f"{where}: nothing is trainable; leave trainable out, or true, where the answer stands"
        )
    if not any(segment.value.strip() for segment in sample.segments if segment.trainable is not False):
        raise SampleError(f"{where}: the text to learn is empty")
    return sample
