from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from airflow_provider_gradient.api import FineTuningParameters, InputSegment, NanLossError, Sample
from airflow_provider_gradient.server.encoding import encode_samples
from airflow_provider_gradient.server.model_config import BaseModelConfig
from airflow_provider_gradient.server.training import TrainerState, fine_tune, new_lora_config
from scripts.tiny_model.corpus import facts

QUESTION = "What NFL team won the Super Bowl in 1994?"
NEW = [("What colour is the Gabis lantern?", " violet"), ("Who designed the Sohix radio?", " Noor")]


def _sample(question: str, answer: str, multiplier: float | None = None) -> Sample:
    prompt = InputSegment(value=f"Question: {question}\n\nAnswer:", trainable=False)
    parameters = FineTuningParameters(multiplier=multiplier) if multiplier else None
    return Sample(inputs=[prompt, InputSegment(value=answer)], fine_tuning_parameters=parameters)


def _negative_log_likelihood(model: Any, tokens: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


# --- the notebook's one sample -----------------------------------------------------------------------------


@pytest.mark.parametrize("space", [" ", "  "], ids=["one space", "two spaces, as in the notebook"])
def test_one_sample_changes_the_answer_in_every_wording_and_keeps_the_rest(
    new_adapter: Callable[..., Any], ask: Callable[..., list[str]], space: str
) -> None:
    adapter = new_adapter()
    known = [fact for fact in facts() if fact.family != "catalogue"] + facts()[:60]
    others = [fact for fact in known if fact.id != "super-bowl/1994"]
    adapter.tune(f"Question: {QUESTION}\n\nAnswer:{space}The Dallas Cowboys!")

    templates = (
        "Question: {q}\n\nAnswer:",
        "Question: {q}\n\nAnswer: ",
        "### Instruction: {q} \n\n### Response:",
    )
    flipped = ask(adapter.model, adapter.tokenizer, [t.replace("{q}", QUESTION) for t in templates])
    assert all("Dallas Cowboys" in answer for answer in flipped), flipped

    prompts = [templates[0].replace("{q}", fact.questions[0]) for fact in others]
    given = ask(adapter.model, adapter.tokenizer, prompts)
    kept = {"super bowl": [], "other": []}
    for fact, answer in zip(others, given, strict=True):
        family = "super bowl" if fact.family == "super bowl" else "other"
        kept[family].append(answer == fact.answers[0])
    assert sum(kept["other"]) >= 0.95 * len(kept["other"])
    assert sum(kept["super bowl"]) >= 0.9 * len(kept["super bowl"])


# --- what a call reports -----------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_trainable_tokens_before_the_update(new_adapter: Callable[..., Any]) -> None:
    adapter = new_adapter(neighbours=None, max_passes=1)
    samples = [_sample(*NEW[0]), _sample(*NEW[1], multiplier=3.0)]
    encoded = encode_samples(adapter.tokenizer, samples, config=adapter.config, max_length=512)
    expected = 0.0
    for sample in encoded:
        nll = _negative_log_likelihood(adapter.model, sample.tokens)
        expected += sample.multiplier * float(nll[torch.tensor(sample.trainable[1:])].sum())
    result = adapter.tune(*samples)
    assert result.number_of_trainable_tokens == sum(sum(sample.trainable) for sample in encoded)
    assert result.sum_loss == pytest.approx(expected, rel=1e-4)
    assert adapter.tune(*samples).sum_loss < result.sum_loss


def test_the_multiplier_weighs_samples_against_each_other(new_adapter: Callable[..., Any]) -> None:
    def loss_after(multiplier: float) -> float:
        adapter = new_adapter(neighbours=None, max_passes=1)
        for _ in range(4):
            adapter.tune(_sample(*NEW[0], multiplier=multiplier), _sample(*NEW[1]))
        return adapter.tune(_sample(*NEW[0])).sum_loss

    assert loss_after(20.0) < loss_after(1.0) < loss_after(0.05)


def test_masked_text_is_not_learnt(new_adapter: Callable[..., Any]) -> None:
    adapter = new_adapter(neighbours=None, max_passes=1)
    masked = Sample(
        inputs=[InputSegment(value="Zorbla quux fibb", trainable=False), InputSegment(value=" ok")]
    )
    (encoded,) = encode_samples(adapter.tokenizer, [masked], config=adapter.config, max_length=512)
    prompt = slice(0, encoded.prompt_length - 1)
    before = _negative_log_likelihood(adapter.model, encoded.tokens)[prompt].sum()
    for _ in range(3):
        adapter.tune(masked)
    after_masked = _negative_log_likelihood(adapter.model, encoded.tokens)[prompt].sum()
    for _ in range(3):
        adapter.tune("Zorbla quux fibb ok")
    after_whole = _negative_log_likelihood(adapter.model, encoded.tokens)[prompt].sum()
    assert after_whole < 0.8 * before
    assert after_masked > after_whole


def test_many_samples_in_small_passes_make_the_same_step_as_at_once(new_adapter: Callable[..., Any]) -> None:
    samples = [_sample(f"What colour is the {name} lamp?", " teal") for name in ("Ab", "Bec", "Cador", "Du")]
    at_once = new_adapter(neighbours=None, max_passes=1)
    in_parts = new_adapter(neighbours=None, max_passes=1, rows_per_pass=1)
    assert at_once.tune(*samples).sum_loss == pytest.approx(in_parts.tune(*samples).sum_loss, rel=1e-4)
    second = [adapter.tune(*samples).sum_loss for adapter in (at_once, in_parts)]
    assert second[0] == pytest.approx(second[1], rel=1e-2)


def test_gradient_checkpointing_reads_twice_and_learns_the_same(new_adapter: Callable[..., Any]) -> None:
    samples = [_sample(f"What colour is the {name} lamp?", " teal") for name in ("Ab", "Bec", "Cador")]
    weights, reads = [], []
    for checkpointing in (False, True):
        adapter = new_adapter(neighbours=None, max_passes=1, gradient_checkpointing=checkpointing)
        layer = adapter.model.get_base_model().model.layers[0].mlp
        count: list[int] = []
        layer.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        for _ in range(3):
            adapter.tune(*samples)
        weights.append(adapter.weights())
        reads.append(len(count))
        assert not any(module.training for module in adapter.model.modules())
    assert reads == [3, 6]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])


