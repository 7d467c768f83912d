"""A row's value as text: what all templates write for it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from airflow_provider_gradient.datasets.jsonl import describe_type


def as_text(value: Any) -> str:
    """``value`` as it stands in a prompt: a string as it is, anything else as JSON has it.

    So a truth value is ``true`` or ``false``, and a list or an object is JSON, in which a null is ``null``
    and letters are not escaped. No Python form, such as ``None`` or ``True``, comes into a text. Numbers have
    the fewest digits that tell them from others of their type: a ``float32`` of numpy's is ``0.1``.

    :raises ValueError: JSON has no form for it, or for something in it; says what it is.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no form in JSON")
    try:
        return _ENCODER.encode(value)
    except TypeError as error:
        raise ValueError(f"{error}; make it a string") from None
    except (ValueError, RecursionError):
        raise ValueError("it holds NaN, an infinity or itself, which have no form in JSON") from None


def without_text(row: Mapping[str, Any]) -> str | None:
    """The first column of ``row`` whose value is no text by :func:`as_text`, and why, in words."""
    for column, value in row.items():
        try:
            as_text(value)
        except ValueError as error:
            return f"column {column!r}: {error}"
    return None


def _json_form(value: Any) -> Any:
    """What JSON has for a value that is none of its own."""
    if type(value).__module__ == "numpy":
        if value.ndim:
            return list(value)
        if value.dtype.kind in "biu" or (value.dtype.kind == "f" and math.isfinite(value)):
            return json.loads(str(value).lower())
    raise TypeError(f"{describe_type(value)} has no form in JSON")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_json_form)
