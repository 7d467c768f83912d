"""Completions, row by row, in the form in which they are scored."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

from airflow_provider_gradient.api.reasoning import is_unopened, without_reasoning
from airflow_provider_gradient.datasets import (
    Dataset,
    DatasetError,
    OpenDataset,
    PathLike,
    as_path,
    column_value,
    describe_row,
    describe_source,
    open_dataset,
    path_error,
    read_rows,
)
from airflow_provider_gradient.evaluation.metrics import Example
from airflow_provider_gradient.evaluation.report import EvaluationError, EvaluationReport

NOT_RUN = "not_run"
"""The status of a row that was never sent."""
Reasoning = Literal["auto", "opened", "keep"]
"""What is done with reasoning in front of an answer: see :class:`Completions`."""
_LOOKED_AT = 100
"""Rows by which it is told whether the model's template opens the reasoning."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A completion.

    :ivar dataset: in which it stands, at ``place``.
    :ivar output: what is scored: the answer, without reasoning in front of it.
    """

    dataset: OpenDataset
    place: int
    index: int
    id: Any
    status: str
    output: Any
    model_id: Any
    example: Example

    @property
    def where(self) -> str:
        """The words for the row in messages."""
        return describe_row(self.dataset, self.place)

    @property
    def key(self) -> int:
        """Tells the row from others, and is the same in another run over the same rows: 64 bits of a hash of
        its id, or of its index where it has none."""
        return _digest(["index", self.index] if self.id is None else ["id", str(self.id)])

    @property
    def question(self) -> int:
        """64 bits of a hash of the right answer: rows of two runs that are the same row have the same."""
        return _digest(self.example.reference)


class Completions:
    """The rows of a run.

    :ivar not_run: rows that the last pass left out, since they were never sent.
    :ivar reasoned: rows of the last pass of which reasoning was taken off; ``unanswered``: those of them with
        nothing behind it.
    :param completions: a run's manifest (also as a dict), or its rows or their path; or the report of an
        earlier evaluation, whose per-row scores hold them.
    :param name: the parameter they were given as, for messages.
    :param reference_column: holds the right answers; ``None`` where none are needed.
    :param reasoning: ``auto``: the answer is what stands behind a block such as ``<think>...</think>`` that
        the output begins with, or behind a closing tag without an opening one, which shows that the model's
        template wrote the opening; where a block is not closed, the answer is empty. If the first 100 rows
        show such a template, that also holds for rows that were cut at their limit without a tag. ``opened``:
        the template opens the reasoning, so that every row without a closing tag has an empty answer.
        ``keep``: the whole output is the answer.
    """

    def __init__(
        self,
        completions: Any,
        *,
        name: str,
        reference_column: str | None,
        reasoning: Reasoning = "auto",
    ) -> None:
        self.rows: OpenDataset = open_dataset(_dataset(completions, name))
        self.not_run = self.reasoned = self.unanswered = 0
        self._reasoning = reasoning
        self._reference_column = reference_column

    @property
    def source(self) -> str:
        """Their path, or ``inline``."""
        return describe_source(self.rows)

    def __iter__(self) -> Iterator[Answered]:
        """Every row that was run, in order.

        :raises EvaluationError: a row has no usable output or reference.
        """
        self.not_run = self.reasoned = self.unanswered = 0
        for place, completion in enumerate(read_rows(self.rows)):
            if completion.get("status") == NOT_RUN:
                self.not_run += 1
            else:
                yield self._answered(place, completion)

    def examples(self) -> Iterator[tuple[Example, str]]:
        """They in the form in which metrics take them, with the words for them."""
        for answered in self:
            yield answered.example, answered.where

    def _answered(self, place: int, completion: Mapping[str, Any]) -> Answered:
        row = completion.get("row", completion)
        if not isinstance(row, Mapping):
            where = describe_row(self.rows, place)
            raise EvaluationError(f"{where}: 'row' is no object with the columns of the input")
        status = completion.get("status", "success")
        output = completion.get("output")
        if status == "success":
            if not isinstance(output, str):
                where = describe_row(self.rows, place)
                raise EvaluationError(
                    f"{where} has no text in 'output': is this the output of a run over a dataset?"
                )
            output = self._answer(output, completion.get("finish_reason"))
        reference = None if self._reference_column is None else self._reference(row, place)
        return Answered(
            dataset=self.rows,
            place=place,
            index=completion.get("index", place),
            id=completion.get("id"),
            status=status,
            output=output,
            model_id=completion.get("model_id"),
            example=Example(output if status == "success" else None, reference, row),
        )

    def _answer(self, output: str, finish_reason: Any) -> str:
        """``output`` without reasoning."""
        if self._reasoning == "keep":
            return output
        answer = without_reasoning(output)
        if answer == output and self._template_opens:
            answer = "" if self._reasoning == "opened" or finish_reason == "length" else output
        if answer != output:
            self.reasoned += 1
            self.unanswered += not answer.strip()
        return answer

    @cached_property
    def _template_opens(self) -> bool:
        """Whether the model's template opens the reasoning, as far as the first rows show it."""
        first = itertools.islice(read_rows(self.rows), _LOOKED_AT)
        outputs = (completion.get("output") for completion in first)
        return self._reasoning == "opened" or any(
            isinstance(output, str) and is_unopened(output) for output in outputs
        )

    def _reference(self, row: Mapping[str, Any], place: int) -> Any:
        column = self._reference_column or ""
        reference = row.get(column)
        if isinstance(reference, str):
            return reference
        where = describe_row(self.rows, place)
        reference = needed(row, column, where, "reference_column")
        forms = reference if isinstance(reference, list) else [reference]
        if not forms or not all(_is_text(form) for form in forms):
            raise EvaluationError(
                f"{where}: the reference in column {column!r} must be a string or number, or "
                f"a list of such, not {reference!r}"
            )
        return reference


def needed(row: Mapping[str, Any], column: str, where: str, parameter: str) -> Any:
    """What ``row`` has in ``column``.

    :raises EvaluationError: it is missing or null.
    """
    try:
        return column_value(row, column, where=where, parameter=parameter)
    except DatasetError as error:
        raise EvaluationError(str(error)) from None


def _dataset(given: Any, name: str) -> Dataset:
    """Where the rows are of which ``given`` speaks."""
    if isinstance(given, EvaluationReport):
        given = given.to_dict()
    elif is_json(given):
        given = _stored(given, name)
    if not isinstance(given, Mapping) or "output_path" in given:
        return cast(Dataset, given)
    if "scores_path" not in given:
        raise EvaluationError(f"{name}: this is neither rows, nor a path, nor the manifest of a run")
    if given["scores_path"] is None:
        raise EvaluationError(
            f"{name}: this report has no per-row scores to compare with; evaluate with an output_path"
        )
    return cast(PathLike, given["scores_path"])


def is_json(given: Any) -> bool:
    """Whether ``given`` is the path of a stored report or manifest."""
    if isinstance(given, str | os.PathLike) or hasattr(given, "protocol"):
        return as_path(given).name.endswith(".json")
    return False


def _stored(path: PathLike, name: str) -> dict[str, Any]:
    try:
        with as_path(path).open("rb") as file:
            stored = json.load(file)
    except (OSError, ValueError) as error:
        raise path_error(path, "read", error) from error
    if not isinstance(stored, dict):
        raise EvaluationError(f"{name}: {path} holds neither a report nor a manifest")
    return stored


def _digest(value: Any) -> int:
    text = json.dumps(value, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def _is_text(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
