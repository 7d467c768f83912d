"""What can go wrong between a client and a Gradient server, as a tree of exceptions.

::

    GradientError
    ├── InvalidRequestError (ValueError)          refused before anything was sent
    ├── GradientConnectionError (ConnectionError) no answer: no route, refused, cut
    │   └── GradientTimeoutError (TimeoutError)
    ├── InvalidResponseError                      an answer, but not one of a Gradient server
    │   └── ResponseTooLargeError                 larger than the client's limits allow
    └── ApiError                                  the server's own error: status, type, message
        ├── BadRequestError 400
        │   ├── BodyParsingError, QueryOrPathParsingError
        │   ├── FlaggedContentError, UnprocessableContentError, RagError
        │   ├── GuidanceNotSupportedError, ModelIncapableOfFineTuningError
        │   └── NanLossError
        ├── AuthenticationError 401
        ├── PermissionDeniedError 403
        ├── NotFoundError 404
        │   └── UnknownModelError
        ├── RateLimitError 429
        └── ServerError 5xx

The API gives a ``type`` with an error but never says which status goes with which type, so the type decides
where there is one, the status otherwise. No message holds a request header, hence no token.
"""

from __future__ import annotations

import json
from typing import Any

_SHOWN = 500
"""Characters of a server's answer that a message repeats."""


class GradientError(Exception):
    """Whatever this package raises about Gradient.

    ``outcome_unknown`` says whether the server may have carried out all the same what failed here: after a
    lost connection it may, after a refusal it has not.
    """

    outcome_unknown: bool = False


class InvalidRequestError(GradientError, ValueError):
    """The request breaks a limit of the API and was not sent; the message names the field."""


class GradientConnectionError(GradientError, ConnectionError):
    """The server gave no answer: unknown host, refused or cut connection."""


class GradientTimeoutError(GradientConnectionError, TimeoutError):
    """The server did not answer in time."""


class InvalidResponseError(GradientError):
    """Something answered, but not as a Gradient server does."""


class ResponseTooLargeError(InvalidResponseError):
    """The answer is larger than the client's limits allow, and was not read to its end."""


class ApiError(GradientError):
    """An error that the server reported.

    :param message: the server's words.
    :param status: HTTP status.
    :param type: the API's error type, such as ``unknownBaseModel``, or ``None`` where it gave none.
    :param payload: what some types add, such as the validation errors.
    :param retry_after: seconds the server asked to wait, or ``None``.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,
        payload: dict[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.payload = payload
        self.retry_after = retry_after

    def to_wire(self) -> dict[str, Any]:
        """The JSON body of the error: message, type and payload where there are such."""
        fields = {"message": self.message, "type": self.type, "payload": self.payload}
        return {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        return f"{self.message} (HTTP {self.status}{f', {self.type}' if self.type else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.status), dict(self.__dict__)


def _rebuild(cls: type[ApiError], message: str, status: int) -> ApiError:
    return cls(message, status=status)


class BadRequestError(ApiError):
    """The server refused what was asked (400)."""


class BodyParsingError(BadRequestError):
    """The body isn't what the operation takes (``bodyParsingError``)."""


class QueryOrPathParsingError(BadRequestError):
    """A path or query parameter isn't what the operation takes (``queryOrPathParsingError``)."""


class FlaggedContentError(BadRequestError):
    """The server's content filter refused the text (``flaggedContent``)."""


class UnprocessableContentError(BadRequestError):
    """The text can't be worked on, for one because it is too long (``unprocessableContent``)."""


class RagError(BadRequestError):
    """Retrieval failed (``noRagDocumentsFound``, ``ragRequiresAutoTemplating``, ``unknownRagCollection``)."""


class GuidanceNotSupportedError(BadRequestError):
    """The model can't be guided (``modelDoesNotSupportGuidance``)."""


class ModelIncapableOfFineTuningError(BadRequestError):
    """A base model, or one that can't be tuned (``modelIncapableOfFineTuning``)."""


class NanLossError(BadRequestError):
    """The fine-tune diverged and was not kept (``nanLoss``); lower the learning rate or multipliers."""


class AuthenticationError(ApiError):
    """The access token is missing or wrong (401)."""


class PermissionDeniedError(ApiError):
    """The token may not use this workspace (403)."""


class NotFoundError(ApiError):
    """There is no such thing (404)."""


class UnknownModelError(NotFoundError):
    """There is no such model in this workspace (``unknownBaseModel``, ``unknownModelAdapter``)."""


class RateLimitError(ApiError):
    """Too many requests (429); ``retry_after`` says when to come again, if the server said so."""


class ServerError(ApiError):
    """The server failed or is overloaded (5xx)."""


_BY_TYPE: dict[str, type[ApiError]] = {
    "bodyParsingError": BodyParsingError,
    "queryOrPathParsingError": QueryOrPathParsingError,
    "flaggedContent": FlaggedContentError,
    "unprocessableContent": UnprocessableContentError,
    "noRagDocumentsFound": RagError,
    "ragRequiresAutoTemplating": RagError,
    "unknownRagCollection": RagError,
    "modelDoesNotSupportGuidance": GuidanceNotSupportedError,
    "modelIncapableOfFineTuning": ModelIncapableOfFineTuningError,
    "nanLoss": NanLossError,
    "unknownBaseModel": UnknownModelError,
    "unknownModelAdapter": UnknownModelError,
}
_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitError,
}


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object that ``body`` holds; ``None`` where it holds none, or one nested too deeply to read."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def error_from_response(status: int, body: bytes, retry_after: float | None = None) -> ApiError:
    """The exception for an answer whose status is not 2xx.

    :param body: as it came; where it isn't the API's JSON, or its message no text, the message repeats its
        beginning.
    """
    fields = json_object(body)
    message = body if fields is None else fields.get("message")
    if message and not isinstance(message, str):
        message = body.decode(errors="replace").strip()
    fields = fields or {}
    type_ = fields.get("type")
    cls = _BY_TYPE.get(type_) if isinstance(type_, str) else None
    if cls is None:
        cls = _BY_STATUS.get(status) or (ServerError if status >= 500 else ApiError)
    payload = fields.get("payload")
    return cls(
        str(message or "the server gave no reason")[:_SHOWN],
        status=status,
        type=type_ if isinstance(type_, str) else None,
        payload=payload if isinstance(payload, dict) else None,
        retry_after=retry_after,
    )
