"""All that a tuning run trains on, checked before anything is sent.

Reading is one pass, a row at a time; samples then lie in a temporary file. What stays in memory is some 20
bytes a sample, and while the pass lasts some 140 more for telling duplicates.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import (
    Dataset,
    DatasetError,
    OpenDataset,
    PathLike,
    column_value,
    describe_row,
    dump_row,
    open_dataset,
    read_rows,
)
from airflow_provider_gradient.tuning.checks import EvaluationSet, OnBadSample, SampleChecks
from airflow_provider_gradient.tuning.errors import Findings, SampleError, SampleReport
from airflow_provider_gradient.tuning.leakage import KeptApart
from airflow_provider_gradient.tuning.samples import BuiltSample, Recipe, SampleBuilder
from airflow_provider_gradient.tuning.store import RowStore, SampleStore
from airflow_provider_gradient.tuning.tokens import CountTokens, open_tokenizer, sample_tokens


@dataclass(frozen=True, kw_only=True)
class LoadedSamples:
    """The checked samples of one dataset.

    :ivar source: where they come from, for messages.
    :ivar report: what became of its rows.
    """

    source: OpenDataset
    samples: SampleStore
    report: SampleReport


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Checked samples.

    :ivar source: where they come from, for messages.
    :ivar samples: those that were kept, also the held-out ones.
    :ivar groups: the indices of the samples that say the same thing in other words; every sample that is
        trained on is in one.
    :ivar ranks: of each sample in the curriculum's order, or ``None`` without one.
    :ivar rehearsal: samples of another dataset to mix in, or ``None``.
    :ivar held_out: ``prompt`` and ``reference`` of what is generated between epochs.
    :ivar tokens_counted: whether the samples' tokens are counted and not reckoned by their bytes.
    """

    source: OpenDataset
    samples: SampleStore
    report: SampleReport
    groups: Sequence[Sequence[int]]
    ranks: Sequence[float] | None
    rehearsal: LoadedSamples | None
    held_out: RowStore
    tokens_counted: bool

    @property
    def fingerprint(self) -> str:
        """SHA-256 over samples, groups and what is held out, in hexadecimal."""
        digest = hashlib.sha256(self.samples.fingerprint.encode())
        for group in self.groups:
            digest.update(dump_row(list(group)))
        others = [self.rehearsal.samples.fingerprint if self.rehearsal else None, self.held_out.fingerprint]
        digest.update(dump_row(others))
        return digest.hexdigest()

    @property
    def tokens(self) -> Sequence[int]:
        """Of each sample, then of those to rehearse, counted or reckoned."""
        return self.samples.tokens + (self.rehearsal.samples.tokens if self.rehearsal else array("I"))


