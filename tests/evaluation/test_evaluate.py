"""Completions in, a report out."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from airflow_provider_gradient.completions import CompletionManifest, Counts
from airflow_provider_gradient.datasets import DatasetError, read_rows, write_rows
from airflow_provider_gradient.evaluation import EvaluationError, EvaluationReport, evaluate


def completion(output: str | None, reference: Any, status: str = "success", **columns: Any) -> dict[str, Any]:
    return {"output": output, "status": status, "model_id": "m", "row": {"answer": reference, **columns}}


ROWS = [
    completion("The Dallas Cowboys", "dallas cowboys!", sport="football"),
    completion("It was the Dallas Cowboys", ["New York Giants", "Dallas Cowboys"], sport="football"),
    completion(None, "Dallas Cowboys", "error", sport="baseball"),
    completion("Dallas Cowboys", "Dallas Cowboys", "invalid_output", sport="baseball"),
]


def test_the_best_reference_counts_and_what_failed_is_wrong_in_every_metric() -> None:
    report = evaluate(ROWS, reference_column="answer", metrics=("exact_match", "token_f1", "contains"))
    assert report.metrics["exact_match"].value == 1 / 4
    assert report.metrics["token_f1"].value == pytest.approx((1 + 2 * 2 / (4 + 2)) / 4)
    assert report.metrics["contains"].value == 2 / 4
    assert all(metric.n == 4 for metric in report.metrics.values())
    assert report.counts == {"success": 2, "error": 1, "invalid_output": 1}
    assert (report.rows, report.model_id, report.source) == (4, "m", "inline")


def test_slices_have_the_metrics_of_their_rows() -> None:
    report = evaluate(ROWS, reference_column="answer", slice_columns=["sport"])
    assert {name: metrics["exact_match"].value for name, metrics in report.slices["sport"].items()} == {
        "baseball": 0.0,
        "football": 0.5,
    }
    assert [metrics["exact_match"].n for metrics in report.slices["sport"].values()] == [2, 2]


def test_slices_by_numbers_truths_and_nulls_have_their_json_as_names() -> None:
    rows = [completion("a", "a", kind=kind) for kind in (1, True, None, "text")]
    assert list(evaluate(rows, reference_column="answer", slice_columns=["kind"]).slices["kind"]) == [
        *("1", "null", "text", "true")
    ]


@pytest.mark.parametrize("folder", ["local", "memory"])
def test_every_rows_scores_are_written(tmp_path: Path, folder: str) -> None:
    path = UPath({"local": str(tmp_path / "new"), "memory": f"memory://{tmp_path.name}"}[folder]) / "s.jsonl"
    rows = [{**row, "index": index, "id": f"r{index}"} for index, row in enumerate(ROWS)]
    report = evaluate(rows, reference_column="answer", metrics=["exact_match", "contains"], output_path=path)
    assert report.scores_path == str(path)
    scores = list(read_rows(path))
    assert scores[1] == {
        "index": 1,
        "id": "r1",
        "status": "success",
        "output": "It was the Dallas Cowboys",
        "reference": ["New York Giants", "Dallas Cowboys"],
        "exact_match": 0.0,
        "contains": 1.0,
        "row": ROWS[1]["row"],
    }
    assert [row["exact_match"] for row in scores] == [1.0, 0.0, 0.0, 0.0]


def test_a_run_is_evaluated_by_its_manifest_as_an_object_and_as_a_dict(tmp_path: Path) -> None:
    write_rows(tmp_path / "out.jsonl", ROWS)
    manifest = CompletionManifest(
        source="inline",
        identity=None,
        fingerprint="f",
        output_path=str(tmp_path / "out.jsonl"),
        output_bytes=1,
        errors_path=None,
        rows=4,
        counts=Counts(success=4),
        model_id="m",
        model_version=None,
        prompt_template="{q}",
        prompt_column=None,
        parameters={},
        prompt_tokens=None,
        completion_tokens=None,
        attempts=4,
        retries=0,
        seconds=1.0,
        rows_per_second=4.0,
        resumed_rows=0,
    )
    reports = [
        evaluate(given, reference_column="answer")
        for given in (manifest, manifest.to_dict(), tmp_path / "out.jsonl")
    ]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0].source == str(tmp_path / "out.jsonl")
    assert EvaluationReport.from_dict(json.loads(json.dumps(reports[0].to_dict()))) == reports[0]


def test_rows_of_ones_own_need_no_nested_row() -> None:
    rows = [{"output": "42", "answer": 42}, {"output": "no", "answer": 42}]
    report = evaluate(rows, reference_column="answer")
    assert report.metrics["exact_match"].value == 0.5
    assert report.model_id is None


def test_completions_of_two_models_have_no_model() -> None:
    rows = [{"output": "a", "answer": "a", "model_id": model} for model in "aab"]
    assert evaluate(rows, reference_column="answer").model_id is None


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "missing reference": (
        [ROWS[0], {"output": "a", "row": {"q": "?"}}],
        {},
        "row 1 of the inline dataset has no column 'answer', which reference_column names; its columns: 'q'",
    ),
    "null reference": ([completion("a", None)], {}, "row 0 of the inline dataset: column 'answer'"),
    "no references": ([completion("a", [])], {}, "row 0 of the inline dataset: the reference in column"),
    "odd reference": ([completion("a", {"x": 1})], {}, "must be a string or number, or a list of such"),
    "odd list": ([completion("a", ["a", None])], {}, "must be a string or number, or a list of such"),
    "missing slice": (ROWS, {"slice_columns": ["team"]}, "row 0 of the inline dataset has no column 'team'"),
    "no output": ([{"text": "a", "answer": "a"}], {}, "row 0 of the inline dataset has no text in 'output'"),
    "odd row": ([{"output": "a", "row": "b"}], {}, "row 0 of the inline dataset: 'row' is no object"),
    "unknown metric": (
        ROWS,
        {"metrics": ["blue"]},
        "metrics[0]: there is no metric 'blue'; there are exact_match",
    ),
    "no metric": (ROWS, {"metrics": []}, "metrics: a list of at least one metric"),
    "metric as text": (ROWS, {"metrics": "exact_match"}, "metrics: a list of at least one metric"),
    "confidence": (ROWS, {"confidence": 95}, "confidence must be between 0 and 1"),
    "no manifest": ({"a": 1}, {}, "neither rows, nor a path, nor the manifest of a run"),
    "too many slices": (
        [completion("a", "a", n=n) for n in range(1001)],
        {"slice_columns": ["n"]},
        "slice_columns: 'n' has more than 1000 values (row 1000 of the inline dataset has another)",
    ),
}


@pytest.mark.parametrize(("rows", "arguments", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_evaluated_is_refused_by_row_or_parameter_and_writes_nothing(
    tmp_path: Path, rows: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError) as raised:
        evaluate(rows, reference_column="answer", output_path=tmp_path / "scores.jsonl", **arguments)
    assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


REASONED = [
    completion("<think>\nLondon? No, Paris.\n</think>\n\nParis", "Paris"),
    completion("London? No, Paris.\n</think>\n\nParis", "Paris"),
    completion("<think>London? Perhaps Paris", "Paris"),
    completion("[THINK]Hm.[/THINK]Rome", "Paris"),
    completion("Paris", "Paris"),
    {**completion("London? Perhaps Paris", "Paris"), "finish_reason": "length"},
]


def answers(tmp_path: Path, rows: Any, **settings: Any) -> tuple[EvaluationReport, list[str]]:
    """The report, and what was scored of each row."""
    path = tmp_path / "scores.jsonl"
    report = evaluate(
        rows, reference_column="answer", metrics=["exact_match", "contains"], output_path=path, **settings
    )
    return report, [row["output"] for row in read_rows(path)]


def test_reasoning_is_not_scored_and_where_it_does_not_end_the_answer_is_empty(tmp_path: Path) -> None:
    report, scored = answers(tmp_path, REASONED)
    assert scored == ["Paris", "Paris", "", "Rome", "Paris", ""]
    assert report.metrics["exact_match"].value == report.metrics["contains"].value == 3 / 6
    assert (report.reasoning, report.reasoned, report.unanswered) == ("auto", 5, 2)


def test_text_that_only_speaks_of_reasoning_is_scored_whole(tmp_path: Path) -> None:
    outputs = ["I think so", "It begins with <think> and ends with </think>.", "a <b>thinking</b> man"]
    report, scored = answers(tmp_path, [completion(output, "x") for output in outputs])
    assert scored == outputs
    assert report.reasoned == 0


def test_a_template_that_opens_the_reasoning_can_be_named_and_all_of_an_output_be_kept(
    tmp_path: Path,
) -> None:
    cut = [REASONED[1], REASONED[4], REASONED[5]]
    assert answers(tmp_path, cut, reasoning="opened")[1] == ["Paris", "", ""]
    assert answers(tmp_path, cut[1:])[1] == ["Paris", "London? Perhaps Paris"]
    report, scored = answers(tmp_path, REASONED, reasoning="keep")
    assert scored == [row["output"] for row in REASONED]
    assert (report.reasoned, report.metrics["exact_match"].value) == (0, 1 / 6)
    with pytest.raises(EvaluationError, match="reasoning: must be one of auto, opened, keep"):
        evaluate(REASONED, reference_column="answer", reasoning="none")  # type: ignore[arg-type]


def test_a_baselines_reasoning_is_not_compared_and_the_page_tells_of_the_completions(tmp_path: Path) -> None:
    answers(tmp_path, REASONED)
    page = tmp_path / "page.html"
    for baseline in (REASONED, tmp_path / "scores.jsonl"):
        report = evaluate(REASONED, reference_column="answer", baseline=baseline, page_path=page)
        assert report.comparison is not None
        assert report.comparison.metrics["exact_match"].baseline == 3 / 6
    text = " ".join(page.read_text().split())
    assert "5 had reasoning in front of the answer, which is not scored; in 2 of them no answer" in text


def test_scores_that_would_replace_their_completions_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "out.jsonl", ROWS)
    with pytest.raises(EvaluationError, match="holds the completions"):
        evaluate(
            tmp_path / "out.jsonl", reference_column="answer", output_path=f"file://{tmp_path}/out.jsonl"
        )
    assert list(read_rows(tmp_path / "out.jsonl")) == ROWS


def test_no_completions_are_an_error() -> None:
    with pytest.raises(DatasetError, match="has no rows"):
        evaluate([], reference_column="answer")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for number in range(5_000):
            yield completion("word " * 500, "word", team=str(number % 10))

    write_rows(tmp_path / "out.jsonl", rows())
    evaluate(ROWS, reference_column="answer")  # which loads numpy
    tracemalloc.start()
    try:
        report = evaluate(
            tmp_path / "out.jsonl",
            reference_column="answer",
            metrics=["exact_match", "contains"],
            output_path=tmp_path / "scores.jsonl",
            slice_columns=["team"],
        )
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert report.metrics["contains"].value == 1.0
