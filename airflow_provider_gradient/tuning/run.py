"""Samples in, a tuned adapter out: check everything, make the plan, settle its calls, say what came of it.

Between two epochs the adapter may be asked about rows that are held out; between two calls the rules decide
whether the run goes on. Both stand in the journal with the calls, so a run that was killed at any moment goes
on as if it had not been.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from airflow_provider_gradient.api import BaseModelInfo, GradientError, InvalidRequestError
from airflow_provider_gradient.client import AsyncGradientClient
from airflow_provider_gradient.datasets import Dataset, PathLike, dump_row
from airflow_provider_gradient.tuning.calls import Calls, OnAmbiguous
from airflow_provider_gradient.tuning.checks import OnBadSample
from airflow_provider_gradient.tuning.curve import check_curve_path, write_curve
from airflow_provider_gradient.tuning.journal import TuningJournal
from airflow_provider_gradient.tuning.plan import Order, TrainingPlan, plan_training
from airflow_provider_gradient.tuning.report import (
    EpochScore,
    TuningProgress,
    TuningReport,
    best_epoch,
    epoch_losses,
)
from airflow_provider_gradient.tuning.stopping import StopReason, StopRules
from airflow_provider_gradient.tuning.tokens import CountTokens
from airflow_provider_gradient.tuning.training_set import TrainingSet, training_set

log = logging.getLogger(__name__)

Validate = Callable[[Sequence[Mapping[str, Any]]], Awaitable[float]]
"""Asks the adapter about held-out rows (``prompt``, ``reference``) and scores it, from 0 to 1."""

_SPECIAL_TOKENS = 2
"""That a server may put around a sample's own: an opening and a closing one."""


