"""What can be wrong with a sample beside others: it is there already, it gives an evaluation away, it is too
long."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import (
    Dataset,
    DatasetError,
    RowTemplate,
    as_text,
    column_value,
    describe_row,
    dump_row,
    open_dataset,
    read_rows,
)
from airflow_provider_gradient.tuning.errors import SampleError
from airflow_provider_gradient.tuning.leakage import KeptApart
from airflow_provider_gradient.tuning.samples import BuiltSample, SampleBuilder, asked_by

OnBadSample = Literal["fail", "skip"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Rows whose prompts no sample may hold.

    :param template: makes their prompts; ``None`` for that of the samples.
    :param column: holds their prompts; instead of a template.
    :raises InvalidRequestError: both are given.
    """

    rows: Dataset
    template: str | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        if self.template is not None and self.column is not None:
            raise InvalidRequestError("give evaluation_template or evaluation_column, not both")

    def asked(self, builder: SampleBuilder) -> Iterator[str]:
        """All their prompts.

        :raises DatasetError: a row can't be read or lacks a column.
        :raises SampleError: a row is none of the samples' kind, where neither template nor column is given.
        """
        rows = open_dataset(self.rows)
        template = RowTemplate(self.template, name="evaluation_template") if self.template else None
        for index, row in enumerate(read_rows(rows)):
            where = f"evaluation_dataset: {describe_row(rows, index)}"
            if template is not None:
                yield from asked_by(template, row, where)
            elif self.column is not None:
                value = column_value(row, self.column, where=where, parameter="evaluation_column")
                try:
                    yield as_text(value)
                except ValueError as error:
                    raise DatasetError(f"{where}: column {self.column!r}: {error}") from None
            else:
                yield from builder.asked(row, where)


class SampleChecks:
    """Checks of samples one after another; a sample that passes is remembered by its hash, in some 140
    bytes of memory that go with this object.

    :param kept_apart: prompts that no sample may hold.
    :param max_characters: of a sample's text; ``None`` for no limit.
    :param max_tokens: likewise.
    """

    def __init__(
        self, kept_apart: KeptApart, *, max_characters: int | None = None, max_tokens: int | None = None
    ) -> None:
        self._kept_apart = kept_apart
        self._max_characters = max_characters
        self._max_tokens = max_tokens
        self._rows: dict[bytes, int] = {}

    def check(self, built: BuiltSample, *, row: int, tokens: int, where: str) -> None:
        """Refuse a sample that is bad beside those before it.

        :raises SampleError: it is; it then counts for nothing.
        """
        self._refuse_overlong(built, tokens, where)
        self._refuse_leakage(built, where)
        inputs = built.sample.to_wire()["inputs"]
        digest = hashlib.blake2b(dump_row(inputs), digest_size=8).digest()
        first = self._rows.setdefault(digest, row)
        if first != row:
            raise SampleError(
                f"{where}: the same sample as row {first}; to count it more, give it a multiplier",
                reason="duplicate",
            )

    def _refuse_overlong(self, built: BuiltSample, tokens: int, where: str) -> None:
        characters = sum(len(segment.value) for segment in built.sample.segments)
        for size, limit, unit in (
            (tokens, self._max_tokens, "tokens"),
            (characters, self._max_characters, "characters"),
        ):
            if limit is not None and size > limit:
                raise SampleError(
                    f"{where}: {size} {unit}, and at most {limit} are allowed; split it", reason="overlong"
                )

    def _refuse_leakage(self, built: BuiltSample, where: str) -> None:
        texts = built.asked
        whole = not texts and any(self._kept_apart.begins(s.value) for s in built.sample.segments[:1])
        if whole or any(self._kept_apart.has(text) for text in texts):
            raise SampleError(
                f"{where}: its prompt also stands in the set kept for evaluation, which would no longer tell "
                "what the model has learnt; leave the row out of one of them",
                reason="leakage",
            )
