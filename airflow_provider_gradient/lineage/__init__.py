"""What tasks read and wrote: the URIs of datasets and models, and figures, for Airflow's assets and for
OpenLineage. Only :mod:`.openlineage` needs OpenLineage, and it is imported only where that asks."""

from airflow_provider_gradient.lineage.runs import (
    completions_lineage,
    embeddings_lineage,
    evaluation_lineage,
    promotion_lineage,
    tuning_lineage,
)
from airflow_provider_gradient.lineage.touched import Lineage, Touched
from airflow_provider_gradient.lineage.uris import asset_uri, dataset_uri, model_uri, path_uri

__all__ = [
    "Lineage",
    "Touched",
    "asset_uri",
    "completions_lineage",
    "dataset_uri",
    "embeddings_lineage",
    "evaluation_lineage",
    "model_uri",
    "path_uri",
    "promotion_lineage",
    "tuning_lineage",
]