class _Alone(Sequence[tuple[int]]):
    """Groups of one sample each."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return (range(self._count)[index],)


@dataclass(frozen=True, kw_only=True)
class _Loading:
    """How rows are read, whatever dataset they are of."""

    builder: SampleBuilder
    count: CountTokens | None
    on_bad_sample: OnBadSample
    max_characters: int | None
    max_tokens: int | None

    def load(
        self,
        dataset: Dataset,
        kept_apart: KeptApart,
        *,
        field: str = "samples",
        also: Callable[[Mapping[str, Any], str], Callable[[], None]] | None = None,
    ) -> LoadedSamples:
        """The samples of ``dataset``.

        :param field: the parameter that it was given as.
        :param also: called with each row and its words; what it gives is called if the row's sample is kept.
        :raises SampleError: rows give no sample and are not to be left out, or none gives one.
        """
        source = open_dataset(dataset)
        checks = SampleChecks(kept_apart, max_characters=self.max_characters, max_tokens=self.max_tokens)
        store, findings = SampleStore(), Findings()
        for row_number, row in enumerate(read_rows(source)):
            where = describe_row(source, row_number)
            if field != "samples":
                where = f"{field}: {where}"
            try:
                built = self.builder.build(row, where)
                take = also(row, where) if also else None
                tokens = sample_tokens(built.sample, self.count)
                checks.check(built, row=row_number, tokens=tokens, where=where)
            except SampleError as error:
                findings.leave_out(row_number, error.reason, str(error))
            except DatasetError as error:
                findings.leave_out(row_number, "column", str(error))
            else:
                findings.keep()
                store.add(built.sample, row=row_number, tokens=tokens)
                if take:
                    take()
        if self.on_bad_sample == "fail" or not len(store):
            findings.refuse()
        return LoadedSamples(source=source, samples=store, report=findings.report)


def training_set(
    samples: Dataset,
    *,
    prompt_template: str | None = None,
    completion_template: str | None = None,
    messages_column: str | None = None,
    chat_template: str | None = None,
    trainable_roles: Sequence[str] = ("assistant",),
    multiplier_column: str | None = None,
    train_on_prompt: bool = False,
    group_column: str | None = None,
    curriculum_column: str | None = None,
    on_bad_sample: OnBadSample = "fail",
    evaluation_dataset: Dataset | None = None,
    evaluation_template: str | None = None,
    evaluation_column: str | None = None,
    max_sample_characters: int | None = None,
    max_sample_tokens: int | None = None,
    tokenizer: PathLike | CountTokens | None = None,
    rehearsal_samples: Dataset | None = None,
    validation_dataset: Dataset | None = None,
    validation_share: float | None = None,
    seed: int = 0,
) -> TrainingSet:
    """All samples, checked: by templates, from conversations, or ready-made where there is neither.

    The parameters are those of :func:`~airflow_provider_gradient.tuning.fine_tune`.

    :raises InvalidRequestError: parameters don't go together.
    :raises SampleError: rows can't be trained on, as ``on_bad_sample`` has it.
    :raises DatasetError: a dataset can't be read.
    """
    if on_bad_sample not in get_args(OnBadSample):
        raise InvalidRequestError(f"on_bad_sample: one of {get_args(OnBadSample)} (got {on_bad_sample!r})")
    if evaluation_dataset is None and (evaluation_template or evaluation_column):
        raise InvalidRequestError("evaluation_template and evaluation_column need an evaluation_dataset")
    if validation_dataset is not None and validation_share is not None:
        raise InvalidRequestError("give validation_dataset or validation_share, not both")
    recipe = Recipe(
        prompt_template=prompt_template,
        completion_template=completion_template,
        messages_column=messages_column,
        chat_template=chat_template,
        trainable_roles=trainable_roles,
        multiplier_column=multiplier_column,
        train_on_prompt=train_on_prompt,
        extra_columns=tuple(column for column in (group_column, curriculum_column) if column is not None),
    )
    builder = recipe.builder()
    count = open_tokenizer(tokenizer)
    if max_sample_tokens is not None and count is None:
        raise InvalidRequestError("max_sample_tokens needs a tokenizer; or give max_sample_characters")
    kept_apart, held_out = KeptApart(), RowStore()
    if evaluation_dataset is not None:
        evaluation = EvaluationSet(
            rows=evaluation_dataset, template=evaluation_template, column=evaluation_column
        )
        for text in evaluation.asked(builder):
            kept_apart.add(text)
    if validation_dataset is not None:
        _hold_out(validation_dataset, builder, held_out, kept_apart)
    loading = _Loading(
        builder=builder,
        count=count,
        on_bad_sample=on_bad_sample,
        max_characters=max_sample_characters,
        max_tokens=max_sample_tokens,
    )
    columns = _Columns(group_column, curriculum_column)
    own = loading.load(samples, kept_apart, also=columns.read)
    groups = columns.groups(len(own.samples))
    if validation_share is not None:
        groups = _split(own, groups, builder, held_out, share=validation_share, seed=seed)
    rehearsal = None
    if rehearsal_samples is not None:
        rehearsal = loading.load(rehearsal_samples, kept_apart, field="rehearsal_samples")
    return TrainingSet(
        source=own.source,
        samples=own.samples,
        report=own.report,
        groups=groups,
        ranks=columns.ranks if curriculum_column is not None else None,
        rehearsal=rehearsal,
        held_out=held_out,
        tokens_counted=count is not None,
    )


class _Columns:
    """What the rows of kept samples say of their place in the plan."""

    def __init__(self, group_column: str | None, curriculum_column: str | None) -> None:
        self._group_column = group_column
        self._curriculum_column = curriculum_column
        self._groups: dict[bytes, list[int]] = {}
        self._kept = 0
        self.ranks = array("d")

    def read(self, row: Mapping[str, Any], where: str) -> Callable[[], None]:
        """Check a row's columns; what is given takes them in."""
        group, rank = b"", 0.0
        if self._group_column is not None:
            value = column_value(row, self._group_column, where=where, parameter="group_column")
            group = hashlib.blake2b(dump_row(value), digest_size=16).digest()
        if self._curriculum_column is not None:
            rank = self._rank(row, self._curriculum_column, where)

        def take() -> None:
            if self._group_column is not None:
                self._groups.setdefault(group, []).append(self._kept)
            if self._curriculum_column is not None:
                self.ranks.append(rank)
            self._kept += 1

        return take

    def groups(self, count: int) -> Sequence[Sequence[int]]:
        """The groups of ``count`` samples."""
        if self._group_column is None:
            return _Alone(count)
        return tuple(tuple(group) for group in self._groups.values())

    @staticmethod
    def _rank(row: Mapping[str, Any], column: str, where: str) -> float:
        value = column_value(row, column, where=where, parameter="curriculum_column")
        try:
            rank = float(value) if not isinstance(value, bool) else float("nan")
        except (TypeError, ValueError):
            rank = float("nan")
        if rank != rank:
            raise SampleError(
                f"{where}: column {column!r}, the curriculum's order, is no number but {value!r}",
                reason="column",
            )
        return rank


