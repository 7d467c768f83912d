"""Files of rows in every format that can be read, as other programs write them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

Rows = Sequence[Mapping[str, Any]]


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_text(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: Rows, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file, **options)
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    """Of several frames, as parallel compressors make them."""
    half = len(content) // 2
    compressor = zstandard.ZstdCompressor()
    return b"".join(compressor.compress(part) for part in (content[:half], content[half:]))


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    ".jsonl.zst": lambda rows: zstd(jsonl(rows)),
    ".csv": csv_text,
    ".csv.gz": lambda rows: gzip.compress(csv_text(rows)),
    ".csv.zst": lambda rows: zstd(csv_text(rows)),
    ".parquet": parquet,
}
