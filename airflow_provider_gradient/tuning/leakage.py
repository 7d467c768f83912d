"""Whether a prompt also stands in a set that is kept for evaluation.

Texts are compared by their words, in Unicode's form NFKC with case folded and white space and punctuation
made single, so that neither a comma nor a line feed hides that two are the same. Punctuation between digits
stays: ``12 - 7`` is not ``12 / 7``. In memory are hashes alone, of 64 bits: that any of ten million samples
is taken for one of ten million other texts has a chance of 5 in a million.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

_BETWEEN_DIGITS = re.compile(r"(?<=\d)\s*([^\w\s])\s*(?=\d)")
_KEPT = 0xE000
"""Where in Unicode's private area punctuation that stays is kept."""


def normalized_words(text: str) -> list[str]:
    """The words of ``text`` in the form in which they are compared."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = _BETWEEN_DIGITS.sub(lambda match: chr(_KEPT + ord(match[1]) % 0x1900), text)
    return text.translate(_COLLAPSED).split() or text.split()


class _Collapsed(dict[int, str]):
    """What each character is replaced by: punctuation and separators by a space, others by themselves."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        self[code] = replacement = " " if kind[0] in "PZ" or kind == "Cc" else character
        return replacement


_COLLAPSED = _Collapsed()


class KeptApart:
    """The prompts of sets that samples must not hold."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()
        self._longest = 0

    def add(self, text: str) -> None:
        """A prompt to keep apart."""
        words = normalized_words(text)
        self._longest = max(self._longest, len(words))
        self._hashes.add(_hash(words))

    def has(self, text: str) -> bool:
        """Whether ``text`` is one of them."""
        return bool(self._hashes) and _hash(normalized_words(text)) in self._hashes

    def begins(self, text: str) -> bool:
        """Whether ``text`` is one of them with something behind it, as a sample without a mask is."""
        words = normalized_words(text)[: self._longest] if self._hashes else []
        return any(one in self._hashes for one in _hashes_of_beginnings(words))


def _hash(words: list[str]) -> int:
    text = "".join(f"{word} " for word in words)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _hashes_of_beginnings(words: list[str]) -> Iterator[int]:
    """That of the first word, of the first two, and so on."""
    digest = hashlib.blake2b(digest_size=8)
    for word in words:
        digest.update(f"{word} ".encode("utf-8", "surrogatepass"))
        yield int.from_bytes(digest.copy().digest())
