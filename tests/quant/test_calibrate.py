"""Streaming statistics equal those of all images at once; ranges are nearly the best there are."""

import numpy as np
import pytest
import torch

from terrazzo.quant.calibrate import Histogram, collect


def error(values, found):
    codes = np.clip(np.rint(values / found.scale) + found.zero_point, found.lo, found.hi)
    return ((values - (codes - found.zero_point) * found.scale) ** 2).mean()


def histogram_of(values):
    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    return histogram


def test_histogram_keeps_every_value_while_it_grows():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, scale, 1000) for scale in (1e-4, 0.1, 5, 300)]).astype(np.float32)
    histogram = histogram_of(values)
    assert histogram.counts.sum() == len(values)
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    edges = np.linspace(-histogram.limit, histogram.limit, len(histogram.counts) + 1)
    exact = np.histogram(values, edges)[0]
    assert np.abs(np.cumsum(exact) - np.cumsum(histogram.counts)).max() <= 2


@pytest.mark.parametrize("kind", ["normal", "laplace", "half", "shifted"])
@pytest.mark.parametrize("bits", [4, 8])
def test_ranges_are_nearly_the_best(kind, bits):
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.normal(0, 2, 20000),
        "laplace": rng.laplace(0, 1, 20000),
        "half": np.maximum(rng.normal(0, 1, 20000), 0),
        "shifted": rng.normal(3, 1, 20000),
    }[kind]
    histogram, levels = histogram_of(values), (1 << bits) - 1
    found = histogram.symmetric(bits)
    best = min(
        error(values, type(found)(np.abs(values).max() * s / (levels // 2), 0, found.lo, found.hi))
        for s in np.linspace(0.1, 1, 300)
    )
    assert found.zero_point == 0 and error(values, found) < 1.1 * best
    affine = histogram.affine(bits)
    assert error(values, affine) < 1.05 * error(values, found)
    assert -(1 << (bits - 1)) <= affine.zero_point < 1 << (bits - 1)
    if kind == "half":
        assert error(values, affine) < 0.4 * error(values, found)


def test_clipped_fraction():
    values = np.linspace(-1, 3, 40001)
    histogram = histogram_of(values)
    assert histogram.clipped(histogram.whole(8)) < 0.002
    narrow = type(histogram.whole(8))(2 / 255, 0, -128, 127)
    assert histogram.clipped(narrow) == pytest.approx(0.5, abs=0.005)


def test_moments_are_those_of_the_weight_products(gallery_cnn):
    """E[(w x)^2] from the moments is that of the convolution itself, padding, stride and groups included."""
    model = gallery_cnn(0)
    x = torch.randn(20, *model.input_shape, generator=torch.Generator().manual_seed(0))
    statistics = collect(model, x.split(6))
    values = model.run(x, keep=True)
    for node in model.nodes:
        if node.kind not in ("conv", "linear"):
            continue
        y = (values[node.name] - node.params["bias"]).double().flatten(0, -2).numpy()
        moments, groups = statistics.moments[node.name], node.attrs.get("groups", 1)
        w = node.params["weight"].double().numpy().reshape(groups, y.shape[1] // groups, -1)
        assert np.allclose(
            np.einsum("gok,gkl,gol->go", w, moments.second, w).ravel(), (y**2).mean(0), rtol=1e-4
        )
        assert np.allclose(np.einsum("gok,gk->go", w, moments.first).ravel(), y.mean(0), atol=1e-4)


def test_batches_do_not_matter(gallery_vit):
    model = gallery_vit(0)
    x = torch.randn(10, *model.input_shape, generator=torch.Generator().manual_seed(0))
    whole, parts = collect(model, [x]), collect(model, x.split(3))
    for name in whole.fisher:
        assert np.allclose(whole.fisher[name], parts.fisher[name], rtol=1e-3)
        assert whole.fisher[name].max() > 0
        assert np.allclose(whole.moments[name].second, parts.moments[name].second, rtol=1e-4, atol=1e-6)


def test_weighted_values_decide_the_range():
    """Rare large values that matter keep the range wide; weights survive growth and merging."""
    rng = np.random.default_rng(3)
    small, large = rng.normal(0, 1, 100000).astype(np.float32), rng.normal(0, 12, 200).astype(np.float32)
    plain, weighted, half = Histogram(), Histogram(), Histogram()
    for values, weight in ((small, 1.0), (large, 3000.0)):
        plain.add(values)
        for into in (weighted, half):
            into.add(values, torch.full(values.shape, weight))
    assert weighted.weights.sum() == pytest.approx(100000 + 200 * 3000)
    assert weighted.symmetric(4).scale > 1.5 * plain.symmetric(4).scale
    assert weighted.affine(4).scale > 1.5 * plain.affine(4).scale
    both = Histogram.merged([weighted, half])
    assert both.weights.sum() == pytest.approx(2 * weighted.weights.sum())
    assert both.symmetric(4).scale == pytest.approx(weighted.symmetric(4).scale)
