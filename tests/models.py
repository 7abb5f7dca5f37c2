"""Real architectures at full size as integer graphs with random weights: shapes and operators of the published models,
nothing of their accuracy. `python -m tests.models NAME` compiles one and says what that cost."""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from terrazzo.arch.accelerator import Lanes
from terrazzo.arch.graph import Graph
from terrazzo.arch.memory import MemoryModel
from terrazzo.boards import ZCU102, fixed8_accelerator
from terrazzo.compiler import compiled
from terrazzo.sim import cycle

from .graphs import Builder

__all__ = ["MACHINES", "MODELS", "deit", "mobilenet_v1", "mobilenet_v2", "resnet", "swin"]

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
_MOBILENET_V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
"""Channels at width 1, stride (Howard et al. 2017, table 1)."""


def deit(
    dim: int = 192,
    heads: int = 3,
    blocks: int = 12,
    side: int = 224,
    lanes: Lanes | None = None,
    drain: int = 1,
) -> Graph:
    """DeiT (Touvron et al. 2021), without the distillation token: Tiny by default."""
    b = Builder(1, (side, side, 3), lanes, drain)
    tokens = 1 + (side // 16) ** 2
    x = b.conv(b.input, dim, (16, 16), (16, 16), prefix=1, dtype="s16", residual=b.constant((tokens, dim)))
    for _ in range(blocks):
        y = b.layernorm(x)
        q, k, v = (b.linear(y, dim) for _ in range(3))
        x = b.linear(b.attention(q, k, v, heads), dim, "s16", residual=x)
        x = b.linear(b.linear(b.layernorm(x), 4 * dim, table=1024), dim, "s16", residual=x)
    return b.graph(b.linear(b.slice(b.layernorm(x), 0, 1), 1000, "s16"), f"deit-{dim}")


def mobilenet_v2(side: int = 224, lanes: Lanes | None = None, drain: int = 1) -> Graph:
    """MobileNetV2 at width 1."""
    b = Builder(2, (side, side, 3), lanes, drain)
    x, channels, skip = b.conv(b.input, 32, (3, 3), (2, 2), (0, 1, 0, 1), relu=True), 32, None
    for expansion, out, blocks, first in _MOBILENET_V2:
        for block in range(blocks):
            stride = first if block == 0 else 1
            y = b.conv(x, channels * expansion, (1, 1), relu=True) if expansion > 1 else x
            y = _depthwise(b, y, stride)
            if blocks == 1:
                x, channels = b.conv(y, out, (1, 1)), out
                continue
            skip = b.conv(y, out, (1, 1), dtype="s16", residual=skip if block else None, second=True)
            x, channels = f"{skip}.second", out
    x = b.conv(x, 1280, (1, 1), relu=True)
    height, width, _ = b.tensors[x].shape
    x = b.flatten(b.avgpool(x, (height, width), (height, width)))
    return b.graph(b.linear(x, 1000, "s16"), f"mobilenet-v2-{side}")


def mobilenet_v1(width: float = 0.25, side: int = 224, lanes: Lanes | None = None, drain: int = 1) -> Graph:
    """MobileNetV1."""
    b = Builder(3, (side, side, 3), lanes, drain)
    x = b.conv(b.input, int(32 * width), (3, 3), (2, 2), (0, 1, 0, 1), relu=True)
    for channels, stride in _MOBILENET_V1:
        x = b.conv(_depthwise(b, x, stride), int(channels * width), (1, 1), relu=True)
    height, columns, _ = b.tensors[x].shape
    x = b.flatten(b.avgpool(x, (height, columns), (height, columns)))
    return b.graph(b.linear(x, 1000, "s16"), f"mobilenet-v1-{width}-{side}")


def resnet(depth: int = 20, lanes: Lanes | None = None, drain: int = 1) -> Graph:
    """The ResNets for CIFAR-10 (He et al. 2016), with projections where the shape changes."""
    b = Builder(4, (32, 32, 3), lanes, drain)
    around, x = (1, 1, 1, 1), None
    wide = b.conv(b.input, 16, (3, 3), padding=around, dtype="s16", second=True, relu=True)
    for channels in (16, 32, 64):
        for block in range((depth - 2) // 6):
            stride = 2 if channels > 16 and block == 0 else 1
            x = f"{wide}.second"
            y = b.conv(x, channels, (3, 3), (stride, stride), around, relu=True)
            if stride > 1:
                wide = b.conv(x, channels, (1, 1), (2, 2), dtype="s16")
            wide = b.conv(
                y, channels, (3, 3), padding=around, dtype="s16", residual=wide, second=True, relu=True
            )
    x = b.flatten(b.avgpool(f"{wide}.second", (8, 8), (8, 8)))
    return b.graph(b.linear(x, 10, "s16"), f"resnet{depth}")


def swin(
    dim: int = 96,
    heads: int = 3,
    blocks: tuple[int, ...] = (2, 2, 6, 2),
    side: int = 224,
    patch: int = 4,
    window: int = 7,
    classes: int = 1000,
    lanes: Lanes | None = None,
    drain: int = 1,
) -> Graph:
    """Swin (Liu et al. 2021), Tiny by default; positions stay in the order of the windows where `quant.sequences` keeps
    them. Only the masks of the shifted windows are left out: biases that differ between the windows stand for them."""
    b = Builder(5, (side, side, 3), lanes, drain)
    side //= patch
    x = b.layernorm(b.flatten(b.conv(b.input, dim, (patch, patch), (patch, patch), dtype="s16")))
    x, order = b.elementwise(x, "s16"), np.arange(side * side)
    for stage, count in enumerate(blocks):
        for block in range(count):
            windows = (side // window) ** 2
            shift = window // 2 if block % 2 and windows > 1 else 0
            wanted = np.roll(np.arange(side * side).reshape(side, side), (-shift, -shift), (0, 1))
            wanted = wanted.reshape(side // window, window, side // window, window).swapaxes(1, 2).ravel()
            if (wanted != order).any():
                x, order = b.gather(x, np.argsort(order)[wanted]), wanted
            y = b.layernorm(x)
            q, k, v = (b.linear(y, dim) for _ in range(3))
            bias = windows if shift else 1, heads
            x = b.linear(b.attention(q, k, v, heads, windows, bias), dim, "s16", residual=x)
            x = b.linear(b.linear(b.layernorm(x), 4 * dim, table=1024), dim, "s16", residual=x)
        if stage + 1 < len(blocks):
            place = np.argsort(order).reshape(side, side)
            parts = [b.gather(x, place[dy::2, dx::2]) for dx in (0, 1) for dy in (0, 1)]
            side, dim, heads = side // 2, 2 * dim, 2 * heads
            x = b.linear(b.layernorm(b.concat(*parts)), dim, "s16")
            order = np.arange(side * side)
    x = b.avgpool(b.layernorm(x), (side * side, 1))
    return b.graph(b.linear(x, classes, "s16"), f"swin-{dim}")


def _depthwise(b: Builder, x: str, stride: int) -> str:
    """A 3 x 3 depthwise convolution with the padding of PyTorch's models."""
    channels = b.tensors[x].channels
    return b.conv(x, channels, (3, 3), (stride, stride), (1, 1, 1, 1), groups=channels, relu=True)


MODELS = {
    "deit-tiny": deit,
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v1-0.25": mobilenet_v1,
    "resnet20": resnet,
    "swin-tiny": swin,
}
MACHINES = {"zcu102": ZCU102.default, "fixed8": fixed8_accelerator()}


def main() -> None:
    """Compile one model for one machine; the figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("machine", choices=MACHINES, nargs="?", default="zcu102")
    arguments = parser.parse_args()
    machine = MACHINES[arguments.machine]
    graph = MODELS[arguments.model](lanes=machine.lanes, drain=machine.drain)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    built = compiled(graph, machine)
    program = built.program
    seconds = time.process_time() - began
    found = {"model": graph.name, "machine": arguments.machine, "compile_cpu_seconds": round(seconds, 2)}
    found["compile_megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    found["instructions"] = len(program.instructions)
    found["cycles"] = cycle.predict(program, MemoryModel(latency=60)).cycles
    found["multiply_accumulates"] = sum(layer.macs for layer in program.layers)
    found["traffic"] = built.traffic.to_dict()
    found["activations"] = {"bytes": built.traffic.activations, "bound": built.activations_bound}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
