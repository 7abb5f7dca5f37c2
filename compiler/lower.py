"""Lowering: every operator of a graph to items on tensors in the scratchpad, in an order that keeps engines busy."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..arch import graph as g
from ..arch import numerics
from ..arch.accelerator import TABLE_ROW_BYTES
from ..arch.isa import FetchMode, Opcode, Region, VectorOp
from ..arch.schemes import Scheme
from . import attention, bands, moments, moves, vector, windows
from .cuts import Schedule
from .ir import At, Content, Item, Memory, Page, Place, Span, capacity
from .matrix import Operand, Output, Params, emit
from .rows import fastest, pack_norms
from .tensors import Tensors
from .widths import code_limits, refusing, without_zero

__all__ = ["lower"]


def lower(tensors: Tensors, schedule: Schedule | None = None, early: bool = True) -> None:
    """Fill `tensors` with the items of its graph, transfers of activations included where there is a schedule of
    them (see `bands.lower`); reasons why that is impossible go to `tensors.problems`."""
    graph = tensors.graph
    if len(graph.operators) > 1023:
        tensors.problem(graph.name, f"a graph must have at most 1023 operators, not {len(graph.operators)}")
        return
    lowering = _Lowering(tensors)
    if schedule is not None:
        bands.lower(lowering, schedule, early)
        return
    if tensors.heads_ahead > 1:
        tensors.shares = moves.shares(tensors)
    lowering.streams = tensors.heads_ahead > 1
    tensors.rounded |= windows.rounded(tensors)
    lowering.input()
    for tag, operator in enumerate(graph.operators):
        if all(name in tensors.places for name in lowering.needs(operator)):
            before = len(tensors.items)
            getattr(lowering, operator.op)(tag, operator)
            tensors.ranges.append((before, len(tensors.items)))
    if not tensors.problems:
        tag = max(0, len(graph.operators) - 1)
        tensors.places[graph.output] = moves.arranged(tensors, tag, graph.output)


class _Lowering:
    """One method for each kind of operator, named as `Operator.op`."""

    def __init__(self, tensors: Tensors):
        self.tensors, self.graph, self.accelerator = tensors, tensors.graph, tensors.accelerator
        self.projections: dict[str, tuple[int, g.Linear]] = {}
        """Linear layers by output that write keys and values where their attention is."""
        self.attentions = [op for op in self.graph.operators if isinstance(op, g.Attention)]
        self.moved = {name for op in self.attentions for name in (op.keys, op.values)}
        self.read = {self.graph.output}.union(*map(self.needs, self.graph.operators))
        """Tensors that must be in the scratchpad."""
        self.wanted = self._wanted()
        """Windows in which a tensor's readers want it."""
        tensors.padded |= self._padded()
        self.room = capacity(self.accelerator, Memory.SCRATCHPAD) // 8
        """Rows that constants of a kind may keep."""
        self.streams = False
        """Whether other constants are brought in every frame."""
        self.limits = code_limits(self.graph)
        """Least and largest code of each tensor."""
        self.keeps_biases = attention.bias_rows(tensors) <= self.room
        """Biases of attention stay on chip."""

    def _wanted(self) -> dict[str, int]:
        wanted: dict[str, int] = {}
        for operator in reversed(self.graph.operators):
            if isinstance(operator, g.Attention) and operator.windows > 1:
                for name in g.reads(operator):
                    wanted[name] = self.graph.tensor(name).positions // operator.windows
            elif isinstance(operator, g.Linear | g.LayerNorm | g.Elementwise) and operator.output in wanted:
                wanted.setdefault(operator.input, wanted[operator.output])
        return wanted

    def _padded(self) -> set[str]:
        """Tensors that are gathered together with zero points, and those whose rows they are."""
        padded: set[str] = set()
        for operator in reversed(self.graph.operators):
            gathered = isinstance(operator, g.Gather) and self.graph.constant(operator, "index").min() < 0
            alias = isinstance(operator, g.Slice | g.Reshape) and operator.output in padded
            if gathered or alias:
                padded.add(operator.input)
        return padded

    def needs(self, operator: g.Operator) -> list[str]:
        """Tensors that the operator reads from the scratchpad."""
        return [operator.input] if isinstance(operator, g.Attention) else list(g.reads(operator))

    def input(self) -> None:
        """Place the input: in blocks of pixels where its reader gains by that, or joined where every reader does."""
        tensor = self.graph.tensor(self.graph.input)
        readers = [op for op in self.graph.operators if tensor.name in (*self.needs(op), *_attended(op))]
        if (
            len(readers) == 1
            and tensor.name != self.graph.output
            and windows.blocked(self.tensors, readers[0])
        ):
            (height, width, channels), (by, bx) = tensor.shape, readers[0].stride
            place = self.tensors.place(tensor.name, height * width // (by * bx), by * bx * channels, False)
            self.tensors.places[tensor.name] = dataclasses.replace(place, block=(by, bx), width=width // bx)
        elif (
            readers
            and tensor.name != self.graph.output
            and all(windows.joins(self.tensors, op) for op in readers)
        ):
            height, width, channels = tensor.shape
            place = self.tensors.place(tensor.name, height, width * channels, False, joined=True)
            self.tensors.places[tensor.name] = place
        else:
            self.tensors.output(tensor)

    def constant(self, tag: int, operator: g.Constant) -> None:
        """Content of the scratchpad: it stays there, or is brought in every frame where it would take much of it."""
        tensor = self.graph.tensor(operator.output)
        place = self.tensors.output(tensor)
        value = self.graph.constant(operator, "value").reshape(tensor.positions, tensor.channels)
        data = place.layout.pack(self.accelerator, value)
        if self.streams and len(data) > self.room:
            values = {"target": Memory.SCRATCHPAD.value, "region": Region.WEIGHTS, "rows": len(data)}
            values |= {"offset": Content(data, 0), "row": place.at()}
            writes = (Span(place.buffer, 0, len(data)),)
            self.tensors.items.append(Item(opcode=Opcode.LOAD, tag=tag, values=values, writes=writes))
        else:
            place.buffer.data, place.buffer.tag = data, tag

    def linear(self, tag: int, operator: g.Linear) -> None:
        drain = operator.drain
        plain = not (drain.residual or drain.second or drain.table) and drain.lo <= 0 <= drain.hi
        if plain and operator.output in self.moved:
            self.projections[operator.output] = (tag, operator)
            if operator.output not in self.read:
                return
        tensor, slots = self.graph.tensor(operator.output), None
        for op in self.attentions:
            if op.input == operator.output:
                slots = attention.slots(tensor.channels, op.heads, self.accelerator.depth)
        place = self.tensors.places[operator.input]
        window = self.window(operator) or self.wanted.get(operator.output, 0)
        x = moves.arranged(self.tensors, tag, operator.input, window, place.slots)
        self.project(tag, operator, x, slots, self.drained(tag, operator, slots, x.window))

    def window(self, operator: g.Operator) -> int:
        """Windows of an output whose positions are those of the input: a residual's, or else the input's."""
        drain = g.drained(operator)
        source = operator.input if drain is None or drain.residual is None else drain.residual.tensor
        return self.tensors.places[source].window

    def project(
        self, tag: int, operator: g.Linear, x: Place, slots: tuple[int, ...] | None, output: Output
    ) -> None:
        """A linear layer of x whose output channel o goes to slots[o]."""
        if x.joined:
            raise AssertionError("only convolutions read a joined image")
        weights = self.graph.constant(operator, "weight")
        a, chunks = self.accelerator, -(-x.physical // self.accelerator.depth)
        spread = np.zeros((len(weights), chunks * a.depth), np.int8)
        spread[:, np.arange(x.channels) if x.slots is None else np.array(x.slots)] = weights
        operand = Operand(
            place=x, mode=FetchMode.LINEAR, positions=x.reach(a), chunks=chunks, group_chunks=chunks
        )
        self.dense(tag, operator, operand, spread.reshape(len(weights), chunks, a.depth), slots, output)

    def dense(
        self,
        tag: int,
        operator: g.Linear | g.Conv,
        operand: Operand,
        weights: np.ndarray,
        slots: tuple[int, ...] | None,
        output: Output,
    ) -> None:
        """Rows of a weight matrix on the lanes of their schemes."""
        order = np.arange(len(weights))
        if slots is not None:
            order = np.full(slots[-1] + 1, -1)
            order[np.array(slots)] = np.arange(len(weights))
        order = output.padded(self.accelerator, order)
        schemes = self.graph.constant(operator, "scheme")
        a, unit = self.accelerator, output.unit(self.accelerator)
        refused, missing = (
            refusing(a.lanes, self.limits[operator.input]),
            without_zero(a.lanes, weights, schemes),
        )
        key = "segments", order.tobytes(), schemes.tobytes(), unit, refused, missing, operand.chunks
        parts = self.tensors.once(
            key, lambda: fastest(order, schemes, a, unit, refused, operand.chunks, missing)
        )
        kinds = np.array(self.accelerator.lanes.kinds)
        used = np.concatenate([kinds[part.lanes].ravel()[: len(order) - part.base] for part in parts])
        found, counts = np.unique(used[order >= 0], return_counts=True)
        self.tensors.rows_by_kind[operator.name] = {
            Scheme(kind): int(count) for kind, count in zip(found, counts, strict=True)
        }
        emit(
            self.tensors,
            tag,
            operator.name,
            operand=operand,
            weights=weights,
            order=order,
            parts=parts,
            params=self.params(operator),
            output=output,
        )

    def params(self, operator: g.Linear | g.Conv | g.AvgPool | g.Elementwise) -> Params:
        """The operator's requantizer."""
        drain, constant = operator.drain, self.graph.constant
        return Params(
            m=constant(operator, "m"),
            n=constant(operator, "n"),
            constant=constant(operator, "C"),
            tensor=not isinstance(operator, g.Linear | g.Conv),
            lo=drain.lo,
            hi=drain.hi,
            table=constant(operator, "table") if drain.table else None,
        )

    def drained(
        self, tag: int, operator: g.Operator, slots: tuple[int, ...] | None = None, window: int = 0
    ) -> Output:
        """Places of the tensors that a drain writes, and its residual."""
        drain, second, residual = operator.drain, None, None
        if drain.residual is not None:
            addend = moves.arranged(self.tensors, tag, drain.residual.tensor, window, slots)
            residual = (drain.residual, addend)
            if not addend.wide:
                self.tensors.problem(
                    operator.name, "a residual must be s16, not s8. Keep 16 bits in the residual stream"
                )
        place = self.in_place(tag, operator, residual[1]) if residual else None
        if place is None:
            place = self.tensors.output(self.graph.tensor(operator.output), slots, window)
        if drain.second is not None:
            tensor = self.graph.tensor(drain.second.tensor)
            if tensor.dtype != "s8":
                self.tensors.problem(
                    operator.name, f"the second output {tensor.name} must be s8, not {tensor.dtype}"
                )
            second = (drain.second, self.tensors.output(tensor, slots, window))
        return Output(place=place, second=second, residual=residual)

    def in_place(self, tag: int, operator: g.Operator, addend: Place) -> Place | None:
        """The residual's place for the output, where nobody reads the residual afterwards: a drain reads each code
        of it before it writes the output's there."""
        tensors, graph = self.tensors, self.graph
        y, buffer = graph.tensor(operator.output), addend.buffer
        later = [name for op in graph.operators[tag + 1 :] for name in (*g.reads(op), *self.needs(op))]
        later += [
            graph.output,
            *(name for name in g.reads(operator) if name != operator.drain.residual.tensor),
        ]
        mine = {name for name, place in tensors.places.items() if place.buffer is buffer}
        if (
            not self.streams
            or isinstance(operator, g.Elementwise | g.Multiply)
            or buffer.data is not None
            or addend is not tensors.places.get(operator.drain.residual.tensor)
            or (y.positions, y.channels, y.dtype) != (addend.positions, addend.channels, "s16")
            or addend.window
            or buffer.spare
            or y.name in tensors.padded | tensors.shares.keys() | tensors.parts.keys()
            or not mine.isdisjoint(later)
            or graph.input in mine
        ):
            return None
        tensors.places[y.name] = addend
        return addend

    def conv(self, tag: int, operator: g.Conv) -> None:
        self.image(tag, operator, slots=operator.groups == 1)
        if windows.unfit(self.tensors, operator):
            self.tensors.output(self.graph.tensor(operator.output))
            return
        output = self.drained(tag, operator)
        if operator.groups > 1:
            parts = windows.grouped(self.tensors, operator)
            for operand, weights, part, groups in parts:
                emit(
                    self.tensors,
                    tag,
                    operator.name,
                    operand=operand,
                    weights=weights,
                    order=np.arange(len(weights)),
                    parts=[part],
                    groups=groups,
                    params=self.params(operator),
                    output=output,
                )
        else:
            operand, weights = windows.convolution(self.tensors, operator)
            self.dense(tag, operator, operand, weights, None, output)

    def image(self, tag: int, operator: windows.Window, slots: bool = False) -> None:
        """Positions of the input one after the other, and its channels too unless `slots`."""
        places, name = self.tensors.places, operator.input
        if not places[name].joined and places[name].block == (1, 1):
            places[name] = moves.arranged(
                self.tensors, tag, name, slots=places[name].slots if slots else None
            )

    def maxpool(self, tag: int, operator: g.MaxPool) -> None:
        self.image(tag, operator)
        out = self.tensors.output(self.graph.tensor(operator.output))
        identity = Params(
            m=np.array([2]), n=np.array([1]), constant=np.array([0]), tensor=True, lo=-128, hi=127
        )
        self.pool(tag, operator, identity, Output(place=out))

    def avgpool(self, tag: int, operator: g.AvgPool) -> None:
        self.image(tag, operator)
        self.pool(tag, operator, self.params(operator), self.drained(tag, operator))

    def pool(self, tag: int, operator: g.MaxPool | g.AvgPool, params: Params, output: Output) -> None:
        """A depthwise window of ones."""
        if windows.unfit(self.tensors, operator):
            return
        operand, weights, part, groups = windows.pooling(self.tensors, operator)
        emit(
            self.tensors,
            tag,
            operator.name,
            operand=operand,
            weights=weights,
            order=np.arange(len(weights)),
            parts=[part],
            groups=groups,
            params=params,
            output=output,
        )

    def attention(self, tag: int, operator: g.Attention) -> None:
        attention.lower(self, tag, operator)

    def layernorm(self, tag: int, operator: g.LayerNorm) -> None:
        tensors, a = self.tensors, self.accelerator
        x = moves.arranged(tensors, tag, operator.input, self.window(operator))
        y = tensors.output(self.graph.tensor(operator.output), window=x.window)
        records = pack_norms(a, self.graph.constant(operator, "g"), self.graph.constant(operator, "b"))
        norm = tensors.data(Memory.NORM, f"{operator.name}/norm", tag, records)
        table = numerics.rsqrt_table().astype("<u2").view(np.uint8).reshape(-1, TABLE_ROW_BYTES)
        rsqrt = tensors.data(Memory.RSQRT, "rsqrt", tag, table)
        values = {"op": VectorOp.LAYERNORM, "n": operator.n, "constant": operator.eps, "param": At(norm)}
        values |= {"lo": operator.lo, "hi": operator.hi}
        reads = (Span(norm, 0, norm.rows), Span(rsqrt, 0, rsqrt.rows))
        sums = moments.kept(tensors, operator.input, x)
        if sums is not None:
            values |= {"summed": 1, "index": At(sums)}
            reads = (*reads, Span(sums, 0, -(-x.reach(a) // a.columns)))
        vector.append(tensors, tag, x, y, values, reads)

    def elementwise(self, tag: int, operator: g.Elementwise) -> None:
        self.unary(tag, operator, {"op": VectorOp.ELEMENTWISE}, ())

    def multiply(self, tag: int, operator: g.Multiply) -> None:
        x, single = self.tensors.places[operator.input], self.graph.tensor(operator.other).positions == 1
        b = moves.arranged(self.tensors, tag, operator.other, 0 if single else x.window, x.slots)
        values = {"op": VectorOp.MULTIPLY, "residual_row": b.at(), "residual_stride": b.stride}
        values |= {"residual_wide": b.wide, "broadcast": single and x.positions > 1}
        self.unary(tag, operator, values, (b.span(self.accelerator, 0, b.stride),))

    def unary(
        self, tag: int, operator: g.Elementwise | g.Multiply, values: dict, reads: tuple[Span, ...]
    ) -> None:
        """One code after the other, drained per tensor."""
        drain, params = operator.drain, self.params(operator)
        slots = self.tensors.places[operator.input].slots
        x = moves.arranged(self.tensors, tag, operator.input, self.window(operator), slots)
        output = self.drained(tag, operator, slots, x.window)
        values |= {"m": int(params.m[0]), "n": int(params.n[0])}
        values |= {"constant": int(params.constant[0]), "lo": drain.lo, "hi": drain.hi}
        if params.table is not None:
            page = self.tensors.table(operator.name, tag, params.table)
            values |= {"table": 1, "table_wide": len(params.table) > 256, "table_page": Page(page)}
            reads = (*reads, Span(page, 0, page.rows))
        if output.residual is not None:
            residual, r = output.residual
            values |= {"residual": 1, "residual_row": r.at(), "residual_stride": r.stride}
            values |= {"residual_m": residual.m, "residual_n": residual.n}
            reads = (*reads, r.span(self.accelerator, 0, r.stride))
        vector.append(self.tensors, tag, x, output.place, values, reads)
        if output.second is not None:
            second, place = output.second
            values = {"op": VectorOp.ELEMENTWISE, "m": second.m, "n": second.n, "constant": second.constant}
            values |= {"lo": second.lo, "hi": second.hi}
            vector.append(self.tensors, tag, output.place, place, values)

    def gather(self, tag: int, operator: g.Gather) -> None:
        moves.gather(self, tag, operator)

    def concat(self, tag: int, operator: g.Concat) -> None:
        moves.concat(self, tag, operator)

    def slice(self, tag: int, operator: g.Slice) -> None:
        moves.slice_(self, tag, operator)

    def reshape(self, tag: int, operator: g.Reshape) -> None:
        x = self.tensors.places[operator.input]
        tensor = self.graph.tensor(operator.output)
        if tensor.channels != x.channels:
            self.tensors.problem(
                operator.name,
                f"a reshape must keep the {x.channels} channels, not make them {tensor.channels}. Flatten with a "
                f"convolution of the image's size",
            )
        self.tensors.places[tensor.name] = x


def _attended(operator: g.Operator) -> tuple[str, ...]:
    return (operator.keys, operator.values) if isinstance(operator, g.Attention) else ()
