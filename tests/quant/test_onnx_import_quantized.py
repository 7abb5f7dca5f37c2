"""Models that come quantized: QDQ, QCDQ, QOperator and QONNX against onnxruntime and qonnx, layer by layer.

Outputs of attention have a bound of their own, because the machine's softmax has its own exponentials and does not round probabilities.
"""

import gzip
import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from terrazzo.arch.schemes import Scheme, codebook
from terrazzo.boards import demo_accelerator
from terrazzo.compiler import compile
from terrazzo.onnx_layers import compare
from terrazzo.quant import imported
from terrazzo.quant.frontend import UnsupportedModel
from terrazzo.quant.onnx_import import import_onnx, load
from terrazzo.quant.prescribed import schemes_for
from terrazzo.sim import functional, reference
from tests import onnx_models as models

COUNT = 24


def integer(model, folder, **options):
    path = folder / "model.onnx"
    onnx.save(model, path)
    source = load(path, shape=models.SHAPE)
    graph, report = imported.build(import_onnx(source), source.preprocessing, **options)
    return source, graph, report


def by_layer(model, source, graph, raw):
    """For every quantized value, our codes and onnxruntime's, ours computed from onnxruntime's codes of the values before."""
    names = {
        ours: theirs
        for ours, theirs in source.module.tensors().items()
        if ours in {t.name for t in graph.tensors}
    }
    found = models.run(model, models.reals(raw), list(names.values()))
    given = {}
    for name, codes in zip(names, found, strict=True):
        tensor = graph.tensor(name)
        if codes[0].size != tensor.positions * tensor.channels:
            continue  # a part of what the model concatenates
        codes = codes.astype(np.int64) - (128 if codes.dtype == np.uint8 else 0)
        codes = codes.transpose(0, 2, 3, 1) if codes.ndim == 4 and len(tensor.shape) == 3 else codes
        given[name] = codes.reshape(len(codes), *tensor.shape)
    values = {graph.input: reference.quantize_batch(graph, raw)}
    result = {}
    for operator in graph.operators:
        for name, codes in reference.evaluate(graph, operator, values).items():
            if name in given:
                result[name] = codes.astype(np.int64), given[name]
                codes = given[name].astype(codes.dtype)
            values[name] = codes
    return result, values


def assert_one_code(model, folder, least):
    raw = models.images(COUNT)
    source, graph, _ = integer(model, folder)
    found, values = by_layer(model, source, graph, raw)
    assert len(found) >= least
    for name, (ours, theirs) in found.items():
        difference = np.abs(ours - theirs)
        assert np.ptp(theirs) > 20, f"{name} must vary, so that agreement says something"
        assert (difference <= 1).mean() >= 0.999, (
            f"{name}: {(difference > 1).mean():.4f} differ by more than one code"
        )
        assert (difference == 0).mean() > 0.97, f"{name}: {(difference > 0).mean():.4f} differ"
    return source, graph, values


@pytest.mark.parametrize("signed", [False, True])
def test_qdq_cnn_agrees_with_onnxruntime_layer_by_layer(tmp_path, signed):
    model = models.statically_quantized(models.cnn(), tmp_path, signed=signed)
    _, graph, _ = assert_one_code(model, tmp_path, 8)
    scales = {
        onnx.numpy_helper.to_array(t).item()
        for t in model.graph.initializer
        if t.name.endswith("_scale") and not t.dims
    }
    outputs = [t for t in graph.tensors if t.name.endswith("QuantizeLinear_Output")]
    assert all(np.float32(t.scale) in scales for t in outputs)


def test_qdq_mlp_agrees_with_onnxruntime_layer_by_layer(tmp_path):
    model = models.statically_quantized(models.mlp(), tmp_path)
    assert "LayerNormalization" in {node.op_type for node in model.graph.node}
    assert_one_code(model, tmp_path, 8)


def test_qoperator_cnn_agrees_with_onnxruntime_layer_by_layer(tmp_path):
    model = models.statically_quantized(models.cnn(), tmp_path, qoperator=True)
    kinds = {node.op_type for node in model.graph.node}
    assert {"QLinearConv", "QLinearAdd", "QGemm", "QLinearGlobalAveragePool"} <= kinds
    assert_one_code(model, tmp_path, 8)


