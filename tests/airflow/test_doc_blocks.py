"""Every code block of the documentation runs, or is what it says it is."""

from __future__ import annotations

import asyncio
import re
import unittest
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import BLOCKS, LANGUAGES, ROOT

PAGES = [
    page
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    if re.search(r"^```", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_the_page_runs(
    page: Path,
    gradient_default: Any,
    gradient_environment: Any,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow.sdk import DAG

    (tmp_path / "example_dags").symlink_to(ROOT / "example_dags")
    monkeypatch.chdir(tmp_path)
    document = BLOCKS.parse(page)
    with asyncio.Runner() as runner, DAG(f"docs_{page.stem}".replace("-", "_")):
        document.namespace |= {
            "runner": runner,
            "placeholders": {
                "<model id>": client.find_base_model("tiny").id,
                "<workspace>": gradient_default.workspace_id,
            },
        }
        for example in document.examples():
            try:
                example.evaluate()
            except unittest.SkipTest as skipped:
                print(f"{page.name}, line {example.line}: not run, {skipped}")
            except BaseException as error:
                error.add_note(f"in the block of {page.name}, line {example.line}")
                raise


def test_a_block_says_what_it_is_and_one_that_is_not_run_says_why() -> None:
    skipped = []
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"^```(\w*)\n(?:.|\n)*?^```$", text, re.MULTILINE)) <= LANGUAGES, page.name
        reasons = re.findall(r'^<!--- skip: next "(.+)" -->$', text, re.MULTILINE)
        assert len(reasons) == text.count("\n<!--- skip"), f"{page.name}: a skip without a reason"
        skipped += reasons
    assert len(skipped) <= 1


@pytest.mark.parametrize(
    ("language", "wrong"),
    [
        ("python", "unknown_name"),
        ("python", "await missing()"),
        ("json", "{'a': 1}"),
        ("sh", "gradient no-such-command"),
        ("sh", "gradient model list --no-such-option"),
        ("sh", "gradient complete tiny"),
        ("sh", "airflow connections ad gradient_default"),
        ("sh", "make no-such-target"),
        ("sh", "pip install 'airflow-provider-gradient[no-such-extra]'"),
        ("sh", "some-program"),
        ("sh", "if"),
    ],
)
def test_a_block_that_is_wrong_is_found(language: str, wrong: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{language}\n{wrong}\n```\n")
    document = BLOCKS.parse(page)
    (example,) = document.examples()
    with asyncio.Runner() as runner:
        document.namespace |= {"runner": runner, "placeholders": {}}
        with pytest.raises((Exception, SystemExit)):
            example.evaluate()
