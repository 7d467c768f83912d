"""Texts for parity with the reference implementations: random, in several languages, with odd characters."""

from __future__ import annotations

import random
from typing import Any

VOCABULARIES = {
    "english": [
        "The",
        "a",
        "an",
        "cat's",
        "sat,",
        "on",
        "the",
        "mat.",
        "I've",
        "seen",
        "U.S.A.",
        "3,000",
        "well-known",
        "(things)",
        "&",
        "more!",
        "end?",
        "x_y",
    ],
    "german": [
        "Der",
        "Bär",
        "fährt",
        "über",
        "die",
        "Straße,",
        "größer",
        "als",
        "12,5",
        "%",
        "ÄRGER",
        "„so“",
        "weiß",
    ],
    "arabic": ["الطقس", "جميل", "اليوم", "في", "القاهرة،", "أليس", "كذلك؟", "١٢٣"],
    "hindi": ["मौसम", "आज", "बहुत", "अच्छा", "है।", "क्या", "आप", "हिन्दी", "बोलते", "हैं?"],
    "chinese": ["今天", "天气", "很", "好。", "我们", "去", "公园", "吧!"],
    "japanese": ["東京", "は", "大きい", "です。", "カタカナ", "ひらがな", "ー"],
    "odd": ["", "\u00a0", "e\u0301", "\u200d", "👩\u200d👩\u200d👧", "ﬁ", "İ", "\t", "\n", "!!!", "$100"],
}


def pairs(
    count: int, *, seed: int, languages: tuple[str, ...] = tuple(VOCABULARIES)
) -> list[tuple[str, str]]:
    """Outputs and references that have something in common."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        words = VOCABULARIES[languages[number % len(languages)]]
        reference = [draw.choice(words) for _ in range(draw.randrange(25))]
        output = [
            word if draw.random() < 0.7 else draw.choice(words) for word in reference if draw.random() < 0.9
        ]
        space = "" if draw.random() < 0.2 else " "
        found.append((space.join(output), space.join(reference)))
    return found


def rows(given: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The pairs as rows of completions."""
    return [{"output": output, "answer": answer} for output, answer in given]
