"""How much of a text is in another: edit similarity, ROUGE, BLEU, chrF; of several references the best
counts, but in BLEU, which takes them together."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_gradient.evaluation.metrics.base import Example, MeanMetric, RowMetric
from airflow_provider_gradient.evaluation.report import EvaluationError

if TYPE_CHECKING:
    import numpy as np

_BLEU_ORDER = 4
_CHRF_ORDER = 6
_CHRF_BETA = 2


class EditSimilarity(MeanMetric):
    """``1 - d / max(length of the output, length of the reference)`` in code points of Unicode's normal form
    C, ``d`` being the edit distance; 1 for two empty texts.

    Source: V. I. Levenshtein, "Binary codes capable of correcting deletions, insertions and reversals", 1966,
    as rapidfuzz has it.
    """

    metric: Literal["edit_similarity"] = "edit_similarity"

    def score(self, example: Example) -> float:
        """The best over the references."""
        similarity = _rapidfuzz().Levenshtein.normalized_similarity
        return max(float(similarity(example.plain, reference)) for reference in example.plain_references)


class Rouge(RowMetric):
    """ROUGE's F1: over words (``rouge_1``), pairs of words (``rouge_2``) or the longest common subsequence of
    words (``rouge_l``). A row whose reference has no such words scores 0; where no row's has, that is an
    error.

    Source: C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, without stemming, as
    the package rouge-score has it; words are those of :mod:`.text`.
    """

    metric: Literal["rouge_1", "rouge_2", "rouge_l"]

    @property
    def width(self) -> int:
        """The score, and whether a reference has anything to be found."""
        return 2

    def measure(self, example: Example) -> tuple[float, Sequence[float]]:
        """The best over the references."""
        words, references = example.words, example.reference_words
        score = 0.0 if example.output is None else max(self._f1(words, each) for each in references)
        return score, (score, float(max(map(len, references)) >= self._size))

    def check(self, sums: np.ndarray) -> None:
        """Some reference must have words."""
        if not sums[1]:
            wanted = "a word" if self._size == 1 else "two words"
            raise _says_nothing(self.name, f"no reference has {wanted}")

    @property
    def _size(self) -> int:
        return 2 if self.metric == "rouge_2" else 1

    def _f1(self, words: list[str], reference: list[str]) -> float:
        if self.metric == "rouge_l":
            total = len(words) + len(reference)
            if not words or not reference:
                return 0.0
            return 2.0 * float(_lcs()(words, reference)) / total
        given, wanted = _ngrams(words, self._size), _ngrams(reference, self._size)
        total = given.total() + wanted.total()
        return 2.0 * (given & wanted).total() / total if given and wanted else 0.0


class Bleu(RowMetric):
    """BLEU over all rows, as a share of 1: the geometric mean of the n-grams' precisions (1 to 4, counted
    over all rows, orders without a match smoothed exponentially) times the brevity penalty.

    The value, its interval and comparisons are those of the corpus score: rows are drawn again and the score
    is made anew from their counts (P. Koehn, "Statistical Significance Tests for Machine Translation
    Evaluation", EMNLP 2004). The score of a row is its sentence BLEU with effective order, and not averaged.

    Where no reference has four tokens, even outputs that equal them hold no n-gram of order 4, and
    sacrebleu's corpus score is 0 whatever they are. That is an error for all rows together. A slice, or rows
    drawn again, of which it holds have the score of the orders that their references have.

    Source: K. Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002, as
    sacrebleu has it (M. Post, "A Call for Clarity in Reporting BLEU Scores", WMT 2018).

    :ivar tokenize: sacrebleu's tokenizer: ``13a``, ``intl``, ``char``, ``zh``, ``none``.
    """

    metric: Literal["bleu"] = "bleu"
    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"

    @property
    def width(self) -> int:
        """Length of output and reference, matches by order, the output's n-grams by order, and those that the
        longest reference could hold."""
        return 2 + 3 * _BLEU_ORDER

    def measure(self, example: Example) -> tuple[float, Sequence[float]]:
        """The sentence score, and the row's counts."""
        bleu = _sacrebleu(self.tokenize)
        found = bleu.sentence_score(example.plain, example.plain_references)
        longest = max(len(bleu.tokenizer(reference).split()) for reference in example.plain_references)
        counts = (
            *(found.sys_len, found.ref_len, *found.counts, *found.totals),
            *(max(0, longest - order) for order in range(_BLEU_ORDER)),
        )
        return (0.0 if example.output is None else found.score / 100), counts

    def value(self, counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """The corpus score."""
        import numpy as np

        sums = np.round(sums)
        output, reference = sums[..., 0], sums[..., 1]
        matches, totals, possible = np.split(sums[..., 2:], 3, axis=-1)
        halvings = np.cumsum(matches == 0, axis=-1) * (matches == 0)
        precisions = np.where(matches > 0, matches, 0.5**halvings) / np.maximum(totals, 1)
        has_order = (possible > 0) | (totals > 0)
        is_scored = ((totals > 0) | ~has_order).all(-1) & (matches.sum(-1) > 0)
        brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(output, 1)))
        mean = np.where(has_order, np.log(precisions), 0.0).sum(-1) / np.maximum(has_order.sum(-1), 1)
        value: np.ndarray = np.where(is_scored, brevity * np.exp(mean), 0.0)
        return value

    def check(self, sums: np.ndarray) -> None:
        """Some reference must have four tokens."""
        if not sums[-1]:
            raise _says_nothing(
                self.name,
                f"no reference has {_BLEU_ORDER} tokens, as tokenize {self.tokenize!r} counts them",
                " (or, for text without spaces, tokenize zh or char)",
            )


