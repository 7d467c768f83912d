"""A completion on its way through a model: what is asked, how far it is, and who hears of its end.

A *road* is how a base model answers many of them at once: :mod:`.continuous` for models of the form of
Llama, :mod:`.micro_batches` for all others. Both keep one promise: what a row gets depends on its own prompt,
adapter and chance alone, not on what it shares a batch with. Alone and greedy, it is what ``transformers``'
own ``generate`` gives (but for the rounding of sums, which differs by the shape of a batch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from airflow_provider_gradient.server.guidance import Choices
from airflow_provider_gradient.server.lora_stack import AdapterKey
from airflow_provider_gradient.server.sampling import Draws, Sampling

FinishReason = Literal["stop", "length", "diverged"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What to continue, by at most how many tokens, and how to draw them.

    :param choices: where given, the likeliest of them is the answer and nothing is drawn.
    """

    tokens: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    choices: Choices | None = None


@dataclass(kw_only=True)
class Continuation:
    """The new ``tokens`` of a row, without the one that stopped it, or the index of its ``choice``.

    ``finish_reason`` is ``stop`` (the model ended the text), ``length`` (the limit did) or ``diverged`` (the
    model's output was no longer a number).
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    choice: int | None = None


class Row:
    """One completion under way.

    :param adapter: ``None`` for the base model.
    :param finished: hears of the end.
    :param failed: hears of an error instead.
    :param left: whether nobody waits for it any more.
    """

    def __init__(
        self,
        prompt: Prompt,
        adapter: AdapterKey | None,
        *,
        finished: Callable[[Continuation], None],
        failed: Callable[[Exception], None],
        left: Callable[[], bool] = lambda: False,
    ) -> None:
        self.prompt = prompt
        self.adapter = adapter
        self.finished = finished
        self.failed = failed
        self.left = left
        self.draws = Draws(prompt.sampling)
        self._continuation = Continuation()

    def again(self) -> Row:
        """The same completion from its beginning."""
        return Row(self.prompt, self.adapter, finished=self.finished, failed=self.failed, left=self.left)

    def append(self, token: int, *, sound: bool, stop_tokens: frozenset[int]) -> bool:
        """Add the next token; whether the row goes on. If not, its end was told.

        :param sound: whether the token was drawn from numbers.
        """
        continuation = self._continuation
        if not sound:
            continuation.finish_reason = "diverged"
        elif token in stop_tokens:
            continuation.finish_reason = "stop"
        else:
            continuation.tokens.append(token)
            if len(continuation.tokens) < self.prompt.max_new_tokens and not self.left():
                return True
        self.finished(continuation)
        return False

    def choose(self, log_probabilities: Sequence[float]) -> None:
        """End with the likeliest choice."""
        if any(value != value for value in log_probabilities):
            self.finished(Continuation(finish_reason="diverged"))
            return
        best = max(range(len(log_probabilities)), key=log_probabilities.__getitem__)
        self.finished(Continuation(finish_reason="stop", choice=best))


class Road(Protocol):
    """How a base model answers.

    :param name: how it is shown.
    :param slots: the most rows at once.
    """

    name: str
    slots: int

    @property
    def rows(self) -> int:
        """Under way."""
        ...

    @property
    def resident_adapters(self) -> int:
        """In memory."""
        ...

    def admit(self, row: Row) -> None:
        """Take a row on; there must be a slot for it. Its adapter failing to load fails the row."""
        ...

    def step(self) -> None:
        """Do the next bit of work, a few milliseconds of a small model's."""
        ...

    def drop(self) -> list[Row]:
        """Give up all rows, so that new ones can be taken on after an error."""
        ...
