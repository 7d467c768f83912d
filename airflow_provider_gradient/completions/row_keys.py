"""What tells the requests of a run's rows apart, and so which row an answer belongs to.

Rows of one run differ in their prompts alone (embeddings: in their texts; where a runnable asks, in their
columns), and 128 bits of a prompt's hash stand for it. All else that determines the answers is the same for
all rows: the ``request`` of the journal's header.
"""

from __future__ import annotations

import base64
import hashlib
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KEY_BYTES = 16
_LINE_KEYS = 4096
NO_ROW = -1


class RowKeys:
    """The keys of rows in their order, 16 bytes each."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes) // _KEY_BYTES

    def add(self, text: str | bytes) -> None:
        """The next row's prompt, or what else its request is made of."""
        content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        self._bytes += hashlib.blake2b(content, digest_size=_KEY_BYTES).digest()

    def clear(self) -> None:
        """Free the memory."""
        self._bytes = bytearray()

    def dumped(self) -> Iterator[tuple[int, bytes]]:
        """The keys in base64, some thousand at a time, with their number."""
        for start in range(0, len(self), _LINE_KEYS):
            part = self._bytes[start * _KEY_BYTES : (start + _LINE_KEYS) * _KEY_BYTES]
            yield len(part) // _KEY_BYTES, base64.b64encode(part)

    def load(self, dumped: bytes) -> None:
        """Add what :meth:`dumped` gave."""
        self._bytes += base64.b64decode(dumped)

    def leaders(self) -> array[int]:
        """For each row the index of the first with its key, which is its own where it is the first."""
        import numpy as np

        high, low = self._numbers()
        order = np.lexsort((low, high))  # stable: of equal rows the first comes first
        starts = _starts(high[order], low[order])
        leaders = np.empty(len(order), np.int64)
        leaders[order] = order[starts]
        return array("q", leaders.tobytes())

    def matched(self, earlier: RowKeys, candidates: Iterable[int]) -> array[int]:
        """For each row the index of the row of ``earlier`` whose answer it takes, or :data:`NO_ROW`.

        Of rows with equal keys the first takes the first candidate's, the second the second's, and so on.

        :param candidates: rows of ``earlier`` that have an answer.
        """
        import numpy as np

        given = np.fromiter((row for row in candidates if row < len(earlier)), np.int64)
        taken = np.full(len(self), NO_ROW, np.int64)
        high, low = self._numbers()
        earlier_high, earlier_low = earlier._numbers()
        high, low = np.concatenate((earlier_high[given], high)), np.concatenate((earlier_low[given], low))
        is_new = np.arange(len(high)) >= len(given)
        order = np.lexsort((is_new, low, high))
        numbers = np.arange(len(order)) - _starts(high[order], low[order], is_new[order])
        place = np.empty_like(order)
        place[order] = numbers  # among those of the same key and run
        order = np.lexsort((is_new, place, low, high))
        one, next_ = order[:-1], order[1:]
        pairs = (high[one] == high[next_]) & (low[one] == low[next_]) & (place[one] == place[next_])
        taken[next_[pairs] - len(given)] = given[one[pairs]]
        return array("q", taken.tobytes())

    def _numbers(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        import numpy as np

        numbers = np.frombuffer(bytes(self._bytes), np.uint64).reshape(-1, 2)
        return numbers[:, 0], numbers[:, 1]


def _starts(*columns: NDArray[np.generic]) -> NDArray[np.int64]:
    """For each place of sorted columns the place at which the run of equal values began."""
    import numpy as np

    places = np.arange(len(columns[0]))
    begins = np.zeros(len(places), bool)
    begins[:1] = True
    for column in columns:
        begins[1:] |= column[1:] != column[:-1]
    return np.maximum.accumulate(np.where(begins, places, 0))
