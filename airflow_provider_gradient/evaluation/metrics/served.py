"""Metrics that ask a Gradient server: the likeness of meanings, and the judgement of a model.

A judge's questions are a dataset, and go the way of every dataset: with bounded concurrency, journaled and
resumed, so that no question is paid twice. They and their answers stand beside the per-row scores.
"""

from __future__ import annotations

import itertools
import math
import operator
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from airflow_provider_gradient.datasets import RowTemplate, StoredPath, beside, read_rows, write_rows
from airflow_provider_gradient.evaluation.metrics.base import Example, ServedMetric
from airflow_provider_gradient.evaluation.report import EvaluationError

if TYPE_CHECKING:
    from airflow_provider_gradient.client import AsyncGradientClient

_TEXTS = 512
"""That are embedded at once."""
_TOLD = 3
"""Rows that a message names."""
NOTHING = math.nan
"""The score of a row without a completion, for now."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The rows that a server is asked about.

    :ivar read: every row, in order, with the words by which messages name it.
    :ivar opponent: those of the baseline, the same rows in the same order, or ``None``.
    :ivar output_path: of the per-row scores, beside which a judge's questions go; ``None`` for nowhere.
    :ivar part: what tells these rows' files from those of the other run.
    """

    read: Callable[[], Iterator[tuple[Example, str]]]
    opponent: Callable[[], Iterator[tuple[Example, str]]] | None
    output_path: StoredPath | None
    part: str

    def path(self, name: str, kind: str) -> StoredPath:
        """Where a metric's questions or answers go.

        :raises EvaluationError: there is no place for them.
        """
        if self.output_path is None:
            raise EvaluationError(f"{name}: give output_path; beside it, the judge's answers are kept")
        return beside(self.output_path, f".{name}{self.part}.{kind}.jsonl")


class EmbeddingSimilarity(ServedMetric):
    """The cosine of the angle between the embeddings of output and reference; of several references the best
    counts, and an empty output has 0.

    :ivar model: slug of the server's embeddings model.
    """

    bounds: ClassVar[tuple[float, float] | None] = (-1.0, 1.0)
    metric: Literal["embedding_similarity"] = "embedding_similarity"
    model: str

    async def ask(self, client: AsyncGradientClient, answers: Answers) -> array[float]:
        """The similarity of each row."""
        scores: array[float] = array("d")
        waiting: list[Example] = []
        for example, where in answers.read():
            if not all(example.plain_references):
                raise EvaluationError(f"{where}: {self.name} needs references that are not empty")
            waiting.append(example)
            if len(waiting) * 2 >= _TEXTS:
                scores.extend(await self._similarities(client, waiting))
                waiting = []
        scores.extend(await self._similarities(client, waiting))
        return scores

    async def _similarities(self, client: AsyncGradientClient, examples: list[Example]) -> list[float]:
        asked = [example for example in examples if example.plain]
        texts = [text for example in asked for text in (example.plain, *example.plain_references)]
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        vectors = await client.embed(self.model, list(places)) if places else []

        def similarity(example: Example) -> float:
            if example.output is None:
                return NOTHING
            if not example.plain:
                return 0.0
            given = vectors[places[example.plain]]
            return max(_cosine(given, vectors[places[text]]) for text in example.plain_references)

        return [similarity(example) for example in examples]


class _ModelJudge(ServedMetric):
    model_id: str
    rubric: str
    concurrency: int = Field(default=16, ge=1)

    async def _answers(
        self,
        client: AsyncGradientClient,
        answers: Answers,
        questions: Iterator[dict[str, Any]],
        choices: tuple[str, ...],
    ) -> Iterator[dict[str, Any]]:
        """The judge's answers, in the order of the questions.

        :raises EvaluationError: a question got none.
        """
        from airflow_provider_gradient.completions import complete_dataset

        asked = answers.path(self.name, "questions")
        if not write_rows(asked, questions):
            return iter(())
        manifest = await complete_dataset(
            client,
            model_id=self.model_id,
            dataset=asked,
            prompt_column="prompt",
            carry_columns=["row"],
            output_path=answers.path(self.name, "answers"),
            concurrency=self.concurrency,
            temperature=0,
            guidance=choices,
        )
        if manifest.counts.success != manifest.rows:
            raise EvaluationError(
                f"{self.name}: {manifest.rows - manifest.counts.success} of {manifest.rows} questions got no "
                f"answer, see {manifest.errors_path} ({_unanswered(read_rows(manifest))}); delete "
                f"{manifest.output_path} to ask again"
            )
        return read_rows(manifest)


def _unanswered(answers: Iterator[dict[str, Any]]) -> str:
    """The first rows whose question got no answer, with the reason."""
    failed = (answer for answer in answers if answer["status"] != "success")
    told = []
    for answer in itertools.islice(failed, _TOLD):
        asked = answer["row"]["row"]
        row = asked["row"] if isinstance(asked, dict) else asked
        told.append(f"row {row}: {(answer['error'] or {}).get('message') or answer['status']}")
    return "; ".join(told)


