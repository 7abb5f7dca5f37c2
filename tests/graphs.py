"""Small random integer graphs: every operator, awkward sizes, values that use their ranges."""

from __future__ import annotations

import numpy as np

from terrazzo.arch import numerics
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.graph import (
    Attention,
    AvgPool,
    Concat,
    Constant,
    Conv,
    Drain,
    Elementwise,
    Gather,
    Graph,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Preprocessing,
    Reshape,
    Residual,
    Second,
    Slice,
    Tensor,
)
from terrazzo.arch.schemes import Scheme, codebook

__all__ = ["DEMO", "OTHER", "Builder", "random_codes", "random_graph"]

DEMO = Accelerator(
    lanes=Lanes(fixed8=8, fixed4=4, pot4=2, sp2_4=2),
    columns=4,
    depth=8,
    drain=2,
    vector=4,
    scratchpad_regions=2,
    scratchpad_rows=1024,
    weight_rows=8192,
    param_rows=4096,
    norm_rows=512,
    operand_chunks=256,
    row_scales=64,
    index_rows=64,
    table_pages=4,
    instructions=512,
    bus_bytes=16,
    burst_beats=64,
)
OTHER = Accelerator(
    lanes=Lanes(fixed8=4, fixed4=8, pot4=4),
    columns=2,
    depth=16,
    drain=4,
    vector=2,
    scratchpad_regions=4,
    scratchpad_rows=512,
    weight_rows=4096,
    param_rows=2048,
    norm_rows=512,
    operand_chunks=128,
    row_scales=32,
    index_rows=64,
    table_pages=2,
    instructions=512,
    bus_bytes=64,
    burst_beats=16,
)
"""Other lanes, columns, depth, mixture and bus than DEMO; fewer Fixed-8 lanes than depth."""


