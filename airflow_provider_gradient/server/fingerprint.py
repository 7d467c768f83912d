"""What a base model's weights are known by, so that an adapter is never put over others than it was tuned on.

Same slug, other weights: nothing would fail and every answer of the adapter would be wrong.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 1 << 16
_BLOCKS = 256
"""Of each file so many blocks at most are read, evenly spread: all of one up to 16 MiB. Training moves
weights everywhere, so other weights differ in every block, and a start need not read 100 GB."""


def fingerprint(directory: Path) -> str:
    """A SHA-256, hexadecimal, over the weights of a Hugging Face directory: names, sizes and blocks of its
    safetensors files, of its ``.bin`` files where it has none.

    It doesn't depend on when or where the files were written.
    """
    files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in _starts(size):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _starts(size: int) -> list[int]:
    """Where the blocks begin."""
    blocks = -(-size // _BLOCK)
    if blocks <= _BLOCKS:
        return [block * _BLOCK for block in range(blocks)]
    return [(blocks - 1) * index // (_BLOCKS - 1) * _BLOCK for index in range(_BLOCKS)]
