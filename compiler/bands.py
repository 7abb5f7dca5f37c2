"""Operators in bands of image rows (tokens): which rows each band needs, and their items.

Successive operators of a group take turns band by band, so that the tensors between them never exist as a whole. A
window that reaches beyond its band makes the operators before it compute the rows at the edge twice.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from ..arch import graph as g
from ..arch.isa import Opcode, Region
from . import moves
from .ir import Buffer, Bytes, Content, Item, Memory, Place, Span, row_bytes

if TYPE_CHECKING:
    from .lower import _Lowering

__all__ = ["Band", "Group", "Schedule", "Shape", "bandable", "lower", "shape", "split"]

Rows = tuple[int, int]
"""First row and end."""
_POSITIONWISE = g.Linear | g.Elementwise | g.LayerNorm
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
    """Rows that each operator computes."""
    inputs: dict[tuple[int, str], Rows]
    """Rows of each tensor that it reads; the first row is a cut."""


def shape(tensor: g.Tensor, joined: bool, columns: int) -> Shape:
    """The rows of a tensor: of an image, or tokens."""
    width = tensor.shape[1] if len(tensor.shape) == 3 and not joined else 1
    return Shape(tensor.shape[0], width, columns // math.gcd(columns, width))


def bandable(operator: g.Operator, graph: g.Graph, places: dict[str, Place]) -> bool:
    """Whether an operator computes rows of its outputs from few rows of its inputs, and all have rows of their own in
    the plain order of positions and channels."""
    if not isinstance(operator, _POSITIONWISE | _WINDOWS):
        return False
    if isinstance(operator, g.Conv) and operator.prefix:
        return False
    x, y = graph.tensor(operator.input), graph.tensor(operator.output)
    if len(x.shape) != len(y.shape) or (isinstance(operator, _WINDOWS) and len(x.shape) != 3):
        return False
    if y.shape[0] < 2 or not all(name in places for name in (*g.reads(operator), *g.writes(operator))):
        return False
    plain = (*g.reads(operator), *(name for name in g.writes(operator) if name == graph.output))
    return all(places[name].slots is None for name in plain) and all(
        places[name].buffer.name == name and not places[name].window and not places[name].buffer.spare
        for name in (*g.reads(operator), *g.writes(operator))
    )


def split(graph: g.Graph, group: Group, shapes: dict[str, Shape], outlive: set[str]) -> list[Band]:
    """The bands of a group; tensors in `outlive` are read after it. Fewer bands where rows do not suffice."""
    operators = graph.operators
    last = operators[group.last]
    whole = shapes[last.output]
    bounds = sorted({whole.up(-(-whole.rows * band // group.bands)) for band in range(group.bands + 1)})
    done = dict.fromkeys(outlive, 0)
    bands = []
    for first, end in itertools.pairwise(bounds):
        need: dict[str, Rows] = {}
        outputs, inputs = {}, {}
        for index in range(group.last, group.first - 1, -1):
            operator, names = operators[index], list(g.writes(operators[index]))
            wanted = [need[name] for name in names if name in need]
            if index == group.last:
                wanted.append((first, end))
            for name in names:
                if name in done and (index != group.last or end == whole.rows):
                    rows = shapes[name].rows
                    part = rows if end == whole.rows else -(-rows * end // whole.rows)
                    wanted.append((done[name], max(done[name], part)))
            rows = min(r[0] for r in wanted), max(r[1] for r in wanted)
            made = shapes[operator.output]
            outputs[index] = rows = made.down(rows[0]), made.up(rows[1])
            for name in names:
                if name in done:
                    done[name] = max(done[name], rows[1])
            for name in g.reads(operator):
                read = shapes[name]
                begin, stop = _window(graph, operator, name, rows, read.rows)
                inputs[index, name] = begin, stop = read.down(begin), stop
                before = need.get(name, (begin, stop))
                need[name] = min(before[0], begin), max(before[1], stop)
        bands.append(Band(outputs, inputs))
    return bands


def _window(graph: g.Graph, operator: g.Operator, name: str, rows: Rows, height: int) -> Rows:
    """Rows of tensor `name` behind rows of the output."""
    if name != operator.input or isinstance(operator, _POSITIONWISE):
        return rows
    kernel, stride, top = _vertical(graph, operator)
    begin = min(max(0, rows[0] * stride - top), height - 1)
    return begin, max(begin + 1, min(height, (rows[1] - 1) * stride - top + kernel))


def _vertical(graph: g.Graph, operator: _WINDOWS) -> tuple[int, int, int]:
    """Kernel, stride and padding above."""
    if not isinstance(operator, g.Conv):
        return operator.kernel[0], operator.stride[0], operator.padding[0]
    dilation = getattr(operator, "dilation", (1, 1))[0]
    kernel = (graph.constant(operator, "weight").shape[1] - 1) * dilation + 1
    return kernel, operator.stride[0], operator.padding[0]


class _View:
    """A graph in which some tensors have fewer rows."""

    def __init__(self, graph: g.Graph, rows: dict[str, int]):
        self._graph, self._rows = graph, rows

    def tensor(self, name: str) -> g.Tensor:
        """The tensor, as high as its band."""
        tensor = self._graph.tensor(name)
        rows = self._rows.get(name, tensor.shape[0])
        return dataclasses.replace(tensor, shape=(rows, *tensor.shape[1:]))

    def __getattr__(self, name: str):
        return getattr(self._graph, name)


def lower(lowering: _Lowering, schedule: Schedule, early: bool) -> None:
    """Append the items of the whole graph, with the transfers of its tensors; with `early`, tensors that come back whole
    are loaded during the group before the one that needs them."""
    _Run(lowering, schedule, early).all()


class _Run:
    """What is where while groups are lowered."""

    def __init__(self, lowering: _Lowering, schedule: Schedule, early: bool):
        self.early, self.start = early, 0
        """The first item of the group before."""
        self.lowering, self.schedule, self.tensors = lowering, schedule, lowering.tensors
        self.graph, self.accelerator = lowering.graph, lowering.accelerator
        self.pitch = (
            self.accelerator.beats(row_bytes(self.accelerator, Memory.SCRATCHPAD))
            * self.accelerator.bus_bytes
        )
        self.homes: dict[str, Place] = {}
        """Places of whole tensors in DRAM; of the input and the output, in their regions."""
        self.data: dict[str, np.ndarray] = {}
        """Content of constants that are loaded in the frame."""
        self.aliases: dict[str, Place] = {}
        """Places of names whose tensor has left the chip."""
        self.shapes: dict[str, Shape] = {}
        self.last: dict[str, int] = {}
        for index, operator in enumerate(self.graph.operators):
            self.last |= dict.fromkeys(g.reads(operator), index)

    def all(self) -> None:
        """All groups."""
        source, result = self.graph.input, self.graph.output
        self.lowering.input()
        self.homes[source] = self.tensors.places.pop(source)
        for number, group in enumerate(self.schedule.groups):
            start = len(self.tensors.items)
            self.fetch(number, group)
            self.start = start
            if group.bands > 1:
                self.banded(number, group)
            else:
                self.whole(number, group)
        if result in self.tensors.places:
            tag = len(self.graph.operators) - 1
            self.homes[result] = place = moves.arranged(self.tensors, tag, result)
            self.store(result, place, 0, tag)
        self.tensors.places |= {source: self.homes[source], result: self.homes[result]}

    def fetch(self, number: int, group: Group) -> None:
        """LOADs of whole tensors that come back to the chip; others go."""
        places, chip = self.tensors.places, self.schedule.chip
        for name, place in list(places.items()):
            root = place.buffer.name
            if (root, number) not in chip and root in self.homes:
                self.aliases[name] = places.pop(name)
        for root, home in self.homes.items():
            if root not in places and (root, number) in chip:
                place = dataclasses.replace(home, buffer=self.copy(home, home.buffer.rows), offset=0)
                self.load(root, place, 0, group.first, whole=True)
                places[root] = place
                for name, alias in self.aliases.items():
                    if alias.buffer.name == root and name != root:
                        places[name] = dataclasses.replace(alias, buffer=place.buffer)

    def whole(self, number: int, group: Group) -> None:
        """One operator at once."""
        operator = self.graph.operators[group.first]
        if isinstance(operator, g.Constant):
            self.constant(number, group.first, operator)
            return
        assert all(name in self.tensors.places for name in self.lowering.needs(operator))
        getattr(self.lowering, operator.op)(group.first, operator)
        self.keep(group, g.writes(operator))

    def constant(self, number: int, tag: int, operator: g.Constant) -> None:
        """Content of the scratchpad that stays, or that is loaded where it is needed."""
        self.lowering.constant(tag, operator)
        place = self.tensors.places[operator.output]
        if any(
            (operator.output, other) not in self.schedule.chip for other in range(len(self.schedule.groups))
        ):
            del self.tensors.places[operator.output]
            self.data[operator.output], place.buffer.data = place.buffer.data, None
            self.homes[operator.output] = place

    def keep(self, group: Group, names) -> None:
        """STOREs of whole tensors of a group that leave the chip later."""
        for name in names:
            if name in self.schedule.stored and name not in self.homes and name in self.tensors.places:
                place = self.tensors.places[name]
                self.homes[name] = self.home(name, place, place.positions)
                self.store(name, place, 0, group.last)

    def banded(self, number: int, group: Group) -> None:
        """The operators of a group in turns."""
        operators = self.graph.operators[group.first : group.last + 1]
        places, columns = self.tensors.places, self.accelerator.columns
        names = {name for op in operators for name in (*g.reads(op), *g.writes(op))}
        for name in names:
            held = places.get(name) or self.homes.get(name)
            self.shapes[name] = shape(self.graph.tensor(name), held is not None and held.joined, columns)
        made = {name for op in operators for name in g.writes(op)}
        outlive = {n for n in made if self.last.get(n, 0) > group.last or n == self.graph.output}
        bands = split(self.graph, group, self.shapes, outlive)
        away = [n for n in names - made if (n, number) not in self.schedule.chip]
        ahead = [self.arrive(away, group, band) for band in bands[:1]]
        for turn, band in enumerate(bands):
            if turn + 1 < len(bands):
                ahead.append(self.arrive(away, group, bands[turn + 1]))
            held = {n: (places[n], 0) for n in names - made if n not in away} | ahead.pop(0)
            for index, operator in enumerate(operators, group.first):
                self.operator(number, index, operator, band, held, outlive)
        for name in outlive:
            if (name, number) in self.schedule.chip:
                places[name] = self.tensors.wholes[name]
        self.keep(group, [name for name in outlive if (name, number) in self.schedule.chip])

    def arrive(self, away: list[str], group: Group, band: Band) -> dict[str, tuple[Place, int]]:
        """LOADs of what a band reads of tensors that are not on chip."""
        held = {}
        for name in sorted(away):
            spans = [rows for (_, read), rows in band.inputs.items() if read == name]
            first, end = min(r[0] for r in spans), max(r[1] for r in spans)
            home, width = self.homes[name], self.shapes[name].width
            positions = (end - first) * width
            rows = -(-positions // self.accelerator.columns) * home.stride
            place = dataclasses.replace(home, buffer=self.copy(home, rows), offset=0, positions=positions)
            self.load(name, place, first * width, group.first)
            held[name] = place, first
        return held

    def operator(
        self, number: int, index: int, operator: g.Operator, band: Band, held: dict, outlive: set[str]
    ) -> None:
        """One operator's rows of a band."""
        tensors, (first, end) = self.tensors, band.outputs[index]
        rows, columns, before = {}, self.accelerator.columns, dict(tensors.places)
        for name in g.reads(operator):
            begin, stop = band.inputs[index, name]
            place, origin = held[name]
            width = self.shapes[name].width
            assert (begin - origin) * width % columns == 0
            offset = place.offset + (begin - origin) * width // columns * place.stride
            tensors.places[name] = dataclasses.replace(place, offset=offset, positions=(stop - begin) * width)
            rows[name] = stop - begin
        if isinstance(operator, _WINDOWS):
            kernel, stride, top = _vertical(self.graph, operator)
            above = top - first * stride + band.inputs[index, operator.input][0]
            below = (end - first - 1) * stride + kernel - rows[operator.input] - above
            operator = dataclasses.replace(operator, padding=(above, below, *operator.padding[2:]))
        for name in g.writes(operator):
            rows[name] = end - first
            if name in outlive and (name, number) in self.schedule.chip:
                whole = self.shapes[name]
                tensors.parts[name] = whole.rows * whole.width, first * whole.width
        tensors.graph = self.lowering.graph = _View(self.graph, rows)
        getattr(self.lowering, operator.op)(index, operator)
        tensors.graph = self.lowering.graph = self.graph
        made = {name: tensors.places[name] for name in g.writes(operator)}
        tensors.places.clear()
        tensors.places |= before
        for name, place in made.items():
            whole = self.shapes[name]
            if tensors.parts.pop(name, None):
                held[name] = tensors.wholes[name], 0
                continue
            held[name] = place, first
            if name in outlive:
                if name not in self.homes:
                    self.homes[name] = self.home(name, place, whole.rows * whole.width)
                self.store(name, place, first * whole.width, index)

    def copy(self, home: Place, rows: int) -> Buffer:
        """Rows in the scratchpad for a tensor in DRAM."""
        return Buffer(name=home.buffer.name, memory=Memory.SCRATCHPAD, rows=rows, spare=home.buffer.spare)

    def home(self, name: str, place: Place, positions: int) -> Place:
        """The whole tensor in DRAM."""
        rows = -(-positions // self.accelerator.columns) * place.stride
        if positions == place.positions:
            rows = place.buffer.rows
        buffer = Buffer(name=name, memory=Memory.OUTSIDE, rows=rows, spare=place.buffer.spare)
        return dataclasses.replace(place, buffer=buffer, offset=0, positions=positions)

    def rows(self, place: Place) -> int:
        """Rows of all positions of a place."""
        return -(-place.reach(self.accelerator) // self.accelerator.columns) * place.stride

    def load(self, name: str, place: Place, first: int, tag: int, whole: bool = False) -> None:
        """A LOAD of positions `first`... to `place`."""
        rows = self.rows(place)
        outside, at = self.homes[name].buffer, first // self.accelerator.columns * place.stride
        values = {"target": Memory.SCRATCHPAD.value, "row": place.at(), "rows": rows}
        reads = ()
        if name == self.graph.input:
            values |= {"region": Region.INPUT, "offset": at * self.pitch}
        elif name in self.data:
            values |= {"region": Region.WEIGHTS, "offset": Content(self.data[name], at * self.pitch)}
        else:
            values |= {"region": Region.SCRATCH, "offset": Bytes(outside, at, self.pitch)}
            reads = (Span(outside, at, rows),)
        writes = (Span(place.buffer, 0, rows),)
        items = self.tensors.items
        at = self.start if self.early and whole else len(items)
        if any(span.buffer is outside for item in items[at:] for span in item.writes):
            at = len(items)
        made = Item(opcode=Opcode.LOAD, tag=tag, values=values, reads=reads, writes=writes)
        items.insert(at, made)

    def store(self, name: str, place: Place, first: int, tag: int) -> None:
        """A STORE of `place` to positions `first`... of the tensor in DRAM."""
        rows = self.rows(place)
        outside, at = self.homes[name].buffer, first // self.accelerator.columns * place.stride
        values, writes = {"row": place.at(), "rows": rows}, ()
        if name == self.graph.output:
            values |= {"region": Region.OUTPUT, "offset": at * self.pitch}
        else:
            values |= {"region": Region.SCRATCH, "offset": Bytes(outside, at, self.pitch)}
            writes = (Span(outside, at, rows),)
        reads = (Span(place.buffer, place.offset, rows),)
        self.tensors.items.append(
            Item(opcode=Opcode.STORE, tag=tag, values=values, reads=reads, writes=writes)
        )
