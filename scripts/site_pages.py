"""MkDocs' hook: pages of the site that lie elsewhere in the repository, and the links to them.

The start page is the README; the changelog, the model card and the example DAGs are pages too. Their links,
and those of the pages in ``docs/`` to them, are written for a reader of the repository and are turned here.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "airflow_provider_gradient/server/tiny_model/README.md": "tiny-model.md",
    "example_dags": "example-dags.md",
}
"""By path in the repository; what is in a folder is an anchor of its page."""
FILES = ("deploy/helm-values.yaml",)
SOURCES = {page: path for path, page in PAGES.items()}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files from elsewhere."""
    for path, page in PAGES.items():
        content = example_dags() if path == "example_dags" else (ROOT / path).read_text()
        files.append(File.generated(config, page, content=content))
    for path in FILES:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def example_dags() -> str:
    """A page with every example DAG: its source, whose docstring says what it does."""
    sections = [
        f"## {path.stem}\n\n```python\n{path.read_text()}```\n"
        for path in sorted((ROOT / "example_dags").glob("example_*.py"))
    ]
    return "\n".join(["# Example DAGs\n", *sections])


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links of the repository into links of the site."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def turned(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        folder, name = posixpath.split(path)
        if path in PAGES:
            target = PAGES[path]
        elif folder in PAGES:
            target = f"{PAGES[folder]}#{Path(name).stem}"
        else:
            target = path.removeprefix("docs/")
        return f"]({posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or '.')}{match[2] or ''})"

    return LINK.sub(turned, markdown)
