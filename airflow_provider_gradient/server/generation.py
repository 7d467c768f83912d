"""A completion on its way through a model: what is asked, how far it is, and who hears of its end.

A *road* is how a base model answers many of them at once: :mod:`.continuous` for models of the form of
Llama, :mod:`.micro_batches` for all others. Both keep one promise: what a row gets depends on its own prompt,
adapter and chance alone, not on what it shares a batch with. Alone and greedy, it is what ``transformers``'
own ``generate`` gives (but for the rounding of sums, which differs by the shape of a batch).
"""

from __future__ import annotations

import math
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
        """End with the likeliest choice, if the model's output tells one."""
        if any(math.isnan(value) for value in log_probabilities) or max(log_probabilities) == -math.inf:
            self.finished(Continuation(finish_reason="diverged"))
            return
        best = max(range(len(log_probabilities)), key=log_probabilities.__getitem__)
        self.finished(Continuation(finish_reason="stop", choice=best))


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a base model can do, and how it has to be asked.

    :param batches: rows of different lengths can share a batch; if not, one is answered after another.
    :param positions: it is told the position of each token; if not, it counts by itself.
    :param shares_prompt: the values of a choice can share the cache of their prompt; if not, the prompt is
        read again for each.
    :param tuning: adapters of it can be fine-tuned.
    :param switch: a batch with a row longer than this is read by other rotary frequencies, all rows of it
        (``longrope``); ``None`` where all lengths are read alike.
    :param remarks: what it can't do and why, for whoever starts the server.
    """

    batches: bool = True
    positions: bool = True
    shares_prompt: bool = True
    tuning: bool = True
    switch: int | None = None
    remarks: tuple[str, ...] = ()


class Road(Protocol):
    """How a base model answers.

    :param name: how it is shown.
    :param slots: the most rows at once.
    :param abilities: of the base model.
    """

    name: str
    slots: int
    abilities: Abilities

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

    def forget(self, adapter_id: str) -> None:
        """Let go of what is in memory of an adapter that no row uses."""
        ...

    def step(self) -> None:
        """Do the next bit of work, a few milliseconds of a small model's."""
        ...

    def drop(self) -> list[Row]:
        """Give up all rows, so that new ones can be taken on after an error."""
        ...
