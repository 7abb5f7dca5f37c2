"""What a graph asks of any machine: bounds and guesses of a frame's cycles, and the widths that suit it."""

from __future__ import annotations

import collections

from ..arch.accelerator import Accelerator
from ..arch.graph import (
    Attention,
    Concat,
    Conv,
    Gather,
    Graph,
    LayerNorm,
    Linear,
    Operator,
    Slice,
    drained,
    reads,
)
from ..compiler.needed import needed
from ..compiler.widths import CODES, NARROW, code_limits, dynamic_lanes, refusing, within

__all__ = ["Work"]

_SHOWN = 0.25
"""Part of the less busy engine's cycles that the other one does not hide, roughly."""
_HEAD_ITEMS, _ITEM_INSTRUCTIONS = 3, 6
"""What the engines do for a head of a window, and instructions for each of it, and for each operator, of layers in two or three parts."""
_MINOR = 0.02
"""Part of the products below which a layer does not matter to the choice of lanes."""


def signed_bits(limits: tuple[int, int]) -> int:
    """Of codes between the limits, at least 4."""
    return max(4, 1 + max((-limits[0] - 1).bit_length(), limits[1].bit_length()))


def _gathers(operator: Operator) -> bool:
    """Whether an operator may move positions, on machines of some number of columns."""
    match operator:
        case Gather():
            return True
        case Attention():
            return operator.windows > 1
        case Slice():
            return operator.start > 0
        case Concat():
            return operator.axis == "positions"
    return False


