"""Rescaled graphs compute the same and spread their channels more evenly."""

import numpy as np
import torch

from terrazzo.arch.graph import Preprocessing
from terrazzo.arch.schemes import Scheme
from terrazzo.quant.equalize import equalize, families, rescale
from terrazzo.quant.floatgraph import FloatGraph, Node
from terrazzo.quant.quantizer import quantize
from terrazzo.sim import reference


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


def test_below_eight_bits_caps_take_factors():
    """relu6 in a coarse network: each channel is cut at its own six."""
    generator = torch.Generator().manual_seed(5)

    def conv(name, source, outputs, depth, kernel, groups):
        spread = torch.exp(torch.randn(outputs, 1, 1, 1, generator=generator))
        weight = torch.randn(outputs, kernel, kernel, depth, generator=generator) * spread * 0.2
        params = {"weight": weight, "bias": torch.randn(outputs, generator=generator)}
        pad = (kernel // 2,) * 4
        attrs = {"stride": (1, 1), "padding": pad, "dilation": (1, 1), "groups": groups}
        return Node(
            kind="conv", name=name, inputs=(source,), shape=(8, 8, outputs), params=params, attrs=attrs
        )

    def relu6(name, source, channels):
        return Node(kind="act", name=name, inputs=(source,), shape=(8, 8, channels), attrs={"kind": "relu6"})

    nodes = [
        conv("first", "input", 12, 3, 3, 1),
        relu6("first6", "first", 12),
        conv("depth", "first6", 12, 1, 3, 12),
        relu6("depth6", "depth", 12),
        conv("last", "depth6", 5, 12, 1, 1),
    ]
    model = FloatGraph(name="inverted", input_shape=(8, 8, 3), nodes=nodes)
    assert [family.limited for family in families(model)] == [True, True]
    x = images(model)
    fine, coarse = (equalize(model, x.split(8), activation_bits=bits, weight_bits=4) for bits in (8, 5))
    before = model.run(x)
    assert torch.equal(before, fine.run(x))
    assert torch.allclose(before, coarse.run(x), rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    largest = coarse.run(x, keep=True)["first6"].flatten(0, -2).amax(0)
    cap = next(node.params["cap"] for node in coarse.nodes if node.name == "first6")
    assert float(cap.max() / cap.min()) > 1.5
    assert (largest <= cap + 1e-6).all()
    bits = {"mixture": {Scheme.FIXED8: 1, Scheme.FIXED4: 3}, "activation_bits": 5}
    preprocessing = Preprocessing(scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    graph, _ = quantize(model, x.numpy(), preprocessing, **bits)
    codes = reference.run(graph, reference.quantize_batch(graph, x.numpy())).astype(np.float64)
    got = codes * graph.tensor(graph.output).scale
    real = before.numpy().reshape(got.shape)
    assert ((got - real) ** 2).sum() < 0.05 * ((real - real.mean()) ** 2).sum()
