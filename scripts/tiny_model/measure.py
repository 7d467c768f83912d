"""Measure the shipped tiny model and write its model card, ``README.md`` beside the weights.

The tables come from here: exact match of greedy answers, family by family and template by template; skills on
examples drawn with a seed of their own; and the questions of the example DAGs.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_gradient.server.encoding import encode_prompt
from scripts.tiny_model.corpus import SKILLS, TEMPLATES, Fact, facts, render
from scripts.tiny_model.make_story import files
from scripts.tiny_model.train import OUTPUT

_CARD = Path(__file__).with_name("model_card.md")
_SEED = 2026
_SKILL_EXAMPLES = 200


@torch.no_grad()
def answers(model: Any, tokenizer: Any, prompts: Sequence[str], *, tokens: int = 32) -> list[str]:
    """Greedy continuations without the white space around them; prompts of one length go together."""
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    texts = [""] * len(rows)
    for length in {len(row) for row in rows}:
        chosen = [i for i, row in enumerate(rows) if len(row) == length]
        ids = torch.tensor([rows[i] for i in chosen])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
        for i, row in zip(chosen, output, strict=True):
            texts[i] = tokenizer.decode(row[length:], skip_special_tokens=True).strip()
    return texts


def share_right(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """Exact match over ``(prompt, answer)``."""
    given = answers(model, tokenizer, [prompt for prompt, _ in pairs])
    return sum(answer == right for answer, (_, right) in zip(given, pairs, strict=True)) / len(pairs)


def fact_table(model: Any, tokenizer: Any) -> str:
    """Exact match on every fact in every wording: a row a family, a column a template."""
    families: dict[str, list[Fact]] = {}
    for fact in facts():
        families.setdefault(fact.family, []).append(fact)
    templates = {
        "`Question: …\\n\\nAnswer:`": "Question: {q}\n\nAnswer:",
        "the same and a space": "Question: {q}\n\nAnswer: ",
        "`### Instruction: … \\n\\n### Response:`": "### Instruction: {q} \n\n### Response:",
        "bare question": "{q}",
    }
    lines = [f"| facts | number | {' | '.join(templates)} |", "| --- | --- |" + " --- |" * len(templates)]
    for family, members in families.items():
        cells = []
        for template in templates.values():
            pairs = [
                (render(template, question), answer)
                for fact in members
                for question, answer in zip(fact.questions, fact.answers, strict=True)
            ]
            cells.append(f"{share_right(model, tokenizer, pairs):.3f}")
        lines.append(f"| {family} | {len(members)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def skill_table(model: Any, tokenizer: Any) -> str:
    """Exact match on fresh examples of each skill."""
    lines = ["| skill | exact match |", "| --- | --- |"]
    for name, (_, generate) in SKILLS.items():
        if name in ("unknown", "listing"):  # nothing there is right or wrong
            continue
        rng = random.Random(_SEED)
        drawn = [generate(rng) for _ in range(_SKILL_EXAMPLES)]
        pairs = [(render(TEMPLATES[0][1], question), answer) for question, answer in drawn]
        lines.append(f"| {name} | {share_right(model, tokenizer, pairs):.2f} |")
    return "\n".join(lines)


def question_table(model: Any, tokenizer: Any) -> str:
    """Exact match on the example DAGs' questions."""
    rows = files()["support_questions.jsonl"]
    lines = ["| set | questions | right |", "| --- | --- | --- |"]
    for name in ("tuned", "paraphrase", "old"):
        pairs = [(render(TEMPLATES[0][1], r["question"]), r["answer"]) for r in rows if r["set"] == name]
        right = round(share_right(model, tokenizer, pairs) * len(pairs))
        lines.append(f"| {name} | {len(pairs)} | {right} |")
    return "\n".join(lines)


def main() -> None:
    """Measure ``--model`` and write its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    card = _CARD.read_text()
    for mark, table in (("FACTS", fact_table), ("SKILLS", skill_table), ("QUESTIONS", question_table)):
        card = card.replace(f"<!-- {mark} -->", table(model, tokenizer))
    card = card.replace("<!-- PARAMETERS -->", f"{model.num_parameters():,}")
    (options.model / "README.md").write_text(card)


if __name__ == "__main__":
    main()
