"""Operators in bands of image rows (tokens): their items, and the transfers of tensors that are not on chip."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..arch import graph as g
from ..arch.isa import Opcode, Region
from . import moves
from .cuts import Band, Cutter, Group, Rows, Schedule, Shape, vertical
from .ir import Buffer, Bytes, Content, Item, Memory, Place, Span, row_bytes

if TYPE_CHECKING:
    from .lower import _Lowering

__all__ = ["lower"]

_Held = dict[str, tuple[Place, tuple[Rows, ...]]]
"""Where tensors are in the scratchpad, and which of their rows, one after the other."""


class _View:
    """A graph in which some tensors have fewer rows, and some operators other constants."""

    def __init__(self, graph: g.Graph, rows: dict[str, int], constants: dict[str, np.ndarray]):
        self._graph, self._rows, self._constants = graph, rows, constants

    def tensor(self, name: str) -> g.Tensor:
        """The tensor, as high as its band."""
        tensor = self._graph.tensor(name)
        rows = self._rows.get(name, tensor.shape[0])
        return dataclasses.replace(tensor, shape=(rows, *tensor.shape[1:]))

    def constant(self, operator: g.Operator, field: str) -> np.ndarray:
        """The array `NAME/field` of an operator."""
        name = f"{operator.name}/{field}"
        return self._constants[name] if name in self._constants else self._graph.constant(operator, field)

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
        self.pitch = self.accelerator.pitch(row_bytes(self.accelerator, Memory.SCRATCHPAD))
        self.homes: dict[str, Place] = {}
        """Places of whole tensors in DRAM; of the input and the output, in their regions."""
        self.data: dict[str, np.ndarray] = {}
        """Content of constants that are loaded in the frame."""
        self.aliases: dict[str, Place] = {}
        """Places of names whose tensor has left the chip."""
        self.cutter = Cutter(self.graph, schedule.places, self.accelerator.columns)
        self.shapes: dict[str, Shape] = {}
        self.last: dict[str, int] = {}
        for index, operator in enumerate(self.graph.operators):
            self.last |= dict.fromkeys((*g.reads(operator), *self.cutter.reads(operator)), index)

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
        if isinstance(operator, g.Reshape):
            self.alias(operator)
            return
        virtual = self.cutter.virtual(operator)
        assert virtual or all(name in self.tensors.places for name in self.lowering.needs(operator))
        getattr(self.lowering, operator.op)(group.first, operator)
        self.keep(group, g.writes(operator))

    def alias(self, operator: g.Reshape) -> None:
        """Another name for a tensor, wherever it is."""
        places, name, root = self.tensors.places, operator.output, self.cutter.root(operator.output)
        if root in places:
            places[name] = places[root]
        elif root in self.homes:
            self.aliases[name] = self.homes[root]

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
        places, self.shapes = self.tensors.places, self.cutter.shapes(group)
        made = {n for op in operators if not self.cutter.virtual(op) for n in g.writes(op)}
        outlive = {n for n in made if self.last.get(n, 0) > group.last or n == self.graph.output}
        bands = self.cutter.bands(group, self.shapes, outlive)
        away = [n for n in self.shapes if n not in made and (n, number) not in self.schedule.chip]
        here: _Held = {n: (places[n], ((0, self.shapes[n].rows),)) for n in self.shapes if n in places}
        ahead = [self.arrive(away, group, band) for band in bands[:1]]
        for turn, band in enumerate(bands):
            if turn + 1 < len(bands):
                ahead.append(self.arrive(away, group, bands[turn + 1]))
            held = here | ahead.pop(0)
            for index, operator in enumerate(operators, group.first):
                self.operator(number, index, operator, band, held, outlive)
        for name in outlive:
            if (name, number) in self.schedule.chip:
                places[name] = self.tensors.wholes[name]
        self.keep(group, [name for name in outlive if (name, number) in self.schedule.chip])
        for operator in operators:
            if isinstance(operator, g.Reshape):
                self.alias(operator)

    def arrive(self, away: list[str], group: Group, band: Band) -> _Held:
        """LOADs of what a band reads of tensors that are not on chip."""
        held: _Held = {}
        for name in sorted(away):
            pieces, home, width = band.needed(name), self.homes[name], self.shapes[name].width
            place = home.resized(sum(end - first for first, end in pieces) * width)
            place = dataclasses.replace(place, offset=0)
            place = dataclasses.replace(place, buffer=self.copy(home, place.rows(self.accelerator)))
            at = 0
            for first, end in pieces:
                part = home.resized((end - first) * width)
                offset = home.rows_before(self.accelerator, at * width)
                part = dataclasses.replace(part, buffer=place.buffer, offset=offset)
                self.load(name, part, first * width, group.first)
                at += end - first
            held[name] = place, pieces
        return held

    def operator(
        self, number: int, index: int, operator: g.Operator, band: Band, held: _Held, outlive: set[str]
    ) -> None:
        """One operator's rows of a band."""
        if self.cutter.virtual(operator):
            if isinstance(operator, g.Linear):
                self.lowering.linear(index, operator)
            return
        tensors, (first, end), before = self.tensors, band.outputs[index], dict(self.tensors.places)
        rows, constants = dict.fromkeys(g.writes(operator), end - first), {}
        for name, root in self.cutter.sources(operator).items():
            if not isinstance(operator, g.Gather):
                begin, stop = band.inputs[index, root]
                tensors.places[name] = self.part(held[root], root, begin, stop)
                rows[root] = stop - begin
        match operator:
            case g.Conv() | g.MaxPool() | g.AvgPool():
                kernel, stride, top = vertical(self.graph, operator)
                source = self.cutter.root(operator.input)
                above = top - first * stride + band.inputs[index, source][0]
                below = (end - first - 1) * stride + kernel - rows[source] - above
                operator = dataclasses.replace(operator, padding=(above, below, *operator.padding[2:]))
            case g.Attention():
                operator = self.windows(operator, first, end, rows, constants)
            case g.Gather():
                tensors.places[operator.input] = held[self.cutter.root(operator.input)][0]
                constants[f"{operator.name}/index"] = self.local(operator, first, end, held)
        for name in g.writes(operator):
            if name in outlive and (name, number) in self.schedule.chip:
                whole = self.shapes[name]
                window = self.schedule.places[name].window
                tensors.parts[name] = whole.rows * whole.width, first * whole.width, window
        tensors.graph = self.lowering.graph = _View(self.graph, rows, constants)
        copies, tensors.copies = tensors.copies, {}
        getattr(self.lowering, operator.op)(index, operator)
        tensors.graph = self.lowering.graph = self.graph
        tensors.copies = copies
        made = {name: tensors.places[name] for name in g.writes(operator)}
        tensors.places.clear()
        tensors.places |= before
        for name, place in made.items():
            whole = self.shapes[name]
            if tensors.parts.pop(name, None):
                held[name] = tensors.wholes[name], ((0, whole.rows),)
                continue
            held[name] = place, ((first, end),)
            if name in outlive:
                if name not in self.homes:
                    self.homes[name] = self.home(name, place, whole.rows * whole.width)
                self.store(name, place, first * whole.width, index)

    def part(self, held: tuple[Place, tuple[Rows, ...]], name: str, begin: int, stop: int) -> Place:
        """Rows begin..stop of a tensor of which more is there."""
        place, ((origin, _), *more) = held
        width = self.shapes[name].width
        assert not more and begin >= origin
        offset = place.offset + place.rows_before(self.accelerator, (begin - origin) * width)
        return dataclasses.replace(place.resized((stop - begin) * width), offset=offset)

    def windows(
        self, operator: g.Attention, first: int, end: int, rows: dict[str, int], constants: dict
    ) -> g.Attention:
        """The attention of the windows in rows first..end of its output; sizes and biases of these."""
        total = self.shapes[operator.output].rows
        begin, stop = (row * operator.windows // total for row in (first, end))
        for name in (operator.keys, operator.values):
            tokens = self.graph.tensor(name).positions // operator.windows
            rows[name] = (stop - begin) * tokens
        if operator.bias:
            bias = self.graph.constant(operator, "bias")
            constants[f"{operator.name}/bias"] = bias[begin:stop] if len(bias) > 1 else bias
        return dataclasses.replace(operator, windows=stop - begin)

    def local(self, operator: g.Gather, first: int, end: int, held: _Held) -> np.ndarray:
        """The positions behind rows first..end of a gather, counted in what is there of its input."""
        root = self.cutter.root(operator.input)
        made, read = self.shapes[operator.output], self.shapes[root]
        index = self.graph.constant(operator, "index")[first * made.width : end * made.width].astype(np.int64)
        found, at = np.full(len(index), -1), 0
        for begin, stop in held[root][1]:
            inside = (index >= begin * read.width) & (index < stop * read.width)
            found[inside] = index[inside] - begin * read.width + at
            at += (stop - begin) * read.width
        assert (found >= 0).all()
        return found

    def copy(self, home: Place, rows: int) -> Buffer:
        """Rows in the scratchpad for a tensor in DRAM."""
        return Buffer(name=home.buffer.name, memory=Memory.SCRATCHPAD, rows=rows, spare=home.buffer.spare)

    def home(self, name: str, place: Place, positions: int) -> Place:
        """The whole tensor in DRAM."""
        whole = place.resized(positions, self.schedule.places[name].window)
        rows = place.buffer.rows if positions == place.positions else whole.rows(self.accelerator)
        buffer = Buffer(name=name, memory=Memory.OUTSIDE, rows=rows, spare=place.buffer.spare)
        return dataclasses.replace(whole, buffer=buffer, offset=0)

    def load(self, name: str, place: Place, first: int, tag: int, whole: bool = False) -> None:
        """A LOAD of positions `first`... to `place`."""
        rows, home = place.rows(self.accelerator), self.homes[name]
        outside, at = home.buffer, home.rows_before(self.accelerator, first)
        values = {"target": Memory.SCRATCHPAD.value, "row": place.at(), "rows": rows}
        reads = ()
        if name == self.graph.input:
            values |= {"region": Region.INPUT, "offset": at * self.pitch}
        elif name in self.data:
            values |= {"region": Region.WEIGHTS, "offset": Content(self.data[name], at * self.pitch)}
        else:
            values |= {"region": Region.SCRATCH, "offset": Bytes(outside, at, self.pitch)}
            reads = (Span(outside, at, rows),)
        writes = (Span(place.buffer, place.offset, rows),)
        items = self.tensors.items
        at = self.start if self.early and whole else len(items)
        if any(span.buffer is outside for item in items[at:] for span in item.writes):
            at = len(items)
        made = Item(opcode=Opcode.LOAD, tag=tag, values=values, reads=reads, writes=writes)
        items.insert(at, made)

    def store(self, name: str, place: Place, first: int, tag: int) -> None:
        """A STORE of `place` to positions `first`... of the tensor in DRAM."""
        rows, home = place.rows(self.accelerator), self.homes[name]
        outside, at = home.buffer, home.rows_before(self.accelerator, first)
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