@pytest.mark.parametrize("options", [{}, {"signed": True}, {"qoperator": True}, {"symmetric": True}])
def test_attention_with_quantized_scores(tmp_path, options):
    """Scores, queries, keys and values keep their codes; only what softmax makes of them differs."""
    model = models.statically_quantized(models.attention(), tmp_path, **options)
    source, graph, _ = integer(model, tmp_path)
    raw = models.images(COUNT)
    found, wanted = compare(model, source, graph, raw, COUNT)
    assert len(found) >= 9
    attended = next(layer for layer in found if "MatMul_21" in layer.name)
    assert attended.near > 0.95 * attended.codes and attended.same > 0.5 * attended.codes
    for layer in found:
        if layer is not attended:
            assert layer.most <= 1 and layer.same > 0.98 * layer.codes, layer
    ours = reference.run(graph, reference.quantize_batch(graph, raw)).reshape(COUNT, -1).astype(int)
    tensor = graph.tensor(graph.output)
    distance = np.abs((ours - tensor.zero_point) * tensor.scale - wanted)
    assert np.ptp(wanted) > 20 * tensor.scale and distance.max() <= 3.01 * tensor.scale
    assert (graph.tensor(operator_of(graph, "attention").output).dtype == "s16") != bool(
        options.get("symmetric")
    )
    program = compile(graph, demo_accelerator())
    codes = reference.quantize_batch(graph, raw[:1])
    assert np.array_equal(functional.run(program, codes).reshape(-1), ours[0])


def operator_of(graph, op):
    return next(operator for operator in graph.operators if operator.op == op)


def test_the_machines_softmax_is_nearer_to_the_exact_one_than_rounded_probabilities(tmp_path):
    """64 keys with probabilities around 1/64, of which codes of 1/255 keep little; scores and values are the same codes."""
    net = models.Net()
    x = quantized_pair(net, net.op("Sub", "image", net.array(np.float32(0.5))), 1 / 250, 0, np.int8)
    x = net.op("Transpose", net.op("Reshape", x, net.array(np.array([0, 3, 64]))), perm=[0, 2, 1])
    scores = net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]))
    scores = quantized_pair(net, net.op("Mul", scores, net.array(np.float32(4))), 0.025, 0, np.int8)
    shares = quantized_pair(net, net.op("Softmax", scores, axis=-1), 1 / 255, 0, np.uint8)
    model = net.model(quantized_pair(net, net.op("MatMul", shares, x), 0.004, 0, np.int8))
    _, graph, _ = integer(model, tmp_path)
    raw = models.images(COUNT)
    codes = reference.quantize_batch(graph, raw)
    ours = reference.run(graph, codes).reshape(COUNT, 64, 3) * 0.004
    (theirs,) = models.run(model, models.reals(raw))
    real = codes.reshape(COUNT, 64, 3) / 250
    logits = np.clip(np.rint(real @ real.swapaxes(1, 2) * 4 / 0.025), -128, 127) * 0.025
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    exact = weights / weights.sum(axis=-1, keepdims=True) @ real
    error, other = (np.sqrt(((value - exact) ** 2).mean()) / 0.004 for value in (ours, theirs))
    assert error < 0.45 and other > 2 * error


def test_scores_that_saturate_stay_at_the_greatest_code(tmp_path):
    """With zero points that leave a third of the positive range, many rows have several keys at the greatest code."""
    model = models.statically_quantized(models.attention(), tmp_path)
    for tensor in model.graph.initializer:
        if tensor.name in ("MatMul_18_out_zero_point", "Mul_19_out_zero_point"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(215, np.uint8), tensor.name))
    source, graph, _ = integer(model, tmp_path)
    raw = models.images(COUNT)
    found, _ = compare(model, source, graph, raw, COUNT)
    values = reference.run(graph, reference.quantize_batch(graph, raw), keep=True)
    logits = values[f"{operator_of(graph, 'attention').name}/logits"]
    assert ((logits == 2047).sum(axis=-1) > 1).mean() > 0.1
    attended = next(layer for layer in found if "MatMul_21" in layer.name)
    assert attended.near > 0.95 * attended.codes


