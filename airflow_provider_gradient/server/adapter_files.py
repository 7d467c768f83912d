"""Reading the files of one version of an adapter, and telling whether they are what a fine-tune wrote.

An adapter of which a part is missing still answers, and wrongly; a fine-tune would go on from it and replace
what could have been repaired. So whatever differs from what was written is an error: by the file's SHA-256,
which is on record since the version was made, and, for versions of older servers that have none, by names,
shapes and number types.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

Digests = Mapping[str, str]
"""SHA-256 of each of a version's files, hexadecimal, by the file's name."""

Shape = Sequence[int]


class AdapterFileError(ValueError):
    """A file of an adapter isn't what a fine-tune wrote.

    :param file: its name.
    :param finding: what is wrong with it; goes on from the file's name.
    """

    def __init__(self, file: str, finding: str) -> None:
        super().__init__(f"{file} {finding}")


def finding(error: AdapterFileError | FileNotFoundError) -> str:
    """What is wrong with an adapter that can't be read: a file, and what is the matter with it."""
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename or 'a file').name} is missing"
    return str(error)


def digests_of(directory: Path) -> dict[str, str]:
    """The digests of all files in a directory."""
    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_json(directory: Path, file: str, digests: Digests | None) -> dict[str, Any]:
    """The object in a JSON file.

    :param digests: of the version's files, where they are on record.
    :raises FileNotFoundError: there is no such file.
    :raises AdapterFileError: it is not what was written.
    """
    content = _read(directory, file, digests)
    try:
        value = json.loads(content)
    except ValueError:
        raise AdapterFileError(file, "is no JSON") from None
    if not isinstance(value, dict):
        raise AdapterFileError(file, "is no JSON object")
    return value


def read_tensors(directory: Path, file: str, digests: Digests | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name; parameters and errors as :func:`read_json` has them."""
    content = _read(directory, file, digests)
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise AdapterFileError(file, f"can't be read: {error}") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise AdapterFileError(file, f"holds {tensor.dtype} under {name!r} instead of weights")
    return tensors


def check_shapes(file: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compare what a file holds with what this base model's adapters have, by name.

    :raises AdapterFileError: something is missing, too much, or of another shape.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise AdapterFileError(
            file, f"lacks {len(missing)} of the {len(expected)} weights it must hold, such as {missing[0]!r}"
        )
    surplus = [name for name in found if name not in expected]
    if surplus:
        raise AdapterFileError(
            file, f"holds {len(surplus)} weights that don't belong to this base model, such as {surplus[0]!r}"
        )
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise AdapterFileError(
                file, f"holds {name!r} in shape {tuple(found[name])}, which must be {tuple(shape)}"
            )


def _read(directory: Path, file: str, digests: Digests | None) -> bytes:
    content = (directory / file).read_bytes()
    if digests is not None and hashlib.sha256(content).hexdigest() != digests.get(file):
        raise AdapterFileError(file, "is not what the fine-tune wrote: its SHA-256 is another")
    return content
