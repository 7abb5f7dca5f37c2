"""Integer graphs of a published model's shapes with random weights, for benchmarks: made in a second, without torch."""

from __future__ import annotations

import numpy as np

from .arch import numerics
from .arch.graph import (
    Attention,
    Constant,
    Conv,
    Drain,
    Graph,
    LayerNorm,
    Linear,
    Operator,
    Preprocessing,
    Residual,
    Slice,
    Tensor,
)
from .arch.schemes import Scheme

__all__ = ["deit"]


class _Builder:
    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.constants: dict[str, np.ndarray] = {}

    def tensor(self, name: str, shape: tuple[int, ...], dtype: str = "s8") -> str:
        bits = 8 if dtype == "s8" else 16
        self.tensors.append(Tensor(name=name, shape=shape, dtype=dtype, scale=0.05, bits=bits))
        return name

    def add(self, kind: type, name: str, shape: tuple[int, ...], dtype: str = "s8", **fields) -> str:
        self.operators.append(kind(name=name, output=self.tensor(name, shape, dtype), **fields))
        return name

    def weights(self, name: str, shape: tuple[int, ...], dtype: str, residual: str | None = None) -> Drain:
        """Fixed-8 codes (O, ...) and a drain that spreads their sums of random codes over the output's codes."""
        weight = self.random.integers(-127, 128, shape).astype(np.int8)
        spread = 73 * 74 * np.sqrt(weight[0].size)
        m, n = numerics.scale_to_mn((40 if dtype == "s8" else 2000) / spread)
        self.constants |= {
            f"{name}/weight": weight,
            f"{name}/scheme": np.full(shape[0], int(Scheme.FIXED8), np.uint8),
            f"{name}/m": np.full(shape[0], m, np.uint16),
            f"{name}/n": np.full(shape[0], n, np.uint8),
            f"{name}/C": np.full(shape[0], numerics.round_constant(0, m, n), np.int64),
        }
        addend = Residual(tensor=residual, m=1 << 15, n=15) if residual else None
        half = 128 if dtype == "s8" else 32768
        return Drain(lo=-half, hi=half - 1, residual=addend)

    def linear(
        self, name: str, x: str, shape: tuple[int, int], channels: int, *, dtype="s8", residual=None
    ) -> str:
        drain = self.weights(name, (channels, shape[1]), dtype, residual)
        return self.add(Linear, name, (shape[0], channels), dtype, input=x, drain=drain)

    def gelu(self, name: str, x: str, shape: tuple[int, int], channels: int) -> str:
        self.weights(name, (channels, shape[1]), "s8")
        real = np.arange(-512, 512) / 100
        curve = real * (0.5 + 0.5 * np.tanh(0.8 * real + 0.036 * real**3))
        self.constants[f"{name}/table"] = np.clip(np.rint(curve * 25), -128, 127).astype(np.int8)
        drain = Drain(lo=-128, hi=127, table=True)
        return self.add(Linear, name, (shape[0], channels), input=x, drain=drain)

    def layernorm(self, name: str, x: str, shape: tuple[int, int]) -> str:
        self.constants[f"{name}/g"] = np.full(shape[1], 640, np.int16)
        self.constants[f"{name}/b"] = np.full(shape[1], 1 << 13, np.int64)
        return self.add(LayerNorm, name, shape, input=x, n=14, eps=1, lo=-128, hi=127)

    def attention(self, name: str, q: str, k: str, v: str, shape: tuple[int, int], heads: int) -> str:
        m, n = numerics.scale_to_mn(150 / (40 * 40 * np.sqrt(shape[1] / heads)))
        m2, n2 = numerics.scale_to_mn(1.5, n_max=30)
        fields = {"m": (m, np.uint16), "n": (n, np.uint8), "C": (1 << (n - 1), np.int64)}
        fields |= {"m2": (m2, np.uint16), "n2": (n2, np.uint8)}
        self.constants |= {
            f"{name}/{f}": np.full(heads, value, dtype) for f, (value, dtype) in fields.items()
        }
        self.constants[f"{name}/exp"] = numerics.exp_table().astype(np.uint8)
        return self.add(Attention, name, shape, input=q, keys=k, values=v, heads=heads, lo=-127, hi=127)


def deit(
    dim: int = 192, depth: int = 12, heads: int = 3, *, image: int = 224, patch: int = 16, seed: int = 0
) -> Graph:
    """A DeiT of 1,000 classes (DeiT-Tiny by default) whose values spread over their codes."""
    b = _Builder(seed)
    shape = (1 + (image // patch) ** 2, dim)
    b.tensor("image", (image, image, 3))
    b.constants["positions/value"] = b.random.integers(-2000, 2000, shape).astype(np.int16)
    b.add(Constant, "positions", shape, "s16")
    drain = b.weights("patches", (dim, patch, patch, 3), "s16", "positions")
    x = b.add(Conv, "patches", shape, "s16", input="image", stride=(patch, patch), prefix=1, drain=drain)
    for i in range(depth):
        y = b.layernorm(f"{i}.norm1", x, shape)
        q, k, v = (b.linear(f"{i}.{name}", y, shape, dim) for name in "qkv")
        y = b.attention(f"{i}.attention", q, k, v, shape, heads)
        x = b.linear(f"{i}.proj", y, shape, dim, dtype="s16", residual=x)
        y = b.gelu(f"{i}.fc1", b.layernorm(f"{i}.norm2", x, shape), shape, 4 * dim)
        x = b.linear(f"{i}.fc2", y, (shape[0], 4 * dim), dim, dtype="s16", residual=x)
    y = b.layernorm("norm", x, shape)
    y = b.add(Slice, "class", (1, dim), input=y, start=0, count=1)
    output = b.linear("head", y, (1, dim), 1000, dtype="s16")
    return Graph(
        name=f"deit-{dim}-{depth}",
        input="image",
        output=output,
        preprocessing=Preprocessing(scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3),
        tensors=tuple(b.tensors),
        operators=tuple(b.operators),
        constants=b.constants,
    )