@pytest.mark.parametrize(
    ("scale", "bits", "rounding", "message"),
    [(0.1, 8, "FLOOR", "by FLOOR"), (0.001, 12, "ROUND", "quantizes its scores to -2048..2047")],
)
def test_scores_in_another_way_are_refused(tmp_path, scale, bits, rounding, message):
    net = models.Net()
    x = net.op("Reshape", qonnx(net, "image", 1 / 255, 8), net.array(np.array([0, 3, 64])))
    x = net.op("Transpose", x, perm=[0, 2, 1])
    scores = net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]))
    shares = net.op("Softmax", qonnx(net, scores, scale, bits, rounding=rounding), axis=-1)
    y = qonnx(net, net.op("MatMul", shares, x), 0.01, 8)
    with pytest.raises(UnsupportedModel, match=message):
        integer(net.model(y, domain="qonnx.custom_op.general"), tmp_path)


def test_products_by_constants_that_differ_by_place(tmp_path):
    """On the 8-bit grid that onnxruntime gives them, and as real numbers, which needs a factor without zero point."""
    net = models.Net()
    x = quantized_pair(net, "image", 1 / 127, 0, np.int8)
    y = quantized_pair(
        net,
        net.op("Relu", net.op("Conv", x, weights(net, 4, 3, 3, 3), kernel_shape=[3, 3])),
        0.02,
        -100,
        np.int8,
    )
    codes = net.op(
        "QuantizeLinear", net.random(4, 6, 6, gain=1.0), net.array(np.float32(0.03)), net.array(np.int8(0))
    )
    factor = net.op("DequantizeLinear", codes, net.array(np.float32(0.03)), net.array(np.int8(0)))
    y = quantized_pair(net, net.op("Mul", y, factor), 0.04, 0, np.int8)
    y = quantized_pair(net, net.op("Mul", y, net.random(4, 6, 6, gain=1.0)), 0.05, 3, np.int8)
    model = net.model(y)
    source, graph, _ = integer(model, tmp_path)
    raw = models.images(COUNT)
    found, _ = compare(model, source, graph, raw, COUNT)
    assert len(found) == 3 and sum(operator.op == "multiply" for operator in graph.operators) == 2
    assert all(layer.most <= 1 and layer.same > 0.995 * layer.codes for layer in found)
    program = compile(graph, demo_accelerator())
    codes = reference.quantize_batch(graph, raw[:1])
    assert np.array_equal(functional.run(program, codes).reshape(-1), reference.run(graph, codes).reshape(-1))


def test_products_by_real_constants_that_differ_by_place_need_a_factor_without_zero_point(tmp_path):
    net = models.Net()
    x = quantized_pair(net, "image", 1 / 100, -27, np.int8)
    x = quantized_pair(net, net.op("Mul", x, net.random(3, 8, 8, gain=1.0)), 0.05, 3, np.int8)
    with pytest.raises(UnsupportedModel, match="multiplies codes with zero point -27 by real constants"):
        integer(net.model(x), tmp_path)


@pytest.mark.parametrize(
    ("kind", "symmetric", "message"),
    [
        ("QInt16", False, "codes -32768..32767 with zero point -32768"),
        ("QInt16", True, "quantizes the image to -32767..32767|quantizes the image to -32768..32767"),
        ("QUInt16", False, "codes 0..65535 with zero point 0"),
    ],
)
def test_activations_of_16_bits_are_refused(tmp_path, kind, symmetric, message):
    model = models.statically_quantized(models.cnn(), tmp_path, activations=kind, symmetric=symmetric)
    with pytest.raises(UnsupportedModel, match=message) as error:
        integer(model, tmp_path)
    assert all("QInt8" in finding.remedy for finding in error.value.findings)


def test_a_layer_that_reads_16_bits_is_refused_by_name(tmp_path):
    net = models.Net()
    x = quantized_pair(net, "image", 1 / 127, 0, np.int8)
    y = quantized_pair(
        net, net.op("Conv", x, weights(net, 4, 3, 3, 3), kernel_shape=[3, 3]), 1e-4, 0, np.int16
    )
    y = net.op("Conv", y, weights(net, 4, 4, 3, 3), kernel_shape=[3, 3], name="second")
    with pytest.raises(UnsupportedModel) as error:
        integer(net.model(quantized_pair(net, y, 0.1, 0, np.int8), opset=21), tmp_path)
    (finding,) = error.value.findings
    assert "second" in finding.path and "16 bits" in finding.reason and "QInt8" in finding.remedy


