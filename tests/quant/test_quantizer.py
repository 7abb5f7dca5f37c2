"""Float graphs become integer graphs that compute nearly the same values, under the counts that lanes dictate."""

import functools
import json

import numpy as np
import pytest

from terrazzo.arch.graph import AvgPool, Conv, Elementwise, LayerNorm, Linear
from terrazzo.arch.schemes import Scheme
from terrazzo.quant.calibrate import preprocess
from terrazzo.quant.data import DataError
from terrazzo.quant.quantizer import QuantizeError, quantize
from terrazzo.quant.rows import MixtureError
from terrazzo.sim import reference

from .conftest import Net

FIXED8 = {Scheme.FIXED8: 8}
MIXED = {Scheme.FIXED8: 4, Scheme.FIXED4: 2, Scheme.POT4: 2}
execute = functools.partial(reference.run, keep=True)


@pytest.mark.parametrize("seed", range(2))
def test_every_layer_is_close_to_float(gallery, plain_preprocessing, raw_images, seed):
    model = gallery(seed)
    preprocessing = plain_preprocessing(model.input_shape[-1])
    _, report = quantize(
        model, raw_images(48, model.input_shape, seed), preprocessing, mixture=FIXED8, execute=execute
    )
    figures = {layer.name: layer.sqnr_db for layer in report.layers if layer.sqnr_db is not None}
    assert len(figures) >= len([layer for layer in report.layers if layer.op != "constant"]) - 1
    products = [
        layer.name for layer in report.layers if layer.op == "multiply"
    ]  # these add the noise of both factors
    assert {name: db for name, db in figures.items() if db < (22 if name in products else 25)} == {}


def test_images_that_calibration_never_saw(gallery, plain_preprocessing, raw_images):
    model = gallery(5)
    preprocessing = plain_preprocessing(model.input_shape[-1])
    graph, _ = quantize(model, raw_images(64, model.input_shape, 1), preprocessing, mixture=FIXED8)
    images = raw_images(32, model.input_shape, 2)
    tensor = graph.tensor(graph.output)
    codes = reference.run(graph, reference.quantize_batch(graph, images)).astype(float)
    real = model.run(preprocess(images, preprocessing)).numpy().reshape(codes.shape)
    noise = (codes - tensor.zero_point) * tensor.scale - real
    assert 10 * np.log10((real**2).sum() / (noise**2).sum()) > 22


@pytest.mark.parametrize("channels", [(3,), tuple(range(16))])
def test_channels_that_are_always_zero(gallery_gates, plain_preprocessing, raw_images, channels):
    """One dead channel, or a whole dead layer: finite scales, and outputs that stay close."""
    model = gallery_gates(0)
    for value in next(node for node in model.nodes if node.kind == "conv").params.values():
        value[list(channels)] = 0
    images = raw_images(16, model.input_shape)
    graph, _ = quantize(model, images, plain_preprocessing(3), mixture=FIXED8)
    assert all(np.isfinite(tensor.scale) and tensor.scale > 0 for tensor in graph.tensors)
    tensor = graph.tensor(graph.output)
    codes = reference.run(graph, reference.quantize_batch(graph, images)).astype(float)
    real = model.run(preprocess(images, plain_preprocessing(3))).numpy().reshape(codes.shape)
    noise = (codes - tensor.zero_point) * tensor.scale - real
    assert (noise**2).sum() < 0.01 * (real**2).sum()


@pytest.mark.parametrize("size", [1e-3, 1e-7, 0.0])
def test_layernorm_of_values_that_eps_outweighs(plain_preprocessing, raw_images, size):
    """eps_I fits its 48 bits however small the values are, and the normalized values are those of float."""
    net = Net(0, (6, 8, 3))
    x = net.conv("input", 16)
    for value in net.nodes[-1].params.values():
        value *= size
    net.layernorm(x)
    model, images = net.graph(), raw_images(16, (6, 8, 3))
    graph, _ = quantize(model, images, plain_preprocessing(3), mixture=FIXED8)
    (operator,) = (operator for operator in graph.operators if isinstance(operator, LayerNorm))
    assert 1 <= operator.eps < 1 << 47
    tensor = graph.tensor(graph.output)
    codes = reference.run(graph, reference.quantize_batch(graph, images)).astype(float)
    real = model.run(preprocess(images, plain_preprocessing(3))).numpy().reshape(codes.shape)
    noise = (codes - tensor.zero_point) * tensor.scale - real
    assert (noise**2).sum() < 0.002 * (real**2).sum()


@pytest.mark.parametrize(("shape", "kernels"), [((16, 18, 3), [(8, 9), (2, 2)]), ((17, 19, 3), [(17, 19)])])
def test_means_over_many_pixels_are_taken_in_steps(plain_preprocessing, raw_images, shape, kernels):
    net = Net(0, shape)
    net.linear(net.reshape(net.pool("avgpool", net.conv("input", 4), shape[:2], (1, 1)), 1, 4), 3)
    images = raw_images(16, shape)
    graph, report = quantize(net.graph(), images, plain_preprocessing(3), mixture=FIXED8, execute=execute)
    assert [operator.kernel for operator in graph.operators if isinstance(operator, AvgPool)] == kernels
    assert all(layer.sqnr_db > 25 for layer in report.layers if layer.sqnr_db is not None)


