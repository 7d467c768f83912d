"""The few rows that a page shows, and how two texts differ."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from airflow_provider_gradient.evaluation.reading import Answered, Completions

SHOWN_ROWS = 100
"""That rose, and likewise that fell."""
_SHOWN_TEXT = 2000
"""Characters of a text."""
_SHOWN_COLUMN = 500
_DIFFED_WORDS = 600

Pieces = Sequence[tuple[str, str]]
"""A text in pieces, each with what it is in a comparison: ``same``, ``del`` or ``ins``."""


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row on the page.

    :ivar change: of the score against the baseline's; without one, the score itself.
    :ivar slices: the row's values in the slice columns.
    :ivar baseline: the baseline's output, in which ``del`` is what the output lacks; ``None`` without one.
    """

    name: str
    change: float
    status: str
    reference: str
    output: Pieces
    baseline: Pieces | None
    columns: Mapping[str, str]
    slices: Mapping[str, str]


def rows_to_show(
    completions: Completions,
    baseline: Completions | None,
    changes: Mapping[int, float],
    slice_columns: Sequence[str],
) -> list[ShownRow]:
    """The rows of ``changes``, by key, in its order; found in one more pass over either run."""
    found: dict[int, ShownRow] = {}
    for answered in completions if changes else ():
        if (key := answered.key) in changes:
            found[key] = _shown(answered, changes[key], slice_columns)
    for answered in baseline if baseline and changes else ():
        if (key := answered.key) in found:
            found[key] = _beside(found[key], cut(_text(answered.output)))
    return [found[key] for key in changes if key in found]


def _shown(answered: Answered, change: float, slice_columns: Sequence[str]) -> ShownRow:
    row = answered.example.row
    return ShownRow(
        name=str(answered.index if answered.id is None else answered.id),
        change=change,
        status=answered.status,
        reference=cut(" | ".join(answered.example.references)),
        output=[("same", cut(_text(answered.output)))],
        baseline=None,
        columns={name: cut(_text(value), _SHOWN_COLUMN) for name, value in row.items() if name != "output"},
        slices={name: _text(row.get(name)) for name in slice_columns},
    )


def _beside(shown: ShownRow, baseline: str) -> ShownRow:
    ours, theirs = diff(baseline, shown.output[0][1])
    return replace(shown, baseline=ours, output=theirs)


def diff(old: str, new: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces, words that the other lacks marked; whole texts where they are too long."""
    words = [re.findall(r"\s+|\w+|[^\w\s]", text) for text in (old, new)]
    if max(map(len, words)) > _DIFFED_WORDS:
        return [("same", old)], [("same", new)]
    before: list[tuple[str, str]] = []
    after: list[tuple[str, str]] = []
    matcher = difflib.SequenceMatcher(a=words[0], b=words[1], autojunk=False)
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        same = kind == "equal"
        if end > start:
            before.append(("same" if same else "del", "".join(words[0][start:end])))
        if new_end > new_start:
            after.append(("same" if same else "ins", "".join(words[1][new_start:new_end])))
    return before, after


def cut(text: str, most: int = _SHOWN_TEXT) -> str:
    """``text`` with its end left out where it is long."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} more characters)"


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
