"""The operations as values: what to send, how to read the answer, and whether it may be sent again.

Everything is checked here, before anything is sent. Nothing here does I/O, so the synchronous and the
asynchronous client cannot differ in what they send.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from airflow_provider_gradient.api import (
    IDEMPOTENCY_KEY_HEADER,
    MAX_EMBEDDING_INPUTS,
    BaseModelInfo,
    Capability,
    CompleteRequest,
    Completion,
    CreatedModel,
    CreateModelRequest,
    EmbeddingsModelInfo,
    EmbeddingsModelList,
    EmbedRequest,
    EmbedResult,
    FineTuneRequest,
    FineTuneResult,
    InvalidRequestError,
    InvalidResponseError,
    ModelAdapterInfo,
    ModelList,
    Sample,
    TokenizeRequest,
    TokenizeResult,
    UnknownModelError,
    build_request,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

EMBED_IN_FLIGHT = 8
"""Requests at once of one ``embed`` of more texts than a request may hold."""

_CAPABILITIES = ("complete", "fineTune", "any")
_JSON = {"Content-Type": "application/json"}
_ENCODER = json.JSONEncoder(ensure_ascii=False)


class Call(NamedTuple, Generic[T_co]):
    """One operation, ready to be sent.

    :param path: below the base URL, quoted, with the query.
    :param parse: reads the body of a 2xx answer; a ``ValueError`` means that it isn't the operation's answer.
    :param repeatable: sending it twice does no harm, even where the first one was carried out.
    :param frequent: sent thousands of times: connections are kept for it. The others take a fresh one each,
        so that a kept connection, closed by the server at that very moment, can't leave it open whether a
        fine-tune was carried out.
    :param silent_work: the server works before it says anything, so its silence means nothing.
    :param absent_is_done: 404 to a repeated call means that an earlier attempt was carried out.
    """

    method: str
    path: str
    parse: Callable[[bytes], T_co]
    body: bytes | None = None
    idempotency_key: str | None = None
    repeatable: bool = True
    frequent: bool = False
    silent_work: bool = False
    absent_is_done: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """The call's own headers."""
        headers = dict(_JSON) if self.body is not None else {}
        if self.idempotency_key is not None:
            headers[IDEMPOTENCY_KEY_HEADER] = self.idempotency_key
        return headers


def list_models(
    *, capability: Capability = "any", only_base: bool = False
) -> Call[list[BaseModelInfo | ModelAdapterInfo]]:
    """GET /models."""
    if capability not in _CAPABILITIES:
        raise InvalidRequestError(f"capability: one of {', '.join(_CAPABILITIES)} (got {capability!r})")
    query = urlencode({"capability": capability, "onlyBase": "true" if only_base else "false"})
    return Call(
        method="GET",
        path=f"/models?{query}",
        parse=lambda body: list(ModelList.model_validate_json(body).models),
    )


def choose_base_model(
    models: Sequence[BaseModelInfo | ModelAdapterInfo], *, slug_or_id: str
) -> BaseModelInfo:
    """The base model of that slug, or else of that id.

    :raises UnknownModelError: there is none; the message names the slugs there are.
    """
    base_models = [model for model in models if isinstance(model, BaseModelInfo)]
    for model in base_models:
        if model.slug == slug_or_id:
            return model
    for model in base_models:
        if model.id == slug_or_id:
            return model
    slugs = ", ".join(sorted({model.slug for model in base_models})) or "none at all"
    raise UnknownModelError(
        f"there is no base model {slug_or_id!r}; the server has: {slugs}", status=404, type="unknownBaseModel"
    )


def get_model_adapter(model_id: str) -> Call[ModelAdapterInfo]:
    """GET /models/{id}."""
    return Call(method="GET", path=_model_path(model_id), parse=ModelAdapterInfo.model_validate_json)


def create_model_adapter(
    *,
    base_model_id: str,
    name: str,
    rank: int | None,
    learning_rate: float | None,
    idempotency_key: str | None,
    keys_honoured: bool,
) -> Call[str]:
    """POST /models."""
    hyperparameters = {
        "lora_hyperparameters": {"rank": rank} if rank is not None else None,
        "training_arguments": {"learning_rate": learning_rate} if learning_rate is not None else None,
    }
    request = build_request(
        CreateModelRequest,
        model={"base_model_id": base_model_id, "name": name},
        initial_hyperparameters=hyperparameters if any(hyperparameters.values()) else None,
    )
    return Call(
        method="POST",
        path="/models",
        body=_encode(request.to_wire()),
        parse=lambda body: CreatedModel.model_validate_json(body).id,
        idempotency_key=_checked_key(idempotency_key),
        repeatable=keys_honoured and idempotency_key is not None,
    )


def delete_model(model_id: str) -> Call[None]:
    """DELETE /models/{id}."""
    return Call(method="DELETE", path=_model_path(model_id), parse=_any_json, absent_is_done=True)


def complete(
    model_id: str, query: str, *, guidance: Sequence[str] | None = None, **parameters: Any
) -> Call[Completion]:
    """POST /models/{id}/complete."""
    return completions(model_id, guidance=guidance, **parameters)(query)


