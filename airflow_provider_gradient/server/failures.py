"""The errors this server answers with, each with the status and the type that a client goes by."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from airflow_provider_gradient.api import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    BodyParsingError,
    ModelIncapableOfFineTuningError,
    PermissionDeniedError,
    QueryOrPathParsingError,
    RagError,
    RateLimitError,
    ServerError,
    UnknownModelError,
    UnprocessableContentError,
    describe_validation_error,
)


def bad_token(message: str) -> AuthenticationError:
    """The access token is missing or opens nothing."""
    return AuthenticationError(message, status=401)


def wrong_workspace(message: str) -> PermissionDeniedError:
    """The token doesn't open the workspace that the request names."""
    return PermissionDeniedError(message, status=403)


def bad_body(error: ValidationError) -> BodyParsingError:
    """The body isn't what the operation takes; the payload has every finding, by field."""
    findings = error.errors(include_url=False, include_context=False, include_input=False)
    no_json = findings[0]["type"] == "json_invalid"
    message = f"body: {findings[0]['msg']}" if no_json else describe_validation_error(error)
    payload = {"formattedValidationError": message, "validationError": findings}
    return BodyParsingError(message, status=400, type="bodyParsingError", payload=payload)


def bad_parameter(name: str, message: str) -> QueryOrPathParsingError:
    """A path or query parameter or a header isn't what the operation takes."""
    finding: dict[str, Any] = {"loc": [name], "msg": message}
    return QueryOrPathParsingError(
        f"{name}: {message}",
        status=400,
        type="queryOrPathParsingError",
        payload={"formattedValidationError": f"{name}: {message}", "validationError": [finding]},
    )


def unknown_base(id: str, slugs: Iterable[str]) -> UnknownModelError:
    """There is no such base model; names those there are."""
    return UnknownModelError(
        f"there is no base model {id!r} here; this server has: {', '.join(slugs)}",
        status=404,
        type="unknownBaseModel",
    )


def unknown_adapter(id: str) -> UnknownModelError:
    """The workspace has no such adapter."""
    return UnknownModelError(
        f"there is no model adapter {id!r} in this workspace", status=404, type="unknownModelAdapter"
    )


def base_not_tunable(id: str) -> ModelIncapableOfFineTuningError:
    """A base model was to be fine-tuned itself."""
    return ModelIncapableOfFineTuningError(
        f"{id!r} is a base model: create a model adapter of it and fine-tune that",
        status=400,
        type="modelIncapableOfFineTuning",
    )


def cannot_be_tuned(base_slug: str) -> ModelIncapableOfFineTuningError:
    """Adapters of this base model can't be trained."""
    return ModelIncapableOfFineTuningError(
        f"adapters of {base_slug!r} can't be fine-tuned: a training step on it failed at the server's "
        "start; its log says how. Create an adapter of another base model.",
        status=400,
        type="modelIncapableOfFineTuning",
    )


def no_rag(*, auto_template: bool | None) -> RagError:
    """Retrieval was asked for, and this server has no collections."""
    if auto_template is False:
        return RagError(
            "rag puts its context into the template: it needs autoTemplate",
            status=400,
            type="ragRequiresAutoTemplating",
        )
    return RagError("this server has no RAG collections", status=400, type="unknownRagCollection")


def unprocessable(message: str) -> UnprocessableContentError:
    """The text can't be worked on."""
    return UnprocessableContentError(message, status=400, type="unprocessableContent")


def key_reused(key: str) -> BadRequestError:
    """An idempotency key came again with another operation or body."""
    return BadRequestError(
        f"Idempotency-Key {key!r} was used for another request before: a new request needs a new key",
        status=400,
        type="failed",
    )


def no_memory() -> ServerError:
    """There was no memory left for a request, tried by itself."""
    return ServerError(
        "there is not enough memory for this request at present: send it again later, or make it shorter",
        status=503,
        type="failed",
        retry_after=5,
    )


def failed(message: str) -> ServerError:
    """The server itself is at fault."""
    return ServerError(message, status=500, type="failed")


def too_many_requests(per_minute: int, *, retry_after: float) -> RateLimitError:
    """The token used up its requests."""
    return RateLimitError(
        f"this access token may make {per_minute} requests a minute here",
        status=429,
        type="failed",
        retry_after=retry_after,
    )


def queue_full(at_most: int) -> ServerError:
    """More is waiting than there may be; nothing was begun."""
    return ServerError(
        f"{at_most} requests are waiting or under way: try again", status=503, type="failed", retry_after=1
    )


def stopping() -> ServerError:
    """Nothing was begun: ``Retry-After`` tells a client that it may send it again."""
    return ServerError("the server is stopping; try again", status=503, type="failed", retry_after=1)


def body_too_large(at_most_mb: int) -> UnprocessableContentError:
    """The body is larger than may be; it was not read to its end."""
    return UnprocessableContentError(
        f"the body has more than the {at_most_mb} MiB that it may have here; send less in one call",
        status=413,
        type="unprocessableContent",
    )


def body_too_slow(seconds: float) -> ApiError:
    """The body didn't come in time."""
    return ApiError(f"the body was not here after {seconds:.0f} s", status=408)


def too_many_samples(samples: int, at_most: int) -> UnprocessableContentError:
    """A fine-tune call has more samples than it may have."""
    return unprocessable(
        f"samples: {samples} are more than the {at_most} that one call may have here; send them in several"
    )


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = re.compile(rf"database or disk is full|os error ({'|'.join(map(str, _FULL))})\b")
"""How SQLite says it, and libraries that write files without Python."""


def is_disk_full(error: BaseException) -> bool:
    """Whether it is for want of space that something could not be written."""
    return getattr(error, "errno", None) in _FULL or _FULL_IN_WORDS.search(str(error)) is not None


def disk_full() -> ServerError:
    """There is no room for what was to be kept."""
    return ServerError(
        "the server's disk is full: nothing of this call was kept. Once there is room, send it again.",
        status=507,
        type="failed",
    )


def base_changed(adapter_id: str, base_slug: str) -> BadRequestError:
    """The weights under a base model's slug aren't those that the adapter was tuned on."""
    return BadRequestError(
        f"the model adapter {adapter_id!r} was tuned on other weights of {base_slug!r} than this server has "
        "now: its answers would be wrong. Serve the former weights again, or tune a new adapter.",
        status=400,
        type="failed",
    )


def damaged_adapter(adapter_id: str, version: int, finding: str) -> ServerError:
    """An adapter's files aren't what its last fine-tune wrote. By a part of them it would answer wrongly.

    :param finding: the file's name and what is wrong with it.
    """
    return failed(
        f"version {version} of the model adapter {adapter_id!r} is damaged: {finding}. Nothing was done. Put "
        f"the files of adapters/{adapter_id}/v{version} in the server's data directory back from a backup, "
        "or tune a new adapter."
    )
