"""Rows in and rows out: inline, JSON lines, CSV or Parquet, on any path.

A dataset is never held in memory: it is read row by row, and what is written appears whole or not at all, so
that a reader never sees half of an output. Rows are named by their index, counted from 0.
"""

from airflow_provider_gradient.datasets.append_log import AppendLog
from airflow_provider_gradient.datasets.checksums import sealed, unsealed
from airflow_provider_gradient.datasets.errors import DatasetError, JournalError, path_error
from airflow_provider_gradient.datasets.jsonl import dump_row
from airflow_provider_gradient.datasets.kept_record import KeptRecord
from airflow_provider_gradient.datasets.parquet import JSON_FIELD, import_parquet
from airflow_provider_gradient.datasets.paths import (
    PathLike,
    StoredPath,
    as_path,
    beside,
    create,
    has_conditional_writes,
    local_path,
    remove,
    replacing,
    same_path,
)
from airflow_provider_gradient.datasets.planning import plan_shards
from airflow_provider_gradient.datasets.rows import (
    Dataset,
    Manifest,
    OpenDataset,
    describe_row,
    describe_source,
    fingerprint,
    is_inline,
    open_dataset,
    read_rows,
    row_bytes,
    write_rows,
)
from airflow_provider_gradient.datasets.shards import Shard, ShardRows
from airflow_provider_gradient.datasets.sources import (
    JSONL,
    PARQUET,
    StoredRows,
    check_output,
    format_of,
)
from airflow_provider_gradient.datasets.templates import (
    RowTemplate,
    Template,
    TemplateFormat,
    column_value,
    row_template,
)
from airflow_provider_gradient.datasets.values import as_text

__all__ = [
    "JSONL",
    "JSON_FIELD",
    "PARQUET",
    "AppendLog",
    "Dataset",
    "DatasetError",
    "JournalError",
    "KeptRecord",
    "Manifest",
    "OpenDataset",
    "PathLike",
    "RowTemplate",
    "Shard",
    "ShardRows",
    "StoredPath",
    "StoredRows",
    "Template",
    "TemplateFormat",
    "as_path",
    "as_text",
    "beside",
    "check_output",
    "column_value",
    "create",
    "describe_row",
    "describe_source",
    "dump_row",
    "fingerprint",
    "format_of",
    "has_conditional_writes",
    "import_parquet",
    "is_inline",
    "local_path",
    "open_dataset",
    "path_error",
    "plan_shards",
    "read_rows",
    "remove",
    "replacing",
    "row_bytes",
    "row_template",
    "same_path",
    "sealed",
    "unsealed",
    "write_rows",
]
