"""A LangChain runnable in the place of a prompt: it takes a row and gives the output.

Each attempt at a row is one run of the chain, counted, paced and journaled like a request. The model that the
run gives a chain (``def chain(llm): ...``) makes single attempts and leaves the repeating to the run, so that
every refusal slows the run down as any other does; what is repeated then is the whole chain.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from airflow_provider_gradient.api import (
    ApiError,
    GradientConnectionError,
    GradientError,
    InvalidRequestError,
    Usage,
)
from airflow_provider_gradient.client import AsyncGradientClient, CallRecord, Done, RetryPolicy, Wait
from airflow_provider_gradient.client.policy import LAST_ATTEMPT
from airflow_provider_gradient.completions.dotted_path import import_path
from airflow_provider_gradient.datasets import column_value

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

    from airflow_provider_gradient.completions.chain_usage import ChainUsage
    from airflow_provider_gradient.langchain import GradientLLM

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""In the form of a function, say of a partial variable: another in every process."""
_SHOWN = 500
"""Characters of an exception's message that a row's error repeats."""


class ChainError(GradientError):
    """A chain failed on a row, but not at Gradient.

    :param type: name of the exception's class.
    """

    def __init__(self, message: str, *, type: str) -> None:
        super().__init__(message)
        self.type = type


@dataclass(frozen=True, kw_only=True)
class ChainOutput:
    """What a chain gave for a row.

    :ivar generated_output: text as it is, anything else as JSON.
    :ivar finish_reason: of its last model call, where that told.
    :ivar usage: of all its model calls, where each told.
    :ivar problem: what the chain's own parser says is wrong with the output.
    """

    generated_output: str | None
    finish_reason: str | None
    usage: Usage | None
    problem: str | None = None


class Chain:
    """A runnable, ready to be asked.

    :param target: a Runnable; or the dotted path (``package.module:name``) of one, of a function without
        arguments that makes one, or of a function that makes one of the run's model.
    :param client: the run's.
    :param model_id: for the run's model; ``None`` where the chain brings its own.
    :param parameters: those of a completion, likewise.
    :raises InvalidRequestError: there is no such runnable, a Runnable has no name, or a model or parameters
        are given that the chain does not take, or are not given that it needs.
    """

    def __init__(
        self,
        target: Any,
        *,
        client: AsyncGradientClient,
        model_id: str | None,
        parameters: Mapping[str, Any],
    ) -> None:
        self._retries = client.retries
        self._seconds = client.timeouts.total
        self._llm: GradientLLM | None = None
        made = import_path(target, parameter="runnable") if isinstance(target, str) else target
        if takes_llm(made):
            if model_id is None:
                raise InvalidRequestError("model_id: is needed, since the runnable takes the run's model")
            self._llm = _model(client, model_id, parameters)
            made = made(self._llm)
        elif model_id is not None or parameters:
            given = ", ".join((*(["model_id"] if model_id is not None else []), *parameters))
            raise InvalidRequestError(
                f"{given}: the runnable brings its own model. Leave it out, or let the runnable's path lead "
                "to a function that takes the model: def chain(llm): return prompt | llm"
            )
        elif not is_runnable(made) and callable(made):
            made = made()
        if not is_runnable(made):
            raise InvalidRequestError(
                "runnable: a LangChain Runnable is needed, or the dotted path of one or of a function that "
                f"gives one, not {made!r}"
            )
        self.name = target if isinstance(target, str) else _name(made)
        self._runnable: Runnable[Any, Any] = made
        self._columns = _prompt_columns(made)

    def check(self, row: Mapping[str, Any], where: str) -> None:
        """Check ``row`` as far as that is possible: it must have what a leading prompt asks for.

        :raises DatasetError: a column is missing or null.
        """
        for column in self._columns:
            column_value(row, column, where=where, parameter="the prompt of the runnable")

    def fingerprint(self) -> dict[str, Any]:
        """What tells this chain from another: its name and its prompts as LangChain serialises them."""
        from langchain_core.load import dumps

        prompts = [_ADDRESS.sub("", dumps(prompt)) for prompt in self._runnable.get_prompts()]
        return {"name": self.name, "prompts": prompts}

    def begin(
        self, row: Mapping[str, Any], record: CallRecord, *, deadline: float | None
    ) -> Callable[[], Awaitable[Done[ChainOutput] | Wait]]:
        """Runs of the chain for ``row``, each an attempt, as
        :meth:`~airflow_provider_gradient.client.AsyncGradientClient.completions` has them."""
        attempts = _ChainAttempts(self._retries, total=self._seconds, deadline=deadline, record=record)

        async def attempt() -> Done[ChainOutput] | Wait:
            record.attempts += 1
            try:
                return Done(value=await self._run(row))
            except GradientError as error:
                return attempts.on_error(error, now=time.monotonic())

        return attempt

    async def aclose(self) -> None:
        """Close the connections of the model that the chain was given."""
        if self._llm is not None:
            await self._llm.aclose()

    async def _run(self, row: Mapping[str, Any]) -> ChainOutput:
        from langchain_core.exceptions import OutputParserException

        from airflow_provider_gradient.completions.chain_usage import ChainUsage

        usage = ChainUsage()
        try:
            output = await self._runnable.ainvoke(dict(row), {"callbacks": [usage]})
            return _output(_text(output), usage)
        except OutputParserException as error:
            raw = error.llm_output if error.llm_output is not None else usage.last_text
            reason = str(error).partition("\nFor troubleshooting")[0]
            return _output(raw, usage, problem=reason[:_SHOWN])
        except GradientError:
            raise
        except Exception as error:
            raise ChainError(str(error)[:_SHOWN], type=type(error).__name__) from error


