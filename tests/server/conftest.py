"""Random models of two architectures, made here, and a server of its own that serves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CONTEXT = 128
VOCABULARY = 320

torch.set_num_threads(1)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that opens every text with ``<s>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the red hen and the green hen said no to the bread"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def save_model(directory: Path, model: Any) -> Path:
    """A Hugging Face model directory with the model and a tokenizer."""
    make_tokenizer().save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_KIN: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3)),
}
"""Models with Llama's modules. The last one does more with them than Llama."""


@pytest.fixture(scope="session")
def model_directory(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    """Directories of small random models by name: ``llama``, ``gpt2`` and those of :data:`_KIN`."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in _KIN:
            return request.getfixturevalue(f"{name}_directory")  # type: ignore[no-any-return]
        if name not in made:
            torch.manual_seed(4)
            model = _KIN[name]()
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias") or "norm" in parameter_name:
                    torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
            made[name] = save_model(tmp_path_factory.mktemp("models") / name, model)
        return made[name]

    return make


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return save_model(tmp_path_factory.mktemp("models") / "llama", LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def gpt2_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=CONTEXT,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return save_model(tmp_path_factory.mktemp("models") / "gpt2", GPT2LMHeadModel(config))


@pytest.fixture(scope="session")
def bert_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of 32 dimensions that reads 128 tokens."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        pad_token_id=1,
    )
    return save_model(tmp_path_factory.mktemp("models") / "bert", BertModel(config))


@pytest.fixture(scope="session")
def fixed_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer is all bias: no adapter can change an answer, so it can't be tuned."""
    torch.manual_seed(5)
    model = PhiForCausalLM(PhiConfig(**SMALL))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.normal_()
    return save_model(tmp_path_factory.mktemp("models") / "fixed", model)


@pytest.fixture(scope="session")
def random_models(llama_directory: Path, gpt2_directory: Path) -> tuple[str, ...]:
    """The options by which a server serves both, ``llama`` with a second slug."""
    return (
        f"--base-model=llama={llama_directory}",
        f"--base-model=gpt2={gpt2_directory}",
        "--alias=llama2-7b-chat=llama",
    )


class Caller:
    """Plain HTTP calls to a server, as any client of the API makes them."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, headers=server.headers, timeout=300)

    def models(self, capability: str = "any") -> list[dict[str, Any]]:
        """The base models that have a capability."""
        answer = self._answer(self.http.get("/models", params={"onlyBase": "true", "capability": capability}))
        return list(answer["models"])

    def base_id(self, slug: str = "llama") -> str:
        return next(model["id"] for model in self.models() if model["slug"] == slug)

    def create(self, slug: str = "llama", *, name: str = "test", **headers: str) -> str:
        """A new adapter that learns so fast that one call changes its answers."""
        body = {
            "model": {"baseModelId": self.base_id(slug), "name": name},
            "initialHyperparameters": {"trainingArguments": {"learningRate": 0.05}},
        }
        return self._answer(self.http.post("/models", json=body, headers=headers))["id"]

    def complete(self, model_id: str, query: str, **fields: Any) -> dict[str, Any]:
        return self._answer(self.http.post(f"/models/{model_id}/complete", json={"query": query, **fields}))

    def fine_tune(self, model_id: str, *texts: str, key: str | None = None) -> dict[str, Any]:
        return self._answer(
            self.http.post(
                f"/models/{model_id}/fine-tune",
                json={"samples": [{"inputs": text} for text in texts]},
                headers={"Idempotency-Key": key} if key else {},
            )
        )

    @staticmethod
    def _answer(response: httpx.Response) -> dict[str, Any]:
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@pytest.fixture(scope="session")
def make_caller() -> Iterator[Callable[[Any], Caller]]:
    """Makes callers of a server."""
    callers: list[Caller] = []

    def make(server: Any) -> Caller:
        callers.append(Caller(server))
        return callers[-1]

    yield make
    for caller in callers:
        caller.http.close()


@pytest.fixture(scope="session")
def random_server(
    tmp_path_factory: pytest.TempPathFactory,
    server_process: Any,
    random_models: tuple[str, ...],
    fixed_directory: Path,
) -> Iterator[Any]:
    """A server of the random models, which train in no time, and of ``fixed``, which can't be trained;
    shared, so make adapters of your own on it."""
    server = server_process(
        tmp_path_factory.mktemp("random") / "data", *random_models, f"--base-model=fixed={fixed_directory}"
    )
    yield server
    assert server.stop() == 0, server.log()
    assert "Traceback" not in server.log(), server.log()


@pytest.fixture
def caller(random_server: Any, make_caller: Callable[[Any], Caller]) -> Caller:
    """A caller of the server of random models."""
    return make_caller(random_server)