class Work:
    """The layers of a graph, equal ones together, as far as programs compute them."""

    def __init__(self, graph: Graph):
        graph = needed(graph)
        self.layers: collections.Counter[tuple] = collections.Counter()
        """Positions, outputs, products per output and code limits of the input, of layers with weights that are not grouped."""
        self.grouped = self.depthwise = 0
        """Products of the grouped ones, and of those of single channels."""
        self.attention: collections.Counter[tuple] = collections.Counter()
        """Positions, keys, channels of a head, code limits of keys, queries, values and exponentials; counted by heads."""
        self.norms: collections.Counter[tuple[int, int]] = collections.Counter()
        drains = [drained(operator) for operator in graph.operators]
        self.tables = any(drain is not None and drain.table for drain in drains)
        """Whether there are unary tables."""
        self.gathers = any(map(_gathers, graph.operators))
        """Whether positions move."""
        self.measured = 0
        """Most positions of a window whose logits have no bias, so that the drain can keep their maxima."""
        self.alive = 0
        """Bytes of activations that an operator reads and writes, at most, and half as many for what overlaps it."""
        self.limits = code_limits(graph)
        for operator in graph.operators:
            out = graph.tensor(operator.output)
            held = [graph.tensor(name) for name in {*reads(operator), operator.output}]
            size = sum(x.positions * x.channels * (2 if x.dtype == "s16" else 1) for x in held)
            self.alive = max(self.alive, 3 * size // 2)
            if isinstance(operator, Linear | Conv):
                weight = graph.constant(operator, "weight")
                positions = out.positions - (operator.prefix if isinstance(operator, Conv) else 0)
                if isinstance(operator, Conv) and operator.groups == len(weight) > 1 == weight.shape[-1]:
                    self.depthwise += graph.macs(operator)
                elif isinstance(operator, Conv) and operator.groups > 1:
                    self.grouped += graph.macs(operator)
                else:
                    self.layers[positions, len(weight), weight[0].size, self.limits[operator.input]] += 1
            elif isinstance(operator, Attention):
                keys = graph.tensor(operator.keys).positions // operator.windows
                limits = [self.limits[name] for name in (operator.keys, operator.input, operator.values)]
                limits.append((0, int(graph.constant(operator, "exp").max())))
                key = out.positions, keys, out.channels // operator.heads, *limits
                self.attention[key] += operator.heads
                if not operator.bias:
                    self.measured = max(self.measured, out.positions // operator.windows)
            elif isinstance(operator, LayerNorm):
                self.norms[out.positions, out.channels] += 1
        attended = sum(o.heads * o.windows for o in graph.operators if isinstance(o, Attention))
        self.instructions = _ITEM_INSTRUCTIONS * (len(graph.operators) + _HEAD_ITEMS * attended)
        """Of a program whose layers are in parts, roughly."""
        products = sum(self._products(layer) * count for layer, count in self.layers.items())
        bits = collections.Counter()
        for layer, count in self.layers.items():
            bits[signed_bits(layer[3])] += self._products(layer) * count
        most = next(b for b in sorted(bits) if 2 * sum(bits[c] for c in bits if c <= b) >= products)
        self.narrow = most <= signed_bits(NARROW)
        """Whether most products of rows and operands could be made four in a multiplier."""
        self.outputs = sorted(
            {
                layer[1]
                for layer, count in self.layers.items()
                if self._products(layer) * count >= _MINOR * products
            }
        )
        """Output channels of the layers that matter."""
        self.dynamic = sorted(
            {
                size
                for _, keys, width, codes, _, values, _ in self.attention
                for size, limits in ((keys, codes), (width, values))
                if within(limits, CODES)
            }
        )
        """Keys and channels of heads that Fixed-4 lanes can take from the drain."""
        operands = [signed_bits(x) for *_, queries, _, largest in self.attention for x in (queries, largest)]
        self.operand_bits = sorted({max([most, *(operands if self.dynamic else [])]), max(bits)})
        """Of Fixed-4 lanes in LUTs: what most products take, with them keys' and values', and what all take."""

    @staticmethod
    def _products(layer: tuple) -> int:
        return layer[0] * layer[1] * layer[2]

    def cycles(self, a: Accelerator) -> tuple[int, int]:
        """Cycles that the matrix engine and the vector engine are busy at the very least."""

        def products(positions: int, outputs: int, depth: int, lanes: int, drain: int) -> int:
            tiles, chunks = -(-positions // a.columns), -(-depth // a.depth)
            return tiles * max(-(-outputs // lanes) * chunks, -(-outputs // drain))

        matrix, lanes, private = 0, a.lanes.total, a.private * a.depth * a.columns
        for (positions, outputs, depth, operand), count in self.layers.items():
            refused = len(refusing(a.lanes, operand))
            least = products(positions, outputs, depth, lanes - refused, a.drain)
            if refused and a.lanes.fixed4_digits:
                least = min(least, products(positions, outputs, 2 * depth, lanes, a.drain))
            matrix += least * count
        matrix += self.grouped // a.multipliers + self.depthwise // private
        vector = 0
        for (positions, keys, width, codes, queries, values, largest), heads in self.attention.items():
            matrix += heads * products(
                positions, keys, width, dynamic_lanes(a, codes, queries), a.plain_drain
            )
            matrix += heads * products(
                positions, width, keys, dynamic_lanes(a, values, largest), a.plain_drain
            )
            passes = 1 if a.row_maxima else 2
            vector += heads * passes * -(-positions // a.columns) * -(-keys // a.vector)
        vector += self.normed(a) * (1 if a.row_moments else 2)
        return matrix, vector

    def normed(self, a: Accelerator) -> int:
        """Cycles in which LayerNorms read their inputs once: what row moments save."""
        passes = (
            count * -(-positions // a.columns) * -(-channels // a.vector)
            for (positions, channels), count in self.norms.items()
        )
        return sum(passes)

    def loaded(self, a: Accelerator) -> int:
        """Cycles that weights which do not stay on chip take at the ports, roughly."""
        lanes = a.lanes.total
        rows = sum(
            -(-outputs // lanes) * -(-depth // a.depth) * count
            for (_, outputs, depth, _), count in self.layers.items()
        )
        return max(0, rows - a.weight_rows) * a.beats(a.weight_row_bytes)

    def guess(self, a: Accelerator, busy: tuple[int, int]) -> float:
        """Cycles of a frame, roughly, of which engines are `busy` in `cycles`: in this order candidates are judged."""
        matrix, vector = busy
        return max(matrix, vector, self.loaded(a)) + _SHOWN * min(matrix, vector)
