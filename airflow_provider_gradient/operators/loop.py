"""The improvement loop as one task group: generate, evaluate, fine-tune, compare, promote.

It is made of the operators alone. The alias is the state: what stands there is the champion, and only a
promotion changes it. A challenger's adapter is deleted once its round is decided against it, never before: a
round that failed half-way goes on from its journal when it is cleared, and needs its adapter for that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup, task

from airflow_provider_gradient.api import InvalidRequestError, UnknownModelError
from airflow_provider_gradient.hooks.gradient import GradientHook
from airflow_provider_gradient.operators.base import check_at_least_one, number
from airflow_provider_gradient.operators.completions import GradientCompleteDatasetOperator
from airflow_provider_gradient.operators.evaluation import GradientEvaluateOperator
from airflow_provider_gradient.operators.models import GradientCreateModelAdapterOperator
from airflow_provider_gradient.operators.registry import GradientPromoteModelAdapterOperator
from airflow_provider_gradient.operators.tuning import GradientFineTuneOperator
from airflow_provider_gradient.provider_info import DEFAULT_CONNECTION_ID

if TYPE_CHECKING:
    from airflow.sdk import XComArg

Samples = Callable[["XComArg", str], Any]
"""Makes a round's samples, most often a ``@task`` function: of the champion's report, and of the path where
they may be written."""


def generate_evaluate_finetune(
    *,
    group_id: str = "improve",
    alias: str,
    base_model: str,
    dataset: Any,
    prompt_template: str,
    reference_column: str,
    samples: Any | Samples,
    gate: Sequence[Mapping[str, Any]],
    output_dir: str,
    completion: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    rounds: int = 1,
    target: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    approval: bool | Mapping[str, Any] = False,
    page: bool = False,
    gradient_conn_id: str = DEFAULT_CONNECTION_ID,
) -> XComArg:
    """A task group that tunes challengers to an alias's champion and promotes those that pass the gate.

    The champion, or the base model where nothing was promoted yet, answers the dataset and is scored. Each
    round then makes samples, tunes a fresh adapter on them, lets it answer the same dataset, holds it against
    the champion by ``gate``, and promotes it to the alias if it passed. The adapter of one that did not is
    deleted; a champion that was replaced stays for a rollback.

    :param group_id: of the task group.
    :param alias: name of the alias; may be a template, as may all texts here.
    :param base_model: slug or id of the model that the adapters are made of.
    :param dataset: questions to evaluate on, as
        :class:`~airflow_provider_gradient.operators.completions.GradientCompleteDatasetOperator` takes them.
    :param prompt_template: makes their prompts.
    :param reference_column: holds their right answers.
    :param samples: what to tune on, as
        :class:`~airflow_provider_gradient.operators.tuning.GradientFineTuneOperator` takes it; or a function,
        most often a ``@task``, called in every round with two arguments: the champion's evaluation report
        (its ``scores_path`` has a score a row) and the path of a file that it may write. Its output is the
        samples.
    :param gate: rules that a challenger must pass against the champion.
    :param output_dir: path or URL of the folder of everything written. Reports of promoted adapters stay in
        use, so let it be each run's own: ``.../{{ run_id }}``.
    :param completion: further arguments of the operator that answers, such as ``temperature``.
    :param evaluation: further arguments of
        :class:`~airflow_provider_gradient.operators.evaluation.GradientEvaluateOperator`, such as ``metrics``
        and ``slice_columns``.
    :param adapter: ``rank`` and ``learning_rate``.
    :param tuning: arguments of the operator that tunes, such as ``completion_template``, ``epochs`` and
        ``rehearsal_samples``; or a list of them, one for each round.
    :param rounds: at most, one after the other.
    :param target: ``metric`` and ``value``, perhaps with ``slice`` as a rule of the gate has it: the rounds
        left are skipped where the champion's metric is ``value`` or more.
    :param budget: ``tokens`` (trainable ones), ``seconds`` (spent in fine-tunes), or both: the rounds left
        are skipped where the earlier ones have spent that. A round that was begun is finished; ``max_tokens``
        and ``max_seconds`` in ``tuning`` end a fine-tune.
    :param approval: ask people in Airflow's UI before a promotion; a dict has arguments of Airflow's
        ``ApprovalOperator``, such as ``assigned_users`` and ``response_timeout``.
    :param page: write each comparison as a page of HTML too; needs the extra ``report``.
    :return: the last round's outcome: a dict with ``champion`` (the model that stands now), ``replaces`` (the
        alias's model, empty where there is none), ``report`` (the champion's), ``challenger``, ``promoted``
        and ``verdict`` (``None`` where there was no challenger), and ``rounds``: ``round``, ``model_id`` and
        ``report`` of the champion at the start, round 0, and of each challenger, of these also ``promoted``,
        ``verdict``, and the fine-tune's ``mean_loss`` (of its last epoch), ``tokens`` and ``seconds``.
    :raises InvalidRequestError: ``rounds`` is below 1, ``tuning`` is a list of another length, ``target``
        lacks a key, or ``target`` or ``budget`` has one too many.
    :raises EvaluationError: ``gate`` or one of its rules is wrong.
    """
    check_at_least_one(rounds=rounds)
    if target is not None and not {"metric", "value"} <= set(target) <= {"metric", "value", "slice"}:
        raise InvalidRequestError(f"target: metric and value are needed, slice may be (got {dict(target)!r})")
    if budget is not None and not set() < set(budget) <= {"tokens", "seconds"}:
        raise InvalidRequestError(f"budget: tokens, seconds or both are needed (got {dict(budget)!r})")
    tunings = [tuning or {}] * rounds if tuning is None or isinstance(tuning, Mapping) else list(tuning)
    if len(tunings) != rounds:
        raise InvalidRequestError(f"tuning: {rounds} rounds need as many (got {len(tunings)})")
    conn: dict[str, Any] = {"gradient_conn_id": gradient_conn_id}
    # Decorated here and not above: Airflow imports all providers' decorators for that, this package's too.
    begin = task.short_circuit(ignore_downstream_trigger_rules=False, multiple_outputs=False)(begin_round)

    def answer_and_evaluate(suffix: str, model_id: Any, folder: str, **comparison: Any) -> tuple[Any, Any]:
        answers: Any = GradientCompleteDatasetOperator(
            task_id=f"answer{suffix}",
            model_id=model_id,
            dataset=dataset,
            prompt_template=prompt_template,
            output_path=f"{folder}/answers.jsonl",
            **conn,
            **(completion or {}),
        )
        report: Any = GradientEvaluateOperator(
            task_id=f"evaluate{suffix}",
            completions=answers.output,
            reference_column=reference_column,
            output_path=f"{folder}/scores.jsonl",
            report_path=f"{folder}/report.json",
            **comparison,
            **conn,
            **(evaluation or {}),
        )
        return answers, report

    def one_round(number: int, standing: Any, champion_report: Any) -> Any:
        folder = f"{output_dir}/round-{number}"
        report = begin(champion_report, standing["rounds"], target, budget)
        create: Any = GradientCreateModelAdapterOperator(
            task_id="create_adapter",
            base_model=base_model,
            name=f"{alias} {{{{ run_id }}}} round {number}",
            if_exists="create",
            **conn,
            **(adapter or {}),
        )
        made = samples(report, f"{folder}/samples.jsonl") if callable(samples) else samples
        tune: Any = GradientFineTuneOperator(
            task_id="fine_tune", model_id=create.output, samples=made, **conn, **tunings[number - 1]
        )
        comparison: dict[str, Any] = {"baseline": report, "gate": gate, "on_gate_failure": "skip"}
        if page:
            comparison["page_path"] = f"{folder}/report.html"
        answers, compared = answer_and_evaluate("", create.output, folder, **comparison)
        promote = GradientPromoteModelAdapterOperator(
            task_id="promote",
            alias=alias,
            model_id=create.output,
            evaluation=compared.output,
            tuning=tune.output,
            replaces=standing["replaces"],
            **conn,
        )
        report >> create >> tune >> answers
        if approval:
            compared >> _ask(alias, compared.task_id, approval) >> promote
        outcome = task(trigger_rule="none_failed", multiple_outputs=True)(settle)(
            alias=alias,
            number=number,
            standing=standing["champion"],
            replaces=standing["replaces"],
            earlier=standing["rounds"],
            champion_report=champion_report,
            challenger=create.output,
            tuning=tune.output,
            challenger_report=compared.output,
            conn_id=gradient_conn_id,
        )
        promote >> outcome
        return outcome

    with TaskGroup(group_id):
        standing: Any = task(multiple_outputs=True)(find_champion)(alias, base_model, gradient_conn_id)
        _, first = answer_and_evaluate("_champion", standing["champion"], f"{output_dir}/champion")
        report = first.output
        for number in range(1, rounds + 1):
            with TaskGroup(f"round_{number}"):
                standing = one_round(number, standing, report)
            report = standing["report"]
    outcome: XComArg = standing
    return outcome


def find_champion(alias: str, base_model: str, conn_id: str) -> dict[str, Any]:
    """The model that the alias stands for, as ``champion`` and ``replaces``; the base model, which replaces
    nothing, where nothing was promoted yet. No ``rounds`` so far."""
    from airflow_provider_gradient.registry import UnknownAliasError

    hook = GradientHook(conn_id)
    try:
        champion = hook.get_registry().current(alias).model_id
    except UnknownAliasError:
        with hook.get_conn() as client:
            return {"champion": client.find_base_model(base_model).id, "replaces": "", "rounds": []}
    return {"champion": champion, "replaces": champion, "rounds": []}


def begin_round(
    report: dict[str, Any],
    earlier: Sequence[Mapping[str, Any]],
    target: Mapping[str, Any] | None,
    budget: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """The champion's report; ``None``, which skips the round, where it meets the target or the earlier rounds
    have spent the budget."""
    for name, limit in (budget or {}).items():
        if sum(each.get(name) or 0 for each in earlier) >= number(f"budget.{name}", limit, float):
            return None
    if target is None:
        return report
    figures = report["metrics"]
    for column, value in (target.get("slice") or {}).items():
        figures = report["slices"][column][value]
    met = figures[target["metric"]]["value"] >= number("target", target["value"], float)
    return None if met else report


def settle(
    *,
    alias: str,
    number: int,
    standing: str,
    replaces: str,
    earlier: list[dict[str, Any]],
    champion_report: dict[str, Any],
    challenger: str | None,
    tuning: dict[str, Any] | None,
    challenger_report: dict[str, Any] | None,
    conn_id: str,
) -> dict[str, Any]:
    """The round's outcome. The registry says whether the challenger was promoted, not the states of tasks; if
    it was not, its adapter is deleted."""
    from airflow_provider_gradient.registry import UnknownAliasError

    hook = GradientHook(conn_id)
    registry = hook.get_registry()
    promoted = False
    with contextlib.suppress(UnknownAliasError):
        promoted = challenger in {promotion.model_id for promotion in registry.history(alias)}
    rounds = earlier or [{"round": 0, "model_id": standing, "report": champion_report}]
    verdict = challenger_report and challenger_report["gate"]["verdict"]
    if challenger:
        rounds = [
            *rounds,
            {
                "round": number,
                "model_id": challenger,
                "promoted": promoted,
                "verdict": verdict,
                "report": challenger_report,
                "mean_loss": tuning and tuning["epoch_losses"][-1],
                "tokens": tuning and tuning["trainable_tokens"],
                "seconds": tuning and tuning["seconds"],
            },
        ]
    outcome = {
        "champion": challenger if promoted else standing,
        "replaces": challenger if promoted else replaces,
        "report": challenger_report if promoted else champion_report,
        "challenger": challenger,
        "promoted": promoted,
        "verdict": verdict,
        "rounds": rounds,
    }
    if challenger and not promoted:
        # An earlier try of this task may have deleted it.
        with hook.get_conn() as client, contextlib.suppress(UnknownModelError):
            client.delete_model(challenger)
    return outcome


def _ask(alias: str, evaluate: str, arguments: bool | Mapping[str, Any]) -> Any:
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    report = f"ti.xcom_pull(task_ids='{evaluate}')"
    words = {
        "subject": f"Promote the challenger to alias:{alias}?",
        "body": f"{{% for reason in {report}.gate.reasons %}}- {{{{ reason }}}}\n{{% endfor %}}\n"
        f"Report: {{{{ {report}.page_path or {report}.report_path }}}}",
    }
    given = {} if isinstance(arguments, bool) else arguments
    return ApprovalOperator(task_id="approve", **{**words, **given})
