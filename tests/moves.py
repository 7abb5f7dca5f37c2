"""Random small graphs of what moves and multiplies: gathers, concatenation, products, windows, biases, dilation."""

from __future__ import annotations

import numpy as np

from terrazzo.arch import numerics
from terrazzo.arch.accelerator import Accelerator
from terrazzo.arch.graph import Graph

from .graphs import Builder

__all__ = ["KINDS", "moving_graph"]


def _gathered(b: Builder, x: str) -> str:
    """A permutation, a padded image, some positions twice."""
    height, width, _ = b.tensors[x].shape
    kind = b.random.integers(3)
    if kind == 0:
        return b.gather(x, b.random.permutation(height * width), (width, height))
    if kind == 1:
        index = np.full((height + 2, width + 1), -1)
        index[1 : 1 + height, 1:] = np.arange(height * width).reshape(height, width)
        return b.gather(x, index, index.shape)
    shape = (int(b.random.integers(1, 5)), int(b.random.integers(1, 7)))
    return b.gather(x, b.random.integers(-1, height * width, shape), shape)


def _joined(b: Builder, x: str) -> str:
    """Channels of several tensors side by side; their first is read twice."""
    y = b.conv(x, int(b.random.choice([3, 8, 16, 21])), (1, 1))
    z = b.conv(x, int(b.random.choice([2, 8, 11])), (1, 1), relu=True)
    return b.concat(y, z, y) if b.random.random() < 0.5 else b.concat(z, y)


def _dense(b: Builder, x: str) -> str:
    """Each layer reads all before it, as in a dense block; most channels fill rows."""
    x = b.conv(x, int(b.random.choice([8, 16, 32])), (1, 1), relu=True)
    for _ in range(3):
        y = b.conv(x, int(b.random.choice([8, 16, 16, 12])), (3, 3), padding=(1, 1, 1, 1), relu=True)
        x = b.concat(x, y)
    return x


def _wide(b: Builder, x: str) -> str:
    """16-bit channels side by side, which a residual reads."""
    y = b.conv(x, int(b.random.choice([3, 8, 9])), (1, 1), dtype="s16")
    joined = b.concat(y, y)
    return b.conv(x, b.tensors[joined].channels, (1, 1), residual=joined)


def _stacked(b: Builder, x: str) -> str:
    """Positions of several tensors one after the other, cut again."""
    y = b.flatten(b.conv(x, b.tensors[x].channels, (1, 1)))
    z = b.slice(y, int(b.random.integers(0, b.tensors[y].positions)), 1)
    tokens = b.concat(z, y, axis="positions")
    start = int(b.random.integers(0, 2))
    tokens = b.slice(tokens, start, b.tensors[y].positions)
    return b.gather(tokens, np.arange(b.tensors[y].positions), b.tensors[x].shape[:2])


def _gated(b: Builder, x: str) -> str:
    """Squeeze and excitation."""
    height, width, count = b.tensors[x].shape
    y = b.conv(x, count, (1, 1), dtype=str(b.random.choice(["s8", "s16"])))
    squeezed = b.conv(b.avgpool(x, (height, width), (height, width)), count, (1, 1), table=256)
    return b.multiply(y, squeezed, table=int(b.random.choice([0, 256, 1024])))


def _product(b: Builder, x: str) -> str:
    """Two tensors, one of 16 bits; the second output goes on."""
    count = b.tensors[x].channels
    y, z = b.conv(x, count, (1, 1), dtype="s16"), b.conv(x, count, (1, 1), relu=True)
    pair = (y, z) if b.random.random() < 0.5 else (z, y)
    return f"{b.multiply(*pair, 's16', second=True)}.second"


def _dilated(b: Builder, x: str) -> str:
    count = b.tensors[x].channels
    dilation = (int(b.random.integers(1, 4)), int(b.random.integers(1, 4)))
    groups = count if b.random.random() < 0.3 else 1
    padding = (dilation[0], dilation[0], 2 * dilation[1], 0)
    return b.conv(x, groups if groups > 1 else 9, (3, 3), (1, 1), padding, groups, dilation=dilation)


def _attended(b: Builder, x: str) -> str:
    """Attention in windows of permuted tokens, or of fewer keys; one query may see nothing."""
    height, width, _ = b.tensors[x].shape
    heads, count = int(b.random.integers(1, 4)), height * width
    dim = heads * int(b.random.choice([3, 5, 8, 12]))
    stream = b.flatten(b.conv(x, dim, (1, 1), dtype="s16"))
    y = b.layernorm(stream)
    windows = int(b.random.choice([w for w in range(1, count + 1) if count % w == 0 and w <= 6]))
    order = b.random.permutation(count)
    inside = b.gather(y, order)
    context = inside
    if b.random.random() < 0.4:
        size = int(b.random.integers(1, 4))
        context = b.gather(y, b.random.integers(0, count, windows * size))
    q = b.linear(inside, dim)
    k = b.linear(context, dim) if b.random.random() < 0.8 else b.linear(context, dim, table=256)
    v = b.linear(context, dim)
    bias = (int(b.random.choice([1, windows])), int(b.random.choice([1, heads])))
    z = b.attention(q, k, v, heads, windows, bias if b.random.random() < 0.8 else None, hidden=0.2)
    if f"{z}/bias" in b.constants:
        b.constants[f"{z}/bias"][-1, 0, 0] = numerics.MASKED
    if b.random.random() < 0.5:
        z = b.linear(z, dim)
    z = b.gather(z, np.argsort(order))
    z = b.linear(z, dim, "s16", residual=stream)
    return b.gather(b.elementwise(z), np.arange(count), (height, width))


KINDS = [_gathered, _joined, _dense, _wide, _stacked, _gated, _product, _dilated, _attended]
"""Each makes an 8-bit image of another."""


def moving_graph(seed: int, accelerator: Accelerator | None = None, kinds: list | None = None) -> Graph:
    """A graph of two or three of `kinds` (default: any) with what may stand between."""
    random = np.random.default_rng(seed + 5000)
    shape = (int(random.integers(2, 6)), int(random.integers(2, 7)), int(random.choice([1, 3, 8, 12])))
    lanes, drain = (accelerator.lanes, accelerator.drain) if accelerator else (None, 1)
    b = Builder(seed, shape, lanes, drain)
    x = b.input
    for kind in kinds or random.choice(KINDS, int(random.integers(2, 4)), replace=False):
        x = kind(b, x)
        if random.random() < 0.4:
            x = b.conv(x, int(random.choice([4, 9, 16])), (1, 1))
    if random.random() < 0.6:
        height, width, _ = b.tensors[x].shape
        x = b.avgpool(x, (height, width), (height, width))
    return b.graph(x, "random-moves")
