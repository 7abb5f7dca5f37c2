"""Windows over images: convolutions of every kind and pooling as operands and weights of MATRIX instructions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ..arch import graph as g
from ..arch.isa import FetchMode
from .ir import Memory, capacity
from .matrix import Operand
from .rows import Segment, plain
from .tensors import Tensors

__all__ = ["Window", "blocked", "convolution", "grouped", "joins", "pooling", "rounded", "unfit"]

Window = g.Conv | g.MaxPool | g.AvgPool
_HEIGHT = 1024
"""Images have fewer rows."""


def blocked(tensors: Tensors, operator: g.Operator) -> bool:
    """Whether `operator` takes fewer cycles when its input lies in blocks as large as its stride: then the stride is 1,
    and the pixels of a block are channels side by side."""
    if not tensors.blocks or not isinstance(operator, g.Conv) or operator.groups > 1:
        return False
    tensor, a, (sy, sx) = tensors.graph.tensor(operator.input), tensors.accelerator, operator.stride
    if len(tensor.shape) != 3 or tensor.dtype != "s8" or operator.dilation != (1, 1) or sy * sx == 1:
        return False
    if tensor.shape[0] % sy or tensor.shape[1] % sx:
        return False
    residual = operator.drain.residual
    if residual is not None and residual.tensor == operator.input:
        return False
    out, kh, kw, channels = tensors.graph.constant(operator, "weight").shape
    groups = -(-out // a.lanes.total)
    (top, left), (ky, kx) = _edges(operator), (kh, kw)
    taps = -(-(top + ky) // sy) * -(-(left + kx) // sx)
    mine = taps * -(-sy * sx * channels // a.depth) * groups
    row = -(-kw * channels // a.depth)
    if joins(tensors, operator):
        return mine <= max(kh * row * groups, a.columns * kh * (row + 1))
    chunks = kh * kw * -(-channels // a.depth)
    return mine < chunks * max(groups, min(a.columns, sx + 1))


def _edges(operator: g.Conv) -> tuple[int, int]:
    """Pixels between the begin of the first block that a window touches and the window's."""
    return -operator.padding[0] % operator.stride[0], -operator.padding[2] % operator.stride[1]


