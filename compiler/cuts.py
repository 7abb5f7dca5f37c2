"""Which rows of which tensors the bands of a group of operators need.

Successive operators of a group take turns band by band, so that the tensors between them never exist as a whole. A
window that reaches beyond its band makes the operators before it compute the rows at the edge twice.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np

from ..arch import graph as g
from .ir import Place

__all__ = ["Band", "Cutter", "Group", "Rows", "Schedule", "Shape", "vertical"]

Rows = tuple[int, int]
"""First row and end."""
_WINDOWS = g.Conv | g.MaxPool | g.AvgPool


@dataclasses.dataclass(frozen=True)
class Group:
    """Operators first..last of a graph in so many bands; a single operator where that is 1."""

    first: int
    last: int
    bands: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a graph is computed that does not fit on chip as a whole."""

    groups: tuple[Group, ...]
    chip: frozenset[tuple[str, int]]
    """(tensor, group): the whole tensor is in the scratchpad during the group. Others pass in bands, from and to DRAM."""
    stored: frozenset[str]
    """Tensors that go to the SCRATCH region when they have been computed."""
    bound: int
    """Bytes of activations per frame from and to DRAM; no schedule has less."""
    places: Mapping[str, Place]
    """Where tensors lie when the graph is lowered as a whole."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Rows of a tensor that may be cut apart."""

    rows: int
    width: int
    """Positions of a row."""
    unit: int
    """A cut is at a multiple of so many rows, at the beginning of a tile of positions."""

    def down(self, row: int) -> int:
        """The last possible cut at or before a row."""
        return row // self.unit * self.unit

    def up(self, row: int) -> int:
        """The first possible cut, or the end, at or after a row."""
        return min(self.rows, -(-row // self.unit) * self.unit)


@dataclasses.dataclass(frozen=True)
class Band:
    """One turn of a group."""

    outputs: dict[int, Rows]
    """Rows that each operator computes; operators that are part of others are left out."""
    inputs: dict[tuple[int, str], Rows]
    """Rows of each tensor that it reads; the first row is a cut."""
    pieces: dict[str, tuple[Rows, ...]]
    """Rows of each tensor that positions are gathered from, in pieces between cuts."""

    def needed(self, name: str) -> tuple[Rows, ...]:
        """Rows of a tensor that the band reads."""
        if name in self.pieces:
            return self.pieces[name]
        spans = [rows for (_, read), rows in self.inputs.items() if read == name]
        return ((min(first for first, _ in spans), max(end for _, end in spans)),)


class Cutter:
    """Cuts the operators of a graph; `places` are those of the graph as a whole.

    Some operators make no tensor of their own: a reshape, and a Linear layer that writes keys or values where an attention
    needs them. Whoever reads their outputs reads the tensor behind them.
    """

    def __init__(self, graph: g.Graph, places: Mapping[str, Place], columns: int):
        self.graph, self.places, self.columns = graph, places, columns
        self.makers = {name: op for op in graph.operators for name in g.writes(op)}

    def virtual(self, operator: g.Operator) -> bool:
        """Whether the operator makes no tensor of its own."""
        return isinstance(operator, g.Reshape) or operator.output not in self.places

    def root(self, name: str) -> str:
        """The tensor that a name stands for."""
        while isinstance(self.makers.get(name), g.Reshape):
            name = self.makers[name].input
        return name

    def sources(self, operator: g.Operator) -> dict[str, str]:
        """Names whose places the operator's items need, with the tensors that they stand for."""
        names = (name if name in self.places else self.makers[name].input for name in g.reads(operator))
        return {name: self.root(name) for name in names}

    def reads(self, operator: g.Operator) -> tuple[str, ...]:
        """Tensors in the scratchpad that the operator reads."""
        return tuple(dict.fromkeys(self.sources(operator).values()))

    def bandable(self, operator: g.Operator) -> bool:
        """Whether an operator computes rows of its outputs from few rows of its inputs, and all have rows of their own in
        an order that is cut at windows at most."""
        if self.virtual(operator):
            return True
        names = (*self.reads(operator), *g.writes(operator))
        if not all(self._plain(name) for name in names):
            return False
        y = self.graph.tensor(operator.output)
        if y.shape[0] < 2 or (y.name == self.graph.output and self.places[y.name].slots is not None):
            return False
        match operator:
            case g.Gather():
                return self.graph.constant(operator, "index").min() >= 0
            case g.Attention():
                return operator.windows > 1
            case g.Concat():
                return operator.axis == "channels" and self._unslotted(operator)
            case g.Linear():
                return True
            case g.Conv() if operator.prefix:
                return False
            case g.Conv() | g.MaxPool() | g.AvgPool():
                flat = len(y.shape) != 3 or any(len(self.graph.tensor(n).shape) != 3 for n in names)
                windowed = any(self.places[name].window for name in names)
                return not flat and not windowed and self._unslotted(operator)
            case g.Elementwise() | g.LayerNorm():
                return self._unslotted(operator)
        return False

    def _plain(self, name: str) -> bool:
        place, tokens = self.places[name], len(self.graph.tensor(name).shape) == 2
        return place.buffer.name == name and not place.buffer.spare and (tokens or not place.window)

    def _unslotted(self, operator: g.Operator) -> bool:
        return all(self.places[name].slots is None for name in self.reads(operator))

    def gathered(self, group: Group) -> set[str]:
        """Tensors that gathers of a group read."""
        return {self.root(op.input) for op in self._operators(group) if isinstance(op, g.Gather)}

    def sensible(self, group: Group) -> bool:
        """Whether gathers read tensors from outside that no other kind of operator reads, keys and values of the group are
        needed there alone, and its last operator makes a tensor."""
        operators = self._operators(group)
        made = {name for op in operators for name in g.writes(op)}
        sources = self.gathered(group)
        others = {name for op in operators if not isinstance(op, g.Gather) for name in self.reads(op)}
        hidden = {op.output for op in operators if self.virtual(op) and isinstance(op, g.Linear)}
        beyond = {
            name
            for index, op in enumerate(self.graph.operators)
            if not group.first <= index <= group.last
            for name in g.reads(op)
        }
        ends = not self.virtual(operators[0]) and not self.virtual(operators[-1])
        return ends and not sources & (made | others) and not hidden & beyond

    def _operators(self, group: Group) -> tuple[g.Operator, ...]:
        return self.graph.operators[group.first : group.last + 1]

    def shapes(self, group: Group) -> dict[str, Shape]:
        """Rows of the tensors of a group: of an image, or tokens."""
        operators = [op for op in self._operators(group) if not self.virtual(op)]
        names = dict.fromkeys(name for op in operators for name in (*self.reads(op), *g.writes(op)))
        return {name: self._shape(name) for name in names}

    def _shape(self, name: str) -> Shape:
        tensor, place = self.graph.tensor(name), self.places[name]
        width = tensor.shape[1] if len(tensor.shape) == 3 and not place.joined else 1
        unit = place.window or self.columns // math.gcd(self.columns, width)
        return Shape(tensor.shape[0], width, unit)

    def bands(self, group: Group, shapes: dict[str, Shape], outlive: set[str]) -> list[Band]:
        """The bands of a group; tensors in `outlive` are read after it. Fewer bands where rows do not suffice."""
        operators = self.graph.operators
        whole = shapes[operators[group.last].output]
        for operator in self._operators(group):
            if isinstance(operator, g.Attention) and self._whole(operator, shapes).rows == whole.rows:
                whole = dataclasses.replace(
                    whole, unit=math.lcm(whole.unit, self._whole(operator, shapes).unit)
                )
        bounds = sorted({whole.up(-(-whole.rows * band // group.bands)) for band in range(group.bands + 1)})
        done = dict.fromkeys(outlive, 0)
        return [
            self._band(group, shapes, done, rows, rows[1] / whole.rows) for rows in itertools.pairwise(bounds)
        ]

    def _whole(self, operator: g.Operator, shapes: dict[str, Shape]) -> Shape:
        """The rows of an operator's output that it may compute by themselves: those of whole windows."""
        made = shapes[operator.output]
        if isinstance(operator, g.Attention):
            made = dataclasses.replace(made, unit=math.lcm(made.unit, made.rows // operator.windows))
        return made

    def _band(
        self, group: Group, shapes: dict[str, Shape], done: dict[str, int], last: Rows, part: float
    ) -> Band:
        """The band that ends in rows `last`, at `part` of all; `done` are the rows that bands have made of tensors that
        outlive the group."""
        need: dict[str, Rows] = {}
        outputs, inputs, chosen = {}, {}, {}
        for index in range(group.last, group.first - 1, -1):
            operator, names = self.graph.operators[index], list(g.writes(self.graph.operators[index]))
            if self.virtual(operator):
                continue
            wanted = [need[name] for name in names if name in need]
            if index == group.last:
                wanted.append(last)
            for name in names:
                if name in done and (index != group.last or part == 1):
                    end = shapes[name].rows if part == 1 else math.ceil(shapes[name].rows * part - 1e-9)
                    wanted.append((done[name], max(done[name], end)))
            rows = min(r[0] for r in wanted), max(r[1] for r in wanted)
            made = self._whole(operator, shapes)
            outputs[index] = rows = made.down(rows[0]), made.up(rows[1])
            for name in names:
                if name in done:
                    done[name] = max(done[name], rows[1])
            if isinstance(operator, g.Gather):
                chosen.setdefault(self.root(operator.input), []).append(self._index(operator, made, rows))
                continue
            for name in self.reads(operator):
                read = shapes[name]
                begin, stop = self._behind(operator, name, rows, made, read)
                inputs[index, name] = begin, stop = read.down(begin), stop
                before = need.get(name, (begin, stop))
                need[name] = min(before[0], begin), max(before[1], stop)
        pieces = {name: _pieces(np.concatenate(found), shapes[name]) for name, found in chosen.items()}
        return Band(outputs, inputs, pieces)

    def _index(self, operator: g.Gather, made: Shape, rows: Rows) -> np.ndarray:
        return self.graph.constant(operator, "index")[rows[0] * made.width : rows[1] * made.width]

    def _behind(self, operator: g.Operator, name: str, rows: Rows, made: Shape, read: Shape) -> Rows:
        """Rows of tensor `name` behind rows of the output."""
        if isinstance(operator, g.Attention):
            return rows[0] * read.rows // made.rows, rows[1] * read.rows // made.rows
        if not isinstance(operator, _WINDOWS) or name != self.root(operator.input):
            return rows[0] * made.width // read.width, -(-rows[1] * made.width // read.width)
        kernel, stride, top = vertical(self.graph, operator)
        begin = min(max(0, rows[0] * stride - top), read.rows - 1)
        return begin, max(begin + 1, min(read.rows, (rows[1] - 1) * stride - top + kernel))


def _pieces(index: np.ndarray, shape: Shape) -> tuple[Rows, ...]:
    """The rows between cuts that hold the positions `index`."""
    units = np.unique(index // (shape.width * shape.unit))
    starts = units[np.r_[True, np.diff(units) > 1]]
    ends = units[np.r_[np.diff(units) > 1, True]] + 1
    return tuple(
        (int(first) * shape.unit, min(shape.rows, int(end) * shape.unit))
        for first, end in zip(starts, ends, strict=True)
    )


def vertical(graph: g.Graph, operator: g.Conv | g.MaxPool | g.AvgPool) -> tuple[int, int, int]:
    """Kernel, stride and padding above."""
    if not isinstance(operator, g.Conv):
        return operator.kernel[0], operator.stride[0], operator.padding[0]
    dilation = getattr(operator, "dilation", (1, 1))[0]
    kernel = (graph.constant(operator, "weight").shape[1] - 1) * dilation + 1
    return kernel, operator.stride[0], operator.padding[0]
