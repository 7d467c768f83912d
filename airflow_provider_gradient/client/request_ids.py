"""The ids by which requests and their answers are told apart: each attempt sends its own as ``X-Request-Id``.

A server that repeats the id (this package's does) shows by it whose answer it sends. Others ignore the header
or answer with ids of their own, which say nothing; only an id that this process gave to another request does.
"""

from __future__ import annotations

import itertools
import os
import secrets

HEADER = "X-Request-Id"


class _Ids:
    """Ids of one process: a random part that they share, and a number."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Take another random part, as a forked process must."""
        self.prefix = f"{secrets.token_hex(8)}-"
        self.numbers = itertools.count(1)


_IDS = _Ids()
os.register_at_fork(after_in_child=_IDS.renew)


def new_id() -> str:
    """An id that no other request has."""
    return f"{_IDS.prefix}{next(_IDS.numbers):08x}"


def is_anothers(echoed: str, sent: str) -> bool:
    """Whether ``echoed``, an answer's id, is that of another request of this process than ``sent``."""
    return echoed != sent and len(echoed) == len(sent) and echoed.startswith(_IDS.prefix)