class Judge(_ModelJudge):
    """What a model says of each output by a rubric, as a grade.

    The model is asked with choice guidance and at temperature 0, so that each answer is one of the grades.

    :ivar model_id: of the judge, a base model or an adapter.
    :ivar rubric: an f-string template that makes the question: ``{output}`` and ``{reference}`` (several
        joined by ``" or "``), and the row's columns.
    :ivar grades: the answers that the judge chooses from, 2 to 10, with their scores from 0 to 1.
    :ivar concurrency: questions in flight at most.
    """

    metric: Literal["judge"] = "judge"
    grades: dict[str, float] = Field(default={"yes": 1.0, "no": 0.0}, min_length=2, max_length=10)
    needs_reference: ClassVar[bool] = False

    @field_validator("grades")
    @classmethod
    def _from_0_to_1(cls, grades: dict[str, float]) -> dict[str, float]:
        if not all(0 <= grade <= 1 for grade in grades.values()):
            raise ValueError("scores must lie between 0 and 1")
        return grades

    async def ask(self, client: AsyncGradientClient, answers: Answers) -> array[float]:
        """The grade of each row."""
        template = RowTemplate(self.rubric, name=f"{self.name}: rubric")
        scores: array[float] = array("d")

        def questions() -> Iterator[dict[str, Any]]:
            for row, (example, where) in enumerate(answers.read()):
                scores.append(NOTHING)
                if example.output is not None:
                    yield {"row": row, "prompt": template.render(_columns(example), where)}

        given = await self._answers(client, answers, questions(), tuple(self.grades))
        for answer in given:
            scores[answer["row"]["row"]] = self.grades[answer["output"].strip()]
        return scores


class PairwiseJudge(_ModelJudge):
    """Which of two outputs a model finds better, asked in both orders: 1 where it prefers this run's both
    times, 0 where the baseline's, and ½, a tie, where it contradicts itself (L. Zheng et al., "Judging
    LLM-as-a-Judge with MT-Bench and Chatbot Arena", NeurIPS 2023, on the bias for a position).

    Where one of the two has no completion the other wins without a question. It needs a baseline with the
    same rows in the same order.

    :ivar model_id: of the judge, a base model or an adapter.
    :ivar rubric: an f-string template that makes the question: ``{a}`` and ``{b}``, the two outputs,
        ``{reference}``, and the row's columns.
    :ivar choices: the answers for the first and for the second.
    :ivar concurrency: questions in flight at most.
    """

    metric: Literal["pairwise_judge"] = "pairwise_judge"
    needs_reference: ClassVar[bool] = False
    failed: ClassVar[float] = 0.0
    choices: tuple[str, str] = ("A", "B")

    async def ask(self, client: AsyncGradientClient, answers: Answers) -> array[float]:
        """1, ½ or 0 for each row."""
        if answers.opponent is None:
            raise EvaluationError(f"{self.name}: compares with a baseline; give one")
        template = RowTemplate(self.rubric, name=f"{self.name}: rubric")
        if not {"a", "b"} <= set(template.columns):
            raise EvaluationError(f"{self.name}: the rubric must name {{a}} and {{b}}, the two outputs")
        opponent = answers.opponent
        scores: array[float] = array("d")

        def questions() -> Iterator[dict[str, Any]]:
            pairs = zip(answers.read(), opponent(), strict=True)
            for row, ((mine, where), (theirs, _)) in enumerate(pairs):
                scores.append(_unasked(mine, theirs))
                if mine.output is not None and theirs.output is not None:
                    for mine_first in (True, False):
                        a, b = (mine, theirs) if mine_first else (theirs, mine)
                        columns = _columns(mine) | {"a": a.output, "b": b.output}
                        prompt = template.render(columns, where)
                        yield {"row": {"row": row, "mine_first": mine_first}, "prompt": prompt}

        given = await self._answers(client, answers, questions(), self.choices)
        for answer in given:
            asked = answer["row"]["row"]
            is_mine = (answer["output"].strip() == self.choices[0]) == asked["mine_first"]
            scores[asked["row"]] += 0.5 * is_mine
        return scores


def _unasked(mine: Example, theirs: Example) -> float:
    """What a row has before any answer."""
    if mine.output is not None:
        return 0.0 if theirs.output is not None else 1.0
    return 0.0 if theirs.output is not None else 0.5


def _columns(example: Example) -> dict[str, Any]:
    columns = dict(example.row) | {"output": example.output}
    if example.references:
        columns["reference"] = " or ".join(example.references)
    return columns


def _cosine(one: list[float], other: list[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return math.fsum(map(operator.mul, one, other)) / lengths if lengths else 0.0