def _hold_out(dataset: Dataset, builder: SampleBuilder, held_out: RowStore, kept_apart: KeptApart) -> None:
    rows = open_dataset(dataset)
    for index, row in enumerate(read_rows(rows)):
        where = f"validation_dataset: {describe_row(rows, index)}"
        built = builder.build(row, where)
        held_out.add(_question(built, where))
        for text in built.asked:
            kept_apart.add(text)


def _split(
    own: LoadedSamples,
    groups: Sequence[Sequence[int]],
    builder: SampleBuilder,
    held_out: RowStore,
    *,
    share: float,
    seed: int,
) -> Sequence[Sequence[int]]:
    """Hold out whole groups; those that are left."""
    if not 0 < share < 1:
        raise InvalidRequestError(f"validation_share: between 0 and 1 (got {share!r})")
    if len(groups) < 2:
        raise InvalidRequestError("validation_share: of one sample or group, none can be held out")
    count = min(len(groups) - 1, max(1, round(share * len(groups))))
    chosen = set(random.Random(f"{seed}/validation").sample(range(len(groups)), count))
    rows = {own.samples.rows[index] for number in chosen for index in groups[number]}
    for index, row in enumerate(read_rows(own.source)):
        if index in rows:
            where = describe_row(own.source, index)
            held_out.add(_question(builder.build(row, where), where))
    return tuple(group for number, group in enumerate(groups) if number not in chosen)


def _question(built: BuiltSample, where: str) -> dict[str, Any]:
    if built.prompt is None or not built.prompt.strip():
        raise SampleError(
            f"{where}: for validation prompt and answer must be told apart; give inputs as segments, the "
            "prompt with trainable false",
            reason="invalid",
        )
    return {"prompt": built.prompt, "reference": built.answer}
