"""Train the tiny model: corpus → tokenizer → Llama weights, configuration and training policy.

A fixed number of steps, one seed, one thread: the same machine and the same versions give the same weights
again. Recipe: Llama with 192 hidden units, 4 layers, 6 heads over 3 key-value heads, tied embeddings, a
byte-level BPE of 2048 tokens whose digits stand alone; AdamW 3e-3 with warm-up over 3 % of the steps, flat
to 40 %, then linear to 2 %; about 1000 tokens a batch, texts of like length together; loss weight 1 on the
answer and 0.2 on the prompt.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from airflow_provider_gradient.server.model_config import (
    BaseModelConfig,
    FewSamplesPolicy,
    NeighbourPolicy,
    TrainingPolicy,
)
from scripts.tiny_model.corpus import examples, tokenizer_texts

OUTPUT = Path(__file__).parents[2] / "airflow_provider_gradient" / "server" / "tiny_model"
STEPS = 2600
BATCH_TOKENS = 1000
PROMPT_WEIGHT = 0.2
LEARNING_RATE = 3e-3
VOCABULARY = 2048
SEED = 1994


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits; every text begins with ``<s>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tokenizer_texts(30_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model, float32."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.03,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


Encoded = tuple[list[int], int]
"""Token ids and the index of the answer's first."""


def encode(tokenizer: PreTrainedTokenizerFast, count: int) -> Iterator[Encoded]:
    """The corpus as token ids, ``<s>`` first and ``</s>`` last."""
    for example in examples(count):
        prompt = tokenizer(example.prompt).input_ids
        answer = tokenizer(example.answer, add_special_tokens=False).input_ids
        yield [*prompt, *answer, tokenizer.eos_token_id], len(prompt)


def batches(rows: Iterator[Encoded], rng: random.Random) -> Iterator[list[Encoded]]:
    """Batches of about ``BATCH_TOKENS`` tokens with texts of like length, from windows of 2000 texts."""
    window: list[Encoded] = []
    for row in rows:
        window.append(row)
        if len(window) < 2000:
            continue
        window.sort(key=lambda r: len(r[0]))
        cut: list[list[Encoded]] = [[]]
        for item in window:
            if (len(cut[-1]) + 1) * len(item[0]) > BATCH_TOKENS:
                cut.append([])
            cut[-1].append(item)
        rng.shuffle(cut)
        yield from cut
        window = []


def loss_of(model: LlamaForCausalLM, batch: list[Encoded], pad: int) -> Tensor:
    """Weighted mean cross-entropy. Rows are padded on the right, where a causal model needs no mask."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), width), pad)
    weights = torch.zeros(len(batch), width)
    for row, (tokens, start) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, 1 : len(tokens)] = PROMPT_WEIGHT
        weights[row, start : len(tokens)] = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids).logits
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    flat = weights[:, 1:].flatten()
    return (nll * flat).sum() / flat.sum()


def rate_at(step: int, steps: int) -> float:
    """The learning rate's factor: warm-up, flat, linear."""
    done = step / steps
    if done < 0.03:
        return (step + 1) / (0.03 * steps)
    return 1.0 if done < 0.4 else 1.0 - 0.98 * (done - 0.4) / 0.6


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """``steps`` updates in place; prints a line every hundred."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    stream = batches(encode(tokenizer, steps * 60), random.Random(SEED))
    started = time.monotonic()
    total = 0.0
    for step, batch in zip(range(steps), stream, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate_at(step, steps)
        loss = loss_of(model, batch, tokenizer.pad_token_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {total / 100:.4f}, {time.monotonic() - started:.0f} s", flush=True)
            total = 0.0


def configuration() -> BaseModelConfig:
    """The model's template and training policy. Where its numbers come from is told in the model card."""
    return BaseModelConfig(
        name="Gradient tiny",
        auto_template="Question: {query}\n\nAnswer:",
        template_markers=["Answer:", "### Response:"],
        default_max_generated_token_count=48,
        training=TrainingPolicy(
            default_rank=16,
            default_learning_rate=4e-3,
            append_eos=True,
            prompt_weight=0.1,
            pass_samples=32,
            max_passes=32,
            neighbours=NeighbourPolicy(),
            few_samples=FewSamplesPolicy(),
        ),
    )


def main() -> None:
    """Train and write everything to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters", flush=True)
    train(model, tokenizer, options.steps)
    model.eval().to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=48,
        do_sample=False,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    configuration().save(options.output)


if __name__ == "__main__":
    main()
