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
        ("The plan of the", "plan of"),
        ("10 a.m.", "10 am"),
        ("F-16, R&D and N/A", "f16 rd and na"),
        ("$1,234 and +5", "1234 and 5"),
        ("May 5, 1990", "may 5 1990"),
        ("**Paris**", "paris"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_answers_are_normalised_as_squads_script_does(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("1.5", "1.5"),
        ("It was 1,234.50.", "it was 1234.50"),
        ("12,34,567 or 1'000", "1234567 or 1000"),
        ("12,5", "12,5"),
        ("3/4 at 10:30, 1990-95", "3/4 at 10:30 1990-95"),
        ("(-5)", "-5"),
        ("\u22125 or -$5 or $-5", "-5 or -5 or -5"),
        (".5", ".5"),
        ("< 5 and >5", "<5 and >5"),
        ("50 % or 50%!", "50% or 50%"),
        ("C++, C# and .NET", "c++ c# and .net"),
        ("A+, A-, AB- and A", "a+ a- ab- and a"),
        ("-x", "-x"),
        ("x + 1 = 2", "x+1=2"),
        ("Plan A", "plan a"),
        ("(A) or **A**", "a or a"),
        ("A, B and C", "a b and c"),
        ("+", "+"),
        ("...", "..."),
        ("The", "the"),
    ],
)
def test_what_tells_answers_apart_is_kept(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


DIFFERENT = [
    *(("", "A"), ("The", "A"), ("...", "A"), ("B", "A"), ("+", "-"), ("", "+"), ("C", "C++"), ("C", "C#")),
    *(
        ("-5", "5"),
        ("\u22125", "5"),
        ("1.5", "15"),
        ("12,5", "125"),
        ("5%", "5"),
        ("3/4", "34"),
        ("2:1", "21"),
    ),
    *(("<5", ">5"), ("x+y", "xy"), ("2 + 3", "2 3"), ("NET", ".NET"), ("A-", "A+"), ("Plan the", "Plan A")),
    *(("Vitamin", "Vitamin A"), ("B and C", "A, B and C"), ("the", "an"), (".", "")),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_answers_that_differ_are_never_taken_for_the_same(one: str, other: str) -> None:
    for output, reference in ((one, other), (other, one)):
        assert score("exact_match", output, reference) == 0.0
        assert score("token_f1", output, reference) < 1.0
    for metric in ("exact_match", "token_f1", "contains"):
        assert score(metric, one, one) == score(metric, other, other) == 1.0


@pytest.mark.parametrize(
    ("output", "reference", "expected"),
    [
        ("The answer is A.", "A", 1.0),
        ("A is correct", "A", 1.0),
        ("A) Paris", "A", 1.0),
        ("I choose A because", "A", 1.0),
        ("答案是A。", "A", 1.0),
        ("The answer is B.", "A", 0.0),
        ("A good one is B", "A", 0.0),
        ("banana", "A", 0.0),
        ("Grade: A+", "A", 0.0),
        ("Maybe", "B", 0.0),
        ("I know", "no", 0.0),
        ("No, it is not.", "no", 1.0),
        ("кабинет", "нет", 0.0),
        ("It is 100", "10", 0.0),
        ("It is 10.5", "10", 0.0),
        ("It is 10.", "10", 1.0),
        ("It is -5", "5", 0.0),
        ("11,000 men", "1000", 0.0),
        ("1,000 men", "1000", 1.0),
        ("共100个", "100", 1.0),
        ("I like C++.", "C++", 1.0),
        ("I like C++.", "C", 0.0),
        ("It is +.", "+", 1.0),
        ("C++", "+", 0.0),
        ("Hepatitis A is viral", "Hepatitis A", 1.0),
        ("Hepatitis B", "Hepatitis A", 0.0),
        ("Katzen", "Katze", 1.0),
        ("", "A", 0.0),
    ],
)
def test_a_short_reference_or_a_number_is_contained_only_where_it_stands_by_itself(
    output: str, reference: str, expected: float
) -> None:
    assert score("contains", output, reference) == expected


@pytest.mark.parametrize(
    ("choices", "outputs"),
    [
        (["A", "B", "C", "D"], ["A", "(a)", "**A**", "A."]),
        (["+", "-"], ["+", " + "]),
        (["-1", "1"], ["-1", "\u22121."]),
        (["是", "否"], ["是", "是。", "「是」"]),
        (["نعم", "لا"], ["نعم", "نعم؟"]),
    ],
)
def test_choices_may_be_letters_signs_and_words_of_any_script(choices: list[str], outputs: list[str]) -> None:
    for metric in ("choice_accuracy", "macro_f1"):
        settings = {"metric": metric, "choices": choices}
        assert [score(settings, output, choices[0]) for output in outputs] == [1.0] * len(outputs)
        assert score(settings, choices[1], choices[0]) == score(settings, "", choices[0]) == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7,5", 7.5),
        ("99.999,00", 99_999),
        ("12,50 EUR", 12.5),
        ("1,234.5", 1234.5),
        ("1,234", 1234),
        ("1.234", 1.234),
        ("0,234", 0.234),
        ("1234,567", 1234.567),
        ("1,234,567", 1_234_567),
        ("1.234.567", 1_234_567),
        ("12,34,567", 1_234_567),
        ("1\u00a0234\u202f567,5", 1_234_567.5),
        ("1 234", 1234),
        ("1'234.5", 1234.5),
        ("1\u2019234", 1234),
        ("-$5", -5),
        ("\u20ac -5", -5),
        ("\u22125", -5),
        ("(5)", 5),
        ("pages 3\u20134", 4),
        ("50 %", 50),
        ("1.5 \u00d7 10^3", 1500),
        ("3\u00d710\u2078", 3e8),
        ("3/4", 0.75),
        ("1 3/4", 1.75),
        ("2\u00bd", 2.5),
        ("on 3/4/2020", 2020),
        ("1.5 million", 1_500_000),
        ("1,2,3", 3),
        ("\u0664\u0662\u066b\u0665", 42.5),
        ("\u0661\u066c\u0662\u0663\u0664", 1234),
        ("\uff11\uff12\uff0e\uff15", 12.5),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, number: float) -> None:
    exactly = {"metric": "numeric_closeness", "relative": 1e-12}
    assert score(exactly, f"It is {text}", number) == 1.0
    assert score(exactly, text, number + 1) == 0.0
    assert score(exactly, str(number), text) == 1.0


def test_what_a_number_leaves_open_is_a_setting() -> None:
    comma = {"metric": "numeric_closeness", "decimal": ","}
    assert score(comma, "1,234", 1.234) == score(comma, "1.234", "1234") == score(comma, "7.5", 7.5) == 1.0
    assert score(comma, "1,234", 1234) == 0.0
    share = {"metric": "numeric_closeness", "percent": "fraction"}
    assert (
        score(share, "50%", 0.5) == score(share, "12,5 percent", 0.125) == score(share, "50 %", "50%") == 1.0
    )
    assert score(share, "50%", 50) == score("numeric_closeness", "50%", 0.5) == 0.0


@pytest.mark.parametrize("text", ["none", "9" * 5000, "1e999", "."])
def test_what_is_no_number_that_can_be_held_is_wrong_in_an_output_and_refused_as_a_reference(
    text: str,
) -> None:
    assert score("numeric_closeness", text, 1) == 0.0
    with pytest.raises(EvaluationError, match="holds no number"):
        score("numeric_closeness", "1", text)


def score(metric: str | dict[str, Any], output: str, *references: Any, **row: Any) -> float:
    """The score of one output by one metric."""
    return read_metrics([metric])[0].measure(Example(output, list(references), row))[0]


@pytest.mark.parametrize(
    ("metric", "output", "reference", "expected"),
    [
        ("exact_match", "The cat", "cat", 1.0),
        ("exact_match", "cats", "cat", 0.0),
        ("exact_match", "the", "", 0.0),
        ("token_f1", "the cat sat", "a cat sat down", 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),
        ("token_f1", "b b c", "b c c", 2 * 2 / 6),
        ("token_f1", "x", "y", 0.0),
        ("token_f1", "the", "an", 0.0),
        ("token_f1", "the", "x", 0.0),
        ("contains", "It was Dallas, surely", "dallas", 1.0),
        ("contains", "東京です", "東京", 1.0),
        ("contains", "Dal las", "dallas", 0.0),
        ("contains", "anything", "the", 0.0),
        ("contains", "", "the", 0.0),
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
        '```json\n{"n": 1}\n```': 1.0,
        'Here it is: {"n": 1}. Anything else?': 1.0,
        '<think>{"n": "x"}?</think>{"n": 1}': 1.0,
        "[" * 100_000: 0.0,
        '{"n": ' + "9" * 5000 + "}": 0.0,
    }
    assert {output: score(metric, output) for output in given} == given
    for schema, expected in ((True, 1.0), (False, 0.0)):
        assert score({"metric": "json_schema", "schema": schema}, "{}") == expected
    for schema, message in (({"type": "nothing"}, "is no JSON schema"), ({"$ref": "#/x"}, "nothing at the ")):
        with pytest.raises(EvaluationError, match=f"^json_schema.schema:? .*{message}"):
            score({"metric": "json_schema", "schema": schema}, "{}")


def test_json_that_cannot_be_checked_scores_0_and_ends_nothing() -> None:
    nested = {"metric": "json_schema", "schema": {"items": {"$ref": "#"}}}
    assert score(nested, "[" * 700 + "]" * 700) == 0.0
    multiple = {"metric": "json_schema", "schema": {"multipleOf": 0.5}}
    assert score(multiple, "9" * 400) == 0.0


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