def quantized_pair(net, x, scale, zero, dtype, clip=None):
    """QuantizeLinear, perhaps Clip, and DequantizeLinear."""
    s, z = net.array(np.float32(scale)), net.array(np.array(zero, dtype))
    codes = net.op("QuantizeLinear", x, s, z)
    if clip:
        codes = net.op("Clip", codes, *(net.array(np.array(bound, dtype)) for bound in clip))
    return net.op("DequantizeLinear", codes, s, z)


def weights(net, *shape, scale=0.02, dtype=np.int8, zero=0, lo=-127):
    codes = net.generator.integers(lo, 128, shape).astype(dtype)
    codes.flat[0] = lo
    return net.op(
        "DequantizeLinear", net.array(codes), net.array(np.float32(scale)), net.array(np.array(zero, dtype))
    )


def one_layer(clip=None, dtype=np.int8, zero=0, **options):
    net = models.Net()
    x = quantized_pair(net, "image", 1 / 127, 0, np.int8)
    y = net.op("Conv", x, weights(net, 8, 3, 3, 3, dtype=dtype, zero=zero, **options), kernel_shape=[3, 3])
    return net, quantized_pair(net, y, 0.1, 0, np.int8, clip)


def test_qcdq_keeps_its_bits(tmp_path):
    net, y = one_layer(clip=(-8, 7))
    model = net.model(y)
    _, graph, _ = integer(model, tmp_path)
    tensor = graph.tensor(graph.output)
    assert (tensor.bits, tensor.scale, tensor.zero_point) == (4, np.float32(0.1), 0)
    raw = models.images(COUNT)
    (theirs,) = models.run(model, models.reals(raw))
    ours = reference.run(graph, reference.quantize_batch(graph, raw)).transpose(0, 3, 1, 2) * tensor.scale
    assert np.abs(ours).max() > 0.7 and np.abs(ours - theirs).max() <= 0.1001
    assert (np.abs(ours - theirs) < 0.01).mean() > 0.99


def test_asymmetric_weights_are_refused_with_a_remedy(tmp_path):
    net, y = one_layer(dtype=np.uint8, zero=100, lo=0)
    with pytest.raises(UnsupportedModel) as error:
        integer(net.model(y), tmp_path)
    (finding,) = error.value.findings
    assert finding.op == "Conv" and "zero point 100" in finding.reason and "WeightSymmetric" in finding.remedy


def test_unsigned_weights_around_128_are_symmetric(tmp_path):
    net, y = one_layer(dtype=np.uint8, zero=128, lo=1)
    _, graph, _ = integer(net.model(y), tmp_path)
    codes = graph.constants[f"{graph.operators[0].name}/weight"]
    stored = next(
        onnx.numpy_helper.to_array(t) for t in net.weights if t.data_type == TensorProto.UINT8 and t.dims
    )
    assert np.array_equal(codes.transpose(0, 3, 1, 2), stored.astype(int) - 128)


def test_weights_with_the_code_minus_128_are_refused(tmp_path):
    net, y = one_layer(lo=-128)
    with pytest.raises(UnsupportedModel, match="-128 left out"):
        integer(net.model(y), tmp_path)


def test_values_that_are_not_quantized_are_refused_by_name(tmp_path):
    net = models.Net()
    x = quantized_pair(net, "image", 1 / 127, 0, np.int8)
    y = net.op("Conv", x, weights(net, 8, 3, 3, 3), kernel_shape=[3, 3], name="first")
    y = net.op("Conv", y, weights(net, 8, 8, 3, 3), kernel_shape=[3, 3], name="second")
    with pytest.raises(UnsupportedModel) as error:
        integer(net.model(y), tmp_path)
    (finding,) = error.value.findings
    assert (
        "second" in finding.path and "not quantized" in finding.reason and "QuantizeLinear" in finding.remedy
    )


