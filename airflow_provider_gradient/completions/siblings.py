"""Tasks of one DAG run that write to one output: the second would replace what the first was paid for.

The operators name a piece of work ``dag/run/task/map index``. Another try of it goes on with its output, and
another run of its DAG replaces yesterday's. Another task of the same run, or another instance of a mapped
one, is refused.
"""

from __future__ import annotations

import re

from airflow_provider_gradient.datasets import DatasetError, StoredPath

_NAME = re.compile(
    r"(?P<run>[^/]+/.+)/(?P<task>[^/]+/-?\d+)(?:/cleared after \d+)?",  # a run's id may hold slashes
    re.DOTALL,
)


def refuse_sibling(output: StoredPath, identity: str | None, *, owner: object, has: str) -> None:
    """Refuse an output that belongs to another task, or map index, of the same DAG run.

    :param identity: of the work that wants to write.
    :param owner: of the work whose files are there.
    :param has: which files, in words.
    :raises DatasetError: they are two tasks of one run; names both.
    """
    mine, theirs = (_NAME.fullmatch(name) if isinstance(name, str) else None for name in (identity, owner))
    if mine is None or theirs is None or mine["run"] != theirs["run"] or mine["task"] == theirs["task"]:
        return
    raise DatasetError(
        f"output_path: {output} has {has} of {owner!r}, and this is {identity!r}, of the same DAG run, which "
        "would replace what that one was paid for. Nothing was sent. Give each its own output_path, to the "
        "instances of a mapped task by {{ ti.map_index }} in it. If what is there is not wanted any more, "
        "delete it with its manifest and journal"
    )
