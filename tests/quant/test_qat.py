"""Trainable graphs compute exactly what the integer graph that they result in computes."""

import numpy as np
import pytest
import torch

from terrazzo.arch.graph import Conv, Linear
from terrazzo.arch.numerics import ACCUMULATOR_BITS
from terrazzo.arch.schemes import Scheme
from terrazzo.quant import builder, gptq, straight
from terrazzo.quant.quantizer import quantize
from terrazzo.quant.rows import accumulator_range
from terrazzo.quant.trainable import Trainable
from terrazzo.sim import reference

MIXED = {Scheme.FIXED8: 3} | {scheme: 1 for scheme in Scheme if scheme != Scheme.FIXED8}


def shaken(model, seed, size=0.05):
    """`model` with all parameters moved at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (size * noise).to(parameter.dtype)
    return model


@pytest.fixture
def quantized(gallery, plain_preprocessing, raw_images):
    """A function from a seed and bits to an integer graph of the gallery and input codes."""

    def make(seed, bits=8):
        model = gallery(seed)
        images = raw_images(24, model.input_shape, seed)
        preprocessing = plain_preprocessing(model.input_shape[-1])
        graph, _ = quantize(model, images, preprocessing, mixture=MIXED, activation_bits=bits)
        return graph, reference.quantize_batch(graph, images)

    return make


def test_untrained_graph_is_the_same_graph(quantized):
    graph, _ = quantized(0)
    found = Trainable(graph).result()
    assert found.operators == graph.operators
    for name, value in graph.constants.items():
        assert found.constants[name].dtype == value.dtype
        np.testing.assert_array_equal(found.constants[name], value, err_msg=name)
    for ours, theirs in zip(found.tensors, graph.tensors, strict=True):
        assert ours == theirs


@pytest.mark.parametrize(("seed", "bits"), [(1, 8), (2, 5)])
def test_forward_is_the_reference_to_the_code(quantized, seed, bits):
    graph, codes = quantized(seed, bits)
    model = shaken(Trainable(graph), seed)
    found = model.result()
    changed = [n for n in graph.constants if not np.array_equal(graph.constants[n], found.constants[n])]
    assert any(name.endswith("/weight") for name in changed) and any(name.endswith("/C") for name in changed)
    output = model.codes_of(torch.from_numpy(codes.astype(np.float32)))
    expected = reference.run(found, codes)
    np.testing.assert_array_equal(output.detach().numpy(), expected)
    assert expected.std() > 0


def test_biases_move_as_far_with_fewer_bits(gallery_cnn, plain_preprocessing, raw_images):
    network, units = gallery_cnn(0), []
    images, preprocessing = raw_images(16, network.input_shape), plain_preprocessing(network.input_shape[-1])
    for bits in (8, 4):
        graph, _ = quantize(network, images, preprocessing, mixture=MIXED, activation_bits=bits)
        model = Trainable(graph)
        layers = [o.name for o in graph.operators if isinstance(o, Linear | Conv) and o.input != graph.input]
        units.append({name: float(getattr(model, f"{name}/unit").median()) for name in layers})
    ratios = [units[1][name] / units[0][name] for name in units[0]]
    assert len(ratios) > 3 and 0.3 < np.median(ratios) < 2


def test_every_parameter_has_a_gradient(quantized):
    graph, codes = quantized(3)
    model = Trainable(graph)
    model(torch.from_numpy(codes.astype(np.float32))).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    silent = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert len(silent) < 0.3 * len(list(model.parameters())), silent


def test_gradients_are_of_functions_near_the_integers(quantized, monkeypatch):
    """What carries the gradient has the value of what is computed, up to the rounding of one code."""
    graph, codes = quantized(4)
    found, original = [], straight.straight

    def watched(surrogate, exact):
        if exact.dtype == torch.float64 and exact.dim() > 0:  # results of requantizers and LayerNorm
            exact = exact.detach()
            spread = float(exact.abs().max().clamp(min=1))
            found.append(float((surrogate.detach() - exact).abs().max()) / max(2e-4 * spread, 1.0))
        return original(surrogate, exact)

    monkeypatch.setattr(straight, "straight", watched)
    Trainable(graph).codes_of(torch.from_numpy(codes.astype(np.float32)))
    assert len(found) >= 5 and max(found) < 2.1, found


def test_the_gradient_leads_downhill(quantized):
    """Downhill along the gradient the mean output becomes smaller, for every graph."""
    graph, codes = quantized(6)
    model = Trainable(graph)
    x = torch.from_numpy(codes.astype(np.float32))
    before = model(x).mean()
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None and parameter.grad.any():
                parameter -= 3e-3 * parameter.grad.sign()
        after = model(x).mean()
    assert float(after) < float(before.detach())


@pytest.mark.parametrize("zero_point", [0, -7])
def test_scaled_is_the_builders(zero_point):
    rng = np.random.default_rng(0)
    scales = np.concatenate([2.0 ** rng.uniform(-34, 12, 200), [0.0, 1.0, 0.5, 2**-15 * 65535.6 / 65536]])
    offsets = rng.normal(size=len(scales)) * 2.0 ** rng.uniform(-4, 15, len(scales))
    sums = rng.integers(-(1 << 26), 1 << 26, len(scales)).astype(float)
    expected = builder.scaled(scales, offsets, sums, zero_point)
    found = straight.scaled(*(torch.from_numpy(a) for a in (scales, offsets, sums)), zero_point)
    for field, values in zip(("m", "n", "C"), found, strict=True):
        np.testing.assert_array_equal(values.numpy().astype(np.int64), expected[field].astype(np.int64))


def test_nearest_codes_are_the_quantizers():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(8, 4000, generator=generator) * torch.tensor([60.0, 4, 30, 5]).repeat(2)[:, None]
    schemes = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    found = straight.nearest(values.requires_grad_(), schemes)
    for row, scheme in enumerate(schemes.tolist()):
        expected = gptq.nearest(values[row].detach().double().numpy(), Scheme(scheme))
        np.testing.assert_array_equal(found[row].detach().numpy(), expected)
    found.sum().backward()
    tops = torch.tensor([127.0, 7, 64, 8]).repeat(2)[:, None]
    inside = values.detach().abs() < tops
    assert inside.any() and not inside.all()
    assert torch.equal(values.grad, inside.float())


def test_rows_never_overflow_their_accumulators(gallery_gates, plain_preprocessing, raw_images, monkeypatch):
    """With narrow accumulators the steps of rows grow until their sums fit."""
    model = gallery_gates(0)
    graph, _ = quantize(model, raw_images(16, model.input_shape), plain_preprocessing(3), mixture=MIXED)
    bits = 14
    monkeypatch.setattr("terrazzo.arch.numerics.ACCUMULATOR_BITS", bits)

    def worst(graph):
        sums = []
        for operator in graph.operators:
            if isinstance(operator, Linear | Conv):
                weight = graph.constant(operator, "weight").astype(np.int64)
                least, greatest = accumulator_range(weight.reshape(len(weight), -1), -128, 127)
                sums += [-least.min(), greatest.max()]
        return max(sums)

    assert 1 << (bits - 1) <= worst(graph) < 1 << (ACCUMULATOR_BITS - 1)
    assert worst(Trainable(graph).result()) < 1 << (bits - 1)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_steps_of_what_tables_write_are_learned(gallery_vit, plain_preprocessing, raw_images, factor):
    """A table at another step is the function rounded at that step, although only its rounded values were known."""
    source = gallery_vit(1)
    images = raw_images(12, source.input_shape)
    graph, _ = quantize(source, images, plain_preprocessing(3), mixture={Scheme.FIXED8: 4})
    operator = next(operator for operator in graph.operators if f"{operator.name}/table" in graph.constants)
    model = Trainable(graph)
    with torch.no_grad():
        model.steps[operator.output].fill_(np.log(factor))
    found = model.result()
    before, after = graph.tensor(operator.output), found.tensor(operator.output)
    assert after.scale == pytest.approx(before.scale * factor)
    old, new = graph.constant(operator, "table"), found.constant(operator, "table")
    if factor == 1:
        np.testing.assert_array_equal(new, old)
        return
    # GELU from 0 on rises, so that the codes say how steep it is: index i is x = offset + slope * i
    drain = operator.drain
    inside = np.flatnonzero((old > before.zero_point + 60) & (old < drain.hi))
    real = (np.polyval(np.polyfit(inside, old[inside].astype(float), 3), inside) - before.zero_point) / factor
    expected = np.clip(np.rint(real + after.zero_point), drain.lo, drain.hi)
    away = np.abs(new[inside] - expected)
    assert away.max() <= 1 and (away == 0).mean() > 0.8