async def fine_tune(
    client: AsyncGradientClient,
    *,
    model_id: str,
    samples: Dataset,
    prompt_template: str | None = None,
    completion_template: str | None = None,
    messages_column: str | None = None,
    chat_template: str | None = None,
    trainable_roles: Sequence[str] = ("assistant",),
    multiplier_column: str | None = None,
    train_on_prompt: bool = False,
    on_bad_sample: OnBadSample = "fail",
    evaluation_dataset: Dataset | None = None,
    evaluation_template: str | None = None,
    evaluation_column: str | None = None,
    max_sample_characters: int | None = None,
    max_sample_tokens: int | None = None,
    tokenizer: PathLike | CountTokens | None = None,
    group_column: str | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    batch_tokens: int | None = None,
    seed: int = 0,
    order: Order = "shuffle",
    curriculum_column: str | None = None,
    rehearsal_samples: Dataset | None = None,
    rehearsal_share: float = 0.0,
    validation_dataset: Dataset | None = None,
    validation_share: float | None = None,
    validate: Validate | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    max_loss: float | None = None,
    max_tokens: int | None = None,
    max_seconds: float | None = None,
    curve_path: PathLike | None = None,
    estimate: bool = False,
    identity: str | None = None,
    journal_path: PathLike | None = None,
    on_ambiguous: OnAmbiguous = "fail",
    on_progress: Callable[[TuningProgress], None] | None = None,
) -> TuningReport:
    """Tune an adapter on ``samples``, in epochs of calls.

    Called again with the same arguments and journal, it goes on after the last settled call; if all are, it
    gives the report again and sends nothing. To train once more on purpose, use another journal. A run that a
    rule stopped goes on when that rule is loosened.

    :param model_id: of the adapter.
    :param samples: Gradient samples, or rows to build them from by templates or a conversation; as
        :func:`~airflow_provider_gradient.datasets.read_rows` takes them.
    :param prompt_template: f-string over the row's columns; not trained on.
    :param completion_template: the same, for the text to learn, which follows the prompt as it is.
    :param messages_column: holds a conversation, a list of objects with ``role`` and ``content``; given
        together with ``chat_template``.
    :param chat_template: a name of :data:`~airflow_provider_gradient.tuning.CHAT_TEMPLATES`, or the text of a
        Jinja chat template.
    :param trainable_roles: whose words of the conversation are learnt.
    :param multiplier_column: holds the weight of a row's loss, above 0.
    :param train_on_prompt: learn the prompt's text as well.
    :param on_bad_sample: ``fail`` on rows that can't be trained on, after all were looked at, or ``skip``
        them; the report has their counts by reason.
    :param evaluation_dataset: rows kept for evaluation: a sample whose prompt stands there too is a bad one.
    :param evaluation_template: makes their prompts; by default they are made as the samples' are.
    :param evaluation_column: holds their prompts, instead of a template.
    :param max_sample_characters: of a sample; a longer one is a bad one.
    :param max_sample_tokens: the same in tokens; with a tokenizer the default is what the server says that
        the model reads at once, less two.
    :param tokenizer: a function that counts the tokens of a text, or the path of a ``tokenizer.json`` or its
        folder, which needs the package ``tokenizers``.
    :param group_column: rows with the same value say the same thing in other words; each epoch takes one of
        them.
    :param epochs: passes over the samples, or over the groups.
    :param batch_size: samples a call at most, those rehearsed included.
    :param batch_tokens: tokens a call at most, likewise, reckoned at four bytes a token without a tokenizer.
    :param seed: of the order, of the choice within groups, of what is rehearsed and what is held out.
    :param order: ``shuffle`` anew each epoch, ``as_given``, or ``by_length`` with the short ones first.
    :param curriculum_column: a number by which the samples are ordered instead, low ones first.
    :param rehearsal_samples: rows like ``samples``, mixed into each call against forgetting.
    :param rehearsal_share: of each call's samples, from 0 to below 1.
    :param validation_dataset: rows like ``samples`` that are not trained on but asked between epochs.
    :param validation_share: instead, the share of the samples (or groups) that is held out.
    :param validate: asks and scores;
        :func:`airflow_provider_gradient.validation.generated_score` makes one.
    :param patience: epochs in a row without a better score (without validation: mean loss) that end the run.
    :param min_delta: how much is better: score from 0 to 1, loss in nats a token.
    :param max_loss: a call's mean loss, in nats a token, that ends the run.
    :param max_tokens: trainable tokens after which no call is begun, over all attempts.
    :param max_seconds: spent in calls after which no further one is begun, over all attempts.
    :param curve_path: where to write the loss curve: ``.svg`` or ``.png`` (needs matplotlib, the extra
        ``report``), or ``.jsonl``.
    :param estimate: say how many samples, calls and tokens it would be, and send none of them.
    :param identity: names this piece of work; with it the idempotency keys are the same even where the
        journal was lost, so to train once more it must be another too. Never with the number of the try in
        it.
    :param journal_path: a file that outlives this process; ``None`` for no resuming.
    :param on_ambiguous: what to do with a call that was sent but not answered, on a server that was not seen
        to honour idempotency keys: ``fail``; ``skip`` it as if trained; ``resend`` it, at the risk of
        training it twice.
    :param on_progress: called after every call.
    :raises SampleError: rows can't be trained on; nothing was sent.
    :raises DatasetError: a row or path is wrong; nothing was sent.
    :raises InvalidRequestError: a parameter is out of range; nothing was sent.
    :raises AmbiguousCallError: see ``on_ambiguous``.
    :raises NanLossError: the training diverged.
    :raises ApiError: the server refused a call; what was trained before it stays.
    """
    if on_ambiguous not in get_args(OnAmbiguous):
        raise InvalidRequestError(f"on_ambiguous: one of {get_args(OnAmbiguous)} (got {on_ambiguous!r})")
    rules = StopRules(
        patience=patience,
        min_delta=min_delta,
        max_loss=max_loss,
        max_tokens=max_tokens,
        max_seconds=max_seconds,
    )
    if (validate is None) != (validation_dataset is None and validation_share is None) and not estimate:
        raise InvalidRequestError("give validate together with validation_dataset or validation_share")
    check_curve_path(curve_path)
    if tokenizer is not None and max_sample_tokens is None:
        max_sample_tokens = await _most_tokens(client, model_id)
    data = training_set(
        samples,
        prompt_template=prompt_template,
        completion_template=completion_template,
        messages_column=messages_column,
        chat_template=chat_template,
        trainable_roles=trainable_roles,
        multiplier_column=multiplier_column,
        train_on_prompt=train_on_prompt,
        on_bad_sample=on_bad_sample,
        evaluation_dataset=evaluation_dataset,
        evaluation_template=evaluation_template,
        evaluation_column=evaluation_column,
        max_sample_characters=max_sample_characters,
        max_sample_tokens=max_sample_tokens,
        tokenizer=tokenizer,
        group_column=group_column,
        curriculum_column=curriculum_column,
        rehearsal_samples=rehearsal_samples,
        validation_dataset=validation_dataset,
        validation_share=validation_share,
        seed=seed,
    )
    plan = plan_training(
        data.groups,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        batch_tokens=batch_tokens,
        tokens=data.samples.tokens,
        order=order,
        ranks=data.ranks,
        rehearsal=() if data.rehearsal is None else data.rehearsal.samples.tokens,
        rehearsal_share=rehearsal_share,
    )
    work = _Work(model_id=model_id, data=data, plan=plan, identity=identity, curve_path=curve_path)
    log.info("%d samples; %s", len(data.samples), str(plan).partition("\n")[0])
    if data.report.left_out:
        log.warning("Left out %s", ", ".join(f"{n} {reason}" for reason, n in data.report.left_out.items()))
    if estimate:
        with TuningJournal(None, identity=identity, fingerprint=work.fingerprint) as journal:
            return work.report(journal, status="estimated", seconds=0.0)
    with TuningJournal(journal_path, identity=identity, fingerprint=work.fingerprint) as journal:
        calls = Calls(
            client=client,
            model_id=model_id,
            data=data,
            plan=plan,
            journal=journal,
            on_ambiguous=on_ambiguous,
            on_progress=on_progress,
            started=time.monotonic(),
        )
        if journal.resumed:
            log.info("%d of %d calls are settled already", journal.resumed, len(plan.calls))
        try:
            reason = await _carry_out(calls, rules, validate)
        except GradientError:
            work.draw(work.report(journal, status="stopped", seconds=0.0))
            raise
        status = "finished" if reason is None else "stopped"
        seconds = round(time.monotonic() - calls.started, 3)
        report = work.report(journal, status=status, reason=reason, seconds=seconds)
        work.draw(report)
        return report


