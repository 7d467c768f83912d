"""What a task read and wrote, in plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Touched:
    """A dataset or model that a task read or wrote.

    :ivar uri: as :mod:`~airflow_provider_gradient.lineage.uris` names it.
    :ivar rows: that were read or written; ``None`` where nobody knows, and of a model.
    :ivar size: in bytes; likewise.
    :ivar column_counts: of a file of scores, how many values each metric's column has.
    :ivar assertions: what a gate asked of it.
    """

    uri: str
    rows: int | None = None
    size: int | None = None
    column_counts: Mapping[str, int] = field(default_factory=dict)
    assertions: Sequence[Assertion] = ()


@dataclass(frozen=True, kw_only=True)
class Assertion:
    """A rule of a gate, and whether it passed.

    :ivar rule: its name, such as ``at_least``.
    :ivar column: the metric.
    :ivar reason: the figures, in words.
    """

    rule: str
    column: str | None
    success: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a task read and wrote.

    :ivar outputs: the first is what the task is for; the others came with it.
    :ivar figures: of the run, small enough for an asset's event; values as JSON has them.
    :ivar parameters: by which it was run.
    """

    inputs: Sequence[Touched] = ()
    outputs: Sequence[Touched] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_uris(cls, inputs: Sequence[str | None], outputs: Sequence[str | None]) -> Lineage:
        """Without figures; what has no URI is left out."""
        return cls(
            inputs=[Touched(uri=uri) for uri in inputs if uri],
            outputs=[Touched(uri=uri) for uri in outputs if uri],
        )
