"""What a model's directory decides: how long texts may be, how a query is asked, which layers are tuned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from airflow_provider_gradient.api import CompleteRequest, UnprocessableContentError
from airflow_provider_gradient.server.lora_targets import lora_targets, weights_left_out
from airflow_provider_gradient.server.model_trial import try_model
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.settings import StartError
from tests.server.conftest import CONTEXT, SMALL, VOCABULARY, make_tokenizer, save_model


@pytest.fixture(scope="module")
def multimodal_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads pictures too, as Gemma 3 does from 4B on: its text model has a configuration of its
    own."""
    torch.manual_seed(8)
    config = Gemma3Config(
        text_config={**SMALL, "pad_token_id": 0, "head_dim": 12},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "max_position_embeddings": 7,
        },
        mm_tokens_per_image=4,
        image_token_index=2,
        boi_token_index=3,
        eoi_token_index=4,
    )
    directory = tmp_path_factory.mktemp("models") / "multimodal"
    return save_model(directory, Gemma3ForConditionalGeneration(config))


def test_a_multimodal_model_reads_as_much_as_its_text_model(multimodal_directory: Path) -> None:
    served = ServedModel.load("it", multimodal_directory)
    assert served.context_length == CONTEXT
    with pytest.raises(UnprocessableContentError, match=f"this model reads at most {CONTEXT}"):
        served.prompt(CompleteRequest(query="x" * 1000, auto_template=False))


def test_only_the_text_model_of_a_multimodal_one_is_tuned(multimodal_directory: Path) -> None:
    served = ServedModel.load("it", multimodal_directory)
    assert any("vision_tower" in name for name, _ in served.model.named_modules())
    targets = lora_targets(served.model)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert sorted({name.rpartition(".")[2] for name in targets}) == sorted(parts)
    assert len(targets) == 2 * len(parts)
    assert all(name.startswith("model.language_model.layers.") for name in targets)
    assert weights_left_out(served.model, targets) == {}
    assert try_model(served.model, served.tokenizer, served.config).tuning


@pytest.mark.parametrize(("written", "read"), [(96, 96), (int(1e30), None), (-1, None)])
def test_a_context_length_is_found_by_its_other_names_and_absurd_ones_are_none(
    written: int, read: int | None, tmp_path: Path
) -> None:
    config = MptConfig(d_model=48, n_heads=4, n_layers=1, vocab_size=VOCABULARY, max_seq_len=64)
    directory = save_model(tmp_path / "mpt", MptForCausalLM(config))
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"max_seq_len": written}))
    assert ServedModel.load("mpt", directory).context_length == read


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"chat_template.jinja": "{{ messages[0].content | shout }}"},
            "its tokenizer's chat template fails on the one message of a user (No filter named 'shout'",
        ),
        (
            {"chat_template.jinja": "{{ raise_exception('a system message, please') }}"},
            "chat template fails on the one message of a user (a system message, please); mend it, or write",
        ),
        (
            {"chat_template.jinja": "{% for m in messages %}{{ m.text }}{% endfor %}>"},
            "its tokenizer's chat template loses the query: it makes '>' of 'Hello'",
        ),
        (
            {"gradient.json": json.dumps({"name": "n", "auto_template": "Question: {question}"})},
            "gradient.json's auto_template loses the query",
        ),
    ],
)
def test_a_template_that_no_query_gets_through_is_refused_at_the_start(
    files: dict[str, str], said: str, llama_directory: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(llama_directory, tmp_path / "model")
    for name, text in files.items():
        (directory / name).write_text(text)
    with pytest.raises(StartError) as refusal:
        ServedModel.load("mine", directory)
    assert f"base model 'mine' in {directory} can't be loaded" in str(refusal.value)
    assert said in str(refusal.value)


def test_a_template_with_tokens_that_the_model_lacks_is_refused_at_the_start(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|user|>"], special_tokens=True)
    tokenizer.chat_template = "<|user|>{{ messages[0].content }}"
    config = LlamaConfig(**{**SMALL, "vocab_size": len(tokenizer) - 1})
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    last = len(tokenizer) - 1
    with pytest.raises(StartError, match=rf"'<\|user\|>' of a query, token {last}; the model has {last} "):
        ServedModel.load("mine", tmp_path)


def test_weights_without_an_output_layer_are_refused_at_the_start(bert_directory: Path) -> None:
    with pytest.raises(StartError, match=r"of the weights of BertLMHeadModel are missing, cls\.predictions"):
        ServedModel.load("bert", bert_directory)
