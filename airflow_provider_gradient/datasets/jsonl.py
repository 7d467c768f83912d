"""One row as one line of JSON.

Every line is JSON as RFC 8259 has it, in UTF-8: ``NaN`` and ``Infinity``, which Python's own reader and
writer let pass, are refused both ways, since other readers stop at them.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ASCII_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def dump_row(row: object) -> bytes:
    """A JSON value as one line of UTF-8, line feed included.

    :raises ValueError: it holds NaN, an infinity or a cycle.
    :raises TypeError: it holds something that JSON has no form for, such as a date.
    """
    try:
        return _ENCODER.encode(row).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 can't hold but an escape can
        return _ASCII_ENCODER.encode(row).encode() + b"\n"


def parse_row(line: bytes) -> dict[str, Any]:
    """The JSON object that ``line`` holds.

    :raises ValueError: says why it holds none.
    """
    try:
        row = _decode(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg}, at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"is no JSON object but {describe_type(row)}")
    return row


def _decode(text: str) -> Any:
    """As the decoder does it, without its searches for white space where a line has none to find."""
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError:
        return _DECODER.decode(text)
    return value if text[end:] in ("\n", "") else _DECODER.decode(text)


def describe_type(value: object) -> str:
    """What a JSON value is, in words: ``a list``, ``a string``, ``null``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {
        str: "a string",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")
