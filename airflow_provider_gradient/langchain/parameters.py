"""The parameters of a completion as GradientLLM takes them: in three places, checked in one.

A parameter given to a call wins over the model's field of that name, the field over ``model_kwargs``; what
is nowhere (or ``None``) is left to the server. A name that is no parameter is an error, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow_provider_gradient.api import CompleteRequest, build_request

PARAMETERS = ("auto_template", "max_generated_token_count", "temperature", "top_k", "top_p", "guidance")


def merged(*sources: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters of ``sources``, later ones over earlier ones, ``None`` giving way.

    :raises ValueError: a name that is no parameter of a completion.
    """
    parameters: dict[str, Any] = {}
    for source in sources:
        parameters |= {name: value for name, value in (source or {}).items() if value is not None}
    unknown = sorted(parameters.keys() - set(PARAMETERS))
    if unknown:
        raise ValueError(
            f"no parameter of a completion: {', '.join(unknown)}; there are {', '.join(PARAMETERS)}"
        )
    return parameters


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value <= 1, "must be in the range [0.0, 1.0]"),
    "top_p": (lambda value: 0 <= value <= 1, "must be in the range [0.0, 1.0]"),
    "top_k": (lambda value: value > 0, "must be positive"),
    "max_generated_token_count": (lambda value: value > 0, "must be positive"),
}
"""Those of langchain_community's class, in its words."""


def check(parameters: Mapping[str, Any]) -> None:
    """Refuse what langchain_community's class refused, and what the API does.

    :raises ValueError: names the parameter and its range.
    """
    for name, (holds, range_) in _RANGES.items():
        value = parameters.get(name)
        if isinstance(value, int | float) and not holds(value):
            raise ValueError(f"`{name}` {range_}")
    guidance = parameters.get("guidance")
    rest = {name: value for name, value in parameters.items() if name != "guidance"}
    choices = {"type": "choice", "value": list(guidance)} if guidance is not None else None
    build_request(CompleteRequest, query="x", guidance=choices, **rest)


def cut_at(text: str, stop: Sequence[str] | None) -> tuple[str, bool]:
    """``text`` up to the first of the stop sequences in it, and whether there was one."""
    ends = [end for sequence in stop or () if sequence and (end := text.find(sequence)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)
