"""The JSON in an answer: what ``output_schema`` and the metric ``json_schema`` read, by one reader.

Models wrap JSON in words, so it is found in them: the whole text is tried, then what stands in a Markdown
fence, then what begins at the first bracket. Reasoning in front of the answer is passed over. But JSON is
never mended. langchain-core's parser closes what is open, so that an answer that was cut at its token limit
passes for a whole one; here it doesn't.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

from airflow_provider_gradient.api.reasoning import without_reasoning

_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_BRACKET = re.compile(r"[{\[]")
_DEEPEST = 100
"""Lists and objects within one another that an answer may have: more is a model that repeats itself, and
would exhaust the stack of whoever checks or reads it."""


class NoJsonError(ValueError):
    """A text holds no JSON that can be worked with; the message says why."""


def find_json(text: str) -> Any:
    """The JSON value (RFC 8259) in an answer.

    :raises NoJsonError: there is none, or one that is nested too deeply or that Python can't hold.
    """
    text = without_reasoning(text)
    candidates = [text.strip(), *(fenced.strip() for fenced in _FENCE.findall(text))]
    if bracket := _BRACKET.search(text):
        candidates.append(text[bracket.start() :])
    reason = ""
    for number, candidate in enumerate(candidates):
        try:
            value = _DECODER.raw_decode(candidate)[0] if number else _DECODER.decode(candidate)
        except json.JSONDecodeError as error:
            reason = error.msg
        except ValueError as error:  # also an integer of more digits than Python reads
            reason = str(error)
        except RecursionError:
            reason = "it is nested too deeply"
        else:
            return _shallow(value)
    raise NoJsonError(f"no JSON: {reason}")


def _shallow(value: Any) -> Any:
    """``value``.

    :raises NoJsonError: it is nested too deeply.
    """
    containers = [value]
    for _ in range(_DEEPEST):
        inner = itertools.chain.from_iterable(
            each.values() if isinstance(each, dict) else each
            for each in containers
            if isinstance(each, dict | list)
        )
        containers = [each for each in inner if isinstance(each, dict | list)]
        if not containers:
            return value
    raise NoJsonError(f"it is nested more than {_DEEPEST} deep")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is too large a number")
    return number


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse_constant, parse_float=_finite)
"""Lets line ends stand in strings, which models write so."""
