"""The script for machines with a GPU: what of it can run on one without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.server_gpu import main, same_tokens


def test_a_mixed_batch_has_the_tokens_of_generate_with_peft_by_the_scripts_own_check(tmp_path: Path) -> None:
    assert same_tokens(tmp_path, "cpu")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named_and_nothing_is_run(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(SystemExit) as ended:
        main(["--device", device])
    assert ended.value.code == 3
    assert capsys.readouterr().out == f"NOT RUN: torch finds no {device} device on this machine.\n"