def joins(tensors: Tensors, operator: g.Operator) -> bool:
    """Whether `operator` needs fewer chunks when it reads the pixels of an image row joined."""
    if not isinstance(operator, g.Conv) or operator.groups > 1:
        return False
    tensor, depth = tensors.graph.tensor(operator.input), tensors.accelerator.depth
    if len(tensor.shape) != 3 or tensor.dtype != "s8" or tensor.shape[1] * tensor.channels > 4095:
        return False
    if g.drained(operator).residual is not None and operator.drain.residual.tensor == operator.input:
        return False
    _, _, kw, channels = _weights(tensors, operator).shape
    return -(-kw * channels // depth) < kw * -(-channels // depth)


def rounded(tensors: Tensors) -> set[str]:
    """Tensors that depthwise windows read and write, unless whole groups of rows would take too much of the scratchpad."""
    a, graph, found = tensors.accelerator, tensors.graph, set()
    for operator in graph.operators:
        if isinstance(operator, g.Conv) and operator.groups == graph.tensor(operator.input).channels:
            for tensor in map(graph.tensor, (operator.input, operator.output)):
                rows = -(-tensors.rows_of(tensor.channels, False) // a.private) * a.private
                rows *= -(-tensor.positions // a.columns)
                if tensor.dtype == "s8" and rows <= capacity(a, Memory.SCRATCHPAD) * tensors.largest:
                    found.add(tensor.name)
    return found


def unfit(tensors: Tensors, operator: Window) -> bool:
    """Note what keeps a window from being read from where its input is."""
    x, tensor = tensors.places[operator.input], tensors.graph.tensor(operator.input)
    before = len(tensors.problems)
    if tensor.dtype != "s8":
        tensors.problem(
            operator.name, f"a window must read an s8 tensor, not {tensor.dtype}. Requantize it first"
        )
    kernel = _image(tensors, operator)[2]
    dilated = isinstance(operator, g.Conv) and operator.dilation != (1, 1)
    if dilated and (kernel[0] > 255 or (kernel[1] > 15 and not x.joined)):
        tensors.problem(
            operator.name,
            f"a dilated window must span at most 255 rows and 15 columns, not {kernel}. Use a smaller dilation",
        )
    if not isinstance(operator, g.Conv) and len(tensor.shape) == 3 and kernel[1] > 15:
        tensors.problem(
            operator.name,
            f"a pooling window must be at most 15 columns wide, or 255 pixels if global, not {operator.kernel}. "
            f"Pool in two steps",
        )
    return len(tensors.problems) > before


def convolution(tensors: Tensors, operator: g.Conv) -> tuple[Operand, np.ndarray]:
    """Operand and weights (rows, chunks, depth) of a convolution without groups."""
    x, depth = tensors.places[operator.input], tensors.accelerator.depth
    weights = _weights(tensors, operator)
    if x.block != (1, 1):
        weights = _in_blocks(weights, operator)
    if x.slots is not None:
        spread = np.zeros((*weights.shape[:3], x.physical), np.int8)
        spread[..., np.array(x.slots)] = weights
        weights = spread
    count, kh, kw, channels = weights.shape
    stride = (1, 1) if x.block != (1, 1) else operator.stride
    simple = (kh, kw, *stride, *operator.padding, operator.prefix) == (1, 1, 1, 1, 0, 0, 0, 0, 0)
    if x.joined:
        weights, taps = weights.reshape(count, kh, 1, kw * channels), kh
    else:
        taps = kh * kw
    chunks = -(-weights.shape[3] // depth)
    spread = np.zeros((*weights.shape[:3], chunks * depth), np.int8)
    spread[..., : weights.shape[3]] = weights
    spread = _in_order(spread, chunks)
    if simple and not x.joined:
        operand = Operand(
            place=x, mode=FetchMode.LINEAR, positions=x.positions, chunks=chunks, group_chunks=chunks
        )
        return operand, spread
    return _operand(tensors, operator, chunks, taps * chunks), spread


def grouped(tensors: Tensors, operator: g.Conv) -> list[tuple[Operand, np.ndarray, Segment, int]]:
    """Operand, weights, segment and group count of each part of a grouped convolution.

    So many groups are joined, block-diagonally, that they read whole chunks and write whole rows; groups of one channel
    have private lanes where the machine has them.
    """
    a = tensors.accelerator
    weights, channels = _weights(tensors, operator), tensors.places[operator.input].channels
    count, inputs, outputs = operator.groups, channels // operator.groups, len(weights) // operator.groups
    if inputs == outputs == 1 and a.private > 1:
        return [_private(tensors, operator, channels, weights.reshape(count, -1))]
    unit = a.depth if outputs == 1 else max(a.depth, a.lanes.fixed8)
    joined = math.lcm(a.depth // math.gcd(a.depth, inputs), unit // math.gcd(unit, outputs))
    joined = min(joined, count)
    whole, rest = divmod(count, joined)
    parts = [(0, whole, joined)]
    if rest and inputs * joined == a.depth and outputs * joined <= a.depth:
        parts = [(0, whole + 1, joined)]
    elif rest:
        parts.append((whole * joined, 1, rest))
    made = []
    for first, groups, size in parts:
        chunks = -(-size * inputs // a.depth)
        rows = min(groups * size, count - first) * outputs
        _, kh, kw, _ = weights.shape
        spread = np.zeros((len(weights), kh, kw, chunks * a.depth), np.int8)
        for row in range(first * outputs, first * outputs + rows):
            at = (row // outputs - first) % size * inputs
            spread[row, :, :, at : at + inputs] = weights[row]
        spread = _in_order(spread, chunks)
        total = groups * size * outputs
        block = math.gcd(a.lanes.fixed8, size * outputs) if groups > 1 else None
        part = plain(first * outputs, total, a, block)
        offset = first * inputs // a.depth
        made.append((_operand(tensors, operator, chunks, kh * kw * chunks, offset), spread, part, groups))
    return made


def pooling(tensors: Tensors, operator: g.MaxPool | g.AvgPool) -> tuple[Operand, np.ndarray, Segment, int]:
    """A depthwise convolution with weights of one."""
    a, x = tensors.accelerator, tensors.places[operator.input]
    _, _, (kh, kw) = _image(tensors, operator)
    if a.private > 1 and not (isinstance(operator, g.MaxPool) and a.private_taps > 1):
        return _private(tensors, operator, x.channels, np.ones((1, kh * kw), np.int8))
    groups = -(-x.channels // a.depth)
    weights = np.zeros((groups * a.depth, kh * kw, a.depth), np.int8)
    channel = np.arange(len(weights))
    weights[channel, :, channel % a.depth] = 1
    part = plain(0, len(weights), a, min(a.lanes.fixed8, a.depth))
    return _operand(tensors, operator, 1, kh * kw), weights, part, groups


def _private(
    tensors: Tensors, operator: Window, channels: int, weights: np.ndarray
) -> tuple[Operand, np.ndarray, Segment, int]:
    """A window of each channel by itself, with weights (channels, taps), or (1, taps) for all: as many chunks of channels
    at once as divide the rows of a tile, of the input and of what is written."""
    a, x = tensors.accelerator, tensors.places[operator.input]
    written = (tensors.places[name] for name in g.writes(operator))
    room = min(place.stride // (1 + place.wide) for place in written)
    chunks, width = -(-channels // a.depth), a.private
    taps = weights.shape[1]
    if (taps + 1) * a.private > a.operand_chunks:  # all taps wait for the other half of the channels
        width = a.private_chunks
    while x.stride % width or x.offset % width or -(-chunks // width) * width > room:
        width //= 2
    groups, size = -(-chunks // width), width * a.depth
    packed = np.zeros((len(weights), -(-taps // a.depth), a.depth), np.int8)
    packed.reshape(len(weights), -1)[:, :taps] = weights
    if len(weights) < channels:
        packed = np.broadcast_to(packed, (groups * size, *packed.shape[1:]))
    operand = _operand(tensors, operator, width, taps)
    operand.window["private"] = 1
    return operand, packed, plain(0, groups * size, a, min(width, a.private_chunks) * a.depth), groups


def _in_blocks(weights: np.ndarray, operator: g.Conv) -> np.ndarray:
    """Weights of windows over blocks as large as the stride, a block's pixels as channels."""
    (count, kh, kw, channels), (sy, sx), (top, left) = weights.shape, operator.stride, _edges(operator)
    around = ((top, -(top + kh) % sy), (left, -(left + kw) % sx))
    spread = np.pad(weights, ((0, 0), *around, (0, 0)))
    ty, tx = spread.shape[1] // sy, spread.shape[2] // sx
    spread = spread.reshape(count, ty, sy, tx, sx, channels).swapaxes(2, 3)
    return spread.reshape(count, ty, tx, sy * sx * channels)


def _in_order(weights: np.ndarray, chunks: int) -> np.ndarray:
    """Weights (rows, kh, kw, chunks * depth) as (rows, kh * chunks * kw, depth): the order of the operand."""
    count, kh, kw, channels = weights.shape
    spread = weights.reshape(count, kh, kw, chunks, channels // chunks)
    return spread.transpose(0, 1, 3, 2, 4).reshape(count, kh * chunks * kw, -1)


def _weights(tensors: Tensors, operator: g.Conv) -> np.ndarray:
    """The weights of a convolution, with zeros between the taps of a dilated one."""
    weights = tensors.graph.constant(operator, "weight")
    if operator.dilation == (1, 1):
        return weights
    (count, kh, kw, channels), (dy, dx) = weights.shape, operator.dilation
    spread = np.zeros((count, (kh - 1) * dy + 1, (kw - 1) * dx + 1, channels), np.int8)
    spread[:, ::dy, ::dx] = weights
    return spread


def _image(tensors: Tensors, operator: Window) -> tuple[int, int, tuple[int, int]]:
    """Height, width and kernel: a window over everything, and tokens, are one column of pixels."""
    shape = tensors.graph.tensor(operator.input).shape
    if isinstance(operator, g.Conv):
        return shape[0], shape[1], _weights(tensors, operator).shape[1:3]
    if len(shape) == 2:
        return shape[0], 1, operator.kernel
    height, width, _ = shape
    if operator.kernel == (height, width) and not any(operator.padding) and height * width <= 255:
        return height * width, 1, (height * width, 1)
    return height, width, operator.kernel


def _operand(tensors: Tensors, operator: Window, tap_chunks: int, chunks: int, offset: int = 0) -> Operand:
    """The operand of a window; `offset` is its first chunk of channels."""
    x = tensors.places[operator.input]
    height, width, (kh, kw) = _image(tensors, operator)
    tensor, out = tensors.graph.tensor(operator.input), tensors.graph.tensor(operator.output)
    (top, bottom, left, right), (sy, sx) = operator.padding, operator.stride
    scale = tensor.channels if x.joined else 1
    prefix = operator.prefix if isinstance(operator, g.Conv) else 0
    out_height = (height + top + bottom - kh) // sy + 1
    out_width = (width + left + right - kw) // sx + 1
    if x.block != (1, 1):
        height, width, (before, ahead) = height // sy, width // sx, _edges(operator)
        kh, kw = -(-(before + kh) // sy), -(-(ahead + kw) // sx)
        top, left, sy, sx = -(-top // sy), -(-left // sx), 1, 1
    if (kh, kw, sy, sx, out_height, out_width) == (1, 1, 1, 1, height, width) and height * width < _HEIGHT:
        height, width, out_height, out_width = height * width, 1, height * width, 1  # any tile begins a part
    window = {
        "taps_y": kh,
        "taps_x": 1 if x.joined else kw,
        "tap_chunks": tap_chunks,
        "stride_y": sy if out_height > 1 else 1,
        "stride_x": (sx if out_width > 1 else 1) * scale,
        "start_y": -top,
        "start_x": -left * scale,
        "height": height,
        "width": width * scale,
        "out_width": out_width,
        "advance_y": tensors.accelerator.columns // out_width,
        "advance_x": tensors.accelerator.columns % out_width,
        "prefix": prefix,
        "pad_value": -128 if isinstance(operator, g.MaxPool) else tensor.zero_point,
    }
    return Operand(
        place=dataclasses.replace(x, offset=x.offset + offset),
        mode=FetchMode.JOIN if x.joined else FetchMode.CONV,
        positions=out.positions,
        chunks=chunks,
        group_chunks=tap_chunks,
        window=window,
        maximum=isinstance(operator, g.MaxPool),
    )