def test_dynamic_quantization_and_foreign_operators_are_all_listed(tmp_path):
    net = models.Net()
    codes, scale, zero = net.op("DynamicQuantizeLinear", "image", outputs=3, name="dynamic")
    y = net.op("ConvInteger", codes, net.array(np.ones((4, 3, 3, 3), np.int8)), zero, name="integers")
    y = net.op("Magic", y, domain="my.domain", name="magic")
    with pytest.raises(UnsupportedModel) as error:
        integer(net.model(y, domain="my.domain"), tmp_path)
    found = {finding.path: finding for finding in error.value.findings}
    assert {"dynamic", "integers", "magic"} <= set(found)
    assert "statically" in found["integers"].remedy and "my.domain" in found["magic"].reason
    assert scale


def qonnx(net, x, scale, bits, signed=1, narrow=0, rounding="ROUND"):
    s, z, b = (net.array(np.float32(value)) for value in (scale, 0, bits))
    domain = "qonnx.custom_op.general"
    return net.op("Quant", x, s, z, b, domain=domain, signed=signed, narrow=narrow, rounding_mode=rounding)


def qonnx_net():
    """Weights of four and two bits, unsigned and bipolar activations, and a truncated average."""
    net = models.Net()
    domain = "qonnx.custom_op.general"
    x = qonnx(net, "image", 1 / 255, 8, signed=0)
    y = net.op(
        "Conv",
        x,
        qonnx(net, net.random(8, 3, 3, 3, gain=0.4), 0.125, 4, narrow=1),
        pads=[1] * 4,
        kernel_shape=[3, 3],
    )
    y = qonnx(net, net.op("Relu", y), 0.05, 4, signed=0)
    y = net.op(
        "Conv",
        y,
        qonnx(net, net.random(6, 8, 3, 3, gain=0.4), 0.25, 2, narrow=1),
        pads=[1] * 4,
        kernel_shape=[3, 3],
    )
    y = qonnx(net, net.op("Relu", y), 0.0625, 6, signed=0)
    y = net.op(
        "Mul", net.op("AveragePool", y, kernel_shape=[4, 4], strides=[4, 4]), net.array(np.float32(16))
    )
    parameters = [net.array(np.float32(value)) for value in (0.0625, 0, 10, 6)]
    y = net.op("Flatten", net.op("Trunc", y, *parameters, domain=domain, rounding_mode="FLOOR"))
    one = net.array(np.float32(1))
    head = net.op("BipolarQuant", net.random(12, 24, gain=1.0), one, domain=domain)
    y = net.op("Gemm", y, head, net.random(12, gain=0.2), transB=1)
    y = net.op("BipolarQuant", y, one, domain=domain)
    head = net.op("BipolarQuant", net.random(10, 12, gain=1.0), one, domain=domain)
    y = net.op("Gemm", y, head, net.random(10, gain=0.2), transB=1)
    return net.model(y, shape=(1, 3, 8, 8), domain=domain)


def executed(path, raw, patch):
    """The qonnx executor's outputs."""
    patch.setattr(onnx, "IR_VERSION", 8)  # of the models that the executor makes for onnxruntime
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    model = ModelWrapper(str(path)).transform(InferShapes())
    name = model.graph.input[0].name
    x = (raw / 255).astype(np.float32).transpose(0, 3, 1, 2)
    return np.concatenate(
        [execute_onnx(model, {name: image[None]})[model.graph.output[0].name] for image in x]
    )


needs_qonnx = pytest.mark.skipif(
    importlib.util.find_spec("qonnx") is None, reason="needs the package qonnx (pip install qonnx)"
)


@needs_qonnx
@pytest.mark.filterwarnings("ignore")
def test_qonnx_operators_give_the_executors_outputs(tmp_path, monkeypatch):
    source, graph, report = integer(qonnx_net(), tmp_path)
    assert {4, 6, 8} <= {t.bits for t in graph.tensors if t.dtype == "s8"}
    raw = models.images(4)
    wanted = executed(tmp_path / "model.onnx", raw, monkeypatch)
    ours = (
        reference.run(graph, reference.quantize_batch(graph, raw)).reshape(4, -1)
        * graph.tensor(graph.output).scale
    )
    assert np.ptp(wanted) > 4 and np.abs(ours - wanted).max() < 0.01
    assert report.schemes.keys() == {"FIXED8"} and source.module.quantized