async def _most_tokens(client: AsyncGradientClient, model_id: str) -> int | None:
    """The tokens that a sample may have by what the server says, if it does."""
    adapter = await client.get_model_adapter(model_id)
    for model in await client.list_models(only_base=True):
        if isinstance(model, BaseModelInfo) and model.id == adapter.base_model_id and model.context_length:
            return model.context_length - _SPECIAL_TOKENS
    return None


async def _carry_out(calls: Calls, rules: StopRules, validate: Validate | None) -> StopReason | None:
    """Settle all calls; why not, if a rule ended it."""
    journal, plan = calls.journal, calls.plan
    for call in plan.calls[journal.settled :]:
        begins = call.number == 0 or plan.calls[call.number - 1].epoch != call.epoch
        if begins and validate is not None:
            await _validate(calls, validate, epochs=call.epoch)
        reason = rules.reason_to_stop(
            journal.results,
            journal.scores if validate is not None else None,
            epochs=call.epoch if begins else None,
        )
        if reason is not None:
            log.warning("Stopped before call %d of %d: %s", call.number + 1, len(plan.calls), reason)
            return reason
        await calls.settle(call)
    if validate is not None:
        await _validate(calls, validate, epochs=plan.epochs)
    return None


async def _validate(calls: Calls, validate: Validate, *, epochs: int) -> None:
    """Score the adapter after the last of so many complete epochs, unless the journal has it."""
    journal = calls.journal
    if len(journal.scores) == epochs:
        return
    value = await validate(calls.data.held_out)
    version = journal.results[-1].model_version if journal.results else None
    journal.validated(EpochScore(epoch=epochs - 1, score=value, model_version=version))
    log.info("After epoch %d of %d: %.4f on the held-out rows", epochs, calls.plan.epochs, value)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is to be done, and how what came of it is told."""

    model_id: str
    data: TrainingSet
    plan: TrainingPlan
    identity: str | None
    curve_path: PathLike | None

    @property
    def fingerprint(self) -> str:
        fields = [self.model_id, self.data.fingerprint, self.plan.fingerprint]
        return hashlib.sha256(dump_row(fields)).hexdigest()

    def draw(self, report: TuningReport) -> None:
        if self.curve_path is not None and report.call_results:
            write_curve(self.curve_path, report)

    def _planned_tokens(self) -> int | None:
        if not self.data.tokens_counted:
            return None
        own, old = self.data.samples.tokens, self.data.rehearsal and self.data.rehearsal.samples.tokens
        return sum(
            sum(own[index] for index in call.indices) + sum(old[index] for index in call.rehearsed if old)
            for call in self.plan.calls
        )

    def report(
        self, journal: TuningJournal, *, status: Any, seconds: float, reason: StopReason | None = None
    ) -> TuningReport:
        """What came of the calls that are settled."""
        results, scores = journal.results, journal.scores
        best = best_epoch(scores)
        last = len(scores) - 1
        kept = None if best is None else best == last and (not results or results[-1].epoch == last)
        advice = None
        if best is not None and not kept:
            advice = (
                f"the adapter was best after epoch {best + 1} and was trained on after it: a fresh adapter "
                f"tuned by the same plan with epochs={best + 1} is that one again"
            )
        drawn = self.curve_path is not None and results
        return TuningReport(
            status=status,
            stop_reason=reason,
            model_id=self.model_id,
            identity=self.identity,
            fingerprint=journal.fingerprint,
            samples=len(self.data.samples),
            rows=self.data.report,
            rehearsal_samples=0 if self.data.rehearsal is None else len(self.data.rehearsal.samples),
            held_out=len(self.data.held_out),
            epochs=self.plan.epochs,
            batch_size=self.plan.batch_size,
            seed=self.plan.seed,
            calls=len(self.plan.calls),
            planned_tokens=self._planned_tokens(),
            call_results=results,
            epoch_losses=epoch_losses(results, epochs=self.plan.epochs),
            epoch_scores=scores,
            best_epoch=best,
            best_epoch_kept=kept,
            advice=advice,
            trainable_tokens=sum(result.tokens for result in results),
            resumed_calls=journal.resumed,
            skipped_calls=journal.skipped,
            curve_path=str(self.curve_path) if drawn else None,
            seconds=seconds,
        )