@pytest.mark.parametrize("bits", [4, 6])
def test_fewer_activation_bits_bound_the_codes(gallery_cnn, plain_preprocessing, raw_images, bits):
    model = gallery_cnn(0)
    images = raw_images(32, model.input_shape)
    graph, _ = quantize(model, images, plain_preprocessing(2), mixture=FIXED8, activation_bits=bits)
    values = reference.run(graph, reference.quantize_batch(graph, images), keep=True)
    narrow = [t for t in graph.tensors if t.dtype == "s8" and t.name != graph.input]
    assert {t.bits for t in narrow} == {bits}
    assert max(np.abs(values[t.name].astype(int)).max() for t in narrow) <= 1 << (bits - 1)


@pytest.mark.parametrize(
    ("mixture", "drain"), [(MIXED, 1), (MIXED, 2), ({Scheme.FIXED8: 2, Scheme.SP2_4: 2}, 2)]
)
def test_rows_split_exactly(gallery, plain_preprocessing, raw_images, mixture, drain):
    model = gallery(1)
    graph, _ = quantize(
        model,
        raw_images(16, model.input_shape),
        plain_preprocessing(model.input_shape[-1]),
        mixture=mixture,
        drain=drain,
    )
    lanes, blocks = sum(mixture.values()), 0
    for operator in graph.operators:
        if not isinstance(operator, Linear | Conv):
            continue
        scheme = graph.constant(operator, "scheme")
        whole = 0 if isinstance(operator, Conv) and operator.groups > 1 else len(scheme) // lanes * lanes
        assert (scheme[whole:] == Scheme.FIXED8).all()
        for start in range(0, whole, lanes):
            blocks += 1
            for residue in range(drain):
                cell = scheme[start + residue : start + lanes : drain]
                assert {s: int((cell == s).sum()) for s in mixture} == {
                    s: c // drain for s, c in mixture.items()
                }
    assert blocks


def test_residuals_are_sixteen_bit_and_fused(gallery_vit, plain_preprocessing, raw_images):
    model = gallery_vit(0)
    graph, _ = quantize(model, raw_images(8, model.input_shape), plain_preprocessing(3), mixture=FIXED8)
    assert not [o for o in graph.operators if isinstance(o, Elementwise)]
    residuals = [
        o.drain.residual for o in graph.operators if isinstance(o, Linear | Conv) and o.drain.residual
    ]
    assert len(residuals) == 3  # position embedding, attention, MLP
    assert {graph.tensor(r.tensor).dtype for r in residuals} == {"s16"}
    assert sum(o.drain.table for o in graph.operators if isinstance(o, Linear)) == 1


def test_report_is_json_and_rows(gallery_vit, plain_preprocessing, raw_images):
    model = gallery_vit(0)
    graph, report = quantize(
        model,
        raw_images(8, model.input_shape),
        plain_preprocessing(3),
        mixture=MIXED,
        drain=2,
        execute=execute,
    )
    assert json.loads(report.to_json())["schemes"] == report.schemes
    rows = sum(len(graph.constants[k]) for k in graph.constants if k.endswith("/scheme"))
    assert sum(report.schemes.values()) == rows
    assert {row["layer"] for row in report.rows()} == {o.name for o in graph.operators if o.op != "constant"}
    attention = next(layer for layer in report.layers if layer.op == "attention")
    assert len(attention.tail_mass) == 3 and all(0 <= mass < 0.05 for mass in attention.tail_mass)


def test_errors_name_what_is_wrong(gallery_cnn, plain_preprocessing, raw_images):
    model = gallery_cnn(0)
    images, preprocessing = raw_images(4, model.input_shape), plain_preprocessing(2)
    with pytest.raises(MixtureError, match=r"multiple of drain \(2\), not FIXED4 1"):
        quantize(model, images, preprocessing, mixture={Scheme.FIXED8: 4, Scheme.FIXED4: 1}, drain=2)
    with pytest.raises(MixtureError, match="must have FIXED8 lanes"):
        quantize(model, images, preprocessing, mixture={Scheme.POT4: 4})
    with pytest.raises(QuantizeError, match=r"activation_bits must be 4\.\.8, not 9"):
        quantize(model, images, preprocessing, mixture=FIXED8, activation_bits=9)
    with pytest.raises(DataError, match=r"must be images of shape \(N, 9, 7, 2\), not \(4, 9, 7, 1\)"):
        quantize(model, images[..., :1], preprocessing, mixture=FIXED8)
    broken = images.astype(np.float32)
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="images: must hold images, but holds none"):
        quantize(model, images[:0], preprocessing, mixture=FIXED8)
    with pytest.raises(DataError, match="image 0: must be finite"):
        quantize(model, broken, preprocessing, mixture=FIXED8)
