"""Metrics that compare an output with its references, each from 0 to 1; of several references the best
counts.

Answers are normalised as in the evaluation script of SQuAD (P. Rajpurkar et al., "SQuAD: 100,000+ Questions
for Machine Comprehension of Text", EMNLP 2016, and the script of version 2.0 for empty answers): lower case,
ASCII punctuation removed, the articles *a*, *an* and *the* removed, white space made single. Before that,
text is brought into Unicode's normal form C, so that an accent is the same however it was typed; for text
that is in that form already, as most is, the values are those of the script.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """``text`` in the form in which answers are compared."""
    text = unicodedata.normalize("NFC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(output: str, reference: str) -> float:
    """1 if both are the same, else 0."""
    return float(output == reference)


def token_f1(output: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words, counted as often as they occur; where one side
    has none, 1 if the other has none too, else 0."""
    given, wanted = output.split(), reference.split()
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2.0 * common / (len(given) + len(wanted))


def contains(output: str, reference: str) -> float:
    """1 if the reference stands somewhere in the output, within a word too (so ``10`` is in ``100``, and
    names are found in languages that write no spaces), else 0; an empty reference is in an empty output
    only."""
    return float(reference in output) if reference else float(not output)


@dataclass(frozen=True)
class Metric:
    """A metric by its name.

    :ivar score: of a normalised output against one normalised reference, from 0 to 1.
    :ivar is_rate: whether each score is 0 or 1, so that their mean is a proportion.
    """

    name: str
    score: Callable[[str, str], float]
    is_rate: bool

    def best(self, output: str, references: Sequence[str]) -> float:
        """The best score of ``output`` against any of ``references``; all of them normalised."""
        return max(self.score(output, reference) for reference in references)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact_match", exact_match, is_rate=True),
        Metric("token_f1", token_f1, is_rate=False),
        Metric("contains", contains, is_rate=True),
    )
}
"""The metrics there are, by name."""
