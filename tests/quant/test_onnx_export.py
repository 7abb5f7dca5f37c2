"""onnxruntime, which shares no code with this project, computes the same codes as the reference."""

import numpy as np
import onnx
import onnxruntime
import pytest

from terrazzo.arch.schemes import Scheme
from terrazzo.quant import onnx_export
from terrazzo.quant.quantizer import quantize
from terrazzo.sim import reference

MIXTURE = {Scheme.FIXED8: 4, Scheme.FIXED4: 2, Scheme.POT4: 2}


def differing(graph, codes):
    """Names of tensors that differ between onnxruntime and the reference."""
    model = onnx_export.model(graph, keep=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = dict(zip((o.name for o in session.get_outputs()), session.run(None, {"input": codes}), strict=True))
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