def completions(
    model_id: str, *, guidance: Sequence[str] | None = None, **parameters: Any
) -> Callable[[str], Call[Completion]]:
    """:func:`complete` for one query after another: what they share is checked and written once."""
    if isinstance(guidance, str):
        raise InvalidRequestError(f"guidance: a list of choices, not one string (got {guidance!r})")
    choice = {"type": "choice", "value": list(guidance)} if guidance is not None else None
    request = build_request(CompleteRequest, query="?", guidance=choice, **parameters)
    others = _encode({name: value for name, value in request.to_wire().items() if name != "query"})
    end = b"}" if others == b"{}" else b", " + others[1:]
    path = f"{_model_path(model_id)}/complete"

    def call(query: str) -> Call[Completion]:
        return Call(
            method="POST",
            path=path,
            body=b'{"query": ' + _encoded_query(query) + end,
            parse=Completion.model_validate_json,
            frequent=True,
        )

    return call


def fine_tune(
    model_id: str,
    samples: Sequence[Sample | Mapping[str, Any]],
    *,
    idempotency_key: str | None,
    keys_honoured: bool,
) -> Call[FineTuneResult]:
    """POST /models/{id}/fine-tune."""
    request = build_request(
        FineTuneRequest,
        samples=[sample if isinstance(sample, Sample) else _as_dict(sample) for sample in samples],
    )
    for index, sample in enumerate(request.samples):
        if not sample.is_trainable:
            raise InvalidRequestError(f"samples[{index}]: nothing in it is trainable")
    return Call(
        method="POST",
        path=f"{_model_path(model_id)}/fine-tune",
        body=_encode(request.to_wire()),
        parse=FineTuneResult.model_validate_json,
        idempotency_key=_checked_key(idempotency_key),
        repeatable=keys_honoured and idempotency_key is not None,
        silent_work=True,
    )


def tokenize(model_id: str, query: str, *, auto_template: bool | None) -> Call[TokenizeResult]:
    """POST /models/{id}/tokenize, an extra of the server in this package."""
    request = build_request(TokenizeRequest, query=query, auto_template=auto_template)
    return Call(
        method="POST",
        path=f"{_model_path(model_id)}/tokenize",
        body=_encode(request.to_wire()),
        parse=TokenizeResult.model_validate_json,
        frequent=True,
    )


def list_embeddings_models() -> Call[list[EmbeddingsModelInfo]]:
    """GET /embeddings."""
    return Call(
        method="GET",
        path="/embeddings",
        parse=lambda body: EmbeddingsModelList.model_validate_json(body).embeddings_models,
    )


def embed(slug: str, inputs: Sequence[str]) -> list[Call[list[list[float]]]]:
    """POST /embeddings/{slug}, as often as it takes to hold all inputs, in order.

    All of them are checked before the first can be sent.
    """
    if not isinstance(slug, str) or not slug.strip() or slug in (".", ".."):
        raise InvalidRequestError(f"slug: the slug of an embeddings model (got {slug!r})")
    if isinstance(inputs, str):
        raise InvalidRequestError(f"inputs: a list of texts, not one string (got {inputs[:40]!r})")
    texts = list(inputs)
    if not texts:
        raise InvalidRequestError("inputs: at least one text")
    for index, text in enumerate(texts):
        _check_input(index, text)
    return [
        _embed_some(slug, texts[start : start + MAX_EMBEDDING_INPUTS])
        for start in range(0, len(texts), MAX_EMBEDDING_INPUTS)
    ]


def _embed_some(slug: str, texts: Sequence[str]) -> Call[list[list[float]]]:
    request = build_request(EmbedRequest, inputs=[{"input": text} for text in texts])

    def parse(body: bytes) -> list[list[float]]:
        vectors = EmbedResult.model_validate_json(body).vectors
        if len(vectors) != len(texts):
            raise ValueError(f"{len(vectors)} embeddings for {len(texts)} inputs")
        return vectors

    return Call(
        method="POST",
        path=f"/embeddings/{quote(slug, safe='')}",
        body=_encode(request.to_wire()),
        parse=parse,
        frequent=True,
    )


def _check_input(index: int, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidRequestError(f"inputs[{index}]: a text (got {type(text).__name__})")
    if not text:
        raise InvalidRequestError(f"inputs[{index}]: is empty; an embedding needs at least one character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"inputs[{index}]: holds half a surrogate pair, which UTF-8 cannot carry"
        ) from None


def joined(parts: Sequence[list[list[float]]]) -> list[list[float]]:
    """The vectors of several calls' answers as one list, in order.

    :raises InvalidResponseError: the answers' vectors differ in length.
    """
    vectors = [vector for part in parts for vector in part]
    if len(lengths := sorted({len(vector) for vector in vectors})) > 1:
        raise InvalidResponseError(f"embeddings of one model differ in length: {lengths}")
    return vectors


def _model_path(model_id: str) -> str:
    if not isinstance(model_id, str) or not model_id.strip() or model_id in (".", ".."):
        raise InvalidRequestError(f"model_id: the id of a model (got {model_id!r})")
    return f"/models/{quote(model_id, safe='')}"


def _checked_key(key: str | None) -> str | None:
    if key is not None and not (key and key.isascii() and key.isprintable() and len(key) <= 255):
        raise InvalidRequestError("idempotency_key: 1 to 255 printable ASCII characters")
    return key


def _as_dict(sample: object) -> object:
    return dict(sample) if isinstance(sample, Mapping) else sample


def _any_json(body: bytes) -> None:
    if body.strip():
        json.loads(body)


def _encoded_query(query: str) -> bytes:
    """A query as JSON.

    :raises InvalidRequestError: it is no text, empty, or holds half of a surrogate pair.
    """
    with contextlib.suppress(UnicodeEncodeError):
        if isinstance(query, str) and query:
            return _encode(query)
    return _encode(build_request(CompleteRequest, query=query).query)


def _encode(value: dict[str, Any] | str) -> bytes:
    return _ENCODER.encode(value).encode()
