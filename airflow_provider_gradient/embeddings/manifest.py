"""What a finished run of embeddings says of itself: the manifest, small enough for an XCom."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from airflow_provider_gradient.completions.manifest import RunManifest
from airflow_provider_gradient.datasets import TemplateFormat


class EmbeddingCounts(BaseModel):
    """Rows by status; they add up to the rows of the dataset."""

    model_config = ConfigDict(frozen=True)

    success: int = 0
    error: int = 0


class EmbeddingManifest(RunManifest):
    """A finished run: what was asked of which model, where the vectors are, and what it took.

    :ivar model: slug of the embeddings model.
    :ivar dimensions: numbers a vector; ``None`` where no row has one.
    :ivar requests: sent for the rows of the output and answered or given up, over all the runs that it took.
    """

    kind = "manifest of embeddings"

    counts: EmbeddingCounts
    model: str
    dimensions: int | None
    text_template: str | None
    text_column: str | None
    text_template_format: TemplateFormat
    requests: int

    @property
    def all_failed(self) -> bool:
        """Whether no row at all has a vector."""
        return self.counts.error == self.rows

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left that another run could mend."""
        return not self.left_over and not self.all_failed
