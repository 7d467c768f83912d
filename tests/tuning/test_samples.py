"""Rows to samples, and what can't be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.datasets import DatasetError, write_rows
from airflow_provider_gradient.tuning import SampleError, build_samples, check_samples, training_set

TEMPLATES = {"prompt_template": "### {q}\n", "completion_template": "{a}"}


def test_a_row_becomes_a_sample_whose_prompt_is_context() -> None:
    rows = [{"q": "Who?", "a": "Dallas", "weight": 2}]
    assert list(build_samples(rows, **TEMPLATES)) == [
        {"inputs": [{"value": "### Who?\n", "trainable": False}, {"value": "Dallas"}]}
    ]
    assert list(build_samples(rows, **TEMPLATES, train_on_prompt=True, multiplier_column="weight")) == [
        {"inputs": "### Who?\nDallas", "fineTuningParameters": {"multiplier": 2}}
    ]


def test_values_in_a_sample_are_json() -> None:
    row = {"tags": ["a", None], "ok": True, "share": 0.5}
    templates = {"prompt_template": "{tags} {share}", "completion_template": "{ok}"}
    assert list(build_samples([row], **templates)) == [
        {"inputs": [{"value": '["a", null] 0.5', "trainable": False}, {"value": "true"}]}
    ]


def test_what_is_built_passes_the_check() -> None:
    rows = [{"q": "Who?", "a": "Dallas", "weight": 0.5}]
    built = list(build_samples(rows, **TEMPLATES, multiplier_column="weight"))
    assert [sample.to_wire() for sample in check_samples(built)] == built


def test_ready_made_samples_may_have_their_weight_and_group_in_keys_of_their_own() -> None:
    samples = [
        {"inputs": "a", "w": 2.0, "fact": "x"},
        {"inputs": [{"value": "b"}], "w": 1, "fact": "y", "fineTuningParameters": None},
        {"inputs": "c", "w": 3, "fact": "x"},
    ]
    data = training_set(samples, multiplier_column="w", group_column="fact")
    assert [sample.to_wire() for sample in data.samples] == [
        {"inputs": "a", "fineTuningParameters": {"multiplier": 2.0}},
        {"inputs": [{"value": "b"}], "fineTuningParameters": {"multiplier": 1.0}},
        {"inputs": "c", "fineTuningParameters": {"multiplier": 3.0}},
    ]
    assert data.groups == ((0, 2), (1,))


BAD_SAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "response": (
        {"inputs": "Who?", "response": "Dallas"},
        "unknown key 'response'; a sample's text is",
    ),
    "prompt": ({"prompt": "Who?", "completion": "D"}, "unknown keys 'prompt', 'completion'; a sample's text"),
    "misspelt": ({"input": "Who?"}, "unknown key 'input'; a sample has inputs and fineTuningParameters"),
    "empty text": ({"inputs": ""}, "inputs: String should have at least 1 character"),
    "no segments": ({"inputs": []}, "inputs: List should have at least 1 item"),
    "empty segment": ({"inputs": [{"value": "a"}, {"value": ""}]}, "inputs[1].value: String should have"),
    "misspelt segment": ({"inputs": [{"value": "a", "trainble": False}]}, "inputs[0].trainble: Extra inputs"),
    "no inputs": ({"fineTuningParameters": None}, "inputs: Field required"),
    "masked": ({"inputs": [{"value": "a", "trainable": False}]}, "nothing is trainable"),
    "blank": ({"inputs": [{"value": "a", "trainable": False}, {"value": " \n"}]}, "to learn is empty"),
    "weight 0": (
        {"inputs": "a", "fineTuningParameters": {"multiplier": 0}},
        "multiplier: Input",
    ),
    "weight text": (
        {"inputs": "a", "fineTuningParameters": {"multiplier": "2"}},
        "multiplier: Input",
    ),
}


@pytest.mark.parametrize(("sample", "message"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_a_bad_sample_is_refused_with_its_row(tmp_path: Path, sample: Any, message: str) -> None:
    write_rows(tmp_path / "samples.jsonl", [{"inputs": "good"}, sample])
    with pytest.raises(SampleError) as raised:
        training_set(tmp_path / "samples.jsonl")
    assert str(raised.value).startswith(f"{tmp_path / 'samples.jsonl'}, row 1 (line 2)")
    assert message in str(raised.value)


@pytest.mark.parametrize("weight", [0, -1, "2", True, float("inf"), [1]])
def test_a_weight_that_is_no_number_above_zero_is_refused_with_its_row(weight: Any) -> None:
    rows = [{"q": "a", "a": "b", "w": 1}, {"q": "a", "a": "b", "w": weight}]
    for arguments in (TEMPLATES, {}):
        samples = rows if arguments else [{"inputs": "a", "w": row["w"]} for row in rows]
        with pytest.raises(SampleError, match=r"row 1 of the inline dataset.*ultiplier"):
            training_set(samples, multiplier_column="w", **arguments)


def test_two_weights_of_one_sample_are_refused() -> None:
    sample = {"inputs": "a", "w": 1, "fineTuningParameters": {"multiplier": 2}}
    with pytest.raises(SampleError, match="row 0 of the inline dataset has a multiplier of its own"):
        training_set([sample], multiplier_column="w")


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (
            {"q": "a"},
            DatasetError,
            "row 0 of the inline dataset has no column 'a', which completion",
        ),
        ({"q": "a", "a": None}, DatasetError, "column 'a', which completion_template names, is null"),
        ({"q": "a", "a": " "}, SampleError, "row 0 of the inline dataset: the completion is empty"),
    ],
)
def test_a_row_that_gives_no_sample_is_refused(row: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(build_samples([row], prompt_template="{q}", completion_template="{a}"))


def test_templates_come_in_pairs_and_ready_made_samples_mask_themselves() -> None:
    with pytest.raises(InvalidRequestError, match="together"):
        training_set([{"q": "a"}], prompt_template="{q}")
    with pytest.raises(InvalidRequestError, match="train_on_prompt"):
        training_set([{"inputs": "a"}], train_on_prompt=True)


def test_no_samples_are_an_error() -> None:
    with pytest.raises(DatasetError, match="has no rows"):
        training_set([])
