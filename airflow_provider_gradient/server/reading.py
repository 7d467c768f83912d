"""Reading requests from clients that may be slow, send too much, or leave before they are answered.

None of them holds what others need: work begins when the whole body is here, and what nobody waits for any
more is not begun.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from airflow_provider_gradient.server.failures import body_too_large, body_too_slow
from airflow_provider_gradient.server.settings import Limits

AnswerT = TypeVar("AnswerT")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    :raises UnprocessableContentError: it is too large, with 413.
    :raises ApiError: it didn't come in time, with 408.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise body_too_large(limits.max_body_mb)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.read_seconds):
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > limits.max_body_bytes:
                    raise body_too_large(limits.max_body_mb)
    except TimeoutError:
        raise body_too_slow(limits.read_seconds) from None
    return b"".join(chunks)


async def answered_unless_gone(request: Request, answer: Future[AnswerT]) -> AnswerT:
    """The answer, once it is there.

    :raises ClientDisconnect: the client left first; the work is called off if it has not begun.
    """
    waiting = asyncio.wrap_future(answer)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        waiting.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    """Wait until the client of a request whose body is read has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