class _ChainAttempts:
    """When to run a chain again for a row: as :class:`~airflow_provider_gradient.client.attempts.Attempts`
    has it for completions of a caller that paces them."""

    def __init__(
        self, policy: RetryPolicy, *, total: float, deadline: float | None, record: CallRecord
    ) -> None:
        self._policy = policy
        self._deadline = time.monotonic() + (total if deadline is None else deadline)
        self._keep = 0.0 if deadline is None else deadline * LAST_ATTEMPT
        self._record = record
        self._counted = 0

    def on_error(self, error: GradientError, *, now: float) -> Wait:
        """What ``error`` means.

        :raises GradientError: it, where the chain is not, or no longer, run again.
        """
        status = error.status if isinstance(error, ApiError) else 0
        refused = status in (429, 503)
        if not refused and status < 500 and not isinstance(error, GradientConnectionError):
            raise error
        unsent = isinstance(error, GradientConnectionError) and not error.outcome_unknown
        self._counted += not refused and not unsent
        seconds = self._policy.wait(
            failed=max(1, self._counted),
            retry_after=error.retry_after if isinstance(error, ApiError) else None,
            jitter=random.random,
            left=self._deadline - now,
            keep=self._keep,
        )
        if self._counted >= self._policy.attempts or seconds is None:
            raise error
        self._record.waited += seconds
        return Wait(seconds=seconds, error=error)


def is_runnable(value: object) -> bool:
    """Whether ``value`` is a LangChain Runnable."""
    from langchain_core.runnables import Runnable

    return isinstance(value, Runnable)


def takes_llm(value: object) -> bool:
    """Whether ``value`` is a function that is to be given the run's model: one that needs an argument."""
    if is_runnable(value) or not callable(value):
        return False
    needed = [
        parameter
        for parameter in inspect.signature(value).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        names = ", ".join(parameter.name for parameter in needed)
        raise InvalidRequestError(
            f"runnable: a function that makes one takes the run's model or nothing, not {names}"
        )
    return bool(needed)


def _model(client: AsyncGradientClient, model_id: str, parameters: Mapping[str, Any]) -> GradientLLM:
    from airflow_provider_gradient.client import GradientClient
    from airflow_provider_gradient.langchain import GradientLLM

    single = GradientClient.like(client, retries=RetryPolicy(attempts=1))
    try:
        return GradientLLM(model_id=model_id, client=single, **parameters)
    except ValueError as error:
        raise InvalidRequestError(
            f"the model for the runnable can't be made: {' '.join(str(error).split())}"
        ) from None


def _name(runnable: Any) -> str:
    name = getattr(runnable, "name", None)
    if not name:
        raise InvalidRequestError(
            "runnable: give it a name (chain.name = 'summaries'), by which a later run knows that it is the "
            "same, or give its dotted path"
        )
    return str(name)


def _prompt_columns(runnable: Any) -> tuple[str, ...]:
    """The variables of the prompt that ``runnable`` begins with, if it begins with one."""
    from langchain_core.prompts import BasePromptTemplate
    from langchain_core.runnables import RunnableSequence
    from langchain_core.runnables.base import RunnableBindingBase

    while isinstance(runnable, RunnableSequence | RunnableBindingBase):
        runnable = runnable.first if isinstance(runnable, RunnableSequence) else runnable.bound
    return tuple(runnable.input_variables) if isinstance(runnable, BasePromptTemplate) else ()


def _text(output: Any) -> str:
    """:raises TypeError: ``output`` is neither text nor JSON."""
    from langchain_core.messages import BaseMessage
    from langchain_core.prompt_values import PromptValue

    if isinstance(output, str):
        return output
    if isinstance(output, BaseMessage):
        return str(output.text)
    if isinstance(output, PromptValue):
        raise TypeError("the runnable ends with a prompt, not with an answer to it")
    if isinstance(output, BaseModel):
        return output.model_dump_json()
    return json.dumps(output, ensure_ascii=False, allow_nan=False)


def _output(text: str | None, usage: ChainUsage, *, problem: str | None = None) -> ChainOutput:
    return ChainOutput(
        generated_output=text, finish_reason=usage.finish_reason, usage=usage.total, problem=problem
    )
