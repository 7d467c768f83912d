"""Text made of rows, and templates that can't be."""

from __future__ import annotations

import pytest
from langchain_core.prompts import PromptTemplate

from airflow_provider_gradient.datasets import DatasetError, RowTemplate


@pytest.mark.parametrize("text", ["{q}", "### {q} {{x}} {n:>5}|{n:.2f}", "{q!r}: {q}\n", "{a column}"])
def test_a_row_gives_the_text_that_langchain_gives(text: str) -> None:
    row = {"q": "Who won? {not a field}", "n": 3, "a column": "ä", "other": None}
    template = PromptTemplate.from_template(text)
    expected = template.format(**{name: row[name] for name in template.input_variables})
    assert RowTemplate(text).render(row, "row 0") == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{q", "prompt_template is no template: expected '}'"),
        ("{q.__class__}", "prompt_template is no template"),
        ("{q[0]}", "prompt_template is no template"),
        ("{}", "names no column; write {column}"),
        ("{0}", "prompt_template is no template"),
        ("always the same", "names no column, so every row would give the same text"),
        ("{{question}}", "names no column, so every row would give the same text"),
    ],
)
def test_what_is_no_template_over_columns_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DatasetError) as raised:
        RowTemplate(text)
    assert reason in str(raised.value)


def test_a_missing_column_is_named_with_the_row_and_the_columns_there_are() -> None:
    template = RowTemplate("{question} {context}", name="completion_template")
    with pytest.raises(DatasetError) as raised:
        template.render({"question": "?", "answer": "!"}, "rows.jsonl, row 7 (line 8)")
    assert str(raised.value) == (
        "rows.jsonl, row 7 (line 8) has no column 'context', which completion_template names; "
        "its columns: 'question', 'answer'"
    )


def test_a_null_is_an_error_and_not_the_word_none() -> None:
    with pytest.raises(DatasetError, match="row 0: column 'q', which prompt_template names, is null"):
        RowTemplate("{q}").render({"q": None}, "row 0")


def test_a_format_that_does_not_fit_the_value_is_an_error_that_names_the_row() -> None:
    with pytest.raises(DatasetError, match="row 3: prompt_template can't be filled in"):
        RowTemplate("{n:.2f}").render({"n": "three"}, "row 3")