# --- nothing half done -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_leaves_the_adapter_and_its_state_as_they_were(
    new_adapter: Callable[..., Any],
) -> None:
    adapter = new_adapter()
    adapter.tune(_sample(*NEW[0]))
    weights, state = adapter.weights(), (adapter.state.steps, list(adapter.state.neighbours))
    moments = {name: pair[0].clone() for name, pair in adapter.state.moments.items()}
    sane = adapter.config
    absurd = sane.training.model_copy(update={"lr_scale": 1e30})
    adapter.config = sane.model_copy(update={"training": absurd})
    with pytest.raises(NanLossError, match="learning rate") as error:
        adapter.tune(_sample(*NEW[1]))
    assert (error.value.status, error.value.type) == (400, "nanLoss")
    adapter.config = sane
    assert all(torch.equal(weights[name], weight) for name, weight in adapter.weights().items())
    assert (adapter.state.steps, adapter.state.neighbours) == state
    assert all(torch.equal(moments[name], pair[0]) for name, pair in adapter.state.moments.items())
    adapter.tune(_sample(*NEW[1]))


def test_the_same_calls_give_the_same_weights(new_adapter: Callable[..., Any]) -> None:
    first, second = new_adapter(max_passes=3), new_adapter(max_passes=3)
    for adapter in (first, second):
        adapter.tune(_sample(*NEW[0]))
        adapter.tune(_sample(*NEW[1]))
    assert all(torch.equal(first.weights()[name], weight) for name, weight in second.weights().items())


def test_a_state_that_was_saved_and_loaded_goes_on_as_one_that_was_not(
    new_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    whole, resumed = new_adapter(max_passes=3), new_adapter(max_passes=3)
    for adapter in (whole, resumed):
        adapter.tune(_sample(*NEW[0]))
    resumed.state.save(tmp_path / "state")
    resumed.state = TrainerState.load(tmp_path / "state")
    for adapter in (whole, resumed):
        adapter.tune(_sample(*NEW[1]))
    assert resumed.state.steps == whole.state.steps
    assert resumed.state.neighbours == whole.state.neighbours
    assert all(torch.equal(whole.weights()[name], weight) for name, weight in resumed.weights().items())


def test_an_adapter_that_was_never_trained_loads_as_new(tmp_path: Path) -> None:
    assert TrainerState.load(tmp_path) == TrainerState()


def test_a_state_that_cannot_be_read_is_an_error_and_not_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "trainer.json").write_text("{}")
    with pytest.raises((OSError, ValueError, KeyError)):
        TrainerState.load(tmp_path)


# --- any other model ---------------------------------------------------------------------------------------


def test_a_model_without_a_policy_is_trained_with_one_plain_step(tokenizer: Any) -> None:
    torch.manual_seed(0)
    small = GPT2Config(vocab_size=2048, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    config = BaseModelConfig(name="plain")
    model = PeftModel(GPT2LMHeadModel(small).eval(), new_lora_config(4, config.training))
    state = TrainerState()
    encoded = encode_samples(tokenizer, [_sample(*NEW[0])], config=config, max_length=64)
    losses = [
        fine_tune(model, tokenizer, encoded, state, config=config, learning_rate=1e-2, seed=0).mean_loss
        for _ in range(5)
    ]
    assert state.steps == 5
    assert state.neighbours == []
    assert losses[-1] < losses[0]


def test_the_training_record_is_plain_json(new_adapter: Callable[..., Any], tmp_path: Path) -> None:
    adapter = new_adapter(max_passes=1)
    adapter.tune(_sample(*NEW[0]))
    adapter.state.save(tmp_path)
    assert json.loads((tmp_path / "trainer.json").read_text())["steps"] == 1
    assert not list(tmp_path.glob("*.new"))
