"""The forms in which texts are compared.

Answers are normalised as in the evaluation script of SQuAD (P. Rajpurkar et al., "SQuAD: 100,000+ Questions
for Machine Comprehension of Text", EMNLP 2016, and the script of version 2.0 for empty answers): lower case,
ASCII punctuation removed, the articles *a*, *an* and *the* removed, white space made single. Before that,
text is brought into Unicode's normal form C, so that an accent is the same however it was typed; for text
that is in that form already, as most is, the values are those of the script.

Words are runs of letters and digits with their combining marks, in lower case, which for ASCII is what the
package rouge-score takes for words. Han characters, kana and the letters of Thai, Lao, Khmer and Burmese,
which are written without spaces, are words of their own.
"""

from __future__ import annotations

import functools
import re
import string
import sys
import unicodedata

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ARTICLE_WORDS = frozenset(("a", "an", "the"))
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ASCII_WORDS = re.compile(r"[a-z0-9]+")
_UNSPACED = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u1000-\u102a\u103f"
    "\u1780-\u17b3\u3041-\u3096\u30a1-\u30fa\u30fc\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U000323af"
)


def normalize_answer(text: str) -> str:
    """``text`` in the form in which answers are compared."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    plain = text.lower().translate(_PUNCTUATION)
    if text.isascii() and text.isprintable():  # words are then what stands between spaces
        return " ".join([word for word in plain.split() if word not in _ARTICLE_WORDS])
    return " ".join(_ARTICLES.sub(" ", plain).split())


def tokens(text: str) -> list[str]:
    """The words of ``text``, in lower case."""
    if text.isascii():
        return _ASCII_WORDS.findall(text.lower())
    return _words().findall(unicodedata.normalize("NFC", text).lower())


@functools.cache
def _words() -> re.Pattern[str]:
    marks = "".join(map(re.escape, filter(_is_mark, map(chr, range(sys.maxunicode + 1)))))
    return re.compile(f"[{_UNSPACED}][{marks}]*|(?:(?![{_UNSPACED}])[^\\W_][{marks}]*)+")


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
