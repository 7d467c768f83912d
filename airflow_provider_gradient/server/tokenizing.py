"""Texts as the tokens that a model reads, for clients that must know how many they are.

It is done on a thread of its own, so that a long text delays no completion, and by copies of the tokenizers,
since one tokenizer can't be used by two threads.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from airflow_provider_gradient.api import TokenizeRequest, TokenizeResult
from airflow_provider_gradient.server.failures import stopping
from airflow_provider_gradient.server.jobs import Answer
from airflow_provider_gradient.server.served_model import ServedModel


class Tokenizing:
    """Tokenizes for the models of an engine, one text after another.

    :param models: by slug.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models
        self._copies: dict[str, ServedModel] = {}
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, "gradient-tokenize")

    def put(self, slug: str, request: TokenizeRequest) -> Future[Answer]:
        """Take a text on; the future gives the response's body, or raises an :class:`ApiError`."""
        try:
            return self._thread.submit(self._tokenize, slug, request)
        except RuntimeError:  # the thread takes nothing more
            raise stopping() from None

    def stop(self) -> None:
        """Answer nothing more but the text that is under way."""
        self._stopping.set()
        self._thread.shutdown()

    def _tokenize(self, slug: str, request: TokenizeRequest) -> Answer:
        if self._stopping.is_set():
            raise stopping()
        if slug not in self._copies:
            served = self._models[slug]
            self._copies[slug] = replace(served, tokenizer=copy.deepcopy(served.tokenizer))
        served = self._copies[slug]
        tokens = served.tokens(request.query, auto_template=request.auto_template)
        result = TokenizeResult(count=len(tokens), tokens=tokens, context_length=served.context_length)
        return result.to_wire()
