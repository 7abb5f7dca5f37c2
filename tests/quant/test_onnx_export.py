"""onnxruntime, which shares no code with this project, computes the same codes as the reference."""

import numpy as np
import onnx
import onnxruntime
import pytest

from terrazzo.arch.schemes import Scheme
from terrazzo.quant import onnx_export
from terrazzo.quant.quantizer import quantize
from terrazzo.sim import reference

from ..graphs import Builder

MIXTURE = {Scheme.FIXED8: 4, Scheme.FIXED4: 2, Scheme.POT4: 2}


def differing(graph, codes):
    """Names of tensors that differ between onnxruntime and the reference."""
    model = onnx_export.model(graph, keep=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = dict(
        zip((o.name for o in session.get_outputs()), session.run(None, {graph.input: codes}), strict=True)
    )
    expected = reference.run(graph, codes, keep=True)
    assert f"{graph.output}:codes" in got
    return [
        name
        for name, value in got.items()
        if not np.array_equal(
            np.broadcast_to(value, expected[name.removesuffix(":codes")].shape),
            expected[name.removesuffix(":codes")],
        )
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [8, 5])
def test_random_graphs_are_bit_identical(gallery, plain_preprocessing, raw_images, seed, bits):
    model = gallery(seed)
    images = raw_images(24, model.input_shape, seed)
    preprocessing = plain_preprocessing(model.input_shape[-1])
    graph, _ = quantize(model, images, preprocessing, mixture=MIXTURE, drain=2, activation_bits=bits)
    tensor = graph.tensor(graph.input)
    noise = np.random.default_rng(seed).integers(-128, 128, (8, *tensor.shape)).astype(np.int8)
    assert differing(graph, reference.quantize_batch(graph, images)) == []
    assert differing(graph, noise) == []


def _windows(b):
    """Attention in windows of permuted tokens, with a bias that hides some keys and one query's keys all."""
    x = b.conv(b.input, 12, (1, 1), dtype="s16")
    order = b.random.permutation(24)
    y = b.gather(b.layernorm(x), order)
    q, k, v = (b.linear(y, 12) for _ in range(3))
    z = b.attention(q, k, v, 2, windows=3, bias=(3, 1), hidden=0.3)
    bias = b.constants[f"{z}/bias"]
    bias[1, 0, 2] = -32768
    return b.linear(b.gather(z, np.argsort(order), (4, 6)), 12, "s16", residual=x)


def _reduced(b):
    """Fewer keys than queries, narrower values, one bias per head, tokens in front, 16 bits."""
    x = b.flatten(b.conv(b.input, 12, (1, 1)))
    z = b.flatten(b.conv(b.input, 12, (2, 2), (2, 2)))
    x = b.concat(b.slice(z, 0, 1), x, axis="positions")
    y = b.attention(b.linear(x, 12), b.linear(z, 12), b.linear(z, 9), 3, bias=(1, 3), output_dtype="s16")
    return b.elementwise(y)


def _gated(b):
    """Squeeze and excitation, a product of two tensors, dilation, channels joined, positions padded."""
    x = b.conv(b.input, 8, (3, 2), padding=(2, 2, 1, 2), dilation=(2, 3))
    gate = b.linear(b.avgpool(x, (4, 6), (4, 6)), 8, table=256)
    y = b.multiply(x, gate, table=1024)
    z = b.multiply(b.conv(b.input, 8, (1, 1), dtype="s16"), y, "s16", second=True)
    joined = b.concat(y, f"{b.elementwise(z)}", y)
    index = np.full((5, 7), -1)
    index[1:, 1:] = np.arange(24).reshape(4, 6)
    return b.conv(b.gather(b.gather(b.input, index, (5, 7)), index[1:, 1:] + 8, (4, 6)), 3, (1, 1)), joined


@pytest.mark.parametrize("made", [_windows, _reduced, _gated])
@pytest.mark.parametrize("seed", range(3))
def test_operators_are_bit_identical(made, seed):
    b = Builder(seed, (4, 6, 3))
    output = made(b)
    if isinstance(output, tuple):
        output = b.concat(*output)
    codes = np.random.default_rng(seed).integers(-128, 128, (8, 4, 6, 3)).astype(np.int8)
    assert differing(b.graph(output), codes) == []


def test_a_wrong_constant_is_seen(gallery_vit, plain_preprocessing, raw_images):
    """The comparison can fail: one changed weight on one side shows."""
    model = gallery_vit(0)
    images = raw_images(8, model.input_shape)
    graph, _ = quantize(model, images, plain_preprocessing(3), mixture={Scheme.FIXED8: 8})
    codes = reference.quantize_batch(graph, images)
    exported = onnx_export.model(graph)
    weight = next(k for k in graph.constants if k.endswith("/weight"))
    graph.constants[weight].flat[0] ^= 3
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    assert not np.array_equal(session.run(None, {"input": codes})[0], reference.run(graph, codes))


def test_only_integer_tensors(gallery, plain_preprocessing, raw_images, tmp_path):
    model = gallery(0)
    graph, _ = quantize(
        model,
        raw_images(4, model.input_shape),
        plain_preprocessing(model.input_shape[-1]),
        mixture=MIXTURE,
        drain=1,
    )
    loaded = onnx.load(onnx_export.export(graph, tmp_path / "graph.onnx"))
    inferred = onnx.shape_inference.infer_shapes(loaded, strict_mode=True).graph
    kinds = {t.data_type for t in inferred.initializer}
    kinds |= {v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    names = ["INT8", "UINT8", "INT32", "INT64", "BOOL"]
    assert kinds <= {onnx.TensorProto.DataType.Value(name) for name in names}
    assert len(inferred.value_info) >= len(inferred.node) - len(inferred.output)
