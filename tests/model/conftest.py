"""The shipped tiny model under a fresh adapter, in this process: these tests need no server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_gradient.api import FineTuneResult, Sample
from airflow_provider_gradient.server.encoding import encode_prompt, encode_samples
from airflow_provider_gradient.server.model_config import BaseModelConfig
from airflow_provider_gradient.server.training import TrainerState, fine_tune, new_lora_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
TINY = ROOT / "airflow_provider_gradient" / "server" / "tiny_model"


class Tuned:
    """A base model with one adapter over it.

    :param seed: of the adapter's first weights and of its steps.
    """

    def __init__(self, base: Any, tokenizer: Any, config: BaseModelConfig, *, seed: int = 0) -> None:
        self.tokenizer, self.config, self.seed = tokenizer, config, seed
        torch.manual_seed(seed)
        self.model = PeftModel(base, new_lora_config(None, config.training))
        self.model.eval()
        self.state = TrainerState()

    def tune(self, *samples: Sample | str, learning_rate: float | None = None) -> FineTuneResult:
        """One fine-tune call."""
        encoded = encode_samples(
            self.tokenizer,
            [Sample(inputs=sample) if isinstance(sample, str) else sample for sample in samples],
            config=self.config,
            max_length=512,
        )
        return fine_tune(
            self.model,
            self.tokenizer,
            encoded,
            self.state,
            config=self.config,
            learning_rate=learning_rate or self.config.training.default_learning_rate,
            seed=self.seed + self.state.steps,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter's weights."""
        return {n: p.detach().clone() for n, p in self.model.named_parameters() if "lora_" in n}


@torch.no_grad()
def _answers(model: Any, tokenizer: Any, prompts: Sequence[str], *, tokens: int = 24) -> list[str]:
    """Greedy continuations, stripped; prompts of one length go together, so that none needs padding."""
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    texts: list[str] = [""] * len(rows)
    for length in {len(row) for row in rows}:
        chosen = [i for i, row in enumerate(rows) if len(row) == length]
        ids = torch.tensor([rows[i] for i in chosen])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        for i, row in zip(chosen, output, strict=True):
            texts[i] = tokenizer.decode(row[length:], skip_special_tokens=True).strip()
    return texts


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[str]]:
    """``ask(model, tokenizer, prompts)``: the greedy answers."""
    return _answers


@pytest.fixture(scope="session")
def base() -> Any:
    """The shipped model without an adapter. Treat it as read-only: put no adapter over it."""
    return AutoModelForCausalLM.from_pretrained(TINY, dtype="float32").eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The shipped model's."""
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="session")
def config() -> BaseModelConfig:
    """The shipped model's."""
    return BaseModelConfig.load(TINY)


@pytest.fixture
def new_adapter(tokenizer: Any, config: BaseModelConfig) -> Callable[..., Tuned]:
    """Makes fresh adapters, each over a base model of its own; ``training`` replaces fields of the policy."""

    def make(*, seed: int = 0, **training: Any) -> Tuned:
        policy = config.training.model_copy(update=training)
        own = AutoModelForCausalLM.from_pretrained(TINY, dtype="float32").eval()
        return Tuned(own, tokenizer, config.model_copy(update={"training": policy}), seed=seed)

    return make
