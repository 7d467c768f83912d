"""The metrics' values, row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_gradient.evaluation import EvaluationError, normalize_answer, read_metrics
from airflow_provider_gradient.evaluation.metrics import Example


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Dallas Cowboys.", "dallas cowboys"),
        ("an apple, a day", "apple day"),
        ("theatre and Anna", "theatre and anna"),
        ("it's U.S.A.", "its usa"),
        ("well-known", "wellknown"),
        ("\u00a0 tab\tand\nline ", "tab and line"),
        ("ÄRGER", "ärger"),
        ("Cafe\u0301", "café"),
        ("東京、です", "東京、です"),
        ("The", ""),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_squads_script_does(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def score(metric: str | dict[str, Any], output: str, *references: Any, **row: Any) -> float:
    """The score of one output by one metric."""
    return read_metrics([metric])[0].measure(Example(output, list(references), row))[0]


@pytest.mark.parametrize(
    ("metric", "output", "reference", "expected"),
    [
        ("exact_match", "The cat", "cat", 1.0),
        ("exact_match", "cats", "cat", 0.0),
        ("exact_match", "the", "", 1.0),
        ("token_f1", "the cat sat", "a cat sat down", 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),
        ("token_f1", "b b c", "b c c", 2 * 2 / 6),
        ("token_f1", "x", "y", 0.0),
        ("token_f1", "the", "an", 1.0),
        ("token_f1", "the", "x", 0.0),
        ("contains", "It was Dallas, surely", "dallas", 1.0),
        ("contains", "東京です", "東京", 1.0),
        ("contains", "Dal las", "dallas", 0.0),
        ("contains", "anything", "the", 0.0),
        ("contains", "", "the", 1.0),
        ("numeric_closeness", "It is 1,234.50 in all.", "1234.5", 1.0),
        ("numeric_closeness", "between 3 and 4", 4, 1.0),
        ("numeric_closeness", "\u22125 degrees", -5, 1.0),
        ("numeric_closeness", "pages 3-4", 4, 1.0),
        ("numeric_closeness", "about .5", 0.5, 1.0),
        ("numeric_closeness", "1.5e3", 1500, 1.0),
        ("numeric_closeness", "\u0664\u0662", 42, 1.0),
        ("numeric_closeness", "no number", 0, 0.0),
        ("numeric_closeness", "10.1", 10, 0.0),
        ({"metric": "numeric_closeness", "absolute": 0.1}, "10.1", 10, 1.0),
        ({"metric": "numeric_closeness", "relative": 0.01}, "99", 100, 1.0),
        ({"metric": "numeric_closeness", "relative": 0.01}, "98.9", 100, 0.0),
        ({"metric": "regex", "pattern": r"(?i)^the \w+$"}, "The caf\u0065\u0301", "", 1.0),
        ({"metric": "regex", "pattern": "^$"}, "x", "", 0.0),
        ("edit_similarity", "Cafe\u0301", "Caf\u00e9", 1.0),
        ("edit_similarity", "kitten", "sitting", 1 - 3 / 7),
        ("edit_similarity", "", "", 1.0),
        ("rouge_l", "東京は大きい", "東京が大きい", 5 / 6),
        ("rouge_1", "हिन्दी भाषा", "हिन्दी", 2 / 3),
        ("length", "cafe\u0301", "", 4.0),
        ({"metric": "length", "unit": "words"}, "naïve café, 東京", "", 4.0),
        ("refusal", "I'm sorry, but I can\u2019t do that.", "", 1.0),
        ("refusal", " ", "", 1.0),
        ("refusal", "I am sorted by name.", "", 0.0),
        ({"metric": "refusal", "patterns": ["lo siento"]}, "Lo siento mucho", "", 1.0),
    ],
)
def test_a_metric_has_the_value_that_its_definition_gives(
    metric: str | dict[str, Any], output: str, reference: Any, expected: float
) -> None:
    assert score(metric, output, reference) == pytest.approx(expected, abs=1e-12)


def test_the_best_of_several_references_counts() -> None:
    for metric in ("exact_match", "token_f1", "contains", "edit_similarity", "rouge_1", "rouge_2", "rouge_l"):
        assert score(metric, "the red cat", "a dog", "the red cat") == 1.0


def test_a_json_schema_allows_what_it_says() -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    metric = {"metric": "json_schema", "schema": schema}
    given = {
        '{"n": 1}': 1.0,
        ' {"n": 1}\n': 1.0,
        '{"n": "1"}': 0.0,
        "{}": 0.0,
        '{"n": 1': 0.0,
        '{"n": NaN}': 0.0,
    }
    assert {output: score(metric, output) for output in given} == given
    with pytest.raises(EvaluationError, match="this is no JSON schema"):
        score({"metric": "json_schema", "schema": {"type": "nothing"}}, "{}")


def own_metric(output: str, reference: Any, row: Any) -> float | bool:
    """A user's own: see the next test."""
    if row["kind"] == "bool":
        return output == reference
    return {"half": 0.5, "nan": math.nan}.get(row["kind"], row["kind"])


