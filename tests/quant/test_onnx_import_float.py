"""Float ONNX models become float graphs equal to onnxruntime; what is refused is named; bad files are one clear error."""

import importlib.util

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from terrazzo.arch.errors import UserError
from terrazzo.examples.digits import models as digits
from terrazzo.quant.frontend import UnsupportedModel
from terrazzo.quant.onnx_import import check, import_onnx, load
from tests import onnx_models as models


def saved(model, folder):
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("build", [models.cnn, models.mlp, models.mobile, models.attention])
def test_float_graph_equals_onnxruntime(tmp_path, build):
    model = build()
    graph = import_onnx(load(saved(model, tmp_path)))
    raw = models.images(3)
    (wanted,) = models.run(model, models.reals(raw))
    found = graph.run(torch.from_numpy((raw / 255).astype(np.float32))).reshape(wanted.shape).numpy()
    assert np.abs(wanted).max() > 0.1
    assert np.abs(found - wanted).max() < 1e-4 * max(np.abs(wanted).max(), 1)


@pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is None, reason="torch.onnx.export needs the package onnxscript"
)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_exports_equals_the_module(tmp_path):
    module = digits.build("vit").eval()
    sample = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(
        module, (sample,), tmp_path / "vit.onnx", dynamo=True, verbose=False, external_data=False
    )
    graph = import_onnx(load(tmp_path / "vit.onnx"))
    with torch.no_grad():
        wanted = module(sample)
    assert torch.allclose(graph.run(sample.permute(0, 2, 3, 1)).reshape(wanted.shape), wanted, atol=1e-4)


def test_patterns_are_those_of_the_torch_frontend(tmp_path):
    kinds = [node.kind for node in import_onnx(load(saved(models.attention(), tmp_path))).nodes]
    assert kinds.count("attention") == 1 and "tokens" in kinds and "softmax" not in kinds
    acts = [
        node.attrs["kind"]
        for node in import_onnx(load(saved(models.mlp(), tmp_path))).nodes
        if node.kind == "act"
    ]
    assert acts == ["gelu"]
    acts = {
        n.attrs["kind"] for n in import_onnx(load(saved(models.mobile(), tmp_path))).nodes if n.kind == "act"
    }
    assert acts == {"hardswish", "relu", "hardsigmoid", "silu", "tanh"}


def test_every_refused_node_is_listed_by_name(tmp_path):
    net = models.Net()
    x = net.op("LeakyRelu", net.conv("image", 8, 3), name="leaky")
    x = net.op("Resize", x, "", net.array(np.array([1, 1, 2, 2], np.float32)), name="grow")
    x = net.op("HardSigmoid", net.conv(x, 8, 8), name="steep", alpha=0.3)
    x = net.op("Clip", x, net.array(np.float32(-1)), net.array(np.float32(1)), name="clip")
    source = load(saved(net.model(x), tmp_path))
    found = {finding.path: finding for finding in check(source)}
    assert {"leaky", "grow", "steep", "clip"} <= set(found)
    assert "relu" in found["leaky"].remedy and "resolution" in found["grow"].remedy
    assert "0.3" in found["steep"].reason and found["clip"].op == "Clip"
    with pytest.raises(UnsupportedModel, match="grow: Resize"):
        import_onnx(source)


def _external(folder):
    net = models.Net()
    model = net.model(net.conv("image", 8, 3))
    (weight,) = [t for t in model.graph.initializer if len(t.dims) == 4]
    onnx.external_data_helper.set_external_data(weight, "weights.bin")
    weight.ClearField("raw_data")
    return saved(model, folder)


def _nan(folder):
    net = models.Net()
    model = net.model(net.conv("image", 8, 3))
    (weight,) = [t for t in model.graph.initializer if len(t.dims) == 4]
    values = numpy_helper.to_array(weight).copy()
    values[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return saved(model, folder)


def _bytes(content):
    def write(folder):
        path = folder / "model.onnx"
        path.write_bytes(content() if callable(content) else content)
        return path

    return write


def _model(change):
    def write(folder):
        net = models.Net()
        model = net.model(net.conv("image", 8, 3))
        change(model)
        return saved(model, folder)

    return write


def _shorten(model):
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def _second_input(model):
    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def _open_shape(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "absent.onnx", "must be an existing ONNX file"),
        (_bytes(b"not a protobuf at all"), "must be a readable ONNX file|with nodes and outputs"),
        (_bytes(lambda: models.cnn().SerializeToString()[:-700]), "readable ONNX|must be|nodes and outputs"),
        (_bytes(b""), "must be an ONNX model with nodes"),
        (_external, "external data 'weights.bin' of tensor w0 must lie beside the model"),
        (_nan, "NaN"),
        (_model(_shorten), "must hold as many values as its shape says"),
        (_model(_second_input), "must have one input that is no weight, not image, mask"),
        (_model(_open_shape), "dynamic shape .*--input C,H,W"),
        (_model(lambda m: setattr(m.opset_import[0], "version", 7)), "opset must be 9 or newer, not 7"),
        (_model(lambda m: m.graph.node[0].input.__setitem__(1, "ghost")), "reads 'ghost'"),
        (_model(lambda m: setattr(m.graph.output[0], "name", "ghost")), "output 'ghost' must be computed"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path, write, message):
    with pytest.raises(UserError, match=message):
        import_onnx(load(write(tmp_path)))


def test_a_given_shape_closes_a_dynamic_one(tmp_path):
    source = load(_model(_open_shape)(tmp_path), shape=models.SHAPE)
    assert import_onnx(source).input_shape == models.SHAPE
    with pytest.raises(UserError, match="must be given as it is declared"):
        load(_model(_open_shape)(tmp_path), shape=(8, 9, 3))


def test_channels_last_inputs_are_images_too(tmp_path):
    net = models.Net()
    x = net.op("Transpose", "image", perm=[0, 3, 1, 2])
    model = net.model(net.conv(x, 4, 3), shape=("N", 8, 8, 3))
    source = load(saved(model, tmp_path))
    graph = import_onnx(source)
    raw = (models.images(2) / 255).astype(np.float32)
    (wanted,) = models.run(model, raw)
    assert np.allclose(graph.run(torch.from_numpy(raw)).permute(0, 3, 1, 2).numpy(), wanted, atol=1e-5)