class ChrF(RowMetric):
    """chrF2 over all rows, as a share of 1: F with beta 2 of the mean precision and recall of n-grams of 1 to
    6 characters, spaces aside, counted over all rows.

    The value, its interval and comparisons are those of the corpus score, as in BLEU; the score of a row is
    that of its own counts, and not averaged. Of several references the one that fits best counts.

    Source: M. Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015, as sacrebleu
    has it.
    """

    metric: Literal["chrf"] = "chrf"

    @property
    def width(self) -> int:
        """N-grams of the output, of the reference, and those common to both, by order."""
        return 3 * _CHRF_ORDER

    def check(self, sums: np.ndarray) -> None:
        """Some reference must have a character."""
        if not sums[_CHRF_ORDER]:
            raise EvaluationError(
                f"{self.name}: every reference is empty, and it would be 0 for outputs that equal them; use "
                "exact_match"
            )

    def measure(self, example: Example) -> tuple[float, Sequence[float]]:
        """The sentence score, and the row's counts."""
        given = _characters(example.plain)
        best, best_counts = -1.0, [0.0] * self.width
        for reference in example.plain_references:
            wanted = _characters(reference)
            counts = _chrf_counts(given, wanted)
            if (score := _chrf_score(counts)) > best:
                best, best_counts = score, counts
        return (0.0 if example.output is None else best), best_counts

    def value(self, counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """The corpus score."""
        import numpy as np

        given, wanted, common = np.split(np.round(sums), 3, axis=-1)
        counted = (given > 0) & (wanted > 0)
        orders = np.maximum(counted.sum(-1), 1)
        precision = np.where(counted, common / np.maximum(given, 1), 0).sum(-1) / orders
        recall = np.where(counted, common / np.maximum(wanted, 1), 0).sum(-1) / orders
        below = _CHRF_BETA**2 * precision + recall
        value: np.ndarray = np.where(
            below > 0, (1 + _CHRF_BETA**2) * precision * recall / np.where(below > 0, below, 1), 0.0
        )
        return value


def _says_nothing(name: str, reason: str, besides: str = "") -> EvaluationError:
    return EvaluationError(
        f"{name}: {reason}, so that even outputs that equal their references would score 0; use chrf, which "
        f"compares characters, or exact_match{besides}"
    )


def _characters(text: str) -> list[Counter[str]]:
    text = "".join(text.split())
    return [
        Counter(text[place : place + size] for place in range(len(text) - size + 1))
        for size in range(1, _CHRF_ORDER + 1)
    ]


def _chrf_counts(given: list[Counter[str]], wanted: list[Counter[str]]) -> list[float]:
    pairs = list(zip(given, wanted, strict=True))
    return [
        *(float(mine.total()) if theirs else 0.0 for mine, theirs in pairs),
        *(float(theirs.total()) for _, theirs in pairs),
        *(float((mine & theirs).total()) for mine, theirs in pairs),
    ]


def _chrf_score(counts: list[float]) -> float:
    size = _CHRF_ORDER
    triples = [(counts[n], counts[size + n], counts[2 * size + n]) for n in range(size)]
    triples = [triple for triple in triples if triple[0] and triple[1]]
    if not triples:
        return 0.0
    precision = sum(common / given for given, _, common in triples) / len(triples)
    recall = sum(common / wanted for _, wanted, common in triples) / len(triples)
    below = _CHRF_BETA**2 * precision + recall
    return (1 + _CHRF_BETA**2) * precision * recall / below if below else 0.0


def _ngrams(words: list[str], size: int) -> Counter[Any]:
    return Counter(words) if size == 1 else Counter(itertools.pairwise(words))


@functools.cache
def _rapidfuzz() -> Any:
    try:
        from rapidfuzz import distance
    except ImportError:
        raise _missing("edit_similarity", "rapidfuzz") from None
    return distance


@functools.cache
def _lcs() -> Callable[[Sequence[str], Sequence[str]], int]:
    try:
        from rapidfuzz.distance import LCSseq
    except ImportError:
        raise _missing("rouge_l", "rapidfuzz") from None
    return LCSseq.similarity


@functools.cache
def _sacrebleu(tokenize: str) -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise _missing("bleu", "sacrebleu") from None
    return BLEU(tokenize=tokenize, effective_order=True)


def _missing(metric: str, package: str) -> EvaluationError:
    return EvaluationError(
        f"the metric {metric} needs {package}: pip install 'airflow-provider-gradient[evaluation]'"
    )
