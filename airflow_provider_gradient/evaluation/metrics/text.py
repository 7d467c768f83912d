"""The forms in which texts are compared.

Answers are normalised as in the evaluation script of SQuAD (P. Rajpurkar et al., "SQuAD: 100,000+ Questions
for Machine Comprehension of Text", EMNLP 2016, and the script of version 2.0 for empty answers): lower case,
ASCII punctuation removed, the articles *a*, *an* and *the* removed, white space made single. Before that,
text is brought into Unicode's normal form C, so that an accent is the same however it was typed.

SQuAD's steps were made for names and phrases. Of other answers they take away what tells them apart, and so
:func:`normalize_answer` leaves out the following removals; every other text has the script's form.

- Characters that make another number stay: those between digits (``1.5``, ``3/4``, ``10:30``, ``1990-95``;
  commas and apostrophes that group thousands go), a minus sign, a decimal point, ``<`` or ``>`` in front of a
  number, a percent sign behind one. A plus and a currency sign go: ``$5`` is ``5``.
- Characters that make another name stay: ``+`` and ``#`` behind a word (``C++``, ``C#``, ``A+``), a full stop
  in front of one (``.NET``), a hyphen before a single letter (``-x``) or behind one or two (``A-``), and an
  operator between numbers or single letters (``x + y``).
- An *a* that is the last word, or that punctuation follows, is no article: ``Plan A``, ``A, B and C``.
- Where nothing would be left, all stays: ``+``, ``The``, ``...``.

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

ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_HIDDEN = 0xE000
"""Where in Unicode's private area characters that stay wait while the others are removed."""
_HIDE: dict[int, int | None] = {ord(mark): _HIDDEN + ord(mark) for mark in string.punctuation}
_HIDE |= dict.fromkeys(map(ord, " \u00a0\u202f"))
_SHOW = {_HIDDEN + ord(mark): mark for mark in string.punctuation} | {_HIDDEN: None}
_ARTICLES = re.compile(r"(?<![\ue000-\ue07f])\b(a|an|the)\b(?![\ue000-\ue07f])")
_NO_ARTICLE = re.compile(r"a(?<!\wa)(?=[^\w\s]+(?:\s|$)|\s*$)")
_GROUPED = re.compile(
    r"(?<![\d.,'])(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:'\d{3})+)(?![,']?\d)"
)
_MINUS = re.compile("\u2212(?=[$€£¥]?\\.?\\d)")
_OPENING = r"""\s()\[\]{}"'`=:;,*<>"""
"""What may stand in front of a word or a number."""
_KEPT = re.compile(
    rf"""(?=[ \u00a0\u202f]?[!-/:-@\[-`{{-~]) (?:  # told fast, and true of few places
    (?<=\d) [!\#$%&'*+,\-./:;<=>?@\\^_|~]{{1,3}} (?=\d)                      # 1.5, 3/4, 1990-95
|   (?<=\d) [ ]?[*+/<=>^]{{1,2}}[ ]? (?=\d)                                  # 2 + 3
|   (?<![^\W\d_][^\W\d_])(?<=[^\W_]) [ ]?[+<=>^]{{1,2}}[ ]? (?=[^\W_](?![^\W\d_]))  # x + y, x = 5
|   (?<![^{_OPENING}$€£¥]) (?:[<>]=?[ ]?-?|-) (?=[$€£¥]?\.?\d)              # -5, -$5, <5
|   (?<![^{_OPENING}$€£¥-]) \. (?=\d)                                       # .5
|   (?<=\d) [ \u00a0\u202f]?%                                               # 50 %
|   (?<=\w) (?:\++|\#) (?![\w+\#])                                          # C++, C#, A+
|   (?<![^{_OPENING}]) \. (?=[^\W\d_]{{2}})                                 # .NET
|   (?<![^{_OPENING}]) - (?=[^\W\d_](?!\w))                                 # -x
|   (?<!\w\w[^\W\d_])(?<=[^\W\d_]) - (?![\w-])                             # A-, AB-
    )""",
    re.VERBOSE,
)
_MARK = re.compile(r"[-+#%<>^*=/\d]")
_DOT = re.compile(r"\.(?=\w)")
"""One of them is in every text that has characters that stay, and in few others; this is told fast."""
_ASCII_WORDS = re.compile(r"[a-z0-9]+")
_UNSPACED = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u1000-\u102a\u103f"
    "\u1780-\u17b3\u3041-\u3096\u30a1-\u30fa\u30fc\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U000323af"
)


def normalize_answer(text: str, *, articles: bool = False) -> str:
    """``text`` in the form in which answers are compared; empty only if ``text`` is blank.

    :param articles: whether articles stay.
    """
    is_plain = text.isascii() and text.isprintable()  # words are then what stands between spaces
    if not text.isascii():
        text = _MINUS.sub("-", unicodedata.normalize("NFC", text))
    text = kept = text.lower()
    if _MARK.search(text) or _DOT.search(text):
        kept = _GROUPED.sub(lambda found: found[0].replace(",", "").replace("'", ""), kept)
        kept = _KEPT.sub(lambda found: found[0].translate(_HIDE), kept)
    if not articles:
        kept = _NO_ARTICLE.sub("a\ue000", kept)
    kept = kept.translate(_PUNCTUATION)
    if articles:
        words = kept.split()
    elif is_plain:
        words = [word for word in kept.split() if word not in ARTICLES]
    else:
        words = _ARTICLES.sub(" ", kept).split()
    found = " ".join(words)
    return (found if found.isascii() else found.translate(_SHOW)) or " ".join(text.split())


def without_punctuation_around(text: str) -> str:
    """``text`` without punctuation and white space, of whatever script, at its beginning and end."""
    start, stop = 0, len(text)
    while start < stop and _is_around(text[start]):
        start += 1
    while stop > start and _is_around(text[stop - 1]):
        stop -= 1
    return text[start:stop]


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


def _is_around(character: str) -> bool:
    return unicodedata.category(character)[0] in "PZ"
