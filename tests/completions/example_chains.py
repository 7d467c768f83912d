"""Chains as a project would have them, to be named by dotted path."""

from __future__ import annotations

from typing import Any

from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import BaseModel

PROMPT = PromptTemplate.from_template("{q}!")


class Length(BaseModel):
    text: str
    length: int


def asked(llm: Runnable[Any, str]) -> Runnable[Any, Any]:
    return PROMPT | llm | StrOutputParser()


def asked_for_json(llm: Runnable[Any, str]) -> Runnable[Any, Any]:
    return PROMPT | llm | JsonOutputParser()


def asked_twice(llm: Runnable[Any, str]) -> Runnable[Any, Any]:
    return PROMPT | llm | llm | (lambda text: Length(text=text, length=len(text)))


def measured() -> Runnable[Any, Any]:
    return RunnableLambda(lambda row: {"topic": row["topic"], "length": len(row["q"])}).with_config(
        tags=["x"]
    )


@RunnableLambda
def choosy(row: dict[str, Any]) -> str:
    if row["topic"] == "odd":
        raise KeyError("I like no odd rows")
    return str(row["q"])


def no_chain() -> str:
    return "no chain"


def no_json() -> Runnable[Any, Any]:
    return RunnableLambda(lambda _: object())


def two_models(llm: Any, other: Any) -> None:
    """Takes what nobody gives."""
