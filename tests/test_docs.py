"""The documentation against the code it speaks of."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import yaml

from airflow_provider_gradient.completions import complete_dataset

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_every_parameter_of_a_run_over_a_dataset_has_its_row() -> None:
    table = (
        (ROOT / "docs/completions.md").read_text().partition("## Every parameter")[2].partition("\n## ")[0]
    )
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = set(re.findall(r"`(\w+)`", " ".join(first_cells)))
    assert documented == {*inspect.signature(complete_dataset).parameters} - {"client"} | {
        "estimate",
        "tokenizer",
    }


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.name}: {target}"
            if anchor and linked.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page.name}: {target}"


def test_the_values_for_the_helm_chart_are_yaml_without_a_secret() -> None:
    values = yaml.safe_load((ROOT / "deploy" / "helm-values.yaml").read_text())
    assert values["executor"] == "CeleryExecutor"
    assert [secret["envName"] for secret in values["secret"]] == ["AIRFLOW_CONN_GRADIENT_DEFAULT"]
