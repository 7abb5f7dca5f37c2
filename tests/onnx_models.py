"""Small ONNX models for tests of the import, and what onnxruntime computes from them."""

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (8, 8, 3)


@dataclasses.dataclass
class Net:
    """Collects nodes; `op` returns the first output's name."""

    nodes: list = dataclasses.field(default_factory=list)
    weights: list = dataclasses.field(default_factory=list)
    generator: np.random.Generator = dataclasses.field(default_factory=lambda: np.random.default_rng(0))

    def op(self, kind, *inputs, outputs=1, domain="", name=None, **attrs):
        name = name or f"{kind}_{len(self.nodes)}"
        results = [f"{name}_out{i}" if i else f"{name}_out" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, results, name=name, domain=domain, **attrs))
        return results[0] if outputs == 1 else results

    def array(self, value, name=None):
        name = name or f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def random(self, *shape, gain=None):
        gain = gain or np.prod(shape[1:]) ** -0.5
        return self.array((self.generator.standard_normal(shape) * gain).astype(np.float32))

    def conv(self, x, outputs, inputs, kernel=3, stride=1, group=1):
        pads = [kernel // 2] * 4
        weight = self.random(outputs, inputs // group, kernel, kernel)
        bias = self.random(outputs, gain=0.2)
        return self.op(
            "Conv", x, weight, bias, pads=pads, strides=[stride] * 2, kernel_shape=[kernel] * 2, group=group
        )

    def model(self, output, shape=("N", 3, 8, 8), opset=17, elem=TensorProto.FLOAT, **domains):
        body = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [
                helper.make_value_info(name, onnx.TypeProto())
                for name in ([output] if isinstance(output, str) else output)
            ],
            self.weights,
        )
        for value in body.output:
            value.type.tensor_type.elem_type = elem
        imports = [helper.make_opsetid("", opset)]
        imports += [helper.make_opsetid(domain.replace("__", "."), 1) for domain in domains.values()]
        return helper.make_model(body, opset_imports=imports, ir_version=8)


def cnn():
    """Convolutions of several kinds, a residual, both poolings and a classifier."""
    net = Net()
    x = net.op("Relu", net.conv("image", 8, 3))
    y = net.op("Relu", net.conv(x, 8, 8))
    x = net.op("Add", net.conv(y, 8, 8), x)
    x = net.op("Relu", x)
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Clip", net.conv(x, 8, 8, group=8), net.array(np.float32(0)), net.array(np.float32(6)))
    x = net.op("Relu", net.conv(x, 12, 8, kernel=1))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.op("Gemm", x, net.random(10, 12), net.random(10, gain=0.2), transB=1))


def mlp():
    """Patches as tokens, LayerNorm, an MLP with GELU as erf, a residual, the mean of the tokens and a classifier."""
    net = Net()
    one, half, root = (net.array(np.float32(v)) for v in (1.0, 0.5, 2**0.5))
    x = net.op(
        "Conv",
        "image",
        net.random(16, 3, 2, 2),
        net.random(16, gain=0.2),
        strides=[2, 2],
        kernel_shape=[2, 2],
    )
    x = net.op("Transpose", net.op("Reshape", x, net.array(np.array([0, 16, 16]))), perm=[0, 2, 1])
    y = net.op("LayerNormalization", x, net.random(16, gain=1.0), net.random(16, gain=0.2), epsilon=1e-5)
    y = net.op("Add", net.op("MatMul", y, net.random(16, 32, gain=0.4)), net.random(32, gain=0.2))
    gate = net.op("Add", net.op("Erf", net.op("Div", y, root)), one)
    y = net.op("Mul", net.op("Mul", y, gate), half)
    y = net.op("Add", net.op("MatMul", y, net.random(32, 16, gain=0.3)), net.random(16, gain=0.2))
    x = net.op("Add", x, y)
    x = net.op("ReduceMean", x, axes=[1], keepdims=0)
    return net.model(net.op("Gemm", x, net.random(10, 16), net.random(10, gain=0.2), transB=1))


def images(count, seed=1):
    """uint8 images (N, 8, 8, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8)


def reals(raw):
    """What the models take: (N, 3, 8, 8) of 0..1."""
    return (raw / 255).astype(np.float32).transpose(0, 3, 1, 2)


def run(model, x, names=None):
    """onnxruntime's values of the outputs, or of the values `names`, without any optimization."""
    import onnxruntime

    if names is not None:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        del model.graph.output[:]
        model.graph.output.extend([onnx.ValueInfoProto(name=name) for name in names])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: x})


