"""Local sentence-embedding directories: their vectors equal those worked out text by text, by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

from airflow_provider_gradient.api import ServerError
from airflow_provider_gradient.server.embeddings import EmbeddingsService
from airflow_provider_gradient.server.sentence_model import SentenceModel
from airflow_provider_gradient.server.settings import StartError

TEXTS = ["the red hen", "no", "the green hen said no to the bread, and the red hen said no to the green hen"]
OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."


@pytest.fixture
def directory(bert_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bert_directory, tmp_path / "model")


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def write_modules(directory: Path, *paths: str, prefix: str = OLD) -> None:
    """``modules.json`` of the modules in these folders, such as ``1_Pooling``; the first is the model."""
    kinds = ["Transformer", *(path.partition("_")[2] for path in paths[1:])]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": prefix + kind}
        for place, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    write(directory / "modules.json", modules)


def switches(*on: str) -> dict[str, Any]:
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    return {"word_embedding_dimension": 32} | {f"pooling_mode_{mode}": mode in on for mode in modes}


def by_hand(directory: Path, pool: Callable[[torch.Tensor], torch.Tensor], *, longest: int = 128) -> Any:
    """Each text alone, so without padding."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text)["input_ids"][:longest]]) for text in TEXTS]
        return torch.stack([pool(model(row).last_hidden_state[0]) for row in ids]).numpy()