def test_a_users_own_function_is_called_with_output_reference_and_row() -> None:
    path = f"{__name__}:own_metric"
    metric = read_metrics([path])[0]
    assert metric.name == "own_metric"
    for kind, expected in (("bool", 1.0), ("half", 0.5)):
        assert metric.measure(Example("a", "a", {"kind": kind}))[0] == expected
    for kind in ("nan", "text"):
        with pytest.raises(EvaluationError, match="a finite number or a boolean is needed"):
            metric.measure(Example("a", "a", {"kind": kind}))
    for wrong, message in (("no_module_x:f", "can't be imported"), ("math:pi", "is no function")):
        with pytest.raises(EvaluationError, match=message):
            score(wrong, "a")
    with pytest.raises(EvaluationError, match="write it as module:function"):
        read_metrics(["a b:c"])


BAD_SETTINGS: list[tuple[Any, str]] = [
    ({"metric": "regex"}, "metrics[0]: regex.pattern: Field required"),
    ({"metric": "regex", "pattern": "("}, "is no regular expression"),
    ({"metric": "exact_match", "patern": "x"}, "exact_match.patern: Extra inputs are not permitted"),
    ({"metric": "choice_accuracy", "choices": ["A", "the a!"]}, "must differ in more than case"),
    ({"metric": "numeric_closeness", "relative": -1}, "greater than or equal to 0"),
    ({"metric": "length", "unit": "pages"}, "'characters' or 'words'"),
    ({"pattern": "x"}, "there is no metric {'pattern': 'x'}"),
    ({"metric": "exact_match", "name": "output"}, "the name 'output' is that of another column"),
]


@pytest.mark.parametrize(("metric", "message"), BAD_SETTINGS)
def test_wrong_settings_are_refused_by_name(metric: Any, message: str) -> None:
    with pytest.raises(EvaluationError) as raised:
        read_metrics([metric])
    assert message in str(raised.value)


def test_two_metrics_of_one_kind_need_two_names() -> None:
    metrics = [{"metric": "regex", "pattern": pattern} for pattern in "ab"]
    with pytest.raises(EvaluationError, match="two metrics are called 'regex'"):
        read_metrics(metrics)
    named = [metric | {"name": f"has_{metric['pattern']}"} for metric in metrics]
    assert [metric.name for metric in read_metrics(named)] == ["has_a", "has_b"]


WORDS = st.lists(st.sampled_from(["a", "b", "c", "the", "dé", "é", "東"]), max_size=6).map(" ".join)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_metrics_lie_between_0_and_1_and_agree_with_each_other(output: str, references: list[str]) -> None:
    exact, f1, contained = (
        score(name, output, *references) for name in ("exact_match", "token_f1", "contains")
    )
    assert 0 <= exact <= f1 <= 1
    assert exact <= contained <= 1
    assert score("token_f1", output, output) == 1.0
    for reference in references:
        assert score("token_f1", output, reference) == score("token_f1", reference, output)
