"""Responses as they are read from a connection: HTTP/1.1, parsed by httptools, in bounded memory. No I/O.

Whatever a server sends is one of three: the whole response to the request that was sent last, no answer, in
words, or a response that is larger than it may be. Never is it another request's response: a connection is
used again only where nothing followed the response's last byte, and a response that bears the id of another
request is no answer.
"""

from __future__ import annotations

import zlib

import httptools

from airflow_provider_gradient.client import request_ids
from airflow_provider_gradient.client.attempts import Answer, NoAnswer
from airflow_provider_gradient.client.policy import ResponseLimits

_CHUNK_HEAD = 16
"""Bytes around a chunk that don't count as header: its length, and the line ends around it."""
_COMPRESSED = ("gzip", "x-gzip", "deflate")


class ResponseReader:
    """The responses that come over one connection, one to each request.

    :ivar may_go_on: whether the connection may carry another request, once there is a response.
    :ivar is_told: whether the last response bore its request's id.
    """

    def __init__(self, limits: ResponseLimits) -> None:
        self._limits = limits
        self._parser = httptools.HttpResponseParser(self)
        self._requests = 0
        self.may_go_on = self.is_told = False

    def expect(self, request_id: str, *, tunnel: bool = False) -> None:
        """A request was sent: what comes now answers it.

        :param tunnel: it asked a proxy for a tunnel, which the head of the response opens.
        """
        self._request_id = request_id
        self._is_tunnel = tunnel
        self._requests += 1
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._received = self._chunks = 0
        self._head_is_whole = self._is_whole = self._goes_further = False
        self.may_go_on = False

    def feed(self, data: bytes) -> Answer | None:
        """Take what came; the answer, if it is whole now.

        :raises NoAnswer: there will be none.
        """
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_whole:
                words = error if isinstance(error, httptools.HttpParserError) else "it changes the protocol"
                raise NoAnswer(reason=f"the answer is no HTTP: {words}", sent=True) from None
            self._goes_further = True
        if len(self._body) > self._limits.body_bytes:
            raise self._too_large()
        if self._received - len(self._body) > self._limits.header_bytes + _CHUNK_HEAD * self._chunks:
            raise NoAnswer(
                reason=f"the answer's header fields are larger than {self._limits.header_bytes} bytes; raise "
                "the client's limits.header_bytes if they may be",
                sent=True,
                too_large=True,
            )
        return self._answer() if self._is_whole else None

    def feed_end(self) -> Answer | None:
        """The connection ended in good order; the answer, if that was how it ends.

        :raises NoAnswer: as :meth:`feed`.
        """
        if not self._head_is_whole or {"content-length", "transfer-encoding"} & self._headers.keys():
            return None
        return self._answer()

    def _answer(self) -> Answer:
        status, headers = self._parser.get_status_code(), self._headers
        echoed = headers.get("x-request-id", "")
        if request_ids.is_anothers(echoed, self._request_id):
            raise NoAnswer(
                reason="the answer is another request's, by its X-Request-Id: something on the way mixes "
                "answers up, or keeps and repeats them",
                sent=True,
            )
        self.is_told = echoed == self._request_id
        if self._goes_further and (self._is_tunnel or (self._requests > 1 and not self.is_told)):
            # the first of two answers may be a late second one to the request before
            raise NoAnswer(reason="more than one answer came", sent=True)
        self.may_go_on &= not self._goes_further
        encoding = headers.get("content-encoding")
        body = bytes(self._body)
        return Answer(status=status, headers=headers, body=self._decompressed(body) if encoding else body)

    def _decompressed(self, body: bytes) -> bytes:
        """The body of a server that compresses it though it was not asked to; as it is where it can't be
        read."""
        if self._headers["content-encoding"].strip().lower() not in _COMPRESSED:
            return body
        most = self._limits.body_bytes
        decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, by its beginning
        try:
            text = decompressor.decompress(body, most + 1)
        except zlib.error:
            return body
        if len(text) > most:
            raise self._too_large()
        return text if decompressor.eof else body

    def _too_large(self) -> NoAnswer:
        return NoAnswer(
            reason=f"the answer is larger than {self._limits.body_bytes} bytes; raise the client's "
            "limits.body_bytes, in an Airflow connection max_response_bytes, if it may be",
            sent=True,
            too_large=True,
        )

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        """A response begins, the one that is waited for or more than that."""
        if self._is_whole:
            self._goes_further = True
        else:
            self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field."""
        if not self._head_is_whole:  # else a trailer's, or of what nobody asked for
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """A response's head is whole."""
        if self._is_whole:
            return
        self._head_is_whole = self._parser.get_status_code() >= 200
        if self._head_is_whole and self._is_tunnel:
            self._is_whole = self.may_go_on = True

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._chunks += 1

    def on_body(self, part: bytes) -> None:
        """A part of a body."""
        if self._is_whole:
            self._goes_further = True
        else:
            self._body += part

    def on_message_complete(self) -> None:
        """A response is whole, or was one that only announces it."""
        if self._head_is_whole and not self._is_whole:
            self._is_whole = True
            self.may_go_on = self._parser.should_keep_alive()
