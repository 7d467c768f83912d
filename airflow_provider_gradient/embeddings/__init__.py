"""A dataset in, vectors out: in batches, journaled, resumable, in memory that does not grow."""

from airflow_provider_gradient.embeddings.manifest import EmbeddingManifest
from airflow_provider_gradient.embeddings.run import embed_dataset

__all__ = ["EmbeddingManifest", "embed_dataset"]
