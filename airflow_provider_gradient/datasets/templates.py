"""Text made of a row: a template whose fields name columns.

Templates are langchain-core's f-string ``PromptTemplate``: ``{column}`` for a value, ``{{`` for a brace. A
field that a row lacks, or that is null there, is an error and never the text "None": whoever renders every
row before sending the first knows that all of them make sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_gradient.datasets.errors import DatasetError


class RowTemplate:
    """A checked template.

    :param text: the template.
    :param name: the parameter it was given as, for messages.
    :raises DatasetError: it is no template, or names no column, so that every row would give the same text.
    """

    def __init__(self, text: str, *, name: str = "prompt_template") -> None:
        # Imported here since it takes most of a second, and DAG files are parsed often.
        from langchain_core.prompts import PromptTemplate