@needs_qonnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("pad", "threshold", "table"), [(0, 0.41, False), (1, 0.41, True), (0, 0.4, True)])
def test_signs_of_the_image_are_exact(tmp_path, monkeypatch, pad, threshold, table):
    """They are two codes of the input, and with padding or a pixel at the threshold a table of pixels."""
    net = models.Net()
    one, domain = net.array(np.float32(1)), "qonnx.custom_op.general"
    x = net.op("BipolarQuant", net.op("Sub", "image", net.array(np.float32(threshold))), one, domain=domain)
    y = net.op(
        "Conv",
        x,
        qonnx(net, net.random(4, 3, 3, 3, gain=0.4), 0.125, 4, narrow=1),
        pads=[pad] * 4,
        kernel_shape=[3, 3],
    )
    _, graph, _ = integer(net.model(qonnx(net, y, 0.125, 8), shape=(1, 3, 8, 8), domain=domain), tmp_path)
    assert ("Elementwise" in {type(operator).__name__ for operator in graph.operators}) == table
    raw = models.images(3)
    raw[0, 0, :, :] = np.arange(98, 106)[:, None]  # 102 is 0.4, of which float32 makes a tie
    wanted = executed(tmp_path / "model.onnx", raw, monkeypatch).transpose(0, 2, 3, 1)
    ours = reference.run(graph, reference.quantize_batch(graph, raw)) * 0.125
    assert np.ptp(wanted) > 4 and np.array_equal(ours, wanted)


def test_rows_take_the_lane_mixture_where_it_holds_their_codes(tmp_path):
    mixture = {Scheme.FIXED8: 1, Scheme.FIXED4: 3}
    _, graph, _ = integer(qonnx_net(), tmp_path, mixture=mixture)
    schemes = graph.constants[f"{graph.operators[0].name}/scheme"]
    assert sorted(schemes) == [0, 0, 1, 1, 1, 1, 1, 1]
    _, plain, _ = integer(qonnx_net(), tmp_path)
    assert np.array_equal(
        plain.constants[f"{plain.operators[0].name}/weight"],
        graph.constants[f"{graph.operators[0].name}/weight"],
    )


def test_rows_take_the_narrowest_lanes_that_hold_their_codes():
    """Each scheme eight times, in disorder: binary rows fit everywhere, so that only one assignment holds all of them."""
    random = np.random.default_rng(0)
    books = {scheme: codebook(scheme) for scheme in Scheme if scheme not in (Scheme.POT4, Scheme.SP2_4)}
    rows = [random.choice(book, 16) for book in books.values() for _ in range(8)]
    found = schemes_for(np.array(rows)[random.permutation(32)], dict.fromkeys(books, 8), 1)
    assert {scheme: (found == scheme).sum() for scheme in books} == dict.fromkeys(books, 8)


def _mnist(count):
    folder = Path(os.environ.get("TERRAZZO_DATA", "")) / "mnist"
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        return x[:count], np.frombuffer(file.read(), np.uint8, offset=8)[:count]


@needs_qonnx
@pytest.mark.skipif("TERRAZZO_DATA" not in os.environ, reason="needs TERRAZZO_DATA: the TFC models and MNIST")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["TFC_1W1A", "TFC_1W2A"])
def test_tfc_predicts_what_the_qonnx_executor_predicts(name, monkeypatch):
    path = Path(os.environ["TERRAZZO_DATA"]) / "qonnx" / f"{name}.onnx"
    source = load(path)
    graph, _ = imported.build(import_onnx(source), source.preprocessing)
    raw, labels = _mnist(100)
    ours = reference.run(graph, reference.quantize_batch(graph, raw)).reshape(len(raw), -1)
    wanted = executed(path, raw, monkeypatch)
    assert np.array_equal(ours.argmax(axis=1), wanted.argmax(axis=1))
    assert np.abs(ours * graph.tensor(graph.output).scale - wanted).max() < 1e-3
    assert (wanted.argmax(axis=1) == labels).mean() > 0.9
    program = compile(graph, demo_accelerator())
    codes = reference.quantize_batch(graph, raw[:1])
    assert np.array_equal(functional.run(program, codes).reshape(-1), ours[0])
    weights = [value for name, value in graph.constants.items() if name.endswith("/weight")]
    assert all(set(np.unique(value)) <= {-1, 1} for value in weights)