class Builder:
    """Appends operators with random weights; every method returns the name of the tensor that it writes."""

    def __init__(
        self,
        seed: int,
        shape: tuple[int, ...],
        lanes: Lanes | None = None,
        drain: int = 1,
        mixed: float = 0.75,
    ):
        self.random = np.random.default_rng(seed)
        self.lanes, self.drain_count = lanes, drain
        self.mixed = mixed
        """Part of the layers whose rows follow the mixture of `lanes`."""
        self.tensors: dict[str, Tensor] = {}
        self.operators: list = []
        self.constants: dict[str, np.ndarray] = {}
        self.input = self._tensor("x", shape, zero_point=int(self.random.integers(-20, 20)))

    def graph(self, output: str, name: str = "random") -> Graph:
        """The graph that computes `output`."""
        channels = self.tensors[self.input].channels
        return Graph(
            name=name,
            input=self.input,
            output=output,
            preprocessing=Preprocessing(scale=1 / 255, mean=(0.5,) * channels, std=(0.25,) * channels),
            tensors=tuple(self.tensors.values()),
            operators=tuple(self.operators),
            constants=self.constants,
        )

    def constant(self, shape: tuple[int, ...], dtype: str = "s16") -> str:
        """A tensor of the program."""
        name = self._name("constant")
        value = self._codes(shape, 12 if dtype == "s16" else 8)
        self.constants[f"{name}/value"] = value.astype(np.int16 if dtype == "s16" else np.int8)
        self.operators.append(Constant(name=name, output=self._tensor(name, shape, dtype)))
        return name

    def linear(self, x: str, channels: int, dtype: str = "s8", bits: int = 8, **drain) -> str:
        """A Linear layer; codes of `bits` bits where s8; `drain` are the options of `_drain`."""
        name, tensor = self._name("linear"), self.tensors[x]
        weight = self._weights(name, channels, (tensor.channels,))
        self.constants[f"{name}/weight"] = weight
        shape = (*tensor.shape[:-1], channels)
        made = self._drain(name, shape, dtype, tensor, weight.reshape(channels, -1), bits=bits, **drain)
        output = self._tensor(name, shape, dtype, bits=bits)
        self.operators.append(Linear(name=name, input=x, output=output, drain=made))
        return name

    def conv(
        self,
        x: str,
        channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        groups: int = 1,
        prefix: int = 0,
        dtype: str = "s8",
        dilation: tuple[int, int] = (1, 1),
        **drain,
    ) -> str:
        """A convolution."""
        name, tensor = self._name("conv"), self.tensors[x]
        weight = self._weights(name, channels, (*kernel, tensor.channels // groups))
        self.constants[f"{name}/weight"] = weight
        spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
        height, width = _window(tensor.shape, spans, stride, padding)
        shape = (prefix + height * width, channels) if prefix else (height, width, channels)
        made = self._drain(name, shape, dtype, tensor, weight.reshape(channels, -1), **drain)
        output = self._tensor(name, shape, dtype)
        self.operators.append(
            Conv(
                name=name,
                input=x,
                output=output,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                prefix=prefix,
                drain=made,
            )
        )
        return name

    def attention(
        self,
        q: str,
        k: str,
        v: str,
        heads: int,
        windows: int = 1,
        bias: tuple[int, int] | None = None,
        hidden: float = 0.0,
        output_dtype: str = "s8",
        largest: int = 255,
    ) -> str:
        """Attention with random scales; `bias` is the shape of a bias over windows and heads, `hidden` of which masks;
        `largest` is that of the exponentials."""
        name, tensor = self._name("attention"), self.tensors[q]
        size, tokens = tensor.channels // heads, tensor.positions
        gain = 2 ** (16 - tensor.bits - self.tensors[k].bits)
        scales = [
            numerics.scale_to_mn(gain * 300 / (2500 * size**0.5) * s)
            for s in self.random.uniform(0.5, 2, heads)
        ]
        m, n = np.array(scales).T
        exp = np.rint(numerics.exp_table() * (largest / 255))
        wide = 1 if output_dtype == "s8" else 100
        ratios = wide * 2 ** (8 - self.tensors[v].bits) * self.random.uniform(0.8, 2, heads)
        m2, n2 = np.array([numerics.scale_to_mn(s, n_max=30) for s in ratios]).T
        rounding = np.array([numerics.round_constant(0, int(a), int(b)) for a, b in scales])
        values = {"m": (m, np.uint16), "n": (n, np.uint8), "C": (rounding, np.int64)}
        values |= {"m2": (m2, np.uint16), "n2": (n2, np.uint8), "exp": (exp, np.uint8)}
        for field, (value, dtype) in values.items():
            self.constants[f"{name}/{field}"] = np.asarray(value).astype(dtype)
        if bias is not None:
            shape = (*bias, tokens // windows, self.tensors[k].positions // windows)
            codes = np.rint(self.random.normal(0, 60, shape)).astype(np.int16)
            self.constants[f"{name}/bias"] = np.where(
                self.random.random(shape) < hidden, numerics.MASKED, codes
            )
        output = self._tensor(name, (tokens, self.tensors[v].channels), output_dtype)
        self.operators.append(
            Attention(
                name=name,
                input=q,
                keys=k,
                values=v,
                output=output,
                heads=heads,
                windows=windows,
                bias=bias is not None,
                lo=-127 * wide,
                hi=127 * wide,
            )
        )
        return name

    def layernorm(self, x: str) -> str:
        """LayerNorm to s8."""
        name, tensor = self._name("layernorm"), self.tensors[x]
        n = 14
        gain = self.random.normal(20, 8, tensor.channels) * (1 << n) / 1024
        self.constants[f"{name}/g"] = np.clip(np.rint(gain * 2), -32768, 32767).astype(np.int16)
        bias = self.random.normal(0, 10, tensor.channels) * (1 << n) + (1 << (n - 1))
        self.constants[f"{name}/b"] = np.rint(bias).astype(np.int64)
        output = self._tensor(name, tensor.shape, zero_point=3)
        self.operators.append(
            LayerNorm(
                name=name,
                input=x,
                output=output,
                n=n,
                eps=int(self.random.integers(1, 1000)),
                lo=-128,
                hi=127,
            )
        )
        return name

    def maxpool(self, x: str, kernel, stride, padding=(0, 0, 0, 0)) -> str:
        """Maximum pooling."""
        name, tensor = self._name("maxpool"), self.tensors[x]
        shape = (*_window(tensor.shape, kernel, stride, padding), tensor.channels)
        output = self._tensor(name, shape, zero_point=tensor.zero_point)
        self.operators.append(
            MaxPool(name=name, input=x, output=output, kernel=kernel, stride=stride, padding=padding)
        )
        return name

    def avgpool(self, x: str, kernel, stride=(1, 1), padding=(0, 0, 0, 0), dtype: str = "s8", **drain) -> str:
        """Average pooling, of an image or of tokens."""
        name, tensor = self._name("avgpool"), self.tensors[x]
        if len(tensor.shape) == 2:
            shape = (1, tensor.channels)
        else:
            shape = (*_window(tensor.shape, kernel, stride, padding), tensor.channels)
        made = self._drain(
            name, shape, dtype, tensor, np.ones((1, kernel[0] * kernel[1])), entries=1, **drain
        )
        output = self._tensor(name, shape, dtype)
        self.operators.append(
            AvgPool(
                name=name, input=x, output=output, kernel=kernel, stride=stride, padding=padding, drain=made
            )
        )
        return name

    def elementwise(self, x: str, dtype: str = "s8", **drain) -> str:
        """Requantization, table or addition."""
        name, tensor = self._name("elementwise"), self.tensors[x]
        made = self._drain(name, tensor.shape, dtype, tensor, np.ones((1, 1)), entries=1, **drain)
        output = self._tensor(name, tensor.shape, dtype)
        self.operators.append(Elementwise(name=name, input=x, output=output, drain=made))
        return name

    def multiply(self, x: str, other: str, dtype: str = "s8", **drain) -> str:
        """A product of two tensors, or of a tensor and one position."""
        name, tensor, factor = self._name("multiply"), self.tensors[x], self.tensors[other]
        spread = np.full((1, 1), 50 if factor.dtype == "s8" else 1000)
        made = self._drain(name, tensor.shape, dtype, tensor, spread, entries=1, **drain)
        output = self._tensor(name, tensor.shape, dtype)
        self.operators.append(Multiply(name=name, input=x, other=other, output=output, drain=made))
        return name

    def gather(self, x: str, index: np.ndarray, shape: tuple[int, ...] | None = None) -> str:
        """Positions `index` of a tensor, as tokens or with the positions of `shape`."""
        name, tensor = self._name("gather"), self.tensors[x]
        self.constants[f"{name}/index"] = np.asarray(index).ravel().astype(np.int32)
        shape = (*(shape or (len(self.constants[f"{name}/index"]),)), tensor.channels)
        output = self._tensor(name, shape, tensor.dtype, tensor.zero_point)
        self.operators.append(Gather(name=name, input=x, output=output))
        return name

    def concat(self, *inputs: str, axis: str = "channels") -> str:
        """Tensors of one zero point side by side in channels, or in positions as tokens."""
        name, tensors = self._name("concat"), [self.tensors[x] for x in inputs]
        shape = (*tensors[0].shape[:-1], sum(t.channels for t in tensors))
        if axis == "positions":
            shape = (sum(t.positions for t in tensors), tensors[0].channels)
        output = self._tensor(name, shape, tensors[0].dtype, tensors[0].zero_point)
        self.operators.append(Concat(name=name, inputs=inputs, output=output, axis=axis))
        return name

    def slice(self, x: str, start: int, count: int) -> str:
        """Tokens start..start+count."""
        name, tensor = self._name("slice"), self.tensors[x]
        output = self._tensor(name, (count, tensor.channels), tensor.dtype, tensor.zero_point)
        self.operators.append(Slice(name=name, input=x, output=output, start=start, count=count))
        return name

    def flatten(self, x: str) -> str:
        """Pixels to tokens."""
        name, tensor = self._name("reshape"), self.tensors[x]
        output = self._tensor(name, (tensor.positions, tensor.channels), tensor.dtype, tensor.zero_point)
        self.operators.append(Reshape(name=name, input=x, output=output))
        return name

    def _name(self, kind: str) -> str:
        return f"{kind}{len(self.operators)}"

    def _tensor(
        self, name: str, shape: tuple[int, ...], dtype: str = "s8", zero_point: int = 0, bits: int = 8
    ) -> str:
        bits = bits if dtype == "s8" else 16
        self.tensors[name] = Tensor(
            name=name, shape=shape, dtype=dtype, scale=0.05, zero_point=zero_point, bits=bits
        )
        return name

    def _codes(self, shape, bits: int) -> np.ndarray:
        limit = (1 << (bits - 1)) - 1
        return np.clip(np.rint(self.random.normal(0, limit / 2.5, shape)), -limit - 1, limit).astype(np.int64)

    def _weights(self, name: str, count: int, shape: tuple[int, ...]) -> np.ndarray:
        """Rows of random schemes: by the mixture of the lanes in most layers, arbitrary in the others."""
        schemes = self.random.integers(0, len(Scheme), count)
        if self.lanes is not None and self.random.random() < self.mixed:
            kinds = np.array(self.lanes.kinds).reshape(-1, self.drain_count)
            for block in range(0, count, self.lanes.total):
                mixed = self.random.permuted(kinds, axis=0).ravel()
                schemes[block : block + self.lanes.total] = mixed[: count - block]
        self.constants[f"{name}/scheme"] = schemes.astype(np.uint8)
        weight = np.zeros((count, *shape), np.int8)
        for row, scheme in enumerate(schemes):
            book = codebook(Scheme(scheme))
            if scheme == Scheme.FIXED8:
                weight[row] = np.clip(np.rint(self.random.normal(0, 40, shape)), -127, 127)
            else:
                weight[row] = self.random.choice(book, shape)
        return weight

    def _drain(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        x: Tensor,
        weight: np.ndarray,
        *,
        entries: int | None = None,
        residual: str | None = None,
        second: bool = False,
        table: int = 0,
        relu: bool = False,
        bits: int = 8,
    ) -> Drain:
        """m, n and C that spread the accumulators over the output's codes."""
        spread = np.sqrt((weight.astype(np.float64) ** 2).sum(axis=1)) * (45 if x.dtype == "s8" else 900) + 1
        target = {0: 50 if dtype == "s8" else 1500, 256: 60, 1024: 250}[table] / (1 << 8 - bits)
        scales = [
            numerics.scale_to_mn(float(target / s * f))
            for s, f in zip(spread, self._factors(spread), strict=True)
        ]
        m, n = np.array(scales, dtype=np.int64).T
        bias = np.rint(self.random.normal(0, 0.2, len(m)) * spread).astype(np.int64)
        bias -= x.zero_point * weight.sum(axis=1).astype(np.int64)
        constant = [
            numerics.round_constant(int(b), int(s), int(t)) for b, s, t in zip(bias, m, n, strict=True)
        ]
        assert len(m) == (entries or shape[-1])
        self.constants[f"{name}/m"], self.constants[f"{name}/n"] = m.astype(np.uint16), n.astype(np.uint8)
        self.constants[f"{name}/C"] = np.array(constant, dtype=np.int64)
        if table:
            curve = 40 * np.tanh(np.arange(-table // 2, table // 2) / (table / 6)) + self.random.normal(
                0, 3, table
            )
            self.constants[f"{name}/table"] = np.rint(curve).astype(np.int8)
        lo, hi = (-32768, 32767) if dtype == "s16" else (-(1 << bits - 1), (1 << bits - 1) - 1)
        addend = copy = None
        if residual is not None:
            scale = float(self.random.uniform(0.3, 1.5)) * (0.03 if dtype == "s8" else 1)
            m_r, n_r = numerics.scale_to_mn(scale)
            addend = Residual(tensor=residual, m=m_r, n=n_r)
        if second:
            m2, n2 = numerics.scale_to_mn(
                float(self.random.uniform(0.5, 1.5)) * (1 if dtype == "s8" else 0.02)
            )
            zero = int(self.random.integers(-10, 10))
            copy = Second(
                tensor=self._tensor(f"{name}.second", shape, zero_point=zero),
                m=m2,
                n=n2,
                constant=numerics.round_constant(0, m2, n2, zero),
                lo=-128,
                hi=127,
            )
        return Drain(lo=0 if relu else lo, hi=hi, table=bool(table), residual=addend, second=copy)

    def _factors(self, spread: np.ndarray) -> np.ndarray:
        return self.random.uniform(0.6, 1.4, len(spread))


def random_graph(seed: int, accelerator: Accelerator | None = None) -> Graph:
    """A small graph of operators that fit together: a transformer (even seeds) or a CNN (odd seeds); with an
    accelerator most layers follow its mixture of lanes."""
    random = np.random.default_rng(seed + 1000)
    height, width = (int(random.integers(3, 10)) for _ in range(2))
    shape = (height, width, int(random.choice([1, 2, 3, 4, 9, 17])))
    lanes, drain = (accelerator.lanes, accelerator.drain) if accelerator else (None, 1)
    builder = Builder(seed, shape, lanes, drain)
    return (_cnn if seed % 2 else _vit)(builder, random)


def _vit(b: Builder, random: np.random.Generator) -> Graph:
    height, width, _ = b.tensors[b.input].shape
    heads = int(random.integers(1, 4))
    dim = heads * int(random.choice([3, 5, 8, 17, 24]))
    kernel = (int(random.integers(1, min(3, height) + 1)), int(random.integers(1, min(3, width) + 1)))
    if random.random() < 0.2:
        kernel = (height, width)
    prefix = int(random.integers(0, 2))
    tokens = prefix + (height // kernel[0]) * (width // kernel[1])
    if prefix:
        x = b.conv(
            b.input, dim, kernel, kernel, prefix=prefix, dtype="s16", residual=b.constant((tokens, dim))
        )
    else:
        x = b.flatten(b.conv(b.input, dim, kernel, kernel, dtype="s16"))
    for _ in range(int(random.integers(1, 3))):
        y = b.layernorm(x)
        q, k, v = (b.linear(y, dim) for _ in range(3))
        x = b.linear(b.attention(q, k, v, heads), dim, "s16", residual=x)
        wide = bool(random.integers(0, 2))
        hidden = int(random.integers(1, 4)) * dim
        y = b.linear(b.layernorm(x), hidden, table=1024 if wide else 256)
        x = b.linear(y, dim, "s16", residual=x)
    if random.random() < 0.5:
        x = b.slice(x, 0, 1)
        y = b.layernorm(x)
    else:
        y = b.avgpool(b.layernorm(x), (tokens, 1))
    return b.graph(b.linear(y, int(random.integers(1, 20)), str(random.choice(["s8", "s16"]))), "random-vit")


def _cnn(b: Builder, random: np.random.Generator) -> Graph:
    side = int(random.choice([1, 2, 3]))
    channels = int(random.choice([4, 6, 8, 17, 24, 32]))
    pad = side // 2
    x = b.conv(b.input, channels, (side, side), (1, 1), (pad, pad, pad, pad), relu=True)
    for _ in range(int(random.integers(1, 5))):
        height, width, count = b.tensors[x].shape
        kind = random.choice(
            ["conv", "depthwise", "grouped", "pointwise", "residual", "max", "average", "table"]
        )
        kernel = (int(random.integers(1, min(3, height) + 1)), int(random.integers(1, min(3, width) + 1)))
        stride = tuple(int(s) for s in random.integers(1, 3, 2))
        padding = tuple(int(random.integers(0, k)) for k in (kernel[0], kernel[0], kernel[1], kernel[1]))
        if kind == "conv":
            x = b.conv(x, int(random.choice([5, 16, 17, 33])), kernel, stride, padding, relu=True)
        elif kind == "depthwise":
            x = b.conv(x, count, kernel, stride, padding, groups=count, second=bool(random.integers(0, 2)))
        elif kind == "grouped":
            groups = int(random.choice([g for g in range(1, count + 1) if count % g == 0]))
            x = b.conv(x, groups * int(random.integers(1, 4)), kernel, stride, padding, groups=groups)
        elif kind == "pointwise":
            x = b.conv(x, int(random.choice([3, 16, 40])), (1, 1), table=int(random.choice([0, 256])))
        elif kind == "residual":
            y = b.conv(x, count, (1, 1), dtype="s16", second=True)
            z = b.conv(f"{y}.second", count, (1, 1), dtype="s16", residual=y, second=True)
            x = f"{z}.second"
        elif kind == "max":
            x = b.maxpool(x, kernel, stride, padding)
        elif kind == "average":
            x = b.avgpool(x, kernel, stride, padding)
        else:
            x = b.elementwise(x, table=256)
    height, width, count = b.tensors[x].shape
    if random.random() < 0.5:
        x = b.avgpool(x, (height, width), (height, width))
        x = b.linear(b.flatten(x), int(random.integers(1, 12)))
    elif height * width * count < 1200:
        x = b.conv(x, int(random.integers(1, 12)), (height, width), dtype="s16")
    return b.graph(x, "random-cnn")


def random_codes(graph: Graph, count: int, seed: int = 0) -> np.ndarray:
    """Input codes (count, H, W, C) of a graph, int64, the extremes included."""
    tensor, random = graph.tensor(graph.input), np.random.default_rng(seed)
    codes = random.integers(-128, 128, (count, *tensor.shape))
    if count > 1:
        codes[-1] = random.choice([-128, 127], tensor.shape)
    return codes


def _window(shape, kernel, stride, padding) -> tuple[int, int]:
    top, bottom, left, right = padding
    return (
        (shape[0] + top + bottom - kernel[0]) // stride[0] + 1,
        (shape[1] + left + right - kernel[1]) // stride[1] + 1,
    )
