"""The operator that tunes an adapter on samples."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.lineage import Lineage, dataset_uri, tuning_lineage
from airflow_provider_gradient.operators.base import (
    GradientOperator,
    NumberT,
    RowsField,
    check_at_least_one,
    located,
    number,
    optional_number,
    work_identity,
)
from airflow_provider_gradient.operators.clearing import OnClear, work_name
from airflow_provider_gradient.operators.lineage import TellsLineage
from airflow_provider_gradient.operators.on_page import OnGradientPage

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_gradient.client import AsyncGradientClient
    from airflow_provider_gradient.tuning import TuningProgress, TuningReport

OnAmbiguous = Literal["fail", "skip", "resend"]
OnBadSample = Literal["fail", "skip"]
Order = Literal["shuffle", "as_given", "by_length"]
_Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | os.PathLike[str]

_TELL_SECONDS = 10.0
"""Between two lines of progress in the log, of which the first and the last call have one."""


class GradientFineTuneOperator(OnGradientPage, TellsLineage, GradientOperator):
    """Tunes an adapter on samples, in epochs of calls.

    XCom: the tuning report, a dict with its status (``finished``, ``stopped`` by a rule, ``estimated``), the
    tokens and loss of each call, the mean loss of each epoch and its score on held-out rows, the rows that
    were left out, the calls that were resumed, and the seconds.

    Every call is journaled before it is sent and when it is acknowledged, so that a retry goes on after the
    last acknowledged one and nothing is trained twice. By default the journal lies under
    ``$AIRFLOW_HOME/gradient`` of the worker, named after dag, run, task and map index: a retry on the same
    worker finds it. Where a retry may land on another worker, give a ``journal_path`` that all of them see.
    The journal stays when the task is done: clearing a finished task repeats its report and trains nothing,
    unless samples, plan or adapter changed.

    :param model_id: of the adapter, or ``alias:<name>`` for the one it stands for.
    :param samples: path or URL of a file, folder or glob: JSONL, CSV or Parquet
        (``s3://conn_id@bucket/key`` uses an Airflow connection); or rows, given inline or by an earlier task;
        or an earlier task's manifest. The rows are Gradient samples, or what the templates build them from.
    :param prompt_template: a langchain-core f-string template over the row's columns; its text isn't trained
        on.
    :param completion_template: the same, for the text to train on; given together with ``prompt_template``.
    :param messages_column: column with a conversation, a list of objects with ``role`` and ``content``; given
        together with ``chat_template``.
    :param chat_template: ``chatml``, ``llama2``, ``llama3``, ``instruction``, ``question``, or the text of a
        Jinja chat template, which Airflow doesn't render.
    :param trainable_roles: whose words of a conversation are trained on.
    :param multiplier_column: column with the weight of a row's loss, above 0.
    :param train_on_prompt: train on the prompt's text too.
    :param on_bad_sample: ``fail`` on rows that can't be trained on, after all of them were looked at, or
        ``skip`` them.
    :param evaluation_dataset: rows kept for evaluation; a sample whose prompt stands there too is a bad one.
    :param evaluation_template: makes their prompts; by default they are made as the samples' are.
    :param evaluation_column: holds their prompts, instead of a template.
    :param max_sample_characters: a longer sample is a bad one.
    :param max_sample_tokens: the same in tokens; with a tokenizer the default is the model's context.
    :param tokenizer: path of a ``tokenizer.json`` or of the folder that holds it.
    :param group_column: rows with the same value say the same thing in other words; each epoch takes one of
        them.
    :param epochs: passes over the samples.
    :param batch_size: samples a call at most.
    :param batch_tokens: tokens a call at most, beside ``batch_size``.
    :param seed: of the shuffling, the choice within groups, what is rehearsed and what is held out.
    :param order: ``shuffle``, ``as_given`` or ``by_length``.
    :param curriculum_column: column with a number by which the samples are ordered instead, low ones first.
    :param rehearsal_samples: rows like ``samples`` to mix into each call against forgetting.
    :param rehearsal_share: of each call's samples, from 0 to below 1.
    :param validation_dataset: rows like ``samples`` that are not trained on but asked between epochs.
    :param validation_share: instead, the share of the samples (or groups) that is held out.
    :param validation_metric: by which their answers are scored.
    :param patience: epochs in a row without a better score (without validation: mean loss) that end the run.
    :param min_delta: how much is better: score from 0 to 1, loss in nats a token.
    :param max_loss: a call's mean loss, in nats a token, that ends the run.
    :param max_tokens: trainable tokens after which no call is begun, over all tries.
    :param max_seconds: spent in calls after which no further one is begun, over all tries.
    :param curve_path: where to write the loss curve: ``.svg`` or ``.png`` (the extra ``report``), ``.jsonl``.
    :param estimate: only say how many samples, calls and tokens it would be.
    :param journal_path: path or URL of the journal.
    :param on_clear: what the task does when it was cleared: ``resume`` keeps what is done, so that a task
        that had succeeded trains nothing; ``restart`` trains the adapter, as it is, once more. Retries always
        go on.
    :param on_ambiguous: what a retry does with a call that was sent but not answered where the server honours
        no idempotency keys: ``fail``, ``skip`` it or ``resend`` it.
    """

    template_fields: Sequence[str] = (
        "gradient_conn_id",
        "model_id",
        "samples",
        "prompt_template",
        "completion_template",
        "messages_column",
        "multiplier_column",
        "evaluation_dataset",
        "evaluation_template",
        "evaluation_column",
        "max_sample_characters",
        "max_sample_tokens",
        "tokenizer",
        "group_column",
        "epochs",
        "batch_size",
        "batch_tokens",
        "seed",
        "curriculum_column",
        "rehearsal_samples",
        "rehearsal_share",
        "validation_dataset",
        "validation_share",
        "patience",
        "min_delta",
        "max_loss",
        "max_tokens",
        "max_seconds",
        "curve_path",
        "journal_path",
        "on_clear",
    )
    samples = RowsField()
    evaluation_dataset = RowsField()
    rehearsal_samples = RowsField()
    validation_dataset = RowsField()

    def __init__(
        self,
        *,
        model_id: str,
        samples: _Rows,
        prompt_template: str | None = None,
        completion_template: str | None = None,
        messages_column: str | None = None,
        chat_template: str | None = None,
        trainable_roles: Sequence[str] = ("assistant",),
        multiplier_column: str | None = None,
        train_on_prompt: bool = False,
        on_bad_sample: OnBadSample = "fail",
        evaluation_dataset: _Rows | None = None,
        evaluation_template: str | None = None,
        evaluation_column: str | None = None,
        max_sample_characters: int | str | None = None,
        max_sample_tokens: int | str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        group_column: str | None = None,
        epochs: int | str = 1,
        batch_size: int | str = 32,
        batch_tokens: int | str | None = None,
        seed: int | str = 0,
        order: Order = "shuffle",
        curriculum_column: str | None = None,
        rehearsal_samples: _Rows | None = None,
        rehearsal_share: float | str = 0.0,
        validation_dataset: _Rows | None = None,
        validation_share: float | str | None = None,
        validation_metric: str = "exact_match",
        patience: int | str | None = None,
        min_delta: float | str = 0.0,
        max_loss: float | str | None = None,
        max_tokens: int | str | None = None,
        max_seconds: float | str | None = None,
        curve_path: str | os.PathLike[str] | None = None,
        estimate: bool = False,
        journal_path: str | os.PathLike[str] | None = None,
        on_clear: OnClear | str = "resume",
        on_ambiguous: OnAmbiguous = "fail",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_id = model_id
        self.samples = samples
        self.prompt_template = prompt_template
        self.completion_template = completion_template
        self.messages_column = messages_column
        self.chat_template = chat_template
        self.trainable_roles = trainable_roles
        self.multiplier_column = multiplier_column
        self.train_on_prompt = train_on_prompt
        self.on_bad_sample = on_bad_sample
        self.evaluation_dataset = evaluation_dataset
        self.evaluation_template = evaluation_template
        self.evaluation_column = evaluation_column
        self.max_sample_characters = max_sample_characters
        self.max_sample_tokens = max_sample_tokens
        self.tokenizer = tokenizer
        self.group_column = group_column
        self.epochs = epochs
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.order = order
        self.curriculum_column = curriculum_column
        self.rehearsal_samples = rehearsal_samples
        self.rehearsal_share = rehearsal_share
        self.validation_dataset = validation_dataset
        self.validation_share = validation_share
        self.validation_metric = validation_metric
        self.patience = patience
        self.min_delta = min_delta
        self.max_loss = max_loss
        self.max_tokens = max_tokens
        self.max_seconds = max_seconds
        self.curve_path = curve_path
        self.estimate = estimate
        self.journal_path = journal_path
        self.on_clear = on_clear
        self.on_ambiguous = on_ambiguous
        self._told = -_TELL_SECONDS
        if (prompt_template is None) != (completion_template is None):
            raise ValueError("Give both prompt_template and completion_template, or neither")
        if on_ambiguous not in get_args(OnAmbiguous):
            raise InvalidRequestError(
                f"on_ambiguous: must be one of {', '.join(get_args(OnAmbiguous))} (got {on_ambiguous!r})"
            )
        if on_bad_sample not in get_args(OnBadSample) or order not in get_args(Order):
            raise InvalidRequestError(
                f"on_bad_sample: one of {', '.join(get_args(OnBadSample))} (got {on_bad_sample!r}); "
                f"order: one of {', '.join(get_args(Order))} (got {order!r})"
            )
        check_at_least_one(
            epochs=epochs,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            patience=patience,
            max_tokens=max_tokens,
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """The report, as a dict."""
        journal_path = located(self.journal_path or default_journal_path(context))
        identity = work_name(context, on_clear=self.on_clear)
        with self.progress_stored(context):
            report = self.run_async(lambda client: self._tune(client, identity, journal_path))
        self.tell_lineage(context, tuning_lineage(report, read=self._read(), workspace_id=self._workspace_id))
        losses = ", ".join("-" if loss is None else f"{loss:.3f}" for loss in report.epoch_losses)
        self.log.info(
            "%s%s: %d of %d calls answered; mean loss by epoch: %s",
            report.status.capitalize(),
            f" by {report.stop_reason}" if report.stop_reason else "",
            len(report.call_results),
            report.calls,
            losses,
        )
        if report.advice:
            self.log.warning("Of %s: %s", report.model_id, report.advice)
        return report.to_dict()

    def planned_lineage(self) -> Lineage:
        """The samples, and the other rows that are read."""
        return Lineage.of_uris(self._read(), [])

    def _read(self) -> list[str | None]:
        rows = (self.samples, self.validation_dataset, self.evaluation_dataset, self.rehearsal_samples)
        return [dataset_uri(dataset) for dataset in rows]

    async def _tune(self, client: AsyncGradientClient, identity: str, journal_path: Any) -> TuningReport:
        from airflow_provider_gradient.tuning import fine_tune
        from airflow_provider_gradient.validation import generated_score

        model_id = self.hook.resolve(self.model_id)
        validation_share = self._number("validation_share", float)
        validates = bool(self.validation_dataset) or validation_share is not None
        score = generated_score(client, model_id=model_id, metric=self.validation_metric)
        return await fine_tune(
            client,
            model_id=model_id,
            samples=located(self.samples),
            prompt_template=self.prompt_template,
            completion_template=self.completion_template,
            messages_column=self.messages_column,
            chat_template=self.chat_template,
            trainable_roles=self.trainable_roles,
            multiplier_column=self.multiplier_column,
            train_on_prompt=self.train_on_prompt,
            on_bad_sample=self.on_bad_sample,
            evaluation_dataset=located(self.evaluation_dataset or None),
            evaluation_template=self.evaluation_template,
            evaluation_column=self.evaluation_column,
            max_sample_characters=self._number("max_sample_characters", int),
            max_sample_tokens=self._number("max_sample_tokens", int),
            tokenizer=located(self.tokenizer or None),
            group_column=self.group_column,
            epochs=number("epochs", self.epochs, int),
            batch_size=number("batch_size", self.batch_size, int),
            batch_tokens=self._number("batch_tokens", int),
            seed=number("seed", self.seed, int),
            order=self.order,
            curriculum_column=self.curriculum_column,
            rehearsal_samples=located(self.rehearsal_samples or None),
            rehearsal_share=number("rehearsal_share", self.rehearsal_share, float),
            validation_dataset=located(self.validation_dataset or None),
            validation_share=validation_share,
            validate=score if validates else None,
            patience=self._number("patience", int),
            min_delta=number("min_delta", self.min_delta, float),
            max_loss=self._number("max_loss", float),
            max_tokens=self._number("max_tokens", int),
            max_seconds=self._number("max_seconds", float),
            curve_path=located(self.curve_path or None),
            estimate=self.estimate,
            identity=identity,
            journal_path=journal_path,
            on_ambiguous=self.on_ambiguous,
            on_progress=self._tell,
        )

    def _number(self, field: str, kind: type[NumberT]) -> NumberT | None:
        return optional_number(field, getattr(self, field), kind)

    def _tell(self, progress: TuningProgress) -> None:
        is_last = progress.call + 1 == progress.calls
        if progress.seconds - self._told < _TELL_SECONDS and not is_last:
            return
        self._told = progress.seconds
        self.log.info(
            "Call %d of %d, epoch %d of %d: mean loss %.3f",
            progress.call + 1,
            progress.calls,
            progress.epoch + 1,
            progress.epochs,
            progress.mean_loss,
        )
        self.store_progress({"done": progress.call + 1, **dataclasses.asdict(progress)})


def default_journal_path(context: Context) -> Path:
    """``$AIRFLOW_HOME/gradient/<dag>/<run>/<task>[.<map index>].journal.jsonl``, whatever the try."""
    home = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
    dag_id, run_id, task_id, map_index = (quote(part, safe=" :+@=") for part in work_identity(context))
    name = task_id if map_index == "-1" else f"{task_id}.{map_index}"
    return home / "gradient" / dag_id / run_id / f"{name}.journal.jsonl"