def statically_quantized(model, folder, *, qoperator=False, signed=False, symmetric=False, activations=None):
    """The model quantized by onnxruntime, 8 bits, on eight images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter([{"image": reals(image[None])} for image in images(8, seed=2)])

        def get_next(self):
            return next(self.rest, None)

    onnx.save(model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx",
        folder / "quantized.onnx",
        Reader(),
        quant_format=QuantFormat.QOperator if qoperator else QuantFormat.QDQ,
        activation_type=QuantType[activations or ("QInt8" if signed or symmetric else "QUInt8")],
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": symmetric},
    )
    quantized = onnx.load(folder / "quantized.onnx")
    quantized.ir_version = 8  # onnx writes newer versions than onnxruntime reads
    return quantized


def mobile():
    """BatchNorm, hard-swish, a squeeze-and-excitation gate, SiLU, padding by hand, split, concatenation and slices."""
    net = Net()
    x = net.conv("image", 8, 3)
    spread = net.array(np.abs(net.generator.standard_normal(8)).astype(np.float32) + 0.5)
    x = net.op(
        "BatchNormalization",
        x,
        net.random(8, gain=1.0),
        net.random(8, gain=0.2),
        net.random(8, gain=0.2),
        spread,
    )
    x = net.op("HardSwish", x)
    gate = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), 4, 8, kernel=1))
    x = net.op("Mul", x, net.op("HardSigmoid", net.conv(gate, 8, 4, kernel=1), alpha=1 / 6))
    x = net.op("Pad", x, net.array(np.array([0, 0, 0, 0, 0, 0, 1, 1])))
    x = net.op("Conv", x, net.random(8, 8, 3, 3), strides=[2, 2], kernel_shape=[3, 3])
    x = net.op("Mul", x, net.op("Sigmoid", x))
    a, b = net.op("Split", x, net.array(np.array([4, 4])), outputs=2, axis=1)
    x = net.op("Concat", net.op("Tanh", b), a, axis=1)
    x = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    bounds = [net.array(np.array([bound])) for bound in (0, 6, 1)]
    x = net.op("Slice", x, *bounds)
    x = net.op("Flatten", net.op("ReduceMean", x, axes=[2, 3]))
    return net.model(net.op("Gemm", x, net.random(6, 10, gain=0.4), net.random(10, gain=0.2)))


def attention():
    """Patches, a class token, LayerNorm, attention of two heads with its softmax spelled out, and the class token's logits."""
    net = Net()
    x = net.op(
        "Conv",
        "image",
        net.random(16, 3, 2, 2),
        net.random(16, gain=0.2),
        strides=[2, 2],
        kernel_shape=[2, 2],
    )
    shape = net.op("Shape", x)
    batch = net.op("Slice", shape, *(net.array(np.array([n])) for n in (0, 1, 0)))
    x = net.op("Reshape", x, net.op("Concat", batch, net.array(np.array([16, -1])), axis=0))
    x = net.op("Transpose", x, perm=[0, 2, 1])
    one = net.array(np.array([1]))
    token = net.op(
        "Expand",
        net.random(1, 1, 16, gain=1.0),
        net.op("Concat", batch, one, net.array(np.array([16])), axis=0),
    )
    x = net.op("Concat", token, x, axis=1)
    y = net.op("LayerNormalization", x, net.random(16, gain=1.0), net.random(16, gain=0.2), epsilon=1e-6)
    y = net.op("Add", net.op("MatMul", y, net.random(16, 48, gain=0.3)), net.random(48, gain=0.2))
    y = net.op("Transpose", net.op("Reshape", y, net.array(np.array([0, 17, 3, 2, 8]))), perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", y, net.array(np.array(n)), axis=0) for n in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = net.op("Softmax", net.op("Mul", scores, net.array(np.float32(8**-0.5))), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = net.op("MatMul", net.op("Reshape", y, net.array(np.array([0, 17, 16]))), net.random(16, 16, gain=0.3))
    x = net.op("Gather", net.op("Add", x, y), net.array(np.array(0)), axis=1)
    return net.model(net.op("Gemm", x, net.random(10, 16), net.random(10, gain=0.2), transB=1))
