"""What is bad beside other samples, and how rows that give none are told."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import airflow_provider_gradient.server as server
from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import write_rows
from airflow_provider_gradient.tuning import SampleError, TrainingSet, plan_training, training_set
from airflow_provider_gradient.tuning.leakage import KeptApart, normalized_words

TEMPLATES = {"prompt_template": "Question: {q}\n\nAnswer:", "completion_template": " {a}"}
TOKENIZER = Path(server.__file__).parent / "tiny_model"


def kept(rows: Any, **arguments: Any) -> TrainingSet:
    return training_set(rows, on_bad_sample="skip", **(TEMPLATES | arguments))


def rows_of(*questions: str) -> list[dict[str, str]]:
    return [{"q": question, "a": "x"} for question in questions]


def test_all_bad_rows_are_counted_and_the_first_are_named() -> None:
    rows = [*rows_of("one", " ", "one", "two"), {"q": "no answer"}, *rows_of(*["one"] * 30)]
    with pytest.raises(SampleError) as raised:
        training_set(rows, **TEMPLATES)
    report = raised.value.report
    assert report is not None
    assert (report.rows, report.kept) == (35, 3)
    assert report.left_out == {"duplicate": 31, "column": 1}
    assert [problem.row for problem in report.problems][:3] == [2, 4, 5]
    assert len(report.problems) == 20
    assert "In all 32 of 35 rows can't be trained on (31 duplicate, 1 column)" in str(raised.value)
    assert "and 27 more" in str(raised.value)
    data = kept(rows)
    assert data.report == report
    assert [data.samples.rows[index] for index in range(3)] == [0, 1, 3]


def test_skipped_rows_leave_groups_and_order_as_they_would_be_without_them() -> None:
    rows = [
        {"q": "one", "a": "x", "fact": 1, "level": 2},
        {"q": "one", "a": "x", "fact": 1, "level": 2},
        {"q": "two", "a": "x", "fact": 2, "level": None},
        {"q": "three", "a": "x", "fact": 1, "level": 1},
    ]
    data = kept(rows, group_column="fact", curriculum_column="level")
    assert data.report.left_out == {"duplicate": 1, "column": 1}
    assert data.groups == ((0, 1),)
    assert data.ranks is not None
    assert list(data.ranks) == [2.0, 1.0]


def test_if_no_row_is_left_the_run_fails_whatever_was_chosen() -> None:
    with pytest.raises(SampleError, match="has no column 'q'"):
        kept([{"question": "one"}])


def test_the_same_text_with_another_weight_is_the_same_sample() -> None:
    samples = [{"inputs": "a"}, {"inputs": "a", "fineTuningParameters": {"multiplier": 2}}]
    with pytest.raises(SampleError, match="the same sample as row 0; to count it more, give it a multi"):
        training_set(samples)


LEAKS = {
    "as it is": "What is Paris?",
    "case and white space": "what  IS\nparis",
    "punctuation": "“What — is Paris!”",
    "width and ligatures": "\uff37\uff48\uff41\uff54 is Paris\uff1f",
}


@pytest.mark.parametrize("question", LEAKS.values(), ids=LEAKS)
def test_a_prompt_that_also_stands_in_the_evaluation_set_is_found(question: str) -> None:
    evaluation = [{"q": "What is Paris?", "a": "anything"}, {"q": "Where is Rome?", "a": ""}]
    rows = rows_of("Who is Paris?", question, "12 - 7?")
    with pytest.raises(SampleError, match="row 1 of the inline dataset: its prompt also stands") as raised:
        training_set(rows, evaluation_dataset=evaluation, **TEMPLATES)
    assert raised.value.reason == "leakage"
    assert kept(rows, evaluation_dataset=evaluation).report.left_out == {"leakage": 1}


def test_it_is_found_whatever_words_stand_around_the_question(tmp_path: Path) -> None:
    rows = rows_of("What is Paris?", "12 / 7?")
    write_rows(tmp_path / "evaluation.jsonl", [{"text": "what is paris"}, {"text": "12 - 7?"}])
    for how in ({"evaluation_column": "text"}, {"evaluation_template": "### Instruction: {text}"}):
        data = kept(rows, evaluation_dataset=tmp_path / "evaluation.jsonl", **how)
        assert [problem.row for problem in data.report.problems] == [0]


def test_it_is_found_in_conversations_and_ready_made_samples() -> None:
    talk = [{"role": "user", "content": "What is Paris?"}, {"role": "assistant", "content": "A city."}]
    chats = [{"talk": talk}, {"talk": [{"role": "user", "content": "Hello"}, talk[1]]}]
    evaluation = {"evaluation_dataset": [{"q": "what is paris"}], "evaluation_column": "q"}
    arguments = {"messages_column": "talk", "chat_template": "chatml", "on_bad_sample": "skip"}
    assert training_set(chats, **arguments, **evaluation).report.left_out == {"leakage": 1}
    samples = [
        {"inputs": "What is Paris? A city."},
        {"inputs": [{"value": "What is Paris?", "trainable": False}, {"value": " A city."}]},
        {"inputs": "What is Rome? A city."},
    ]
    data = training_set(samples, on_bad_sample="skip", **evaluation)
    assert [problem.row for problem in data.report.problems] == [0, 1]


def test_rehearsal_and_validation_are_kept_apart_too() -> None:
    evaluation = {"evaluation_dataset": rows_of("What is Paris?")}
    with pytest.raises(SampleError, match=r"^rehearsal_samples: row 0 .* also stands"):
        training_set(rows_of("one"), rehearsal_samples=rows_of("what is paris"), **TEMPLATES, **evaluation)
    with pytest.raises(SampleError, match="also stands"):
        training_set(rows_of("one"), validation_dataset=rows_of("One?"), **TEMPLATES)


@given(text=st.text(), other=st.text())
def test_texts_are_alike_exactly_if_their_words_are(text: str, other: str) -> None:
    apart = KeptApart()
    apart.add(text)
    assert apart.has(text)
    assert apart.has(other) == (normalized_words(text) == normalized_words(other))


@given(words=st.lists(st.text("abcé", min_size=1), min_size=1, max_size=8), more=st.text("abc. "))
def test_a_text_that_goes_on_after_the_words_is_found_and_one_that_breaks_off_is_not(
    words: list[str], more: str
) -> None:
    apart = KeptApart()
    apart.add(" ".join(words))
    assert apart.begins("-".join(words) + f"? {more}")
    assert not apart.begins(" ".join(words[:-1]))
    assert not apart.begins(" ".join([*words[:-1], f"{words[-1]}x", more]))


def test_overlong_samples_are_refused_by_characters_or_tokens() -> None:
    rows = rows_of("short", "long " * 200)
    for limit in (
        {"max_sample_characters": 100},
        {"max_sample_tokens": 50, "tokenizer": TOKENIZER},
        {"max_sample_tokens": 50, "tokenizer": TOKENIZER / "tokenizer.json"},
        {"max_sample_tokens": 50, "tokenizer": lambda text: len(text.split())},
    ):
        data = kept(rows, **limit)
        assert data.report.left_out == {"overlong": 1}
        assert "at most" in data.report.problems[0].message
    with pytest.raises(InvalidRequestError, match="max_sample_tokens needs a tokenizer"):
        kept(rows, max_sample_tokens=50)
    with pytest.raises(InvalidRequestError, match=r"tokenizer: .* can't be read as one"):
        kept(rows, tokenizer=Path(server.__file__))


def test_a_share_is_held_out_by_whole_groups_and_not_trained_on() -> None:
    rows = [
        {"q": f"{fact} {wording}", "a": str(fact), "fact": fact} for fact in range(10) for wording in "ab"
    ]
    data = kept(rows, group_column="fact", validation_share=0.3, seed=1)
    asked = {row["prompt"] for row in data.held_out}
    assert len(asked) == 6
    assert {row["reference"] for row in data.held_out} == {prompt.split()[1] for prompt in asked}
    trained = [data.samples[index].segments[0].value for group in data.groups for index in group]
    assert len(trained) == 14
    assert not asked & set(trained)
    again = kept(rows, group_column="fact", validation_share=0.3, seed=1)
    assert again.fingerprint == data.fingerprint
    assert kept(rows, group_column="fact", validation_share=0.3, seed=2).fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"validation_share": 1.0}, InvalidRequestError, "validation_share: between 0 and 1"),
        ({"validation_share": 0.5, "validation_dataset": rows_of("b")}, InvalidRequestError, "not both"),
        ({"on_bad_sample": "hope"}, InvalidRequestError, "on_bad_sample: one of"),
        ({"evaluation_column": "q"}, InvalidRequestError, "need an evaluation_dataset"),
        (
            {"evaluation_dataset": rows_of("b"), "evaluation_column": "q", "evaluation_template": "{q}"},
            InvalidRequestError,
            "not both",
        ),
    ],
)
def test_parameters_of_the_checks_that_make_no_sense_are_refused(
    arguments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        training_set(rows_of("one", "two"), **(TEMPLATES | arguments))


def test_a_sample_without_a_mask_can_not_be_asked_about() -> None:
    with pytest.raises(SampleError, match="prompt and answer must be told apart"):
        training_set([{"inputs": "a"}, {"inputs": "b"}], validation_share=0.5)


def test_memory_holds_places_and_no_texts(tmp_path: Path) -> None:
    count, text = 4000, "a long answer " * 50
    write_rows(tmp_path / "rows.jsonl", ({"q": f"question {n}", "a": text} for n in range(count)))
    kept(rows_of("what is imported once"))
    tracemalloc.start()
    data = kept(tmp_path / "rows.jsonl")
    loaded, most = tracemalloc.get_traced_memory()
    plan = plan_training(data.groups, epochs=3, batch_size=32, seed=0)
    planned, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan.calls) == 375
    assert loaded / count < 60
    assert most / count < 250
    assert (planned - loaded) / count < 100
