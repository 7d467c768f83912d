"""Files as they were before gzip or zstd: read as a stream, and never as if a cut file were whole.

zstd comes from ``zstandard``, which what langchain-core needs brings along. Its stream reader takes a file
that ends in the middle of a frame for a finished one; the reader here raises.
"""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from airflow_provider_gradient.datasets.paths import StoredPath

_BUFFER = 1 << 18
_STEP = 1 << 10
"""Compressed bytes taken at once: what a block of zstd becomes may be 30,000 times as long."""


def compression_of(name: str) -> str:
    """The suffix that says how the file of this name is compressed: ``.gz``, ``.zst`` or nothing."""
    return next((suffix for suffix in (".gz", ".zst") if name.lower().endswith(suffix)), "")


@contextlib.contextmanager
def open_plain(path: StoredPath) -> Iterator[BinaryIO]:
    """The content of ``path``, without the compression that its name tells.

    :raises OSError: it can't be opened or, while it is read, is no file of that compression.
    :raises EOFError: it is compressed and ends too early.
    """
    compression = compression_of(path.name)
    with path.open("rb") as file:
        if not compression:
            yield file
            return
        if not file.read(1):
            raise EOFError("a compressed file is never empty")
        file.seek(0)
        if compression == ".gz":
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
        else:
            yield cast(BinaryIO, io.BufferedReader(_ZstdStream(file), _BUFFER))


class _ZstdStream(io.RawIOBase):
    """What the frames of a zstd file hold, one after another."""

    def __init__(self, source: Any) -> None:
        from zstandard import ZstdDecompressor

        self._new_frame = ZstdDecompressor().decompressobj
        self._source = source
        self._frame: Any = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as possible; 0 at the end.

        :raises EOFError: the file ends within a frame.
        :raises OSError: this is no zstd.
        """
        while not self._plain:
            if not self._compressed and not (compressed := self._source.read(_STEP)):
                if self._frame is not None:
                    raise EOFError("the compressed file ended in the middle")
                return 0
            self._decompress(self._compressed or compressed)
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def _decompress(self, compressed: bytes) -> None:
        from zstandard import ZstdError

        if self._frame is None:
            self._frame = self._new_frame()
        try:
            self._plain = memoryview(self._frame.decompress(compressed))
        except ZstdError as error:
            raise OSError(f"this is no zstd, or damaged: {error}") from error
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
