"""What values weigh: the Fisher information of answers, and ranges of channels against a plain search."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from terrazzo.quant.floatgraph import evaluate
from terrazzo.quant.influence import backward, best_shares, channel_ranges, position_counts, probe


def test_directions_have_the_covariance_of_answers():
    logits = torch.tensor([[2.0, -1.0, 0.5, 4.0]])
    found = probe(logits.expand(40000, -1), torch.Generator().manual_seed(1)).double()
    p = torch.softmax(logits[0].double() / 2, 0)
    wanted = torch.diag(p) - torch.outer(p, p)
    assert torch.allclose(found.T @ found / len(found), wanted, atol=5e-3)


def divergence(model, images, node, noise):
    """What `noise` that is added to the value of `node` does to the answers, at temperature 2."""
    values = model.run(images, keep=True)
    rerun = {"input": images}
    for other in model.nodes:
        rerun[other.name] = evaluate(other, [rerun[name] for name in other.inputs])
        if other.name == node.name:
            rerun[other.name] = rerun[other.name] + noise
    before, after = (
        torch.log_softmax(v[model.nodes[-1].name].flatten(1).double() / 2, 1) for v in (values, rerun)
    )
    return 4 * float(F.kl_div(after, before, log_target=True, reduction="batchmean"))


def test_squares_predict_what_noise_costs(gallery_vit):
    """Half the mean square of noise times its weight is the divergence that it causes (temperature 2 included)."""
    model = gallery_vit(0)
    x = 3 * torch.randn(32, *model.input_shape, generator=torch.Generator().manual_seed(2))
    node = next(node for node in model.nodes if node.kind == "layernorm")
    repeated = x.repeat(24, 1, 1, 1)
    (found,) = backward(model, [repeated], {node.name})
    value, square = found[node.name]
    assert torch.allclose(value, model.run(repeated, keep=True)[node.name], atol=1e-5)
    noise = 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
    predicted = 0.5 * 0.01**2 * square.double().flatten(1).sum(1).mean()
    assert divergence(model, repeated, node, noise) == pytest.approx(float(predicted), rel=0.2)


def test_positions_count_by_what_their_errors_cost(gallery_cnn):
    model = gallery_cnn(0)
    x = torch.randn(16, *model.input_shape, generator=torch.Generator().manual_seed(4))
    node = next(n for n in model.nodes if n.kind == "conv")
    parts = position_counts(model, x.split(8), {node.name})[node.name]
    counts = torch.cat(parts)
    assert [part.shape for part in parts] == [(8, *node.shape[:-1])] * 2
    assert float(counts.mean()) == pytest.approx(1, rel=1e-4) and float(counts.min()) >= 0.5
    median = counts.flatten(1).median(1).values[:, None, None]
    noise = 0.05 * torch.randn(*counts.shape, node.shape[-1], generator=torch.Generator().manual_seed(5))
    many, few = (
        divergence(model, x, node, noise * chosen[..., None]) for chosen in (counts > median, counts < median)
    )
    assert many > 2 * few


@pytest.mark.parametrize("positive", [True, False])
def test_shares_are_nearly_the_best(positive):
    rng = np.random.default_rng(0)
    values = rng.laplace(0, 1, (3, 50000)) * np.array([[1], [0.1], [30]])
    values[2] = np.clip(values[2], -40, 40)
    values = np.abs(values) if positive else values
    top = np.abs(values).max(1)
    counted = np.stack([np.histogram(v, 256, (-t, t))[0] for v, t in zip(values, top, strict=True)])
    weight = np.where(np.abs(values) > 0.5 * top[:, None], 50.0, 1.0)  # large values matter more
    weighted = np.stack(
        [np.histogram(v, 256, (-t, t), weights=w)[0] for v, t, w in zip(values, top, weight, strict=True)]
    )

    def error(value, limit, costs):
        if positive:
            step = limit / 31
            return (costs * (value - np.clip(np.rint(value / step), 0, 31) * step) ** 2).mean()
        step = 2 * limit / 31
        return (costs * (value - np.clip(np.rint(value / step), -16, 15) * step) ** 2).mean()

    plain, heavy = best_shares(counted, counted, 5), best_shares(weighted, counted, 5)
    assert (heavy >= plain).all() and (heavy > plain).any()
    for value, limit, share in zip(values, top, plain, strict=True):
        best = min(error(value, limit * s, 1.0) for s in np.linspace(0.05, 1, 200))
        assert error(value, limit * share, 1.0) < 1.1 * best


def test_ranges_of_channels(gallery_cnn):
    model = gallery_cnn(0)
    x = torch.randn(24, *model.input_shape, generator=torch.Generator().manual_seed(3))
    node = next(n for n in model.nodes if n.kind == "act")
    value = model.run(x, keep=True)[node.name].flatten(0, -2)
    largest = {node.name: value.abs().amax(0).double().numpy()}
    coarse, fine = (channel_ranges(model, x.split(8), largest, bits)[node.name] for bits in (4, 8))
    assert coarse.shape == (value.shape[1],)
    assert (coarse <= fine + 1e-9).all() and (fine <= largest[node.name] + 1e-9).all()
    assert coarse.sum() < 0.95 * fine.sum()
