"""Linear layers that are joined compute what they computed by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from airflow_provider_gradient.server.llama_form import Joined


@pytest.mark.parametrize("biases", [(False, False), (True, True), (True, False)])
@torch.no_grad()
def test_joined_layers_are_those_layers_side_by_side(biases: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(12, width, bias=bias) for width, bias in zip((8, 20), biases, strict=True)]
    x = torch.randn(5, 12)
    expected = torch.cat([layer(x) for layer in layers], dim=1)
    joined = Joined({"a": layers[0], "b": layers[1]})
    torch.testing.assert_close(joined(x), expected)
    y = torch.ones(5, 28)
    joined.add_to(y, x)
    torch.testing.assert_close(y, expected + 1)


@torch.no_grad()
def test_layers_go_on_working_and_their_weights_exist_once() -> None:
    layers = [nn.Linear(12, 8, bias=False), nn.Linear(12, 20, bias=False)]
    x = torch.randn(5, 12)
    expected = [layer(x) for layer in layers]
    joined = Joined({"a": layers[0], "b": layers[1]})
    for layer, wanted in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer(x), wanted)
        storage = layer.weight.untyped_storage()
        assert storage.data_ptr() == joined.weight.untyped_storage().data_ptr()
