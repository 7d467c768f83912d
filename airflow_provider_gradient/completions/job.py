"""A run over a dataset before anything is sent: what it asks, and whether all of it makes sense.

Every row is rendered and checked here, so that a column that is missing from the last of a million rows costs
no request. What a check keeps in memory is eight bytes a row.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from airflow_provider_gradient.api import CompleteRequest, InvalidRequestError, build_request
from airflow_provider_gradient.completions.chains import Chain
from airflow_provider_gradient.completions.manifest import SCHEMA_VERSION, ShardOf
from airflow_provider_gradient.completions.output_schema import OutputSchema
from airflow_provider_gradient.completions.row_keys import RowKeys
from airflow_provider_gradient.datasets import (
    Dataset,
    DatasetError,
    ShardRows,
    Template,
    TemplateFormat,
    column_value,
    describe_row,
    dump_row,
    read_rows,
    row_bytes,
    row_template,
)


class Prompts:
    """How a row becomes a prompt: by a template, or by a column that holds it.

    :param format: of the template.
    """

    def __init__(
        self, *, template: str | None, column: str | None, format: TemplateFormat = "f-string"
    ) -> None:
        self._template = row_template(template, format=format) if template is not None else None
        self._column = column or ""

    def check(self, row: Mapping[str, Any], where: str) -> None:
        """Check that ``row`` gives a prompt.

        :raises DatasetError: as :meth:`render`.
        """
        self.render(row, where)

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
    model_id: str | None
    prompt_template: str | None
    prompt_column: str | None
    prompt_template_format: TemplateFormat = "f-string"
    chain: Chain | None = None
    output_schema: OutputSchema | None = None
    max_output_retries: int = 0
    id_column: str | None
    carry_columns: Sequence[str] | None
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        retries = self.max_output_retries
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise InvalidRequestError(f"max_output_retries: must be a whole number from 0 (got {retries!r})")
        if retries and not (self.output_schema or self.chain or "guidance" in self.parameters):
            raise InvalidRequestError(
                "max_output_retries: no answer is invalid without output_schema, guidance or a runnable"
            )

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
            "prompt_template_format": self.prompt_template_format,
            "runnable": self.chain and self.chain.fingerprint(),
            "output_schema": self.output_schema and self.output_schema.json_schema,
            "max_output_retries": self.max_output_retries,
            "id_column": self.id_column,
            "carry_columns": None if self.carry_columns is None else list(self.carry_columns),
            "parameters": dict(self.parameters),
        }
        return hashlib.sha256(dump_row(fields)).hexdigest()

    def request(self, *, model_version: str | None) -> str:
        """SHA-256 over what determines the rows' requests and the verdicts on their answers, but for the
        rows' own keys: the prompts, or where a runnable asks, the columns.

        :param model_version: tells states of one adapter apart.
        """
        fields = {
            "model_id": self.model_id,
            "model_version": model_version,
            "runnable": self.chain and self.chain.fingerprint(),
            "output_schema": self.output_schema and self.output_schema.json_schema,
            "max_output_retries": self.max_output_retries,
            "parameters": dict(self.parameters),
        }
        return hashlib.sha256(dump_row(fields)).hexdigest()

    def ids(self) -> Iterator[int | str | None]:
        """The rows' ids, in their order."""
        if self.id_column is None:
            return itertools.repeat(None)
        column = self.id_column
        return (row_id(row, column, "") for row in read_rows(self.dataset))

    def shard(self, model_version: str | None) -> ShardOf | None:
        """What the manifest says of the shard that the dataset is, or ``None``."""
        if not isinstance(self.dataset, ShardRows):
            return None
        shard = self.dataset.shard
        job = self.fingerprint(dataset="", model_version=model_version)
        return ShardOf(number=shard.number, of=shard.of, source=shard.source, plan=shard.plan, job=job)


def check_one_source(**sources: Any) -> None:
    """Refuse anything but exactly one of the ways in which a row becomes a request.

    :raises InvalidRequestError: names them.
    """
    if sum(source is not None for source in sources.values()) != 1:
        *names, last = sources
        raise InvalidRequestError(f"give exactly one of {', '.join(names)} and {last}")


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


class RowsAsked(Protocol):
    """What a check needs to know of a job."""

    @property
    def dataset(self) -> Dataset:
        """The rows."""

    @property
    def id_column(self) -> str | None:
        """The column whose values tell them apart."""

    @property
    def carry_columns(self) -> Sequence[str] | None:
        """The columns that the output repeats."""


class DatasetCheck:
    """One pass over a job's rows that finds everything wrong with them.

    :param prompts: makes the text of a row, or refuses the row.
    :param on_prompt: called with the prompt of each row.
    :ivar rows: how many there are.
    :ivar fingerprint: of the dataset, as :func:`airflow_provider_gradient.datasets.fingerprint` has it.
    :ivar keys: of the rows.
    """

    def __init__(
        self,
        job: RowsAsked,
        prompts: Template | Chain,
        on_prompt: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._job = job
        self._on_prompt = on_prompt
        self._prompts = prompts
        self._ids = array("q")
        self._digest = hashlib.sha256()
        self.keys = RowKeys()
        self.rows = 0

    def rows_checked(self) -> Generator[None]:
        """Check the rows, one a step; the counts hold once the last step is taken.

        :raises DatasetError: names the row and what is wrong.
        """
        for index, row in enumerate(read_rows(self._job.dataset)):
            try:
                self._check(row, "")
            except DatasetError:  # once more, with the words for the row, which take longer than the check
                self._check(row, describe_row(self._job.dataset, index))
                raise
            self.rows += 1
            yield
        self._refuse_duplicates()

    def _check(self, row: Mapping[str, Any], where: str) -> None:
        prompt = None
        if isinstance(self._prompts, Chain):
            self._prompts.check(row, where)
        else:
            prompt = self._prompts.render(row, where)
        line = row_bytes(row, where)
        for column in self._job.carry_columns or ():
            if column not in row:
                column_value(row, column, where=where, parameter="carry_columns")
        if self._job.id_column is not None:
            self._ids.append(hash(row_id(row, self._job.id_column, where)))
        self._digest.update(line)
        self.keys.add(line if prompt is None else prompt)
        if prompt is not None:
            self._on_prompt(prompt)

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
