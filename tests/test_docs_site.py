"""The documentation site is built strictly, with what comes from elsewhere in the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    for page in ROOT.glob("docs/**/*.md"):
        assert (tmp_path / page.relative_to(ROOT / "docs")).with_suffix(".html").exists(), page
    assert 'href="completions.html"' in (tmp_path / "index.html").read_text()
    shards = (tmp_path / "shards.html").read_text()
    assert 'href="example-dags.html#example_gradient_sharded_completions"' in shards
    assert (tmp_path / "deploy" / "helm-values.yaml").exists()
    operators = (tmp_path / "reference" / "airflow.html").read_text()
    assert 'id="airflow_provider_gradient.operators.GradientCompleteDatasetOperator"' in operators
    assert "prompt_template" in operators
