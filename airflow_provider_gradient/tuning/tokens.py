"""How many tokens a text has, where a tokenizer is at hand."""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_gradient.api import InvalidRequestError, Sample
from airflow_provider_gradient.datasets import PathLike, as_path

CountTokens = Callable[[str], int]
"""The tokens of a text, special ones aside."""

_BYTES_A_TOKEN = 4
"""What is reckoned where there is no tokenizer: about what English text has."""


def open_tokenizer(tokenizer: PathLike | CountTokens | None) -> CountTokens | None:
    """The counting function that ``tokenizer`` is, or that its file gives.

    :param tokenizer: a function, or the path of a ``tokenizer.json`` or of a folder that holds one, as those
        of Hugging Face models do; that needs the package ``tokenizers``.
    :raises InvalidRequestError: there is no such file, it is none, or the package is missing.
    """
    if tokenizer is None or callable(tokenizer):
        return tokenizer
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InvalidRequestError(
            "tokenizer: a file needs the package tokenizers (pip install tokenizers), or give a function "
            "that counts the tokens of a text"
        ) from None
    path = as_path(tokenizer)
    try:
        if path.fs.isdir(path.path):
            path = path / "tokenizer.json"
        with path.open("rb") as file:
            loaded = Tokenizer.from_buffer(file.read())
    except Exception as error:  # the package raises bare Exception for what is no tokenizer
        raise InvalidRequestError(f"tokenizer: {path} can't be read as one: {error}") from None
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


def sample_tokens(sample: Sample, count: CountTokens | None) -> int:
    """Tokens of a sample, reckoned at four bytes a token where nothing counts them; at least 1."""
    if count is not None:
        return max(1, sum(count(segment.value) for segment in sample.segments))
    size = sum(len(segment.value.encode("utf-8", "surrogatepass")) for segment in sample.segments)
    return max(1, -(-size // _BYTES_A_TOKEN))
