"""Gradient's completions as a langchain-core LLM, in place of the one of ``langchain_community``.

Whatever changes the output is among the identifying parameters, so that a cache never gives one model's
answer for another's; the access token is in none of them, nor in any ``repr`` or serialised form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypedDict

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from airflow_provider_gradient.api import (
    ApiError,
    Completion,
    FineTuneResult,
    InvalidRequestError,
    UnknownModelError,
)
from airflow_provider_gradient.client import AsyncGradientClient, GradientClient
from airflow_provider_gradient.langchain import parameters

IN_FLIGHT = 64
"""The most completions at once where the caller names no ``max_concurrency``."""


class TrainResult(TypedDict):
    """``loss``: mean over the trainable tokens before the update, in nats."""

    loss: float


class GradientLLM(BaseLLM):
    """A model of a Gradient server.

    ::

        llm = GradientLLM(model=model_id, temperature=0.2, max_generated_token_count=64)
        chain = PromptTemplate.from_template("{question}") | llm | StrOutputParser()
        chain.batch([{"question": "..."}], {"max_concurrency": 32})

    Takes every parameter of ``langchain_community``'s class. A completion's parameters can be given to a call
    (``llm.invoke(prompt, temperature=0)`` or ``llm.bind(...)``), as fields, or in ``model_kwargs``; the first
    of these wins. The API has no stop sequences: ``stop`` cuts the answer when it has come.

    :raises ValueError: at construction, a missing credential or a parameter out of its range.
    """

    model_config = ConfigDict(
        populate_by_name=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # the input holds the token
    )

    model_id: str = Field(alias="model", min_length=2)
    """Id of a base model or a model adapter."""
    gradient_workspace_id: str | None = None
    """Default: environment variable ``GRADIENT_WORKSPACE_ID``."""
    gradient_access_token: SecretStr | None = None
    """Default: environment variable ``GRADIENT_ACCESS_TOKEN``."""
    gradient_api_url: str | None = None
    """Default: environment variable ``GRADIENT_API_URL``, else Gradient's own."""
    model_kwargs: dict[str, Any] | None = None
    """Parameters by name, and ``stop``; the fields below win over them."""
    auto_template: bool | None = None
    """Wrap the prompt in the base model's recommended template; the server's default is yes."""
    max_generated_token_count: int | None = None
    """1 to 511; default: the server's."""
    temperature: float | None = None
    """0 to 1; default: the server's."""
    top_k: int | None = None
    """1 or more; default: the server's."""
    top_p: float | None = None
    """Above 0, at most 1; default: the server's."""
    guidance: list[str] | None = None
    """1 to 10 choices, of which the completion is one."""
    stop: list[str] | None = None
    """Sequences before the first of which the completion ends."""
    client: GradientClient | None = Field(default=None, exclude=True, repr=False)
    """Make all calls with this client's settings: its credentials, time-outs, certificates and proxy."""

    _client: GradientClient = PrivateAttr()
    _async_client: AsyncGradientClient = PrivateAttr()

    @model_validator(mode="after")
    def _settle(self) -> Self:
        token = self.gradient_access_token
        self._client = self.client or GradientClient(
            access_token=token.get_secret_value() if token else None,
            workspace_id=self.gradient_workspace_id,
            base_url=self.gradient_api_url,
        )
        self._async_client = AsyncGradientClient.like(self._client)
        self.gradient_workspace_id = self._client.workspace_id
        self.gradient_api_url = self._client.base_url
        parameters.check(self._parameters())
        return self

    # --- what langchain-core asks for ---

    @property
    def _llm_type(self) -> str:
        return "gradient"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "model_id": self.model_id,
            "gradient_api_url": self.gradient_api_url,
            "gradient_workspace_id": self.gradient_workspace_id,
            "model_kwargs": self._parameters(),
            "default_stop": self._stop(None),
        }

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Yes; the token is replaced by the name of its environment variable."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The fields that serialised forms name but don't hold."""
        return {"gradient_access_token": "GRADIENT_ACCESS_TOKEN"}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        known = self._parameters() | kwargs
        given = LangSmithParams(ls_provider="gradient", ls_model_name=self.model_id, ls_model_type="llm")
        if (temperature := known.get("temperature")) is not None:
            given["ls_temperature"] = temperature
        if (tokens := known.get("max_generated_token_count")) is not None:
            given["ls_max_tokens"] = tokens
        if sequences := self._stop(stop):
            given["ls_stop"] = sequences
        return given

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Complete each prompt; parameters of the call count as the model's own, for caches and traces."""
        model, rest = self._with_parameters(kwargs)
        return super(GradientLLM, model).generate(prompts, stop, callbacks, **rest)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """:meth:`generate`, awaited."""
        model, rest = self._with_parameters(kwargs)
        return await super(GradientLLM, model).agenerate(prompts, stop, callbacks, **rest)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> LLMResult:
        asked = self._checked_parameters(kwargs)

        def complete(prompt: str) -> Completion:
            return self._client.complete(self.model_id, prompt, **asked)

        if len(prompts) == 1:
            return self._result([complete(prompts[0])], stop)
        threads = ThreadPoolExecutor(min(IN_FLIGHT, max(1, len(prompts))))
        try:
            return self._result(list(threads.map(complete, prompts)), stop)
        finally:
            threads.shutdown(cancel_futures=True)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> LLMResult:
        asked = self._checked_parameters(kwargs)
        places = asyncio.Semaphore(IN_FLIGHT)

        async def complete(prompt: str) -> Completion:
            async with places:
                return await self._async_client.complete(self.model_id, prompt, **asked)

        tasks = [asyncio.ensure_future(complete(prompt)) for prompt in prompts]
        try:
            return self._result(await asyncio.gather(*tasks), stop)
        finally:
            for task in tasks:
                task.cancel()

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """One call an input, ``max_concurrency`` of them at any time (default 64).

        With ``return_exceptions``, an input that fails has its own exception and spoils no other's answer.
        """
        configs = _bounded(config, len(inputs))
        return Runnable.batch(self, inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """:meth:`batch`, awaited."""
        configs = _bounded(config, len(inputs))
        return await Runnable.abatch(self, inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of the tokens that the model reads for a text, without a template, by what the server says;
        ``get_num_tokens`` counts them. ``custom_get_token_ids`` is asked instead where it is given.

        :raises NotImplementedError: the server can't tell; says what to do.
        :raises UnknownModelError: there is no such model.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        if not text:
            return []
        try:
            return self._client.tokenize(self.model_id, text, auto_template=False).tokens
        except ApiError as error:
            if isinstance(error, UnknownModelError) or error.status not in (404, 405, 501):
                raise
            raise NotImplementedError(
                f"the server at {self.gradient_api_url} can't count tokens (it has no tokenize operation): "
                "give custom_get_token_ids, a function that gives the ids of a text's tokens, such as the "
                "encode method of the model's own tokenizer"
            ) from error

    async def aclose(self) -> None:
        """Close kept connections; a later call opens new ones."""
        await self._async_client.aclose()
        self._client.close()

    # --- training, as langchain_community's class has it ---

    def train_unsupervised(
        self, inputs: Sequence[str], *, multipliers: Sequence[float] | None = None
    ) -> TrainResult:
        """Fine-tune the model adapter on whole texts, once.

        :param multipliers: weight of each text in the loss; default 1.
        :raises ModelIncapableOfFineTuningError: a base model.
        """
        return _train_result(self._client.fine_tune(self.model_id, _samples(inputs, multipliers)))

    async def atrain_unsupervised(
        self, inputs: Sequence[str], *, multipliers: Sequence[float] | None = None
    ) -> TrainResult:
        """:meth:`train_unsupervised`, awaited."""
        return _train_result(await self._async_client.fine_tune(self.model_id, _samples(inputs, multipliers)))

    # --- parameters ---

    def _parameters(self) -> dict[str, Any]:
        """The model's own, without ``stop``."""
        kwargs = {name: value for name, value in (self.model_kwargs or {}).items() if name != "stop"}
        return parameters.merged(kwargs, {name: getattr(self, name) for name in parameters.PARAMETERS})

    def _checked_parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        asked = parameters.merged(self._parameters(), given)
        parameters.check(asked)
        return asked

    def _with_parameters(self, given: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A model with the parameters among ``given`` for its own, and the rest of ``given``."""
        own = {name: value for name, value in given.items() if name in parameters.PARAMETERS}
        rest = {name: value for name, value in given.items() if name not in own}
        if not own:
            return self, rest
        model = self.model_copy(update={name: value for name, value in own.items() if value is not None})
        model.__dict__.pop("_serialized", None)  # made anew where it was cached
        return model, rest

    def _stop(self, given: list[str] | None) -> list[str] | None:
        return next(
            (s for s in (given, self.stop, (self.model_kwargs or {}).get("stop")) if s is not None), None
        )

    def _result(self, completions: Sequence[Completion], stop: list[str] | None) -> LLMResult:
        sequences = self._stop(stop)
        output: dict[str, Any] = {"model_id": self.model_id}
        usages = [completion.usage for completion in completions if completion.usage is not None]
        if usages:
            prompt = sum(usage.prompt_tokens for usage in usages)
            generated = sum(usage.completion_tokens for usage in usages)
            output["token_usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": generated,
                "total_tokens": prompt + generated,
            }
        return LLMResult(
            generations=[[_generation(item, sequences)] for item in completions], llm_output=output
        )


def _generation(completion: Completion, stop: Sequence[str] | None) -> Generation:
    text, stopped = parameters.cut_at(completion.generated_output, stop)
    info: dict[str, Any] = {"finish_reason": "stop" if stopped else completion.finish_reason}
    if completion.usage is not None:
        info["usage"] = completion.usage.model_dump()
    return Generation(text=text, generation_info=info)


def _bounded(config: RunnableConfig | list[RunnableConfig] | None, inputs: int) -> list[RunnableConfig]:
    bounded: list[RunnableConfig] = []
    for each in get_config_list(config, inputs):
        limit = each.get("max_concurrency")
        bounded.append({**each, "max_concurrency": IN_FLIGHT if limit is None else limit})
    return bounded


def _samples(inputs: Sequence[str], multipliers: Sequence[float] | None) -> list[dict[str, Any]]:
    if isinstance(inputs, str):
        raise InvalidRequestError("inputs: a list of texts, not one string")
    if multipliers is None:
        return [{"inputs": text} for text in inputs]
    if len(multipliers) != len(inputs):
        raise InvalidRequestError(
            f"multipliers: one for each of {len(inputs)} inputs (got {len(multipliers)})"
        )
    return [
        {"inputs": text, "fineTuningParameters": {"multiplier": multiplier}}
        for text, multiplier in zip(inputs, multipliers, strict=True)
    ]


def _train_result(result: FineTuneResult) -> TrainResult:
    return TrainResult(loss=result.mean_loss)
