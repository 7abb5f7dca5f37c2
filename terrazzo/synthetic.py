"""Integer graphs of a published model's shapes with random weights, for benchmarks: made in a second, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from .arch import numerics
from .arch.graph import (
    Attention,
    AvgPool,
    Constant,
    Conv,
    Drain,
    Elementwise,
    Graph,
    LayerNorm,
    Linear,
    MaxPool,
    Operator,
    Preprocessing,
    Reshape,
    Residual,
    Second,
    Slice,
    Tensor,
)
from .arch.schemes import Scheme, codebook

__all__ = ["dealt", "deit", "mobilenet_v2", "resnet18"]

_AROUND = (1, 1, 1, 1)
_MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks, stride of the first (Sandler et al. 2018, table 2)."""


class _Builder:
    """Operators one after the other; `bits` are those of activations of 8 bits or fewer."""

    def __init__(self, seed: int, bits: int = 8):
        self.random = np.random.default_rng(seed)
        self.bits = bits
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.constants: dict[str, np.ndarray] = {}
        self.spread: dict[str, float] = {}
        """Root mean square of a tensor's values around zero, in codes, where that is no fixed part of its range."""

    def graph(self, name: str, output: str) -> Graph:
        return Graph(
            name=name,
            input="image",
            output=output,
            preprocessing=Preprocessing(scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3),
            tensors=tuple(self.tensors.values()),
            operators=tuple(self.operators),
            constants=self.constants,
        )

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: str = "s8", bits: int = 0, zero_point: int = 0
    ) -> str:
        bits = 16 if dtype == "s16" else bits or self.bits
        self.tensors[name] = Tensor(
            name=name, shape=shape, dtype=dtype, scale=0.05, bits=bits, zero_point=zero_point
        )
        return name

    def add(self, kind: type, name: str, shape: tuple[int, ...], dtype: str = "s8", **fields) -> str:
        bits, zero_point = fields.pop("bits", 0), fields.pop("zero_point", 0)
        output = self.tensor(name, shape, dtype, bits, zero_point)
        self.operators.append(kind(name=name, output=output, **fields))
        return name

    def codes(self, dtype: str = "s8", bits: int = 0) -> dict[str, int]:
        """`lo` and `hi` of what is written."""
        half = 1 << (16 if dtype == "s16" else bits or self.bits) - 1
        return {"lo": -half, "hi": half - 1}

    def weights(
        self,
        name: str,
        x: str,
        shape: tuple[int, ...],
        dtype: str,
        residual: str | None = None,
        bits: int = 0,
    ) -> Drain:
        """Fixed-8 codes (O, ...) and a drain that spreads their sums of random codes over the output's codes."""
        weight, source = self.random.integers(-127, 128, shape).astype(np.int8), self.tensors[x]
        spread = 73 * self.spread.get(x, 0.3 * (1 << source.bits - 1)) * np.sqrt(weight[0].size)
        limits = self.codes(dtype, bits)
        m, n = numerics.scale_to_mn((2000 if dtype == "s16" else 0.3 * (limits["hi"] + 1)) / spread)
        sums = weight.reshape(shape[0], -1).sum(axis=1, dtype=np.int64)
        self.constants |= {
            f"{name}/weight": weight,
            f"{name}/scheme": np.full(shape[0], int(Scheme.FIXED8), np.uint8),
            f"{name}/m": np.full(shape[0], m, np.uint16),
            f"{name}/n": np.full(shape[0], n, np.uint8),
            f"{name}/C": -source.zero_point * sums * m + numerics.round_constant(0, m, n),
        }
        addend = Residual(tensor=residual, m=1 << 15, n=15) if residual else None
        return Drain(**limits, residual=addend)

    def linear(
        self, name: str, x: str, shape: tuple[int, int], channels: int, *, dtype="s8", residual=None, bits=0
    ) -> str:
        drain = self.weights(name, x, (channels, shape[1]), dtype, residual, bits)
        return self.add(Linear, name, (shape[0], channels), dtype, input=x, drain=drain, bits=bits)

    def gelu(self, name: str, x: str, shape: tuple[int, int], channels: int) -> str:
        self.weights(name, x, (channels, shape[1]), "s8", bits=8)
        limits, real = self.codes(), np.arange(-512, 512) / 100
        curve = real * (0.5 + 0.5 * np.tanh(0.8 * real + 0.036 * real**3))
        curve = np.clip(np.rint(curve * 0.2 * (limits["hi"] + 1)), *limits.values())
        self.constants[f"{name}/table"] = curve.astype(np.int8)
        drain = Drain(**limits, table=True)
        return self.add(Linear, name, (shape[0], channels), input=x, drain=drain)

    def layernorm(self, name: str, x: str, shape: tuple[int, int]) -> str:
        limits = self.codes()
        self.constants[f"{name}/g"] = np.full(shape[1], 5 * (limits["hi"] + 1), np.int16)
        self.constants[f"{name}/b"] = np.full(shape[1], 1 << 13, np.int64)
        return self.add(LayerNorm, name, shape, input=x, n=14, eps=1, **limits)

    def conv(
        self, name: str, x: str, channels: int, side: int, stride: int = 1, padding=(0, 0, 0, 0), *, groups=1,
        dtype="s8", relu=False, residual=None, second=False,
    ) -> str:  # fmt: skip
        """A square window. With `relu` codes begin at the output's zero point; `second` writes NAME.second too."""
        height, width, inputs = self.tensors[x].shape
        drain = self.weights(name, x, (channels, side, side, inputs // groups), dtype, residual)
        zero = drain.lo if relu and dtype == "s8" else 0
        shape = (
            (height + padding[0] + padding[1] - side) // stride + 1,
            (width + padding[2] + padding[3] - side) // stride + 1,
            channels,
        )
        if zero:
            self.constants[f"{name}/C"] += zero << self.constants[f"{name}/n"].astype(np.int64)
        copy, gain = None, 0.7 if relu else 1
        self.spread[name] = gain * (2000 if dtype == "s16" else 0.3 * (drain.hi + 1))
        if residual:
            self.spread[name] = gain * float(np.hypot(2000, self.spread[residual]))
        if second:
            limits = self.codes()
            self.spread[f"{name}.second"] = 0.3 * (limits["hi"] + 1)
            point = limits["lo"] if relu else 0
            m, n = numerics.scale_to_mn(self.spread[f"{name}.second"] / self.spread[name])
            constant = numerics.round_constant(0, m, n, point)
            tensor = self.tensor(f"{name}.second", shape, zero_point=point)
            copy = Second(tensor=tensor, m=m, n=n, constant=constant, **limits)
        lo = 0 if relu and dtype == "s16" else drain.lo
        drain = dataclasses.replace(drain, lo=lo, second=copy)
        fields = {"stride": (stride, stride), "padding": padding, "groups": groups, "drain": drain}
        return self.add(Conv, name, shape, dtype, input=x, zero_point=zero, **fields)

    def pooled(self, name: str, x: str) -> str:
        """The mean over all pixels, as one token."""
        height, width, channels = self.tensors[x].shape
        m, n = numerics.scale_to_mn(1 / (height * width))
        zero = self.tensors[x].zero_point
        constant = numerics.round_constant(-zero * height * width, m, n)
        fields = {"m": (m, np.uint16), "n": (n, np.uint8), "C": (constant, np.int64)}
        self.constants |= {f"{name}/{f}": np.full(1, value, dtype) for f, (value, dtype) in fields.items()}
        window, drain = {"kernel": (height, width), "stride": (height, width)}, Drain(**self.codes())
        y = self.add(AvgPool, name, (1, 1, channels), input=x, padding=(0, 0, 0, 0), drain=drain, **window)
        return self.add(Reshape, f"{name}.flat", (1, channels), input=y)

    def widened(self, name: str, x: str) -> str:
        """Codes of 16 bits for a residual, from those of 8 or fewer."""
        m, n = numerics.scale_to_mn(2000 / self.spread[x])
        self.spread[name] = 2000
        constant = numerics.round_constant(-self.tensors[x].zero_point, m, n)
        fields = {"m": (m, np.uint16), "n": (n, np.uint8), "C": (constant, np.int64)}
        self.constants |= {f"{name}/{f}": np.full(1, value, dtype) for f, (value, dtype) in fields.items()}
        drain = Drain(**self.codes("s16"))
        return self.add(Elementwise, name, self.tensors[x].shape, "s16", input=x, drain=drain)

    def attention(self, name: str, q: str, k: str, v: str, shape: tuple[int, int], heads: int) -> str:
        bits = self.tensors[q].bits
        spread, most = 0.3 * (1 << bits - 1), self.codes()["hi"]
        m, n = numerics.scale_to_mn(150 / (spread**2 * np.sqrt(shape[1] / heads)))
        m2, n2 = numerics.scale_to_mn(1.5, n_max=30)
        fields = {"m": (m, np.uint16), "n": (n, np.uint8), "C": (1 << (n - 1), np.int64)}
        fields |= {"m2": (m2, np.uint16), "n2": (n2, np.uint8)}
        self.constants |= {
            f"{name}/{f}": np.full(heads, value, dtype) for f, (value, dtype) in fields.items()
        }
        self.constants[f"{name}/exp"] = (numerics.exp_table() >> (8 - bits)).astype(np.uint8)
        return self.add(Attention, name, shape, input=q, keys=k, values=v, heads=heads, lo=-most, hi=most)


def deit(
    dim: int = 192,
    depth: int = 12,
    heads: int = 3,
    *,
    image: int = 224,
    patch: int = 16,
    seed: int = 0,
    bits: int = 8,
    attended: int = 8,
) -> Graph:
    """A DeiT of 1,000 classes (DeiT-Tiny by default) whose values spread over their codes of `bits` bits; queries, keys
    and values have `attended`."""
    b = _Builder(seed, bits)
    shape = (1 + (image // patch) ** 2, dim)
    b.tensor("image", (image, image, 3), bits=8)
    b.spread["image"] = 74
    b.constants["positions/value"] = b.random.integers(-2000, 2000, shape).astype(np.int16)
    b.add(Constant, "positions", shape, "s16")
    drain = b.weights("patches", "image", (dim, patch, patch, 3), "s16", "positions")
    x = b.add(Conv, "patches", shape, "s16", input="image", stride=(patch, patch), prefix=1, drain=drain)
    for i in range(depth):
        y = b.layernorm(f"{i}.norm1", x, shape)
        q, k, v = (b.linear(f"{i}.{name}", y, shape, dim, bits=attended) for name in "qkv")
        y = b.attention(f"{i}.attention", q, k, v, shape, heads)
        x = b.linear(f"{i}.proj", y, shape, dim, dtype="s16", residual=x)
        y = b.gelu(f"{i}.fc1", b.layernorm(f"{i}.norm2", x, shape), shape, 4 * dim)
        x = b.linear(f"{i}.fc2", y, (shape[0], 4 * dim), dim, dtype="s16", residual=x)
    y = b.layernorm("norm", x, shape)
    y = b.add(Slice, "class", (1, dim), input=y, start=0, count=1)
    return b.graph(f"deit-{dim}-{depth}", b.linear("head", y, (1, dim), 1000, dtype="s16"))


def resnet18(*, image: int = 224, seed: int = 0, bits: int = 8) -> Graph:
    """ResNet-18 (He et al. 2016) of 1,000 classes, activations of `bits` bits."""
    b = _Builder(seed, bits)
    b.tensor("image", (image, image, 3), bits=8)
    b.spread["image"] = 74
    x = b.conv("stem", "image", 64, 7, 2, (3, 3, 3, 3), relu=True)
    height, width, _ = b.tensors[x].shape
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": _AROUND}
    shape = ((height - 1) // 2 + 1, (width - 1) // 2 + 1, 64)
    x = b.add(MaxPool, "pool", shape, input=x, zero_point=b.tensors[x].zero_point, **window)
    b.spread[x] = 1.5 * b.spread["stem"]
    wide = b.widened("pool.wide", x)
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name, stride = f"{stage}.{block}", 2 if stage and not block else 1
            y = b.conv(f"{name}.conv1", x, channels, 3, stride, _AROUND, relu=True)
            if stride > 1:
                wide = b.conv(f"{name}.down", x, channels, 1, stride, dtype="s16")
            wide = b.conv(
                f"{name}.conv2",
                y,
                channels,
                3,
                1,
                _AROUND,
                dtype="s16",
                relu=True,
                residual=wide,
                second=True,
            )
            x = f"{wide}.second"
    return b.graph("resnet18", b.linear("head", b.pooled("mean", x), (1, 512), 1000, dtype="s16"))


def mobilenet_v2(*, image: int = 224, seed: int = 0, bits: int = 8) -> Graph:
    """MobileNetV2 (Sandler et al. 2018) of 1,000 classes at width 1, activations of `bits` bits."""
    b = _Builder(seed, bits)
    b.tensor("image", (image, image, 3), bits=8)
    b.spread["image"] = 74
    x = b.conv("stem", "image", 32, 3, 2, (0, 1, 0, 1), relu=True)
    for stage, (expansion, channels, blocks, first) in enumerate(_MOBILENET_V2):
        wide = None
        for block in range(blocks):
            name, stride = f"{stage}.{block}", 1 if block else first
            inner = b.tensors[x].shape[2] * expansion
            y = b.conv(f"{name}.expand", x, inner, 1, relu=True) if expansion > 1 else x
            y = b.conv(f"{name}.depthwise", y, inner, 3, stride, _AROUND, groups=inner, relu=True)
            if blocks == 1:
                x = b.conv(f"{name}.project", y, channels, 1)
                continue
            wide = b.conv(f"{name}.project", y, channels, 1, dtype="s16", residual=wide, second=True)
            x = f"{wide}.second"
    x = b.conv("last", x, 1280, 1, relu=True)
    return b.graph("mobilenet-v2", b.linear("head", b.pooled("mean", x), (1, 1280), 1000, dtype="s16"))


def dealt(graph: Graph, mixture: Mapping[Scheme, int], drain: int = 1, seed: int = 0) -> Graph:
    """The graph with rows of `mixture`, as `quant.rows.assign` deals them but at random: of every whole block of
    sum(mixture) rows of a layer, those with equal row % drain are of each scheme mixture[s] / drain times. Rows after
    the last whole block and grouped layers stay Fixed-8. Codes and scales follow, so that values still spread."""
    random, block = np.random.default_rng(seed), sum(mixture.values())
    slots = np.array([s for s in sorted(mixture) for _ in range(mixture[s] // drain)], np.uint8)
    constants = dict(graph.constants)
    for operator in graph.operators:
        if not isinstance(operator, Linear | Conv) or (isinstance(operator, Conv) and operator.groups > 1):
            continue
        weight = graph.constant(operator, "weight").copy()
        schemes = np.full(len(weight), Scheme.FIXED8, np.uint8)
        whole = len(weight) // block * block
        cells = np.tile(slots, (whole // block, drain, 1))
        schemes[:whole] = random.permuted(cells, axis=2).transpose(0, 2, 1).ravel()
        m, n, c = (graph.constant(operator, field).copy() for field in ("m", "n", "C"))
        x, y = graph.tensor(operator.input), graph.tensor(operator.output)
        for scheme in set(mixture) - {Scheme.FIXED8}:
            book, rows = codebook(scheme), schemes == scheme
            top = book.max()
            weight[rows] = book[np.searchsorted((book[1:] + book[:-1]) / 2, weight[rows] * (top / 127))]
            for row in np.flatnonzero(rows):
                m[row], n[row] = numerics.scale_to_mn(float(m[row]) / 2.0 ** n[row] * 127 / top)
                bias = -x.zero_point * int(weight[row].sum(dtype=np.int64))
                c[row] = numerics.round_constant(bias, int(m[row]), int(n[row]), y.zero_point)
        fields = {"weight": weight, "scheme": schemes, "m": m, "n": n, "C": c}
        constants |= {f"{operator.name}/{field}": value for field, value in fields.items()}
    return dataclasses.replace(graph, constants=constants)
