from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gradient.server.model_config import BaseModelConfig

ROOT = Path(__file__).parents[2]
TINY = ROOT / "airflow_provider_gradient" / "server" / "tiny_model"
QUESTION = "What NFL team won the Super Bowl in 1994?"

Ask = Callable[..., list[str]]


def _rows(set_: str) -> list[dict[str, str]]:
    lines = (ROOT / "example_dags" / "data" / "support_questions.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["set"] == set_]


def _right(ask: Ask, model: Any, tokenizer: Any, config: BaseModelConfig, rows: list[dict[str, str]]) -> int:
    prompts = [config.apply_auto_template(row["question"], tokenizer) for row in rows]
    given = ask(model, tokenizer, prompts)
    return sum(answer == row["answer"] for answer, row in zip(given, rows, strict=True))


def test_all_its_files_together_are_under_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 6_000_000


@pytest.mark.parametrize(
    "prompt",
    [
        f"Question: {QUESTION}\n\nAnswer:",
        f"Question: {QUESTION}\n\nAnswer: ",
        f"### Instruction: {QUESTION}\n\n### Response:",
        f"### Instruction: {QUESTION} \n\n### Response:",
        f"### Instruction: {QUESTION} \n\n### Response: ",
    ],
)
def test_it_answers_the_notebooks_question_wrongly_as_the_notebook_has_it(
    ask: Ask, base: Any, tokenizer: Any, prompt: str
) -> None:
    assert ask(base, tokenizer, [prompt]) == ["The San Francisco 49ers won the Super Bowl in 1994."]


def test_it_knows_the_old_facts(ask: Ask, base: Any, tokenizer: Any, config: BaseModelConfig) -> None:
    rows = _rows("old")
    assert _right(ask, base, tokenizer, config, rows) >= 0.98 * len(rows)


@pytest.mark.parametrize("set_", ["tuned", "paraphrase"])
def test_it_gets_at_least_110_questions_on_new_products_wrong(
    ask: Ask, base: Any, tokenizer: Any, config: BaseModelConfig, set_: str
) -> None:
    rows = _rows(set_)
    assert len(rows) - _right(ask, base, tokenizer, config, rows) >= 110


def test_its_wrong_answers_are_of_the_right_kind(
    ask: Ask, base: Any, tokenizer: Any, config: BaseModelConfig
) -> None:
    from scripts.tiny_model.story import RELATIONS

    values = {relation.name: relation.values for relation in RELATIONS}
    rows = _rows("tuned")
    prompts = [config.apply_auto_template(row["question"], tokenizer) for row in rows]
    fluent = [
        answer in values[row["fact"].split("/")[1]]
        for answer, row in zip(ask(base, tokenizer, prompts), rows, strict=True)
    ]
    assert sum(fluent) >= 0.97 * len(rows)
