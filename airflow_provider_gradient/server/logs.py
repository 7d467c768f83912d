"""What is written to the log and how: lines for people, or one JSON object a line.

Whatever is logged while a request is answered carries the request's id. Nothing logs a header, a body or an
answer, so no token, prompt or sample is ever in a log.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime

from airflow_provider_gradient.server.settings import LogFormat

REQUEST_ID: ContextVar[str | None] = ContextVar("gradient_request_id", default=None)
"""The id of the request that is being answered in this context."""


def log_to_standard_error(format: LogFormat) -> None:
    """Everything but what the libraries have to say to their own developers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


class TextLines(logging.Formatter):
    """Time, level, logger and message, with the request's id last."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line, before any traceback."""
        request_id = REQUEST_ID.get()
        return super().formatMessage(record) + (f" [{request_id}]" if request_id else "")


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``requestId`` while a
    request is answered, ``exception`` where there is one, and the fields that a record was given as
    ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["requestId"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
