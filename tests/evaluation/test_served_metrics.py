"""Metrics that ask a server: the real one, and a judge of a test's own where the answer matters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import MODEL_ID, Act, FaultyServer, Received, completion, error, reply

from airflow_provider_gradient.client import AsyncGradientClient, RetryPolicy
from airflow_provider_gradient.datasets import read_rows
from airflow_provider_gradient.evaluation import EvaluationError, evaluate, evaluate_with_server

ROWS = [
    {"id": f"r{n}", "output": output, "row": {"question": f"question {n}", "answer": "the right one"}}
    for n, output in enumerate(["a good answer", "bad", "good", "bad", "a very good one"])
]
JUDGE = {
    "metric": "judge",
    "model_id": MODEL_ID,
    "rubric": "Is {output} right for {question}? It is {reference}.",
}
PAIRWISE = {"metric": "pairwise_judge", "model_id": MODEL_ID, "rubric": "{question} A: {a} B: {b} Better?"}


class JudgeServer(FaultyServer):
    """Answers each query as ``judge(query)`` says."""

    def __init__(self, judge: Callable[[str], str | Act]) -> None:
        super().__init__(self._act)
        self._judge = judge

    def _act(self, request: Received) -> Act:
        if request.method == "GET":
            adapter = {"type": "modelAdapter", "id": MODEL_ID, "name": "a", "baseModelId": "b"}
            return reply(body=adapter | {"latestUpdateTime": "2026-01-01T00:00:00Z"})
        answer = self._judge(request.json()["query"])
        return answer if isinstance(answer, Act) else completion(answer)

    @property
    def queries(self) -> list[dict[str, Any]]:
        """The questions, as they came."""
        return [request.json() for request in self.requests if request.method == "POST"]

    async def evaluate(self, *args: Any, **settings: Any) -> Any:
        async with AsyncGradientClient(**self.credentials, retries=RetryPolicy(attempts=1)) as client:
            return await evaluate_with_server(client, *args, reference_column="answer", **settings)


async def test_a_judge_is_asked_once_a_row_by_its_rubric_and_its_grades_count(tmp_path: Path) -> None:
    given = [*ROWS, {"id": "r9", "status": "error", "output": None, "row": {"answer": "x"}}]
    with JudgeServer(lambda query: "yes" if "good" in query else "no") as server:
        settings = {"metrics": ["exact_match", JUDGE], "output_path": tmp_path / "scores.jsonl"}
        report = await server.evaluate(given, **settings)
        assert report.metrics["judge"].value == pytest.approx(3 / 6)
        scores = [row["judge"] for row in read_rows(tmp_path / "scores.jsonl")]
        assert scores == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
        assert len(server.queries) == 5
        first = next(query for query in server.queries if "question 0" in query["query"])
        assert first["query"] == "Is a good answer right for question 0? It is the right one."
        assert first["guidance"] == {"type": "choice", "value": ["yes", "no"]}
        assert first["temperature"] == 0
        assert await server.evaluate(given, **settings) == report
        assert len(server.queries) == 5, "a question that was answered is asked again"


async def test_grades_have_the_scores_that_they_were_given(tmp_path: Path) -> None:
    grades = {"poor": 0.0, "fair": 0.5, "fine": 1.0}
    with JudgeServer(lambda query: "fair" if "very" in query else "fine") as server:
        report = await server.evaluate(
            ROWS,
            baseline=ROWS[:2],
            metrics=[JUDGE | {"grades": grades, "name": "quality"}],
            output_path=tmp_path / "s.jsonl",
        )
    assert report.metrics["quality"].value == pytest.approx(4.5 / 5)
    assert report.comparison.metrics["quality"].baseline == 1.0
    assert report.settings["quality"]["grades"] == grades


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (lambda _: "A", [0.5, 0.5, 0.5, 0.5, 0.5]),  # whatever stands first: no judgement at all
        (lambda query: "A" if "A: good" in query else "B", [1.0, 1.0, 1.0, 1.0, 1.0]),
        (lambda query: "B" if "A: good" in query else "A", [0.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
async def test_a_pair_is_asked_in_both_orders_and_disagreement_is_a_tie(
    tmp_path: Path, judge: Callable[[str], str], expected: list[float]
) -> None:
    new = [row | {"output": f"good {row['output']}"} for row in ROWS]
    old = [row | {"output": f"poor {row['output']}"} for row in ROWS]
    with JudgeServer(judge) as server:
        report = await server.evaluate(
            new, baseline=old, metrics=[PAIRWISE], output_path=tmp_path / "s.jsonl"
        )
        assert len(server.queries) == 10
    assert [row["pairwise_judge"] for row in read_rows(tmp_path / "s.jsonl")] == expected
    share = expected[0]
    assert report.metrics["pairwise_judge"].value == share
    assert report.comparison.metrics["pairwise_judge"].difference == pytest.approx(2 * share - 1)


async def test_a_pair_with_one_answer_needs_no_question(tmp_path: Path) -> None:
    failed = [row | {"status": "error", "output": None} for row in ROWS]
    with JudgeServer(lambda _: "A") as server:
        for new, old, share in ((failed, ROWS, 0.0), (ROWS, failed, 1.0), (failed, failed, 0.5)):
            path = tmp_path / f"{share}" / "s.jsonl"
            report = await server.evaluate(new, baseline=old, metrics=[PAIRWISE], output_path=path)
            assert report.metrics["pairwise_judge"].value == share
        assert server.queries == []


async def test_a_judge_that_does_not_answer_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with (
        JudgeServer(lambda query: error(400, "no") if "question 3" in query else "yes") as server,
        pytest.raises(
            EvaluationError, match=r"1 of 5 questions got no answer, see .*errors\.jsonl"
        ) as raised,
    ):
        await server.evaluate(ROWS, metrics=[JUDGE], output_path=tmp_path / "s.jsonl")
    assert "(row 3: " in str(raised.value)
    assert not (tmp_path / "s.jsonl").exists()


async def test_a_judge_that_answers_none_of_the_grades_fails_the_evaluation_and_names_the_rows(
    tmp_path: Path,
) -> None:
    settings = {"metrics": [PAIRWISE], "output_path": tmp_path / "s.jsonl"}
    with (
        JudgeServer(lambda query: "perhaps" if "good" in query else "A") as server,
        pytest.raises(EvaluationError, match=r"6 of 10 questions .* \(row 0: none of the choices .*; row 2"),
    ):
        await server.evaluate(ROWS, baseline=ROWS, **settings)


async def test_a_grade_with_space_around_it_is_the_grade(tmp_path: Path) -> None:
    with JudgeServer(lambda _: " yes\n") as server:
        report = await server.evaluate(ROWS, metrics=[JUDGE], output_path=tmp_path / "s.jsonl")
    assert report.metrics["judge"].value == 1.0


async def test_judges_see_answers_without_reasoning_and_values_as_json(tmp_path: Path) -> None:
    rows = [
        {
            "output": f"<think>is it {n}?</think>yes {n}",
            "row": {"answer": "x", "tags": ["a", None], "ok": True},
        }
        for n in range(2)
    ]
    baseline = [row | {"output": f"no {n}?</think>no {n}"} for n, row in enumerate(rows)]
    judge = JUDGE | {"rubric": "{output} {tags} {ok}"}
    pairwise = PAIRWISE | {"rubric": "{a}, {b}", "choices": ["yes", "no"]}
    with JudgeServer(lambda _: "yes") as server:
        settings = {"metrics": [judge, pairwise], "output_path": tmp_path / "s.jsonl"}
        await server.evaluate(rows, baseline=baseline, **settings)
        asked = {query["query"] for query in server.queries}
    judged = {f'{word} {n} ["a", null] true' for word in ("yes", "no") for n in range(2)}
    paired = {f"{pair} {n}" for n in range(2) for pair in (f"yes {n}, no", f"no {n}, yes")}
    assert asked == judged | paired


async def test_what_cannot_be_asked_is_refused_before_a_question(tmp_path: Path) -> None:
    with JudgeServer(lambda _: "yes") as server:
        for settings, message in (
            ({"metrics": [JUDGE]}, "give output_path"),
            ({"metrics": [PAIRWISE], "output_path": tmp_path / "s.jsonl"}, "compares with a baseline"),
            (
                {"metrics": [PAIRWISE], "output_path": tmp_path / "s.jsonl", "baseline": ROWS[::-1]},
                "needs the same rows in the same order",
            ),
            (
                {
                    "metrics": [PAIRWISE | {"rubric": "{question}"}],
                    "output_path": tmp_path / "s.jsonl",
                    "baseline": ROWS,
                },
                "must name {a} and {b}",
            ),
        ):
            with pytest.raises(EvaluationError, match=message):
                await server.evaluate(ROWS, **settings)
        assert server.queries == []
    with pytest.raises(EvaluationError, match="asks a server; use evaluate_with_server"):
        evaluate(ROWS, reference_column="answer", metrics=[JUDGE])


async def test_the_real_server_judges_and_embeds(async_client: Any, tmp_path: Path) -> None:
    rows = [
        {"output": "the red hen", "answer": "the red hen"},
        {"output": "no", "answer": ["the green hen", "no bread"]},
        {"output": "", "answer": "x"},
        {"output": None, "status": "error", "answer": "x"},
    ]
    async with async_client() as client:
        base = await client.find_base_model("tiny")
        embeddings = [model.slug for model in await client.list_embeddings_models()]
        report = await evaluate_with_server(
            client,
            rows,
            reference_column="answer",
            metrics=[
                {"metric": "embedding_similarity", "model": embeddings[0]},
                {"metric": "judge", "model_id": base.id, "rubric": "Is '{output}' an answer?"},
            ],
            output_path=tmp_path / "s.jsonl",
        )
        vectors = np.array(await client.embed(embeddings[0], ["no", "the green hen", "no bread"]))
    cosines = vectors[1:] @ vectors[0] / np.linalg.norm(vectors[1:], axis=1) / np.linalg.norm(vectors[0])
    scores = list(read_rows(tmp_path / "s.jsonl"))
    assert [row["embedding_similarity"] for row in scores] == pytest.approx(
        [1, cosines.max(), 0, 0], abs=1e-6
    )
    assert {row["judge"] for row in scores} <= {0.0, 1.0}
    assert report.metrics["judge"].n == 4
    assert json.loads((tmp_path / "s.jsonl.judge.answers.jsonl.manifest.json").read_text())["rows"] == 3
