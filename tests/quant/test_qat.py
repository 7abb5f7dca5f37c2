"""Trainable graphs compute exactly what the integer graph that they result in computes."""

import numpy as np
import pytest
import torch

from terrazzo.arch import numerics
from terrazzo.arch.schemes import Scheme, codebook
from terrazzo.quant import builder, gptq, straight
from terrazzo.quant.quantizer import quantize
from terrazzo.quant.rows import accumulator_range
from terrazzo.quant.trainable import Trainable
from terrazzo.sim import reference

MIXED = {Scheme.FIXED8: 4, Scheme.FIXED4: 2, Scheme.POT4: 1, Scheme.SP2_4: 1}


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


def test_every_parameter_has_a_gradient(quantized):
    graph, codes = quantized(3)
    model = Trainable(graph)
    model(torch.from_numpy(codes.astype(np.float32))).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    silent = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert len(silent) < 0.3 * len(list(model.parameters())), silent
