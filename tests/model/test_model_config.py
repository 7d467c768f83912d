from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from airflow_provider_gradient.server.model_config import BaseModelConfig


class _Chat:
    chat_template = "yes"

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        return f"[INST] {messages[0]['content']} [/INST]"


class _Plain:
    chat_template = None


def test_a_plain_directory_gets_one_plain_step_and_no_template(tmp_path: Path) -> None:
    config = BaseModelConfig.load(tmp_path)
    assert config.name == tmp_path.name
    assert (config.training.max_passes, config.training.lr_scale) == (1, 1.0)
    assert config.training.neighbours is None
    assert config.apply_auto_template("Why?", _Plain()) == "Why?"


def test_a_plain_directory_with_a_chat_template_uses_it(tmp_path: Path) -> None:
    assert BaseModelConfig.load(tmp_path).apply_auto_template("Why?", _Chat()) == "[INST] Why? [/INST]"


def test_the_models_own_template_wraps_a_query_once(config: BaseModelConfig) -> None:
    wrapped = config.apply_auto_template("Why {so}?", _Plain())
    assert wrapped == "Question: Why {so}?\n\nAnswer:"
    assert config.apply_auto_template(wrapped, _Plain()) == wrapped
    instruction = "### Instruction: Why?\n\n### Response:"
    assert config.apply_auto_template(instruction, _Plain()) == instruction


def test_what_is_saved_is_loaded(tmp_path: Path, config: BaseModelConfig) -> None:
    config.save(tmp_path)
    assert BaseModelConfig.load(tmp_path) == config


def test_a_misspelt_field_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "gradient.json").write_text('{"name": "x", "training": {"lr_scal": 2}}')
    with pytest.raises(ValidationError, match="lr_scal"):
        BaseModelConfig.load(tmp_path)
