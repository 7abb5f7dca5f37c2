"""LayerNorm's statistics taken while what it reads is drained (docs/machine.md, `moments` and `summed`)."""

from __future__ import annotations

from ..arch import graph as g
from ..arch.isa import Moments, Opcode
from .ir import At, Buffer, Item, Memory, Place, Span
from .tensors import Tensors

__all__ = ["kept"]


def kept(tensors: Tensors, name: str, x: Place) -> Buffer | None:
    """Row moments of the tensor `name`, which a LAYERNORM reads at `x`: its writers get the fields that keep them. None where
    they cannot: the drain must write all channels, and no others, of the same tiles."""
    a = tensors.accelerator
    if not (a.row_moments and tensors.summed) or x.slots is not None:
        return None
    tag = _producer(tensors.graph, name)
    writers = [item for item in tensors.items if item.tag == tag and _writes(item, x)]
    if not writers or not all(_keeps(tensors, item, x) for item in writers):
        return None
    if sum(_steps(item) for item in writers) * a.drain != x.channels:
        return None
    if writers[0].values.get("moments"):  # for another reader
        return writers[0].values["second_dst"].buffer
    positions = {item.values["positions"] for item in writers}
    tiles = -(-max(positions) // a.columns)
    if len(positions) > 1 or tiles > a.row_moments:
        return None
    moments = Buffer(name=f"{name}/moments", memory=Memory.ROW_MOMENTS, rows=tiles)
    for item in writers:
        how = Moments.WRITE if item is writers[0] else Moments.ADD
        item.values |= {"moments": how, "second_dst": At(moments)}
        item.writes = (*item.writes, Span(moments, 0, tiles))
    return moments


def _producer(graph: g.Graph, name: str) -> int | None:
    """The operator that computes a tensor's first positions."""
    for tag, operator in enumerate(graph.operators):
        if operator.output == name:
            alias = isinstance(operator, g.Reshape) or (isinstance(operator, g.Slice) and operator.start == 0)
            if alias:
                return _producer(graph, operator.input)
            return tag
    return None


def _writes(item: Item, x: Place) -> bool:
    return any(span.buffer is x.buffer for span in item.writes)


def _steps(item: Item) -> int:
    """Drain steps of a tile."""
    values = item.values
    return values["groups"] * values["blocks"] * values["steps"] - values.get("skip", 0)


def _keeps(tensors: Tensors, item: Item, x: Place) -> bool:
    """Whether an item can keep moments of what it writes to the tiles of `x`."""
    values = item.values
    if item.opcode != Opcode.MATRIX or values.get("second") or values.get("maxima") or values.get("plain"):
        return False
    inside = values["dst"].buffer is x.buffer and 0 <= values["dst"].offset - x.offset < x.stride
    return (
        inside
        and values["dst_stride"] == x.stride
        and values["positions"] >= x.reach(tensors.accelerator)
        and _steps(item) >= tensors.accelerator.moment_steps
    )
