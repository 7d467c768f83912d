"""What a run over a dataset embeds: which text is made of a row, and what goes into the output with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_gradient.api import MAX_EMBEDDING_INPUTS, InvalidRequestError
from airflow_provider_gradient.completions.job import check_one_source
from airflow_provider_gradient.completions.manifest import SCHEMA_VERSION
from airflow_provider_gradient.datasets import (
    DatasetError,
    OpenDataset,
    TemplateFormat,
    column_value,
    dump_row,
    row_template,
)


class Texts:
    """How a row becomes a text: by a template, or by a column that holds it. Exactly one is given.

    :param format: of the template.
    :raises InvalidRequestError: none is given, or both.
    :raises DatasetError: the template is none.
    """

    def __init__(
        self, *, template: str | None, column: str | None, format: TemplateFormat = "f-string"
    ) -> None:
        check_one_source(text_column=column, text_template=template)
        self._template = None
        if template is not None:
            self._template = row_template(template, format=format, name="text_template")
        self._column = column or ""

    def render(self, row: Mapping[str, Any], where: str) -> str:
        """The text of ``row``.

        :raises DatasetError: a column is missing or null; the text is no string, empty, or nothing that UTF-8
            can carry.
        """
        if self._template is not None:
            text = self._template.render(row, where)
        else:
            text = column_value(row, self._column, where=where, parameter="text_column")
            if not isinstance(text, str):
                raise DatasetError(f"{where}: column {self._column!r}, the text, is no string but {text!r}")
        if not text.strip():
            raise DatasetError(f"{where}: the text is empty; leave such rows out of the dataset")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DatasetError(
                f"{where}: the text holds half a surrogate pair, which UTF-8 cannot carry"
            ) from None
        return text


@dataclass(frozen=True, kw_only=True)
class EmbeddingJob:
    """All that determines the vectors and the output of a run.

    :ivar batch_size: texts a request at most; it does not change the vectors.
    :raises InvalidRequestError: names the field that is wrong.
    """

    dataset: OpenDataset
    model: str
    text_template: str | None
    text_column: str | None
    text_template_format: TemplateFormat
    id_column: str | None
    carry_columns: Sequence[str] | None
    batch_size: int

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model.strip():
            raise InvalidRequestError(f"model: the slug of an embeddings model (got {self.model!r})")
        if not 1 <= self.batch_size <= MAX_EMBEDDING_INPUTS:
            raise InvalidRequestError(
                f"batch_size: from 1 to {MAX_EMBEDDING_INPUTS} texts a request (got {self.batch_size})"
            )
        if isinstance(self.carry_columns, str):
            raise InvalidRequestError(
                f"carry_columns: a list of columns is needed, not the text {self.carry_columns!r}"
            )

    def carried(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The columns of ``row`` that go into the output."""
        if self.carry_columns is None:
            return row
        return {column: row[column] for column in self.carry_columns}

    def request(self) -> str:
        """SHA-256 over what determines the vector of a text."""
        return hashlib.sha256(dump_row({"model": self.model})).hexdigest()

    def fingerprint(self, *, dataset: str) -> str:
        """SHA-256 over the job.

        :param dataset: the dataset's own fingerprint.
        """
        fields = {
            "schema_version": SCHEMA_VERSION,
            "dataset": dataset,
            "model": self.model,
            "text_template": self.text_template,
            "text_column": self.text_column,
            "text_template_format": self.text_template_format,
            "id_column": self.id_column,
            "carry_columns": None if self.carry_columns is None else list(self.carry_columns),
        }
        return hashlib.sha256(dump_row(fields)).hexdigest()
