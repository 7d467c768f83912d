"""The operator that tunes an adapter on samples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.operators.base import (
    GradientOperator,
    RowsField,
    check_at_least_one,
    located,
    number,
    work_identity,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_gradient.client import AsyncGradientClient
    from airflow_provider_gradient.tuning import TuningProgress, TuningReport

OnAmbiguous = Literal["fail", "skip", "resend"]

_TELL_SECONDS = 10.0
"""Between two lines of progress in the log."""


class GradientFineTuneOperator(GradientOperator):
    """Tunes an adapter on samples, in epochs of shuffled calls.

    XCom: the tuning report, a dict with the tokens and loss of each call, the mean loss of each epoch, the
    calls that were resumed, and the seconds.

    Every call is journaled before it is sent and when it is acknowledged, so that a retry goes on after the
    last acknowledged one and nothing is trained twice. By default the journal lies under
    ``$AIRFLOW_HOME/gradient`` of the worker, named after dag, run, task and map index: a retry on the same
    worker finds it. Where a retry may land on another worker, give a ``journal_path`` that all of them see.
    The journal stays when the task is done: clearing a finished task repeats its report and trains nothing,
    unless samples, plan or adapter changed.

    :param model_id: of the adapter.
    :param samples: path or URL of a file, folder or glob: JSONL, CSV or Parquet
        (``s3://conn_id@bucket/key`` uses an Airflow connection); or rows, given inline or by an earlier task;
        or an earlier task's manifest. The rows are Gradient samples, or what the templates build them from.
    :param prompt_template: a langchain-core f-string template over the row's columns; its text isn't trained
        on.
    :param completion_template: the same, for the text to train on; given together with ``prompt_template``.
    :param multiplier_column: column with the weight of a row's loss, above 0.
    :param train_on_prompt: train on the prompt's text too.
    :param group_column: rows with the same value say the same thing in other words; each epoch takes one of
        them.
    :param epochs: passes over the samples.
    :param batch_size: samples a call.
    :param seed: of the shuffling, and of the choice within groups.
    :param journal_path: path or URL of the journal.
    :param on_ambiguous: what a retry does with a call that was sent but not answered where the server honours
        no idempotency keys: ``fail``, ``skip`` it or ``resend`` it.
    """

    template_fields: Sequence[str] = (
        "gradient_conn_id",
        "model_id",
        "samples",
        "prompt_template",
        "completion_template",
        "multiplier_column",
        "group_column",
        "epochs",
        "batch_size",
        "seed",
        "journal_path",
    )
    samples = RowsField()

    def __init__(
        self,
        *,
        model_id: str,
        samples: Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | os.PathLike[str],
        prompt_template: str | None = None,
        completion_template: str | None = None,
        multiplier_column: str | None = None,
        train_on_prompt: bool = False,
        group_column: str | None = None,
        epochs: int | str = 1,
        batch_size: int | str = 32,
        seed: int | str = 0,
        journal_path: str | os.PathLike[str] | None = None,
        on_ambiguous: OnAmbiguous = "fail",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_id = model_id
        self.samples = samples
        self.prompt_template = prompt_template
        self.completion_template = completion_template
        self.multiplier_column = multiplier_column
        self.train_on_prompt = train_on_prompt
        self.group_column = group_column
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.journal_path = journal_path
        self.on_ambiguous = on_ambiguous
        self._told = 0.0
        if (prompt_template is None) != (completion_template is None):
            raise ValueError("Give both prompt_template and completion_template, or neither")
        if on_ambiguous not in get_args(OnAmbiguous):
            raise InvalidRequestError(
                f"on_ambiguous: must be one of {', '.join(get_args(OnAmbiguous))} (got {on_ambiguous!r})"
            )
        check_at_least_one(epochs=epochs, batch_size=batch_size)

    def execute(self, context: Context) -> dict[str, Any]:
        """The report, as a dict."""
        journal_path = located(self.journal_path or default_journal_path(context))
        identity = "/".join(work_identity(context))
        report = self.run_async(lambda client: self._tune(client, identity, journal_path))
        losses = ", ".join("-" if loss is None else f"{loss:.3f}" for loss in report.epoch_losses)
        self.log.info("Tuned %s in %d calls; mean loss by epoch: %s", report.model_id, report.calls, losses)
        return report.to_dict()

    async def _tune(self, client: AsyncGradientClient, identity: str, journal_path: Any) -> TuningReport:
        from airflow_provider_gradient.tuning import fine_tune

        return await fine_tune(
            client,
            model_id=self.model_id,
            samples=located(self.samples),
            prompt_template=self.prompt_template,
            completion_template=self.completion_template,
            multiplier_column=self.multiplier_column,
            train_on_prompt=self.train_on_prompt,
            group_column=self.group_column,
            epochs=number("epochs", self.epochs, int),
            batch_size=number("batch_size", self.batch_size, int),
            seed=number("seed", self.seed, int),
            identity=identity,
            journal_path=journal_path,
            on_ambiguous=self.on_ambiguous,
            on_progress=self._tell,
        )

    def _tell(self, progress: TuningProgress) -> None:
        if progress.seconds - self._told < _TELL_SECONDS:
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


def default_journal_path(context: Context) -> Path:
    """``$AIRFLOW_HOME/gradient/<dag>/<run>/<task>[.<map index>].journal.jsonl``, whatever the try."""
    home = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
    dag_id, run_id, task_id, map_index = (quote(part, safe=" :+@=") for part in work_identity(context))
    name = task_id if map_index == "-1" else f"{task_id}.{map_index}"
    return home / "gradient" / dag_id / run_id / f"{name}.journal.jsonl"
