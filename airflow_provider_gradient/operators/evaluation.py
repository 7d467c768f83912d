"""The operators that measure completions against references, and choose by what was found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from airflow.providers.standard.operators.branch import BaseBranchOperator

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.lineage import Lineage, dataset_uri, evaluation_lineage
from airflow_provider_gradient.operators.base import GradientOperator, RowsField, located, number
from airflow_provider_gradient.operators.lineage import TellsLineage
from airflow_provider_gradient.operators.on_page import OnGradientPage

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_gradient.evaluation import EvaluationReport

OnGateFailure = Literal["fail", "skip", "continue"]
Path = str | os.PathLike[str]


class GradientEvaluateOperator(OnGradientPage, TellsLineage, GradientOperator):
    """Scores completions, compares them with a baseline's, and holds them against a gate.

    XCom: the evaluation report, a dict with each metric's value, standard error and confidence interval, the
    same for each slice, the counts, the comparison with the baseline, the gate's verdict with its reasons,
    and the paths of what was written. It is there whatever the verdict. A failed completion counts as wrong.
    The connection is used only by metrics that ask a server (``embedding_similarity``, ``judge``,
    ``pairwise_judge``).

    :param completions: what to score: the manifest of
        :class:`~airflow_provider_gradient.operators.completions.GradientCompleteDatasetOperator`, the path or
        URL of its output, or such rows.
    :param reference_column: the carried column that holds the right answer; needed by the metrics that
        compare with it.
    :param metrics: names, ``module:function``, or dicts with ``metric`` and settings.
    :param output_path: path or URL of the file of per-row scores, ``.jsonl`` or ``.parquet``; ``None`` for
        none.
    :param report_path: path or URL of the report as ``.json``; ``page_path``: as ``.html``.
    :param slice_columns: carried columns; the metrics are also given for each of their values.
    :param cluster_column: a carried column; rows with the same value belong together.
    :param baseline: another run over the same rows: its manifest, rows or path, or the report of its
        evaluation with per-row scores.
    :param gate: rules, such as ``{"rule": "better", "metric": "exact_match"}``.
    :param on_gate_failure: what to do where the verdict is not ``pass``: ``fail`` the task, at once and
        without a retry; ``skip`` it, and so what comes after it; or ``continue``, for
        :class:`GradientGateOperator` to choose.
    :param reasoning: what to do with reasoning such as ``<think>...</think>`` in front of an answer:
        ``auto`` takes it off, ``opened`` also counts on it where the output has no opening tag, ``keep``
        scores it.
    :param confidence: level of the intervals, between 0 and 1.
    :param resamples: of the bootstrap.
    :param seed: of the bootstrap.
    """

    template_fields: Sequence[str] = (
        "gradient_conn_id",
        "completions",
        "reference_column",
        "metrics",
        "output_path",
        "report_path",
        "page_path",
        "slice_columns",
        "cluster_column",
        "baseline",
        "gate",
        "reasoning",
        "confidence",
        "resamples",
        "seed",
    )
    completions = RowsField()
    baseline = RowsField()

    def __init__(
        self,
        *,
        completions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Path,
        reference_column: str | None = None,
        metrics: Sequence[str | Mapping[str, Any]] = ("exact_match",),
        output_path: Path | None = None,
        report_path: Path | None = None,
        page_path: Path | None = None,
        slice_columns: Sequence[str] = (),
        cluster_column: str | None = None,
        baseline: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Path | None = None,
        gate: Sequence[Mapping[str, Any]] | None = None,
        on_gate_failure: OnGateFailure = "fail",
        reasoning: str = "auto",
        confidence: float | str = 0.95,
        resamples: int | str = 10_000,
        seed: int | str = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.completions = completions
        self.reference_column = reference_column
        self.metrics = metrics
        self.output_path = output_path
        self.report_path = report_path
        self.page_path = page_path
        self.slice_columns = slice_columns
        self.cluster_column = cluster_column
        self.baseline = baseline
        self.gate = gate
        self.on_gate_failure = on_gate_failure
        self.reasoning = reasoning
        self.confidence = confidence
        self.resamples = resamples
        self.seed = seed
        if on_gate_failure not in get_args(OnGateFailure):
            choices = ", ".join(get_args(OnGateFailure))
            raise InvalidRequestError(f"on_gate_failure: must be one of {choices} (got {on_gate_failure!r})")
        if isinstance(gate, Sequence) and not any("{{" in str(rule) for rule in gate):
            from airflow_provider_gradient.evaluation import read_gate

            read_gate(gate)

    def execute(self, context: Context) -> dict[str, Any] | None:
        """The report, as a dict."""
        report = self._evaluate()
        completions, baseline = dataset_uri(self.completions), dataset_uri(self.baseline)
        self.tell_lineage(context, evaluation_lineage(report, completions=completions, baseline=baseline))
        if report.reasoned:
            self.log.info(
                "%d of %d rows had reasoning in front of the answer, which is not scored; in %d of them no "
                "answer followed",
                *(report.reasoned, report.rows, report.unanswered),
            )
        for name, metric in report.metrics.items():
            self.log.info(
                "%s %.3f, between %.3f and %.3f (n %d)", name, metric.value, metric.low, metric.high, metric.n
            )
        if report.gate is None:
            return report.to_dict()
        self.log.info("Gate: %s. %s", report.gate.verdict, "; ".join(report.gate.reasons))
        if report.gate.verdict == "pass" or self.on_gate_failure == "continue":
            return report.to_dict()
        from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

        context["ti"].xcom_push("return_value", report.to_dict())
        kind = AirflowFailException if self.on_gate_failure == "fail" else AirflowSkipException
        raise kind(f"The gate's verdict is {report.gate.verdict}: {'; '.join(report.gate.reasons)}")

    def planned_lineage(self) -> Lineage:
        """The completions and the baseline; the report, the scores and the page."""
        written = (self.report_path, self.output_path, self.page_path)
        return Lineage.of_uris(
            [dataset_uri(self.completions), dataset_uri(self.baseline)],
            [dataset_uri(path) for path in written],
        )

    def _evaluate(self) -> EvaluationReport:
        from airflow_provider_gradient.evaluation import asks_server, evaluate, evaluate_with_server

        settings: dict[str, Any] = {
            "reference_column": self.reference_column,
            "metrics": self.metrics,
            "output_path": located(self.output_path),
            "report_path": located(self.report_path),
            "page_path": located(self.page_path),
            "slice_columns": self.slice_columns,
            "cluster_column": self.cluster_column,
            "baseline": _located(self.baseline),
            "gate": self.gate,
            "reasoning": self.reasoning,
            "confidence": number("confidence", self.confidence, float),
            "resamples": number("resamples", self.resamples, int),
            "seed": number("seed", self.seed, int),
        }
        completions = located(self.completions)
        if asks_server(self.metrics):
            settings["metrics"] = [self._resolved(metric) for metric in self.metrics]
            return self.run_async(lambda client: evaluate_with_server(client, completions, **settings))
        return evaluate(completions, **settings)

    def _resolved(self, metric: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
        """A judge with the id that its alias stands for."""
        if isinstance(metric, Mapping) and isinstance(metric.get("model_id"), str):
            return {**metric, "model_id": self.hook.resolve(metric["model_id"])}
        return metric


class GradientGateOperator(BaseBranchOperator):
    """Goes on with the tasks that the verdict of an evaluation's gate chooses, and skips the other ones.

    XCom: the ids of the tasks chosen.

    :param report: of a :class:`GradientEvaluateOperator` with a ``gate`` and ``on_gate_failure="continue"``.
    :param on_pass: ids of the tasks that follow ``pass``.
    :param on_fail: of those that follow ``fail``.
    :param on_undecided: of those that follow ``undecided``; by default ``on_fail``.
    """

    template_fields: Sequence[str] = ("report",)
    ui_color = GradientOperator.ui_color

    def __init__(
        self,
        *,
        report: Mapping[str, Any],
        on_pass: str | Sequence[str],
        on_fail: str | Sequence[str],
        on_undecided: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.report = report
        self.on_pass = on_pass
        self.on_fail = on_fail
        self.on_undecided = on_undecided

    def choose_branch(self, context: Context) -> list[str]:
        """The ids of the tasks to go on with."""
        from airflow_provider_gradient.evaluation import EvaluationReport

        gate = EvaluationReport.from_dict(self.report).gate
        if gate is None:
            raise InvalidRequestError("report: it has no gate's verdict; evaluate with a gate")
        self.log.info("Gate: %s. %s", gate.verdict, "; ".join(gate.reasons))
        undecided = self.on_fail if self.on_undecided is None else self.on_undecided
        chosen = {"pass": self.on_pass, "fail": self.on_fail, "undecided": undecided}[gate.verdict]
        return [chosen] if isinstance(chosen, str) else list(chosen)


def _located(baseline: Any) -> Any:
    """A baseline, whose per-row scores may be at a URL."""
    if isinstance(baseline, Mapping) and "scores_path" in baseline:
        return {**baseline, "scores_path": located(baseline["scores_path"])}
    return located(baseline)