def test_a_plain_directory_gives_the_mean_of_the_tokens(directory: Path) -> None:
    vectors = SentenceModel.load("mine", directory).embed(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, by_hand(directory, lambda tokens: tokens.mean(0)), atol=1e-5)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).min() > 0.1


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        (switches("cls_token"), lambda tokens: tokens[0]),
        (switches("mean_tokens"), lambda tokens: tokens.mean(0)),
        (switches("max_tokens"), lambda tokens: tokens.amax(0)),
        (switches("lasttoken"), lambda tokens: tokens[-1]),
        ({"pooling_mode": "cls"}, lambda tokens: tokens[0]),
        ({"pooling_mode": ["max"]}, lambda tokens: tokens.amax(0)),
    ],
    ids=["cls", "mean", "max", "last", "named cls", "named max"],
)
def test_the_pooling_is_the_one_the_directory_names(
    directory: Path, pooling: dict[str, Any], pool: Any, padding_side: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.padding_side = padding_side
    tokenizer.save_pretrained(directory)
    write_modules(directory, "", "1_Pooling")
    write(directory / "1_Pooling" / "config.json", pooling)
    vectors = SentenceModel.load("mine", directory).embed(TEXTS)
    if padding_side == "right":  # positions are counted from the left, so padding there moves them
        np.testing.assert_allclose(vectors, by_hand(directory, pool), atol=1e-5)
    else:
        longest = by_hand(directory, pool)[2]
        np.testing.assert_allclose(vectors[2], longest, atol=1e-5)


@pytest.mark.parametrize("prefix", [OLD, NEW])
def test_vectors_are_normalised_where_the_directory_says_so(directory: Path, prefix: str) -> None:
    write_modules(directory, "", "1_Pooling", "2_Normalize", prefix=prefix)
    write(directory / "1_Pooling" / "config.json", switches("cls_token"))
    vectors = SentenceModel.load("mine", directory).embed(TEXTS)
    expected = by_hand(directory, lambda tokens: tokens[0] / tokens[0].norm())
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_the_model_may_lie_in_a_folder_of_its_own(bert_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_directory, tmp_path / "0_Transformer")
    write_modules(tmp_path, "0_Transformer", "1_Pooling")
    write(tmp_path / "1_Pooling" / "config.json", switches("mean_tokens"))
    vectors = SentenceModel.load("mine", tmp_path).embed(TEXTS)
    np.testing.assert_allclose(vectors, by_hand(bert_directory, lambda tokens: tokens.mean(0)), atol=1e-5)


def test_a_pooling_folder_counts_without_modules_too(directory: Path) -> None:
    write(directory / "1_Pooling" / "config.json", switches("cls_token"))
    vectors = SentenceModel.load("mine", directory).embed(TEXTS)
    np.testing.assert_allclose(vectors, by_hand(directory, lambda tokens: tokens[0]), atol=1e-5)


def test_long_texts_are_cut_where_the_directory_says_or_the_model_ends(directory: Path) -> None:
    served = SentenceModel.load("mine", directory)
    assert served.max_tokens == 128
    assert (served.embed(["no " * 5000]) == served.embed(["no " * 4000])).all()
    write(directory / "sentence_bert_config.json", {"max_seq_length": 5, "do_lower_case": True})
    served = SentenceModel.load("mine", directory)
    expected = by_hand(directory, lambda tokens: tokens.mean(0), longest=5)
    np.testing.assert_allclose(served.embed(TEXTS), expected, atol=1e-5)
    assert (served.embed(["THE HEN"]) == served.embed(["the hen"])).all()


def test_a_model_that_counts_positions_after_the_padding_reads_long_texts_too(
    bert_directory: Path, tmp_path: Path
) -> None:
    AutoTokenizer.from_pretrained(bert_directory).save_pretrained(tmp_path)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(RobertaConfig(vocab_size=320, max_position_embeddings=66, **small)).save_pretrained(tmp_path)
    served = SentenceModel.load("mine", tmp_path)
    assert served.max_tokens == 64
    assert np.isfinite(served.embed(["no " * 500])).all()


@pytest.mark.parametrize(
    ("modules", "pooling", "said"),
    [
        (["", "1_Pooling", "2_Dense"], switches("mean_tokens"), "modules.json asks for Dense"),
        (["", "1_Pooling"], switches("mean_tokens", "max_tokens"), "its pooling is mean and max"),
        (["", "1_Pooling"], switches("weightedmean_tokens"), "its pooling is weightedmean; this server"),
        (["", "1_Pooling"], switches(), "its pooling is none; this server can do one of mean, cls"),
        (["", "1_Pooling"], None, "its pooling is none"),
    ],
)
def test_what_cannot_be_done_as_the_directory_says_is_refused(
    directory: Path, modules: list[str], pooling: Any, said: str
) -> None:
    write_modules(directory, *modules)
    if pooling is not None:
        write(directory / "1_Pooling" / "config.json", pooling)
    with pytest.raises(StartError) as refusal:
        SentenceModel.load("mine", directory)
    assert f"embeddings model 'mine' in {directory}: " in str(refusal.value)
    assert said in str(refusal.value)


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "modules.json"])
def test_a_directory_that_cannot_be_loaded_is_said_in_one_line(directory: Path, broken: str) -> None:
    (directory / broken).write_text("{broken")
    with pytest.raises(StartError, match=r"embeddings model 'mine' in .* can't be loaded: ") as refusal:
        SentenceModel.load("mine", directory)
    assert "\n" not in str(refusal.value)


def with_nan(bert_directory: Path, folder: Path, *, tokens: list[int] | slice) -> Path:
    """A model that has no numbers for these tokens."""
    shutil.copytree(bert_directory, folder)
    model = AutoModel.from_pretrained(folder)
    model.embeddings.word_embeddings.weight.data[tokens] = torch.nan
    model.save_pretrained(folder)
    return folder


def test_a_text_for_which_a_model_has_no_numbers_is_an_error_of_its_own_request(
    bert_directory: Path, tmp_path: Path
) -> None:
    z = AutoTokenizer.from_pretrained(bert_directory)("z").input_ids[-1]
    directory = with_nan(bert_directory, tmp_path / "model", tokens=[z])
    service = EmbeddingsService({"broken": directory}, threads=1)
    assert b"NaN" not in service.embed("broken", ["a text"]).result(60)
    with pytest.raises(ServerError, match="output is not a number") as error:
        service.embed("broken", ["a text", "zzz"]).result(60)
    assert error.value.status == 500
    service.stop()


def test_a_model_of_no_numbers_is_not_served(bert_directory: Path, tmp_path: Path) -> None:
    directory = with_nan(bert_directory, tmp_path / "model", tokens=slice(None))
    with pytest.raises(StartError, match="its vectors are no numbers"):
        SentenceModel.load("broken", directory)
