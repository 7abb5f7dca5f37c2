"""Lowering: every operator of a graph to items on tensors in the scratchpad, in an order that keeps engines busy."""

from __future__ import annotations

import numpy as np

from ..arch import graph as g
from ..arch import numerics
from ..arch.accelerator import TABLE_ROW_BYTES
from ..arch.isa import Destination, FetchMode, Opcode, VectorOp
from . import attention, windows
from .ir import At, Item, Memory, Page, Place, Span
from .matrix import Operand, Output, Params, emit
from .rows import pack_norms, segments
from .tensors import Tensors

__all__ = ["lower"]


def lower(tensors: Tensors) -> None:
    """Fill `tensors` with the items of its graph; reasons why that is impossible go to `tensors.problems`."""
    graph = tensors.graph
    if len(graph.operators) > 1023:
        tensors.problem(graph.name, f"a graph must have at most 1023 operators, not {len(graph.operators)}")
        return
    lowering = _Lowering(tensors)
    lowering.input()
    for tag, operator in enumerate(graph.operators):
        if not hasattr(lowering, operator.op):
            tensors.problem(operator.name, f"{operator.op} is not compiled yet")
        elif all(name in tensors.places for name in lowering.needs(operator)):
            getattr(lowering, operator.op)(tag, operator)
    if not tensors.problems and tensors.places[graph.output].slots is not None:
        tensors.problem(
            graph.output,
            f"the graph's output must have heads of a multiple of depth ({tensors.accelerator.depth})",
        )


