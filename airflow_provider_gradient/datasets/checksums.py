"""A checksum in each line of a log, so that a line which was changed since it was written is never taken for
what was written.

It is the last field of the line's JSON object, ``"crc32"``, over all bytes before it: the lines stay JSON,
and the line as it was without it is found without reading the JSON.
"""

from __future__ import annotations

from zlib import crc32

_SIZE = len(b',"crc32":"00000000"}\n')


def sealed(line: bytes) -> bytes:
    """``line``, a JSON object with a field at least, with its checksum."""
    content = line[:-2]
    return b'%b,"crc32":"%08x"}\n' % (content, crc32(content))


def unsealed(line: bytes) -> bytes:
    """The line that :func:`sealed` was given.

    :raises ValueError: this is another; says so in words that follow the line's name.
    """
    content = line[:-_SIZE]
    if line[-_SIZE:] == b',"crc32":"%08x"}\n' % crc32(content):
        return content + b"}\n"
    if line.endswith(b"\r\n"):
        raise ValueError("ends in a carriage return, as an editor or a transfer in text mode leaves it")
    raise ValueError("was changed since it was written: its checksum does not fit it")
