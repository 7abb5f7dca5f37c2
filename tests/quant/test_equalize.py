"""Rescaled graphs compute the same and spread their channels more evenly."""

import numpy as np
import torch

from terrazzo.quant.equalize import equalize, families, rescale


def images(model, count=24):
    return torch.randn(count, *model.input_shape, generator=torch.Generator().manual_seed(3))


def test_random_factors_change_nothing(gallery):
    model, rng = gallery(2), np.random.default_rng(0)
    x = images(model)
    before = model.run(x)
    factors = [(family, np.exp(rng.normal(0, 0.7, family.channels))) for family in families(model)]
    factors = [(f, np.ones_like(t) if f.limited else t) for f, t in factors]
    after = rescale(model, factors).run(x)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


def test_families_of_a_transformer(gallery_vit):
    kinds = sorted("".join(sorted({n.kind[0] for n in f.writers})) for f in families(gallery_vit(0)))
    assert kinds == ["l", "l", "l", "l"]  # two LayerNorms before linears, the last one, and V


def test_equalized_graph_is_equal_and_balanced(gallery_cnn, gallery_vit):
    for model in (gallery_cnn(0), gallery_vit(0)):
        rng = np.random.default_rng(1)
        skewed = rescale(
            model, [(f, np.exp(rng.normal(0, 1.0, f.channels))) for f in families(model) if not f.limited]
        )
        x = images(model)
        balanced = equalize(skewed, x.split(8))
        before, after = skewed.run(x), balanced.run(x)
        assert torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
        for family in families(skewed):
            if family.limited:
                continue
            name = family.readers[0].inputs[0]
            spread = [
                np.log(graph.run(x, keep=True)[name].flatten(0, -2).abs().amax(0).numpy() + 1e-9).std()
                for graph in (skewed, balanced)
            ]
            assert spread[1] <= spread[0] + 1e-6
