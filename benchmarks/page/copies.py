"""A run of Airflow's, copied in its metadata database: the DAG run, its task instances and their XComs.

What is copied was written by the real operators in a real run; only ids, run ids and times differ.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import CHAR, Connection, Engine, MetaData, Table, insert, select

_EACH = 500
"""Runs to a transaction."""
_APART = timedelta(minutes=15)


def copy_run(engine: Engine, dag_id: str, copies: int) -> None:
    """Copy the DAG's only run, each copy a quarter of an hour before the one before it."""
    tables = MetaData()
    tables.reflect(engine, only=["dag_run", "task_instance", "xcom"])
    with engine.connect() as connection:
        [run] = _rows(connection, tables.tables["dag_run"], dag_id)
        instances = _rows(connection, tables.tables["task_instance"], dag_id)
        xcoms = _rows(connection, tables.tables["xcom"], dag_id)
    for first in range(1, copies + 1, _EACH):
        numbers = range(first, min(first + _EACH, copies + 1))
        with engine.begin() as connection:
            for name, rows in (("dag_run", [run]), ("task_instance", instances), ("xcom", xcoms)):
                table = tables.tables[name]
                connection.execute(insert(table), list(_copies(table, rows, numbers)))


def _rows(connection: Connection, table: Table, dag_id: str) -> list[Mapping[str, Any]]:
    return list(connection.execute(select(table).where(table.c.dag_id == dag_id)).mappings())


def _copies(table: Table, rows: list[Mapping[str, Any]], numbers: range) -> Iterator[dict[str, Any]]:
    for number in numbers:
        for row in rows:
            copy: dict[str, Any] = dict(row)
            for name, value in row.items():
                if hasattr(value, "tzinfo"):
                    copy[name] = value - number * _APART
            copy["run_id"] = f"{row['run_id']}-{number}"
            if table.name == "dag_run":
                copy["id"] = row["id"] + number
            elif table.name == "task_instance":
                made = uuid.uuid4()
                copy["id"] = made.hex if isinstance(table.c.id.type, CHAR) else made
            else:
                copy["dag_run_id"] = row["dag_run_id"] + number
            yield copy
