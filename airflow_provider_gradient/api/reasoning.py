"""The reasoning that a model writes in front of its answer, and the answer without it.

Models that reason put it in a block, ``<think>...</think>`` in most chat templates, and the answer behind it.
Where the template itself writes the opening tag, it is part of the prompt, and the output has the closing one
alone.
"""

from __future__ import annotations

import re

_OPEN = r"<think(?:ing)?>|\[THINK\]"
_CLOSE = r"</think(?:ing)?>|\[/THINK\]"
_BEGINNING = re.compile(rf"\s*(?:{_OPEN})")
_CLOSING = re.compile(_CLOSE)
_TAG = re.compile(rf"(?P<opens>{_OPEN})|{_CLOSE}")


def without_reasoning(text: str) -> str:
    """The answer in an output: what stands behind its reasoning, or the whole where there is none.

    Reasoning is what stands before a closing tag that nothing opened, and blocks that the output begins with,
    white space aside. Where such a block is not closed, the answer never came, and the text is empty.
    """
    if is_unopened(text):
        text = _behind_closing(text)
    while _BEGINNING.match(text):
        text = _behind_closing(text)
    return text


def is_unopened(text: str) -> bool:
    """Whether ``text`` closes reasoning that it did not open, as where the template wrote the opening tag."""
    first = _TAG.search(text) if "hink" in text or "THINK" in text else None  # few texts, which is told fast
    return first is not None and not first["opens"]


def _behind_closing(text: str) -> str:
    closing = _CLOSING.search(text)
    return "" if closing is None else text[closing.end() :].lstrip()
