"""Bits of activations by class of tensor."""

import numpy as np
import pytest

from terrazzo.arch.graph import Attention, Conv, LayerNorm, Linear
from terrazzo.arch.numerics import exp_table
from terrazzo.arch.schemes import Scheme
from terrazzo.quant.bits import bits_by_class, exp_levels
from terrazzo.quant.quantizer import QuantizeError, quantize
from terrazzo.sim import reference

from .conftest import Net


def test_every_class_has_its_bits(gallery_vit, plain_preprocessing, raw_images):
    model = gallery_vit(0)
    wanted = {"q": 7, "k": 6, "v": 5, "e": 4, "attended": 6, "normalized": 5, "hidden": 7, "other": 4}
    images = raw_images(8, model.input_shape)
    graph, _ = quantize(
        model, images, plain_preprocessing(3), mixture={Scheme.FIXED8: 8}, activation_bits=wanted
    )
    attention = next(o for o in graph.operators if isinstance(o, Attention))
    for name, part in ((attention.input, "q"), (attention.keys, "k"), (attention.values, "v")):
        assert graph.tensor(name).bits == wanted[part]
    assert graph.tensor(attention.output).bits == wanted["attended"]
    assert graph.constant(attention, "exp").max() == 15
    for operator in graph.operators:
        if isinstance(operator, LayerNorm):
            assert graph.tensor(operator.output).bits == wanted["normalized"]
        if isinstance(operator, Linear) and operator.drain.table:
            assert graph.tensor(operator.output).bits == wanted["hidden"]
    assert graph.tensor(graph.input).bits == 8
    values = reference.run(graph, reference.quantize_batch(graph, images), keep=True)
    for tensor in graph.tensors:
        assert np.abs(values[tensor.name].astype(int)).max() <= 1 << (tensor.bits - 1)


def test_what_depthwise_convolutions_alone_read(plain_preprocessing, raw_images):
    net = Net(0, (6, 6, 3))
    x = net.act(net.conv("input", 8), "relu")
    skip = net.act(net.conv(x, 8, groups=8), "relu")
    y = net.act(net.conv(net.act(net.conv(skip, 8, 1), "relu"), 8, groups=2), "relu")
    y = net.conv(net.add(net.conv(y, 8, 1), skip), 4, 1)
    model = net.graph()
    images = raw_images(8, model.input_shape)
    graph, _ = quantize(
        model,
        images,
        plain_preprocessing(3),
        mixture={Scheme.FIXED8: 8},
        activation_bits={"other": 5, "grouped": 7},
    )
    convolutions = [o for o in graph.operators if isinstance(o, Conv)]
    bits = [graph.tensor(o.input).bits for o in convolutions]
    assert [o.groups for o in convolutions] == [1, 8, 1, 2, 1, 1]
    assert bits == [8, 7, 5, 7, 5, graph.tensor(convolutions[-1].input).bits]


def test_levels_of_the_exponential():
    assert np.array_equal(exp_levels(exp_table(), 8), exp_table())
    for bits in (4, 5, 7):
        table = exp_levels(exp_table(), bits)
        assert table.dtype == np.uint8 and table[0] == (1 << bits) - 1 and table[255] == 0
        assert np.abs(table * (255 / table[0]) - exp_table()).max() <= 128 / table[0]


def test_one_number_and_mistakes():
    assert bits_by_class(5)["q"] == 5 and bits_by_class(5)["e"] == 8 and bits_by_class({"e": 4})["other"] == 8
    with pytest.raises(QuantizeError, match=r"must name classes among q, k, v, .*, not queries"):
        bits_by_class({"queries": 4})
    with pytest.raises(QuantizeError, match=r"^activation_bits must be 4\.\.8, not 3$"):
        bits_by_class({"q": 3})
