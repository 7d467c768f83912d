"""The errors this server answers with, each with the status and the type that a client goes by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from airflow_provider_gradient.api import (
    AuthenticationError,
    BadRequestError,
    BodyParsingError,
    ModelIncapableOfFineTuningError,
    PermissionDeniedError,
    QueryOrPathParsingError,
    RagError,
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


def failed(message: str) -> ServerError:
    """The server itself is at fault."""
    return ServerError(message, status=500, type="failed")
