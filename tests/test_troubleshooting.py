"""The troubleshooting page against the messages that the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
VARIABLE = "\0"
"""Stands for what a message fills in."""


def messages_in_the_code() -> list[str]:
    """Every string of the package, with :data:`VARIABLE` where an f-string has a value."""
    found = []
    for path in ROOT.glob("airflow_provider_gradient/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                values = (part.value if isinstance(part, ast.Constant) else VARIABLE for part in node.values)
                found.append("".join(map(str, values)))
    return found


def quoted_messages() -> list[str]:
    """The code spans of each table's first column."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def is_in(code: list[str], message: str) -> bool:
    """Whether one string of the code holds the message's fixed parts in their order."""
    parts = [re.escape(part) for part in message.split("…")]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in code)


def test_every_message_that_the_page_quotes_stands_in_the_code() -> None:
    code = messages_in_the_code()
    quoted = quoted_messages()
    assert len(quoted) > 40
    assert [message for message in quoted if not is_in(code, message)] == []


def test_a_message_that_no_code_has_is_found() -> None:
    code = messages_in_the_code()
    assert not is_in(code, "no adapter was ever promoted to the alias …")
    assert not is_in(code, "plan them again … changed since its shards were planned")
