"""Float graphs with random weights that together use every fusion and every conversion of the quantizer."""

import numpy as np
import pytest
import torch

from terrazzo.arch.graph import Preprocessing
from terrazzo.quant import quantizer
from terrazzo.quant.calibrate import collect
from terrazzo.quant.floatgraph import FloatGraph, Node

torch.set_num_threads(1)  # models this small lose more to waiting threads than they gain


class Net:
    """Builds a FloatGraph node by node; every method returns the new node's name."""

    def __init__(self, seed, shape):
        self.generator = torch.Generator().manual_seed(seed)
        self.shapes, self.nodes, self.input_shape = {"input": shape}, [], shape

    def random(self, *shape, gain=1.0):
        return torch.randn(shape, generator=self.generator) * gain

    def node(self, op, inputs, shape, params=None, /, **attrs):
        name = f"{op}{len(self.nodes)}"
        node = Node(
            kind=op, name=name, inputs=tuple(inputs), shape=tuple(shape), params=params or {}, attrs=attrs
        )
        self.nodes.append(node)
        self.shapes[name] = tuple(shape)
        return name

    def conv(self, x, outputs, kernel=3, stride=1, padding=None, groups=1):
        height, width, channels = self.shapes[x]
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        pad = (kernel[0] // 2, kernel[0] // 2, kernel[1] // 2, kernel[1] // 2) if padding is None else padding
        shape = (
            (height + pad[0] + pad[1] - kernel[0]) // stride + 1,
            (width + pad[2] + pad[3] - kernel[1]) // stride + 1,
            outputs,
        )
        fan_in = kernel[0] * kernel[1] * channels // groups
        weight = self.random(outputs, *kernel, channels // groups, gain=fan_in**-0.5)
        params = {"weight": weight, "bias": self.random(outputs, gain=0.3)}
        return self.node("conv", [x], shape, params, stride=(stride, stride), padding=pad, groups=groups)

    def linear(self, x, outputs):
        depth = self.shapes[x][-1]
        params = {
            "weight": self.random(outputs, depth, gain=depth**-0.5),
            "bias": self.random(outputs, gain=0.3),
        }
        return self.node("linear", [x], (*self.shapes[x][:-1], outputs), params)

    def act(self, x, kind):
        return self.node("act", [x], self.shapes[x], kind=kind)

    def add(self, x, y=None):
        if y is None:
            return self.node("add", [x], self.shapes[x], {"constant": self.random(*self.shapes[x])})
        return self.node("add", [x, y], self.shapes[x])

    def layernorm(self, x):
        channels = self.shapes[x][-1]
        params = {"gamma": 1 + self.random(channels, gain=0.2), "beta": self.random(channels, gain=0.2)}
        return self.node("layernorm", [x], self.shapes[x], params, eps=1e-6)

    def attention(self, q, k, v, heads):
        scale = (self.shapes[q][-1] // heads) ** -0.5
        return self.node("attention", [q, k, v], self.shapes[q], heads=heads, scale=scale)

    def windowed(self, q, k, v, heads, windows, bias):
        scale = (self.shapes[q][-1] // heads) ** -0.5
        params = {"bias": bias}
        return self.node(
            "attention", [q, k, v], self.shapes[q], params, heads=heads, windows=windows, scale=scale
        )

    def multiply(self, x, y=None):
        if y is None:
            constant = self.random(*self.shapes[x])
            return self.node("multiply", [x], self.shapes[x], {"constant": constant})
        return self.node("multiply", [x, y], self.shapes[x])

    def gather(self, x, index, shape):
        return self.node("gather", [x], (*shape, self.shapes[x][-1]), {"index": torch.as_tensor(index)})

    def concat(self, *parts, axis="channels"):
        shapes = [self.shapes[part] for part in parts]
        if axis == "channels":
            shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        else:
            shape = (sum(int(np.prod(shape[:-1])) for shape in shapes), shapes[0][-1])
        return self.node("concat", parts, shape, axis=axis)

    def tokens(self, x, prefix=1):
        *rows, channels = self.shapes[x]
        params = {"prefix": self.random(prefix, channels)}
        return self.node("tokens", [x], (prefix + int(np.prod(rows)), channels), params)

    def pool(self, kind, x, kernel, stride, padding=(0, 0, 0, 0)):
        shape = self.shapes[x]
        if len(shape) == 2:
            out = (1, shape[-1])
        else:
            out = (
                (shape[0] + padding[0] + padding[1] - kernel[0]) // stride[0] + 1,
                (shape[1] + padding[2] + padding[3] - kernel[1]) // stride[1] + 1,
                shape[2],
            )
        return self.node(kind, [x], out, kernel=kernel, stride=stride, padding=padding)

    def slice(self, x, start, count):
        return self.node("slice", [x], (count, self.shapes[x][-1]), start=start, count=count)

    def reshape(self, x, *shape):
        return self.node("reshape", [x], shape, shape=shape)

    def graph(self):
        return FloatGraph(name="random", input_shape=self.input_shape, nodes=self.nodes)


def vit(seed):
    """Pre-norm blocks with a class token, fused tables and residuals."""
    net = Net(seed, (6, 8, 3))
    x = net.add(net.tokens(net.conv("input", 24, (2, 4), stride=2, padding=(0, 0, 0, 2))))
    n = net.layernorm(x)
    x = net.add(x, net.linear(net.attention(*(net.linear(n, 24) for _ in range(3)), heads=3), 24))
    x = net.add(x, net.linear(net.act(net.linear(net.layernorm(x), 40), "gelu"), 24))
    return net.linear(net.slice(net.layernorm(x), 0, 1), 10), net


def post_norm(seed):
    """No class token, position embedding behind a reshape, LayerNorm outputs in the residual stream, mean of tokens."""
    net = Net(seed, (4, 4, 2))
    x = net.add(net.reshape(net.conv("input", 16, 2, stride=2, padding=(0, 0, 0, 0)), 4, 16))
    x = net.layernorm(net.add(x, net.attention(*(net.linear(x, 16) for _ in range(3)), heads=2)))
    x = net.layernorm(net.add(net.linear(net.act(net.linear(x, 32), "silu"), 16), x))
    return net.linear(net.pool("avgpool", x, (4, 1), (1, 1)), 5), net


def prefixes(seed):
    """Two prefix tokens added after the position embedding, a slice from the middle, an activation of a LayerNorm."""
    net = Net(seed, (5, 5, 1))
    x = net.conv("input", 17, 3, stride=2, padding=(1, 1, 1, 1))
    x = net.tokens(net.add(net.reshape(x, 9, 17)), prefix=2)
    x = net.act(net.layernorm(net.slice(x, 1, 4)), "tanh")
    return net.linear(x, 3), net


def residual_cnn(seed):
    """Skips read as s16 while convolutions read the same values as s8; padded pools; grouped and depthwise."""
    net = Net(seed, (9, 7, 2))
    x = net.act(net.conv("input", 16), "relu")
    y = net.act(net.conv(x, 16, groups=4), "hardswish")
    x = net.act(net.add(net.conv(y, 16), x), "relu6")
    x = net.add(
        net.pool("maxpool", x, (3, 3), (2, 2), (1, 1, 1, 1)),
        net.conv(x, 16, 1, stride=2, padding=(0, 0, 0, 0)),
    )
    y = net.act(net.conv(x, 16, groups=16), "sigmoid")
    x = net.act(net.add(x, y), "gelu_tanh")
    x = net.pool("avgpool", x, (2, 2), (2, 2), (1, 0, 0, 0))
    return net.linear(net.reshape(x, 1, int(np.prod(net.shapes[x]))), 6), net


def shortcut(seed):
    """A projected shortcut computed after the main branch, a rectified sum, twice the same addend, image output."""
    net = Net(seed, (6, 6, 3))
    x = net.act(net.conv("input", 8, 1), "relu")
    main = net.conv(net.act(net.conv(x, 16), "relu"), 16)
    x = net.act(net.add(main, net.conv(x, 16, 1)), "relu")
    x = net.add(x, x)
    return net.act(net.conv(x, 3, 5), "relu"), net


def windows(seed):
    """Attention in shifted windows with a mask and a bias, fewer keys than queries, positions in another order."""
    net = Net(seed, (8, 8, 3))
    x = net.reshape(net.conv("input", 16, 2, stride=2, padding=(0, 0, 0, 0)), 16, 16)
    order = torch.arange(16).reshape(4, 4).roll((-1, -1), (0, 1))
    order = order.reshape(2, 2, 2, 2).transpose(1, 2).reshape(-1)
    n = net.gather(net.layernorm(x), order, (16,))
    q, k, v = (net.linear(n, 16) for _ in range(3))
    keys = torch.arange(16)[::2]
    bias = net.random(4, 2, 4, 2)
    bias[3, :, :2, 1] = float("-inf")
    y = net.windowed(q, net.gather(k, keys, (8,)), net.gather(v, keys, (8,)), 2, 4, bias)
    x = net.add(x, net.gather(net.linear(y, 16), torch.argsort(order), (16,)))
    x = net.concat(net.slice(x, 1, 1), net.gather(x, [15, -1, 3], (3,)), axis="positions")
    x = net.add(net.tokens(x), net.tokens(net.linear(net.layernorm(x), 16)))
    return net.linear(net.layernorm(x), 6), net


def gates(seed):
    """Squeeze and excitation, products of two branches and with a constant, concatenations, dilation."""
    net = Net(seed, (8, 6, 3))
    x = net.act(net.conv("input", 16), "silu")
    gate = net.conv(net.pool("avgpool", x, (8, 6), (1, 1)), 4, 1)
    gate = net.act(net.conv(net.act(gate, "relu"), 16, 1), "sigmoid")
    x = net.conv(net.multiply(x, gate), 16, 1)
    y = net.act(net.multiply(x, net.conv(x, 16, 1)), "gelu")
    z = net.concat(net.act(net.conv(y, 8, 1), "relu"), x, net.multiply(y))
    z = net.concat(z, net.conv(z, 4))
    return net.linear(net.reshape(net.pool("avgpool", z, (8, 6), (1, 1)), 1, 44), 5), net


GALLERY = {f.__name__: f for f in (vit, post_norm, prefixes, residual_cnn, shortcut, windows, gates)}


@pytest.fixture(params=GALLERY)
def gallery(request):
    """A function from a seed to a float graph of one kind."""
    return lambda seed: GALLERY[request.param](seed)[1].graph()


@pytest.fixture
def gallery_vit():
    """A function from a seed to a small transformer."""
    return lambda seed: vit(seed)[1].graph()


@pytest.fixture
def gallery_cnn():
    """A function from a seed to a small residual CNN."""
    return lambda seed: residual_cnn(seed)[1].graph()


@pytest.fixture
def plain_preprocessing():
    """Preprocessing of images 0..255 for a channel count."""
    return lambda channels: Preprocessing(scale=1 / 255, mean=(0.4,) * channels, std=(0.3,) * channels)


@pytest.fixture
def raw_images():
    """Smooth random images 0..255 of a shape."""

    def make(count, shape, seed=0):
        rng = np.random.default_rng(seed)
        return np.clip(rng.normal(100, 70, (count, *shape)), 0, 255).astype(np.uint8)

    return make


@pytest.fixture
def gallery_gates():
    """A function from a seed to a small network of products and concatenations."""
    return lambda seed: gates(seed)[1].graph()


@pytest.fixture
def unfitted():
    """A function of a MonkeyPatch under which every layer is rounded as it is in float."""

    def apply(patch):
        patch.setattr(quantizer, "Follower", lambda builder, stream, graph: None)
        patch.setattr(quantizer, "collect", lambda *given, moments, **options: collect(*given, **options))

    return apply
