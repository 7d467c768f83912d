"""Completions, row by row, in the form in which they are scored."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

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


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A completion.

    :ivar dataset: in which it stands, at ``place``.
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
    :param completions: a run's manifest (also as a dict), or its rows or their path; or the report of an
        earlier evaluation, whose per-row scores hold them.
    :param name: the parameter they were given as, for messages.
    :param reference_column: holds the right answers; ``None`` where none are needed.
    """

    def __init__(self, completions: Any, *, name: str, reference_column: str | None) -> None:
        self.rows: OpenDataset = open_dataset(_dataset(completions, name))
        self.not_run = 0
        self._reference_column = reference_column

    @property
    def source(self) -> str:
        """Their path, or ``inline``."""
        return describe_source(self.rows)

    def __iter__(self) -> Iterator[Answered]:
        """Every row that was run, in order.

        :raises EvaluationError: a row has no usable output or reference.
        """
        self.not_run = 0
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
        if status == "success" and not isinstance(output, str):
            where = describe_row(self.rows, place)
            raise EvaluationError(
                f"{where} has no text in 'output': is this the output of a run over a dataset?"
            )
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
