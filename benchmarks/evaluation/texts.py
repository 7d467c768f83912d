"""Answers and references as summaries have them: a few dozen words, most of them in common."""

from __future__ import annotations

import random
from typing import Any

END = "end"
"""The last word of every text, since none ends in an article."""


def rows(count: int, *, seed: int = 1) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    words = [
        "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randrange(2, 10)))
        for _ in range(3000)
    ]
    words += ["the", "a", "an"] * 100
    found = []
    for index in range(count):
        reference = [draw.choice(words) for _ in range(draw.randrange(20, 61))]
        same = draw.random() < 0.1
        output = [
            word if same or draw.random() < 0.7 else draw.choice(words)
            for word in reference
            if same or draw.random() < 0.9
        ]
        text = " ".join([*output, END]).capitalize() + "."
        found.append({"index": index, "output": text, "row": {"answer": " ".join([*reference, END])}})
    return found
