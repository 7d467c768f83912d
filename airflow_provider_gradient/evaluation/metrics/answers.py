"""Exact match, F1 over words, and containment, each between normalised answers; of several references the
best counts. Source: the evaluation script of SQuAD, with the exceptions that :mod:`.text` lists."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import ClassVar, Literal

from airflow_provider_gradient.evaluation.metrics.base import Example, MeanMetric
from airflow_provider_gradient.evaluation.metrics.text import ARTICLES

_AROUND = r"""()\[\]{}"'`.,:;!?*"""
"""Punctuation that is no part of what it stands beside."""
_SHORT = 3
"""Letters of a word that is not looked for within others."""
_ALPHABETS = "\u0530"
"""Before it Unicode has Latin, Greek and Cyrillic."""
_IN_WORD = r"[^\W\u0530-\U0010ffff]"
_ALONE = rf"(?<!{_IN_WORD})({{}})(?!{_IN_WORD}|[-+#]|[/&'\u2019]{_IN_WORD})"
_WORD_FOLLOWS = re.compile(r"""\s+["'(\[{*_\u201c\u2018]*\w""")
_VERB_FOLLOWS = re.compile(r"[ \t]+(?:is|was|because)\b")


def token_f1(output: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words, counted as often as they occur; where one side
    has none, 1 if the other has none too, else 0."""
    given, wanted = output.split(), reference.split()
    if not given or not wanted:
        return float(given == wanted)
    one, other = set(given), set(wanted)
    if len(one) == len(given) or len(other) == len(wanted):
        shared = len(one & other)  # no word of it occurs twice in both
    else:
        shared = (Counter(given) & Counter(wanted)).total()
    return 2.0 * shared / (len(given) + len(wanted))


class ExactMatch(MeanMetric):
    """1 if the answer is one of the references, else 0."""

    is_rate: ClassVar[bool] = True
    metric: Literal["exact_match"] = "exact_match"

    def score(self, example: Example) -> float:
        """0 or 1."""
        return float(example.answer in example.answers)


class TokenF1(MeanMetric):
    """F1 over the words: ``2 * common / (words of the output + words of the reference)``."""

    metric: Literal["token_f1"] = "token_f1"

    def score(self, example: Example) -> float:
        """The best over the references."""
        return max(token_f1(example.answer, reference) for reference in example.answers)


class Contains(MeanMetric):
    """1 if a reference stands somewhere in the output, else 0; an empty reference is in an empty output only.

    A reference is found within a word too, so that inflected words count, and names in languages that write
    no spaces. But where it begins or ends with a number, or with a word of up to three letters of an alphabet
    such as Latin or Cyrillic, it must begin or end there: ``A`` is not in ``banana``, ``no`` not in ``know``,
    ``10`` not in ``100``.
    """

    is_rate: ClassVar[bool] = True
    metric: Literal["contains"] = "contains"

    def score(self, example: Example) -> float:
        """0 or 1."""
        return float(any(contains(example, wanted) for wanted in example.answers))


def contains(example: Example, wanted: str) -> bool:
    """Whether the output holds a reference.

    :param wanted: the reference, normalised.
    """
    if not wanted or wanted == example.answer:
        return wanted == example.answer
    if wanted in ARTICLES:
        return _holds_letter(example.text, wanted)
    if not any(map(str.isalnum, wanted)):  # such as "+", which is removed where words stand beside it
        return bool(re.search(rf"(?<![^\s{_AROUND}]){re.escape(wanted)}(?![^\s{_AROUND}])", example.text))
    if _stands_in(wanted, example.answer):
        return True
    # "plan a" also where a word follows, before which "a" is taken for an article
    return not ARTICLES.isdisjoint(wanted.split()) and _stands_in(wanted, example.answer_with_articles)


def _stands_in(wanted: str, text: str) -> bool:
    first, last = wanted.partition(" ")[0], wanted.rpartition(" ")[2]
    place = text.find(wanted)
    while place >= 0:
        end = place + len(wanted)
        before, behind = text[place - 1 : place], text[end : end + 1]
        if not (_goes_on(first, wanted[0], before) or _goes_on(last, wanted[-1], behind)):
            return True
        place = text.find(wanted, place + 1)
    return False


def _goes_on(word: str, edge: str, neighbour: str) -> bool:
    """Whether the character beside ``edge``, the first or last of ``word``, makes another word of it, or
    another number."""
    is_mark = neighbour.isdigit() or neighbour in string.punctuation
    if not neighbour or not edge.isalpha():
        return bool(neighbour) and is_mark
    is_short = len(word) <= _SHORT and max(word) < _ALPHABETS
    return is_short and (is_mark or (neighbour.isalpha() and neighbour < _ALPHABETS))


def _holds_letter(text: str, wanted: str) -> bool:
    """Whether ``text`` holds the letter *A*, or the word *an* or *the*, where it is no article."""
    for found in re.finditer(_ALONE.format(wanted), text, re.IGNORECASE):
        start, end = found.span()
        is_inside = found[0].isupper() and text[max(0, start - 2) : start].rstrip(" ")[-1:].isalnum()
        if is_inside or not _WORD_FOLLOWS.match(text, end) or _VERB_FOLLOWS.match(text, end):
            return True
    return False
