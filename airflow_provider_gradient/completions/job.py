"""A run over a dataset before anything is sent: what it asks, and whether all of it makes sense.

Every row is rendered and checked here, so that a column that is missing from the last of a million rows costs
no request. What a check keeps in memory is eight bytes a row.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_gradient.api import CompleteRequest, InvalidRequestError, build_request
from airflow_provider_gradient.completions.manifest import SCHEMA_VERSION
from airflow_provider_gradient.datasets import (
    Dataset,
    DatasetError,
    RowTemplate,
    column_value,
    describe_row,
    dump_row,
    read_rows,
    row_bytes,
)


class Prompts:
    """How a row becomes a prompt: by a template, or by a column that holds it.

    :raises InvalidRequestError: not exactly one of the two is given.
    """

    def __init__(self, *, template: str | None, column: str | None) -> None:
        if (template is None) == (column is None):
            raise InvalidRequestError("give exactly one of prompt_template and prompt_column")
        self._template = RowTemplate(template) if template is not None else None
        self._column = column or ""

    def render(self, row: Mapping[str, Any], where: str) -> str:
        """The prompt of ``row``.

        :raises DatasetError: a column is missing or null, or the prompt is empty.
        """
        if self._template is not None:
            prompt = self._template.render(row, where)
        else:
            prompt = column_value(row, self._column, where=where, parameter="prompt_column")
            if not isinstance(prompt, str):
                raise DatasetError(
                    f"{where}: column {self._column!r}, the prompt, is no string but {prompt!r}"
                )
        if not prompt.strip():
            raise DatasetError(f"{where}: the prompt is empty")
        return prompt


@dataclass(frozen=True, kw_only=True)
class CompletionJob:
    """All that determines the requests and the output of a run, but for the dataset's rows."""

    dataset: Dataset
    model_id: str
    prompt_template: str | None
    prompt_column: str | None
    id_column: str | None
    carry_columns: Sequence[str] | None
    parameters: Mapping[str, Any]

    def carried(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The columns of ``row`` that go into the output."""
        if self.carry_columns is None:
            return row
        return {column: row[column] for column in self.carry_columns}

    def fingerprint(self, *, dataset: str, model_version: str | None) -> str:
        """SHA-256 over the job.

        :param dataset: the dataset's own fingerprint.
        :param model_version: tells states of one adapter apart.
        """
        fields = {
            "schema_version": SCHEMA_VERSION,
            "dataset": dataset,
            "model_id": self.model_id,
            "model_version": model_version,
            "prompt_template": self.prompt_template,
            "prompt_column": self.prompt_column,
            "id_column": self.id_column,
            "carry_columns": None if self.carry_columns is None else list(self.carry_columns),
            "parameters": dict(self.parameters),
        }
        return hashlib.sha256(dump_row(fields)).hexdigest()


def completion_parameters(**given: Any) -> dict[str, Any]:
    """The completion parameters that are not ``None``, checked against the API's limits.

    :raises InvalidRequestError: names the one that is out of range.
    """
    parameters = {name: value for name, value in given.items() if value is not None}
    guidance = parameters.get("guidance")
    if isinstance(guidance, str):
        raise InvalidRequestError(f"guidance: a list of choices is needed, not the text {guidance!r}")
    if guidance is not None:
        parameters["guidance"] = list(guidance)
    choices = {"guidance": {"value": parameters["guidance"]}} if guidance is not None else {}
    build_request(CompleteRequest, query="?", **(parameters | choices))
    return parameters


class DatasetCheck:
    """One pass over a job's rows that finds everything wrong with them.

    :ivar rows: how many there are.
    :ivar fingerprint: of the dataset, as :func:`airflow_provider_gradient.datasets.fingerprint` has it.
    """

    def __init__(self, job: CompletionJob, prompts: Prompts) -> None:
        self._job = job
        self._prompts = prompts
        self._ids = array("q")
        self._digest = hashlib.sha256()
        self.rows = 0

    def rows_checked(self) -> Generator[None]:
        """Check the rows, one a step; the counts hold once the last step is taken.

        :raises DatasetError: names the row and what is wrong.
        """
        for index, row in enumerate(read_rows(self._job.dataset)):
            where = describe_row(self._job.dataset, index)
            self._prompts.render(row, where)
            self._digest.update(row_bytes(row, where))
            for column in self._job.carry_columns or ():
                if column not in row:
                    column_value(row, column, where=where, parameter="carry_columns")
            if self._job.id_column is not None:
                self._ids.append(hash(row_id(row, self._job.id_column, where)))
            self.rows += 1
            yield
        self._refuse_duplicates()

    @property
    def fingerprint(self) -> str:
        """Of the rows so far."""
        return self._digest.hexdigest()

    def _refuse_duplicates(self) -> None:
        """Ids are compared by their hashes; where two are alike, their rows are read again to make sure."""
        column, hashes = self._job.id_column, sorted(self._ids)
        alike = {one for one, next_ in itertools.pairwise(hashes) if one == next_}
        self._ids = array("q")
        if column is None or not alike:
            return
        first: dict[int | str, int] = {}
        for index, row in enumerate(read_rows(self._job.dataset)):
            if hash(row[column]) in alike and first.setdefault(row[column], index) != index:
                where = describe_row(self._job.dataset, index)
                raise DatasetError(
                    f"{where} has the {column} {row[column]!r} of row {first[row[column]]} again"
                )


def row_id(row: Mapping[str, Any], column: str, where: str) -> int | str:
    """The value that identifies ``row``.

    :raises DatasetError: it is missing, or neither a string nor a whole number.
    """
    value = column_value(row, column, where=where, parameter="id_column")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DatasetError(
            f"{where}: the id in column {column!r} must be a string or a number, not {value!r}"
        )
    return value
