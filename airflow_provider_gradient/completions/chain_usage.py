"""What a chain's model calls report of themselves, by a LangChain callback."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from airflow_provider_gradient.api import Usage


class ChainUsage(BaseCallbackHandler):
    """Sums over the model calls of one run of a chain.

    :ivar finish_reason: of the last one, where it told.
    :ivar last_text: that the last one gave.
    """

    run_inline = True  # not in a thread, where it could come after the chain has ended

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.last_text: str | None = None
        self._usages: list[Usage | None] = []

    @property
    def total(self) -> Usage | None:
        """Tokens of all calls; ``None`` where one did not tell, or there was none."""
        known = [usage for usage in self._usages if usage is not None]
        if not known or len(known) < len(self._usages):
            return None
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in known),
            completion_tokens=sum(usage.completion_tokens for usage in known),
        )

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """A model answered."""
        generation = next((each[0] for each in response.generations if each), None)
        if generation is not None:
            self.last_text = generation.text
            reason = (generation.generation_info or {}).get("finish_reason")
            self.finish_reason = reason if isinstance(reason, str) else None
        self._usages.append(_usage(response, generation))


def _usage(response: LLMResult, generation: Generation | None) -> Usage | None:
    message = generation.message if isinstance(generation, ChatGeneration) else None
    if told := getattr(message, "usage_metadata", None):
        return Usage(prompt_tokens=told["input_tokens"], completion_tokens=told["output_tokens"])
    counts = (response.llm_output or {}).get("token_usage") or {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=completion)
