"""Plain Llamas without transformers' modelling code: the same answers, from a start that is over sooner."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from airflow_provider_gradient.server.lean_llama import LeanConfig, LeanLlama
from airflow_provider_gradient.server.llama_form import LlamaForm
from airflow_provider_gradient.server.served_model import ServedModel
from airflow_provider_gradient.server.settings import BUILT_IN_DIRECTORY, StartError
from airflow_provider_gradient.server.slots import NewText, Slots


def logits_of(served: ServedModel, text: list[int]) -> torch.Tensor:
    form = LlamaForm.of(served.core)
    assert form is not None
    return Slots(form, slots=1, longest=64).prefill([NewText(tokens=text)])[0][0]


def test_a_lean_llama_computes_what_transformers_does(llama_directory: Path) -> None:
    for directory in (BUILT_IN_DIRECTORY, llama_directory):
        served = ServedModel.load("it", directory)
        assert isinstance(served.core, LeanLlama)
        reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        text = list(range(5, 35))
        expected = reference(torch.tensor([text])).logits[0, -1]
        torch.testing.assert_close(logits_of(served, text), expected, atol=1e-4, rtol=1e-4)
        assert served.stop_tokens == {reference.config.eos_token_id}


def test_the_model_that_is_tuned_has_the_weights_of_the_lean_one(llama_directory: Path) -> None:
    served = ServedModel.load("it", llama_directory)
    assert isinstance(served.model, LlamaForCausalLM)
    for name, parameter in served.model.named_parameters():
        assert parameter.data_ptr() == served.core.get_parameter(name).data_ptr(), name


@pytest.mark.parametrize(
    "variant",
    [
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"model_type": "mistral"},
        {"architectures": ["LlamaForSequenceClassification"]},
    ],
)
def test_what_is_no_plain_llama_is_left_to_transformers(
    variant: dict[str, Any], llama_directory: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(llama_directory, tmp_path / "model")
    assert LeanConfig.of(directory) is not None
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | variant))
    assert LeanConfig.of(directory) is None


def test_a_variant_of_llama_is_served_as_transformers_computes_it(
    tmp_path: Path, llama_directory: Path
) -> None:
    directory = shutil.copytree(llama_directory, tmp_path / "model")
    torch.manual_seed(5)
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    plain = LlamaConfig.from_pretrained(directory).to_dict() | {"rope_parameters": rope}
    LlamaForCausalLM(LlamaConfig(**plain)).save_pretrained(directory)
    served = ServedModel.load("it", directory)
    assert isinstance(served.core, LlamaForCausalLM)
    text = list(range(5, 35))
    expected = served.model(torch.tensor([text])).logits[0, -1]
    torch.testing.assert_close(logits_of(served, text), expected, atol=1e-4, rtol=1e-4)


def test_missing_weights_are_an_error_at_the_start(llama_directory: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(llama_directory, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(StartError, match="can't be loaded"):
        ServedModel.load("it", directory)


def test_the_built_in_model_is_loaded_without_the_modelling_code() -> None:
    code = (
        "import sys\n"
        "import airflow_provider_gradient.server.app\n"
        "from airflow_provider_gradient.server.served_model import ServedModel\n"
        "from airflow_provider_gradient.server.settings import BUILT_IN_DIRECTORY\n"
        "ServedModel.load('tiny', BUILT_IN_DIRECTORY)\n"
        "heavy = ('transformers.modeling_utils', 'accelerate', 'peft', 'scipy', 'sklearn', 'sympy')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
