"""A server that embeds every text as its length and its last digit, and fails where a test says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from faults import Act, FaultyServer, Received, reply


class VectorsServer(FaultyServer):
    """Answers with the vectors of the texts, unless ``answer(texts)`` gives something else."""

    def __init__(self) -> None:
        super().__init__(self._act)
        self.answer: Callable[[list[str]], Act | None] = lambda _: None

    def _act(self, request: Received) -> Act:
        texts = _texts(request)
        return self.answer(texts) or vectors([[len(text), _digit(text)] for text in texts])

    @property
    def texts(self) -> Counter[str]:
        """How often each text came."""
        return Counter(text for request in self.requests for text in _texts(request))


def vectors(numbers: list[list[float]], *, wait: float = 0.0) -> Act:
    """Vectors as the API answers them."""
    embeddings = [{"embedding": vector, "index": index} for index, vector in enumerate(numbers)]
    return reply(body={"embeddings": embeddings}, wait=wait)


def _texts(request: Received) -> list[str]:
    return [each["input"] for each in request.json()["inputs"]]


def _digit(text: str) -> float:
    return float(text[-1]) if text[-1].isdigit() else -1.0