class _Lowering:
    """One method for each kind of operator, named as `Operator.op`."""

    def __init__(self, tensors: Tensors):
        self.tensors, self.graph, self.accelerator = tensors, tensors.graph, tensors.accelerator
        self.projections: dict[str, tuple[int, g.Linear]] = {}
        """Linear layers by output: keys and values are computed where their attention is."""
        self.attentions = [op for op in self.graph.operators if isinstance(op, g.Attention)]
        self.moved = {name for op in self.attentions for name in (op.keys, op.values)}
        self.read = {self.graph.output}
        """Tensors that must be in the scratchpad."""
        for operator in self.graph.operators:
            self.read.update(self.needs(operator))

    def needs(self, operator: g.Operator) -> list[str]:
        """Tensors that the operator reads from the scratchpad."""
        return [operator.input] if isinstance(operator, g.Attention) else list(g.reads(operator))

    def input(self) -> None:
        """Place the input: as an image of joined pixels where every reader gains by that."""
        tensor = self.graph.tensor(self.graph.input)
        readers = [op for op in self.graph.operators if tensor.name in (*self.needs(op), *_attended(op))]
        if (
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
        """Content of the scratchpad that stays there."""
        tensor = self.graph.tensor(operator.output)
        place = self.tensors.output(tensor)
        value = self.graph.constant(operator, "value").reshape(tensor.positions, tensor.channels)
        place.buffer.data, place.buffer.tag = place.layout.pack(self.accelerator, value), tag

    def linear(self, tag: int, operator: g.Linear) -> None:
        self.projections[operator.output] = (tag, operator)
        if operator.output in self.read or operator.output not in self.moved:
            tensor, slots = self.graph.tensor(operator.output), None
            for op in self.attentions:
                if op.input == operator.output and (tensor.channels // op.heads) % self.accelerator.depth:
                    slots = attention.slots(tensor.channels, op.heads, self.accelerator.depth)
            self.project(tag, operator, slots, self.drained(operator, slots))

    def project(self, tag: int, operator: g.Linear, slots: tuple[int, ...] | None, output: Output) -> None:
        """A linear layer whose output channel o goes to slots[o]."""
        x = self.tensors.places[operator.input]
        if x.joined:
            raise AssertionError("only convolutions read a joined image")
        weights = self.graph.constant(operator, "weight")
        a, chunks = self.accelerator, -(-x.physical // self.accelerator.depth)
        spread = np.zeros((len(weights), chunks * a.depth), np.int8)
        spread[:, np.arange(x.channels) if x.slots is None else np.array(x.slots)] = weights
        operand = Operand(
            place=x, mode=FetchMode.LINEAR, positions=x.positions, chunks=chunks, group_chunks=chunks
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
        if output.destination != Destination.SCRATCHPAD:  # zeros up to the end of the last head
            order = np.pad(order, (0, -len(order) % output.unit(self.accelerator)), constant_values=-1)
        schemes = self.graph.constant(operator, "scheme")
        parts = segments(order, schemes, self.accelerator, output.unit(self.accelerator))
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

    def drained(self, operator: g.Operator, slots: tuple[int, ...] | None = None) -> Output:
        """Places of the tensors that a drain writes, and its residual."""
        drain, second, residual = operator.drain, None, None
        if drain.residual is not None:
            residual = (drain.residual, self.tensors.places[drain.residual.tensor])
            if residual[1].slots != slots:
                self.tensors.problem(
                    operator.name, "a residual must have the channel order of the output, not padded heads"
                )
            if not residual[1].wide:
                self.tensors.problem(
                    operator.name, "a residual must be s16, not s8. Keep 16 bits in the residual stream"
                )
        place = self.tensors.output(self.graph.tensor(operator.output), slots)
        if drain.second is not None:
            tensor = self.graph.tensor(drain.second.tensor)
            if tensor.dtype != "s8":
                self.tensors.problem(
                    operator.name, f"the second output {tensor.name} must be s8, not {tensor.dtype}"
                )
            second = (drain.second, self.tensors.output(tensor, slots))
        return Output(place=place, second=second, residual=residual)

    def conv(self, tag: int, operator: g.Conv) -> None:
        if operator.dilation != (1, 1):
            self.tensors.problem(operator.name, f"dilation must be (1, 1), not {operator.dilation}")
        if windows.unfit(self.tensors, operator):
            self.tensors.output(self.graph.tensor(operator.output))
            return
        output = self.drained(operator)
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

    def maxpool(self, tag: int, operator: g.MaxPool) -> None:
        out = self.tensors.output(self.graph.tensor(operator.output))
        identity = Params(
            m=np.array([2]), n=np.array([1]), constant=np.array([0]), tensor=True, lo=-128, hi=127
        )
        self.pool(tag, operator, identity, Output(place=out))

    def avgpool(self, tag: int, operator: g.AvgPool) -> None:
        self.pool(tag, operator, self.params(operator), self.drained(operator))

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
        x, y = tensors.places[operator.input], tensors.output(self.graph.tensor(operator.output))
        records = pack_norms(a, self.graph.constant(operator, "g"), self.graph.constant(operator, "b"))
        norm = tensors.data(Memory.NORM, f"{operator.name}/norm", tag, records)
        table = numerics.rsqrt_table().astype("<u2").view(np.uint8).reshape(-1, TABLE_ROW_BYTES)
        rsqrt = tensors.data(Memory.RSQRT, "rsqrt", tag, table)
        values = {"op": VectorOp.LAYERNORM, "n": operator.n, "constant": operator.eps, "param": At(norm)}
        values |= {"lo": operator.lo, "hi": operator.hi}
        reads = (Span(norm, 0, norm.rows), Span(rsqrt, 0, rsqrt.rows))
        self.vector(tag, x, y, values, reads)

    def elementwise(self, tag: int, operator: g.Elementwise) -> None:
        x, drain = self.tensors.places[operator.input], operator.drain
        output, params, reads = self.drained(operator, x.slots), self.params(operator), ()
        values = {"op": VectorOp.ELEMENTWISE, "m": int(params.m[0]), "n": int(params.n[0])}
        values |= {"constant": int(params.constant[0]), "lo": drain.lo, "hi": drain.hi}
        if params.table is not None:
            page = self.tensors.table(operator.name, tag, params.table)
            values |= {"table": 1, "table_wide": len(params.table) > 256, "table_page": Page(page)}
            reads = (Span(page, 0, page.rows),)
        if output.residual is not None:
            residual, r = output.residual
            values |= {"residual": 1, "residual_row": r.at(), "residual_stride": r.stride}
            values |= {"residual_m": residual.m, "residual_n": residual.n}
            reads = (r.span(self.accelerator, 0, r.stride),)
        self.vector(tag, x, output.place, values, reads)
        if output.second is not None:
            second, place = output.second
            values = {"op": VectorOp.ELEMENTWISE, "m": second.m, "n": second.n, "constant": second.constant}
            values |= {"lo": second.lo, "hi": second.hi}
            self.vector(tag, output.place, place, values, ())

    def vector(self, tag: int, x: Place, y: Place, values: dict, reads: tuple[Span, ...]) -> None:
        """Append a VECTOR item from tensor x to tensor y."""
        a = self.accelerator
        values = values | {"positions": x.positions, "channels": x.physical}
        values |= {"src": x.at(), "src_stride": x.stride, "src_wide": x.wide}
        values |= {"dst": y.at(), "dst_stride": y.stride, "dst_wide": y.wide}
        used = -(-(-(-x.physical // a.vector) * a.vector * (2 if y.wide else 1)) // a.depth)
        source = x.span(a, 0, -(-x.physical * (2 if x.wide else 1) // a.depth))
        self.tensors.items.append(
            Item(
                opcode=Opcode.VECTOR,
                tag=tag,
                values=values,
                reads=(source, *reads),
                writes=(y.span(a, 0, used),),
            )
        )

    def slice(self, tag: int, operator: g.Slice) -> None:
        x, columns = self.tensors.places[operator.input], self.accelerator.columns
        if operator.start % columns:
            self.tensors.problem(
                operator.name,
                f"a slice must start at a multiple of columns ({columns}), not {operator.start}. Choose an "
                f"accelerator with other columns, or move the token to the front",
            )
        self.alias(operator, x, operator.start // columns * x.stride, operator.count)

    def reshape(self, tag: int, operator: g.Reshape) -> None:
        x = self.tensors.places[operator.input]
        tensor = self.graph.tensor(operator.output)
        if tensor.channels != x.channels:
            self.tensors.problem(
                operator.name,
                f"a reshape must keep the {x.channels} channels, not make them {tensor.channels}. Flatten with a "
                f"convolution of the image's size",
            )
        self.alias(operator, x, 0, tensor.positions)

    def alias(self, operator: g.Operator, x: Place, rows: int, positions: int) -> None:
        """The same rows under another name."""
        self.tensors.places[operator.output] = Place(
            buffer=x.buffer,
            offset=x.offset + rows,
            stride=x.stride,
            positions=positions,
            channels=x.channels,
            wide=x.wide,
            slots=x.slots,
        )


def _attended(operator: g.Operator) -> tuple[str, ...]:
    return (operator.keys, operator.values) if isinstance(operator, g.Attention) else ()
