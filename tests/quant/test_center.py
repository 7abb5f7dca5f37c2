"""Shifted graphs compute the same, and what layers read has mean zero where a bias can take the shift."""

import pytest
import torch

from terrazzo.quant.center import center
from terrazzo.quant.equalize import families


def images(model, count=24):
    return torch.randn(count, *model.input_shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_centered_graph_is_equal(gallery_cnn, gallery_vit, kind):
    model = {"cnn": gallery_cnn, "vit": gallery_vit}[kind](0)
    x = images(model)
    before, after = model.run(x), center(model, x.split(8)).run(x)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


def test_layers_of_a_transformer_read_means_of_zero(gallery_vit):
    model = gallery_vit(0)
    x = images(model)
    before, after = model.run(x, keep=True), center(model, x.split(8)).run(x, keep=True)
    moved = 0
    for family in families(model):
        name = family.writers[0].name
        own, found = (v[name].flatten(0, -2).mean(0).abs().max() for v in (before, after))
        assert found < 1e-3
        moved += float(own) > 0.1
    assert moved == 4  # the LayerNorms in front of layers, and V
