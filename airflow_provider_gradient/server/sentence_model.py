"""A sentence-embedding model from a local directory, as sentence-transformers lays it out or a plain
Hugging Face one.

What the directory says about pooling and normalisation is done as it says; what it says and this can't do is
refused at the start, since vectors that are made otherwise look right and are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

from airflow_provider_gradient.server.settings import StartError

_LONGEST = 1 << 20
"""Tokenizers that know no limit name one above this."""

Pooling = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From token vectors (rows, tokens, width) and attention mask (rows, tokens) to vectors (rows, width)."""


@dataclass(frozen=True)
class SentenceModel:
    """A model being served.

    :param normalise: scale vectors to length 1.
    :param lower_case: texts are lowered before they are tokenised.
    :param max_tokens: texts are cut there, as sentence-transformers does; ``None`` for no limit.
    """

    tokenizer: Any
    model: Any
    pooling: Pooling
    normalise: bool
    lower_case: bool
    max_tokens: int | None

    @classmethod
    def load(cls, slug: str, directory: Path) -> SentenceModel:
        """Load a directory in float32, and try it.

        Without ``modules.json`` and ``1_Pooling/config.json`` the vector is the tokens' mean, not normalised.

        :raises StartError: it can't be loaded, or asks for what this can't do.
        """
        source = f"embeddings model {slug!r} in {directory}"
        try:
            layout = _Layout.read(directory)
            tokenizer = AutoTokenizer.from_pretrained(layout.transformer, local_files_only=True)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
            model: Any = AutoModel.from_pretrained(layout.transformer, local_files_only=True, dtype="float32")
            served = cls(
                tokenizer=tokenizer,
                model=model.eval(),
                pooling=layout.pooling,
                normalise=layout.normalise,
                lower_case=layout.limits.get("do_lower_case") is True,
                max_tokens=_max_tokens(layout.limits, tokenizer, model),
            )
            if not np.isfinite(served.embed(["a text", "and another"])).all():
                raise _UnsupportedError("its vectors are no numbers")
        except _UnsupportedError as error:
            raise StartError(f"{source}: {error}") from None
        except Exception as error:  # whatever a broken directory makes the libraries raise
            reason = str(error).strip().partition(os.linesep)[0]
            raise StartError(f"{source} can't be loaded: {reason or type(error).__name__}") from error
        return served

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One row a text, in order."""
        batch = self.tokenizer(
            [text.lower() if self.lower_case else text for text in texts],
            padding=True,
            truncation=self.max_tokens is not None,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        tokens = self.model(**batch).last_hidden_state
        vectors = self.pooling(tokens, batch["attention_mask"])
        if self.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        result: npt.NDArray[np.float32] = vectors.numpy()
        return result


class _UnsupportedError(Exception):
    """The directory asks for what this can't do."""


# --- what the directory says -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    transformer: Path
    limits: dict[str, Any]
    pooling: Pooling
    normalise: bool

    @classmethod
    def read(cls, directory: Path) -> _Layout:
        modules = _json(directory / "modules.json") or []
        paths = {str(module["type"]).rpartition(".")[2]: directory / module["path"] for module in modules}
        if unknown := sorted(paths.keys() - {"Transformer", "Pooling", "Normalize"}):
            raise _UnsupportedError(
                f"modules.json asks for {', '.join(unknown)}; this server can do Transformer, Pooling and "
                "Normalize"
            )
        transformer = paths.get("Transformer", directory)
        return cls(
            transformer=transformer,
            limits=_json(transformer / "sentence_bert_config.json") or {},
            pooling=_pooling(paths.get("Pooling", directory / "1_Pooling"), required="Pooling" in paths),
            normalise="Normalize" in paths,
        )


def _pooling(directory: Path, *, required: bool) -> Pooling:
    """What the configuration of a Pooling module names; the mean where there need be none and is none.

    Older ones have a switch for each mode (``pooling_mode_mean_tokens``), newer ones name it
    (``pooling_mode``).
    """
    config = _json(directory / "config.json")
    if config is None and not required:
        return _mean
    named = (config or {}).get("pooling_mode") or [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name, on in (config or {}).items()
        if name.startswith("pooling_mode_") and on is True
    ]
    names = [named] if isinstance(named, str) else list(named)
    if len(names) != 1 or names[0] not in _POOLINGS:
        asked = " and ".join(names) or "none"
        raise _UnsupportedError(f"its pooling is {asked}; this server can do one of {', '.join(_POOLINGS)}")
    return _POOLINGS[names[0]]


def _max_tokens(limits: dict[str, Any], tokenizer: Any, model: Any) -> int | None:
    named = (
        limits.get("max_seq_length"),
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", None),
        *_positions(model),
    )
    known = [int(limit) for limit in named if limit is not None and 0 < limit < _LONGEST]
    return min(known, default=None)


def _positions(model: Any) -> list[int]:
    """Places for tokens in a table of positions; RoBERTa's kin begin to count after the padding's."""
    return [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# --- pooling -----------------------------------------------------------------------------------------------


def _mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(2).to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1)


def _max(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens.masked_fill(mask.unsqueeze(2) == 0, -torch.inf).amax(dim=1)


def _first(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first token that isn't padding, on whichever side that is."""
    return tokens[torch.arange(len(tokens)), mask.argmax(dim=1)]


def _last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens[torch.arange(len(tokens)), mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)]


_POOLINGS: dict[str, Pooling] = {"mean": _mean, "cls": _first, "max": _max, "lasttoken": _last}
